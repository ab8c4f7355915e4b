"""Webhooks from a job's end in the ledger to a receiver's door, through the API that runs."""

import base64
import hashlib
import hmac
import json
import re
import time
import urllib.request

import pytest

from api.app import create_app
from api.chores import Chores
from api.webhooks import deliveries
from api_client import WORKER, Api, api_settings, heartbeat
from api_process import serving as api_served
from fake_http import answering, serving
from farm.ledger import Chore, Ledger
from farm.settings import Settings
from waiting import PATIENCE_S, wait_for

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
ALLOWED = {"webhook_secret": SECRET, "webhook_allow_private": "127.0.0.1"}
OK = (204, b"", {})


@pytest.fixture(scope="module")
def _running_api(valkey_server):
    """Run an API that may talk to this machine, looks for chores often and does not wait long between tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Chores.__init__.__kwdefaults__, "idle_s", 0.05)
        patch.setattr(deliveries, "SCHEDULE_S", (0.05, 0.1))
        with Api(create_app(api_settings(valkey_server.url, **ALLOWED))) as client:
            yield client


@pytest.fixture
def api(_running_api, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return the API, its ledger empty."""
    return _running_api


@pytest.fixture
def tries(api):
    """Return a function that tells how many tries ended so since the test began."""

    def count(outcome):
        (line,) = re.findall(
            rf'^farm_webhook_tries_total{{outcome="{outcome}"}} (.*)$', api.get("/metrics").text, re.MULTILINE
        )
        return float(line)

    before = {outcome: count(outcome) for outcome in ("delivered", "failed", "gone", "given_up")}
    return lambda outcome: count(outcome) - before[outcome]


def headers_of(request):
    """Return a request's headers in lower case."""
    return {name.lower(): value for name, value in request.headers.items()}


def is_signed(request, key=KEY):
    """Do a receiver's arithmetic."""
    headers = headers_of(request)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split()


def types_of(requests):
    """Return what the messages say, in no order: there is none."""
    return sorted(json.loads(request.body)["type"] for request in requests)


def webhooks_of(api, job, event):
    """Return what the API tells of one event of a job."""
    answer = api.get(f"/v1/jobs/{job['id']}/webhooks")
    assert answer.status_code == 200, answer.text
    (found,) = [each for each in answer.json()["data"] if each["event"] == event]
    return found


def settled(api, job, event):
    """Return what the API tells of an event as soon as it is tried no more."""
    return wait_for(
        lambda: (
            found if (found := webhooks_of(api, job, event))["state"] in {"delivered", "gone", "given_up"} else None
        ),
        event,
    )


def fail_all(api):
    """Play a worker that fails at whatever it is given."""
    for hint in api.work():
        assert api.parts.ledger.failed(hint, WORKER, "boom", final=True)


# -- what is sent, and when


def test_the_end_of_a_job_is_told(api, tries):
    """One signed message with the job as GET answers it; the farm tells that it was taken."""
    with serving(OK) as (url, seen):
        job = api.post_job(webhook={"url": f"{url}/hook"})
        assert webhooks_of(api, job, "job.done") == {
            "event": "job.done",
            "id": None,
            "state": "waiting",
            "tries": 0,
            "status": None,
            "error": None,
            "tried_at": None,
            "next_try_at": None,
        }
        api.render()
        found = settled(api, job, "job.done")
        assert len(seen) == 1
    (request,) = seen
    assert is_signed(request)
    message, now = json.loads(request.body), api.get(f"/v1/jobs/{job['id']}").json()
    assert message == {"type": "job.done", "timestamp": now["finished_at"], "data": now}
    assert headers_of(request)["webhook-id"] == f"msg_{job['id'].removeprefix('job_')}_done_1" == found["id"]
    assert (found["state"], found["tries"], found["status"], found["error"]) == ("delivered", 1, 204, None)
    assert found["tried_at"]
    assert found["next_try_at"] is None
    assert tries("delivered") == 1


def test_only_the_events_asked_for_are_told(api):
    """`job.started` is for those who want it; the end of such a job is not told then."""
    with serving(OK) as (url, seen):
        started = api.post_job(webhook={"url": url, "events": ["job.started"]})
        both = api.post_job(webhook={"url": url, "events": ["job.started", "job.done"]})
        api.post_job()
        api.render()
        settled(api, both, "job.done")
        for job in (started, both):
            settled(api, job, "job.started")
        assert types_of(seen) == ["job.done", "job.started", "job.started"]
    assert [each["event"] for each in api.get(f"/v1/jobs/{started['id']}/webhooks").json()["data"]] == ["job.started"]


def test_failed_and_cancelled_jobs_are_told(api):
    """Each end has its own type, and the state is in the data."""
    with serving(OK) as (url, seen):
        failed = api.post_job(webhook={"url": url})
        fail_all(api)
        cancelled = api.post_job(webhook={"url": url})
        api.delete(f"/v1/jobs/{cancelled['id']}")
        settled(api, failed, "job.failed")
        settled(api, cancelled, "job.cancelled")
        messages = [json.loads(request.body) for request in seen]
    states = {message["data"]["id"]: (message["type"], message["data"]["state"]) for message in messages}
    assert states == {failed["id"]: ("job.failed", "failed"), cancelled["id"]: ("job.cancelled", "cancelled")}


def test_a_job_that_fails_again_is_told_again(api):
    """After a retry of its images the same event is another message, with an id of its own."""
    with serving(OK) as (url, seen):
        job = api.post_job(webhook={"url": url})
        for num_ends in (1, 2):
            fail_all(api)
            wait_for(lambda n=num_ends: len(seen) == n)
            wait_for(lambda n=num_ends: webhooks_of(api, job, "job.failed")["id"].endswith(f"_failed_{n}"))
            api.parts.ledger.retry_failed(job["id"])
        ids = [headers_of(request)["webhook-id"] for request in seen]
    assert [each.rpartition("_")[2] for each in ids] == ["1", "2"]


def test_while_the_secret_is_changed_both_verify(make_api):
    """Two signatures on one message."""
    api = make_api(**ALLOWED | {"webhook_secret": f"{OTHER_SECRET} {SECRET}"})
    with serving(OK) as (url, seen):
        assert api.post("/v1/webhooks/test", json={"url": url}).json()["delivered"]
    assert is_signed(seen[0], KEY)
    assert is_signed(seen[0], bytes(32))


# -- what a receiver does to it


def test_a_failure_is_tried_again_under_the_same_id(api, tries):
    """The third try succeeds; the receiver sees one message three times, each signed for its own moment."""
    with serving((500, b"", {}), (302, b"", {"Location": "http://127.0.0.1:1/"}), OK) as (url, seen):
        job = api.post_job(webhook={"url": url})
        api.render()
        found = settled(api, job, "job.done")
        assert all(is_signed(request) for request in seen)
        assert len({headers_of(request)["webhook-id"] for request in seen}) == 1
        assert len(seen) == 3
    assert (found["state"], found["tries"]) == ("delivered", 3)
    assert (tries("failed"), tries("delivered")) == (2, 1)


def test_after_the_last_failure_it_is_given_up_visibly(api, tries):
    """As many tries as the schedule has, and one; then the API says what the receiver answered."""
    with serving((503, b"", {})) as (url, seen):
        job = api.post_job(webhook={"url": url})
        api.render()
        found = settled(api, job, "job.done")
        time.sleep(0.3)
        assert len(seen) == 3
    assert (found["state"], found["tries"], found["status"]) == ("given_up", 3, 503)
    assert found["error"] == "answered 503"
    assert (tries("failed"), tries("given_up")) == (2, 1)


def test_410_ends_it_at_once(api, tries):
    """The receiver wants no more."""
    with serving((410, b"", {})) as (url, seen):
        job = api.post_job(webhook={"url": url})
        api.render()
        found = settled(api, job, "job.done")
        time.sleep(0.3)
        assert len(seen) == 1
    assert (found["state"], found["tries"], found["status"]) == ("gone", 1, 410)
    assert tries("gone") == 1


def test_while_it_is_retried_the_next_try_is_told(api, monkeypatch):
    """An operator sees that the farm has not forgotten, and why it waits."""
    monkeypatch.setattr(deliveries, "SCHEDULE_S", (3600.0,))
    with serving((500, b"", {})) as (url, _):
        job = api.post_job(webhook={"url": url})
        api.render()
        found = wait_for(
            lambda: each if (each := webhooks_of(api, job, "job.done"))["state"] == "retrying" else None, "a try"
        )
    assert (found["tries"], found["status"], found["error"]) == (1, 500, "answered 500")
    assert found["next_try_at"] > found["tried_at"]


# -- processes that die


def api_process(redis_url, log_file):
    """Run the API as a process that may send webhooks to this machine."""
    return api_served(redis_url, log_file, **{f"FARM_{name.upper()}": value for name, value in ALLOWED.items()})


def kill(served):
    """Kill it the hard way."""
    served.process.kill()
    served.process.wait(PATIENCE_S)


def post(port, document):
    """POST a job to a process."""
    headers = {"Content-Type": "application/json"}
    body = json.dumps(document).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/jobs", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
        return json.load(answer)


def render_all(redis_url):
    """Play a worker straight on the ledger: no API has a part in it."""
    ledger = Ledger.connect(Settings(redis_url=redis_url))
    ledger.report(heartbeat(max_batch=32))
    for hint in ledger.feed("scenes", limit=64):
        assert ledger.claim(hint, WORKER)
        assert ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.0)
    ledger.close()


def test_an_api_killed_before_it_could_tell_does_not_lose_the_message(redis_url, tmp_path):
    """The end is committed while no API lives; the next one tells it."""
    with serving(OK) as (url, seen):
        with api_process(redis_url, tmp_path / "log") as served:
            job = post(served.port, {"model": "scenes", "prompts": ["a"], "webhook": {"url": url}})
            kill(served)
        render_all(redis_url)
        assert seen == []
        with api_process(redis_url, tmp_path / "log"):
            (request,) = wait_for(lambda: list(seen), "the message")
    assert json.loads(request.body)["data"]["id"] == job["id"]
    assert is_signed(request)


def test_an_api_killed_while_the_receiver_fails_does_not_lose_the_message(redis_url, tmp_path):
    """The next process goes on with the schedule: the same id, and the tries are counted on."""
    is_well = []
    ledger = Ledger.connect(Settings(redis_url=redis_url))
    with answering(lambda _: OK if is_well else (500, b"", {})) as (url, seen):
        with api_process(redis_url, tmp_path / "log") as served:
            job = post(served.port, {"model": "scenes", "prompts": ["a"], "webhook": {"url": url}})["id"]
            render_all(redis_url)
            # Noted in the record, and put back on the list a moment later.
            member = f"webhook|{job}|job.done|1"
            wait_for(lambda: ledger._connection.redis.hget("farm:chore_tries", member), "a failed try")
            kill(served)
        is_well.append(True)
        assert '"retrying"' in ledger.deliveries(job)["job.done"]
        with api_process(redis_url, tmp_path / "log"):
            # A process killed in mid-try would have held the chore for a lease of 60 s.
            wait_for(lambda: '"delivered"' in ledger.deliveries(job)["job.done"], "success", limit_s=2 * PATIENCE_S)
        noted = json.loads(ledger.deliveries(job)["job.done"])
        assert len(seen) >= noted["tries"] >= 2
    ledger.close()
    assert {headers_of(request)["webhook-id"] for request in seen} == {noted["id"]}


# -- what is refused


BAD_WEBHOOKS = {
    "no url": ({}, "webhook.url", None),
    "a url that is none": ({"url": "receiver"}, "webhook.url", ["https://host/path", "http://host:port/path"]),
    "another scheme": ({"url": "ftp://a.example"}, "webhook.url", ["https://host/path", "http://host:port/path"]),
    "a password": ({"url": "https://a:b@c.example"}, "webhook.url", ["https://host/path", "http://host:port/path"]),
    "metadata": ({"url": "http://169.254.169.254/"}, "webhook.url", None),
    "an address in disguise": ({"url": "http://[::ffff:10.0.0.1]/"}, "webhook.url", None),
    "no number": ({"url": 1}, "webhook.url", None),
    "an unknown event": (
        {"url": "https://a.example", "events": ["job.done", "job.gone"]},
        "webhook.events.1",
        ["job.started", "job.done", "job.failed", "job.cancelled"],
    ),
    "no events": ({"url": "https://a.example", "events": []}, "webhook.events", ["1 or more"]),
    "an unknown field": ({"url": "https://a.example", "event": "job.done"}, "webhook.event", ["url", "events"]),
}


@pytest.mark.parametrize("case", BAD_WEBHOOKS)
def test_a_webhook_that_cannot_be_is_refused_with_the_job(api, case):
    """422 with field and choices; nothing is kept."""
    webhook, field, choices = BAD_WEBHOOKS[case]
    problem = api.post_job(expect=422, webhook=webhook)
    (error,) = problem["errors"]
    assert (error["field"], error["choices"]) == (field, choices)
    assert api.get("/v1/jobs").json()["data"] == []


def test_without_a_secret_no_job_may_have_a_webhook(make_api):
    """The answer names the setting; the same job without a webhook is taken."""
    api = make_api()
    problem = api.post_job(expect=422, webhook={"url": "https://a.example"})
    assert "FARM_WEBHOOK_SECRET" in problem["errors"][0]["message"]
    api.post_job()


def test_a_job_without_a_webhook_has_none(api):
    """An empty list; and 404 for a job that is not there."""
    assert api.get(f"/v1/jobs/{api.post_job()['id']}/webhooks").json() == {"object": "list", "data": []}
    assert api.get("/v1/jobs/job_00000000000000000000/webhooks").status_code == 404


# -- testing a receiver


def test_a_receiver_can_be_tried(api):
    """A signed ping, once, under an id of its own each time; the answer tells what came of it."""
    with serving(OK, (500, b"", {})) as (url, seen):
        well = api.post("/v1/webhooks/test", json={"url": url}).json()
        ill = api.post("/v1/webhooks/test", json={"url": url}).json()
    assert (well["delivered"], well["status"], well["error"]) == (True, 204, None)
    assert (ill["delivered"], ill["status"], ill["error"]) == (False, 500, "answered 500")
    assert well["id"] != ill["id"]
    assert types_of(seen) == ["farm.ping", "farm.ping"]
    assert headers_of(seen[0])["webhook-id"] == well["id"]
    assert all(is_signed(request) for request in seen)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "http://0x0a000001:6379/"}, "url"),
        ({"url": ""}, "url"),
        ({}, "url"),
        ({"url": "https://a.example", "secret": "x"}, "secret"),
    ],
)
def test_a_test_goes_nowhere_that_a_webhook_may_not(api, body, field):
    """The same rules, told by field."""
    answer = api.post("/v1/webhooks/test", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


# -- the ledger's record


def test_the_record_goes_with_its_job(api):
    """What is noted of a job that is gone leaves no key behind."""
    ledger = api.parts.ledger
    ledger.note_delivery("job_00000000000000000000", "job.done", "{}")
    assert ledger.deliveries("job_00000000000000000000") == {}
    with serving(OK) as (url, _):
        job = api.post_job(webhook={"url": url})
        api.render()
        settled(api, job, "job.done")
    assert list(ledger.deliveries(job["id"])) == ["job.done"]
    ledger.manifest_written(job["id"])
    ledger.chore_done(Chore("manifest", job["id"], "settled", count=1, due_at=0.0, tries=0))
    assert ledger.expire_job(job["id"])
    assert ledger.deliveries(job["id"]) == {}
