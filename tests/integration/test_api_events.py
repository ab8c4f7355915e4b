"""Server-Sent Events of a job and of the farm: what is told, in which order, and how a client goes on after a break."""

import base64
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from api.watching import sse
from api_client import WORKER, heartbeat
from api_process import serving
from cli import watch
from cli.client import FarmClient
from farm.ledger import Ledger
from farm.ledger.previews import PREVIEWS_CHANNEL
from farm.settings import Settings
from servers import valkey
from waiting import PATIENCE_S, wait_for


@pytest.fixture(autouse=True)
def _streams_end(monkeypatch):
    """Let no stream go on for ever when what it waits for does not come."""
    monkeypatch.setattr(sse, "LONGEST_S", PATIENCE_S)


@pytest.fixture
def told(monkeypatch):
    """Return a function that tells the data of all events of a name so far, while their streams go on."""
    made, event = [], sse.event

    def note(name, data, event_id=None):
        made.append((name, json.loads(data)))
        return event(name, data, event_id)

    monkeypatch.setattr(sse, "event", note)
    return lambda name: [data for each, data in made if each == name]


def parse(text):
    """Return the events of a stream as (name, id, data); comments are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "event" in fields:
            events.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return events


@contextmanager
def meanwhile(do):
    """Do something in another thread, and hear of its failure."""
    failures = []

    def run():
        try:
            do()
        except BaseException as error:  # noqa: BLE001  asserted below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(2 * PATIENCE_S)
    assert not thread.is_alive()
    assert not failures, failures


def is_heard(api, channel):
    """Tell whether an API's watcher hears what is told from now on."""
    return dict(api.parts.ledger._connection.redis.pubsub_numsub(channel))[channel.encode()]


def events_of(api, job, *, last_event_id=None, **query):
    """Return all events of a job's stream, to its end."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    answer = api.get(f"/v1/jobs/{job['id']}/events", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    return parse(answer.text)


def test_a_job_is_told_from_its_first_image_to_its_end(api, told):
    """Jobs with growing counts, every image once with its signed URL, then the end; nothing after it."""
    job = api.post_job(num_images_per_prompt=6)

    def work():
        hints = api.work()
        wait_for(lambda: told("job"))
        for number, hint in enumerate(hints[:4], start=1):
            api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1)
            wait_for(lambda number=number: told("job")[-1]["counts"]["stored"] == number)
        api.parts.ledger.failed(hints[4], WORKER, "boom", final=True)
        api.delete(f"/v1/jobs/{job['id']}/images/5")

    with meanwhile(work):
        events = events_of(api, job, after=0)

    assert next(data for name, _, data in events if name == "job")["id"] == job["id"]
    settled = [data["counts"]["stored"] + data["counts"]["failed"] for name, _, data in events if name == "job"]
    assert settled == sorted(settled)
    assert set(range(5)) <= set(settled), "each of the images was waited for"
    images = [data for name, _, data in events if name == "image"]
    assert [image["index"] for image in images] == [0, 1, 2, 3, 4, 5]
    assert [image["state"] for image in images] == ["stored"] * 4 + ["failed", "cancelled"]
    assert all(image["url"].startswith("http://images.example:8333/farm/") for image in images[:4])
    assert images[4]["error"] == "boom"
    assert [name for name, _, _ in events[-2:]] == ["job", "end"]
    assert events[-1][1:] == ("6-over", {"object": "end", "state": "failed"})


def test_an_image_event_is_what_the_image_is_at_its_own_path(api):
    """Field by field, but for the signature's moment."""
    job = api.post_job(num_images_per_prompt=2, output={"thumbnail_px": 64})
    api.render()
    told = [data for name, _, data in events_of(api, job, after=0) if name == "image"]
    listed = api.get(job["links"]["images"]).json()["data"]
    for one, other in zip(told, listed, strict=True):
        for image in (one, other):
            image["url"], image["thumbnail_url"] = (image[name].partition("?")[0] for name in ("url", "thumbnail_url"))
        assert one == other


def test_a_client_that_comes_again_misses_nothing_and_hears_nothing_twice(api):
    """Whatever the last event it had, the rest of the images are told; after the last one there is nothing."""
    job = api.post_job(num_images_per_prompt=5)
    api.render()
    whole = events_of(api, job, after=0)
    ids = [event_id for _, event_id, _ in whole]
    assert ids == ["1", "2", "3", "4", "5", "5", "5-over"]
    for last in range(6):
        rest = events_of(api, job, last_event_id=str(last))
        assert [data["index"] for name, _, data in rest if name == "image"] == list(range(last, 5))
        assert [name for name, _, _ in rest[-2:]] == ["job", "end"]
    over = api.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "5-over"})
    assert (over.status_code, over.content) == (204, b"")


def test_a_job_that_is_taken_up_again_goes_on_after_its_end(api):
    """The id of an end that was not the last leads to what came after it."""
    job = api.post_job(num_images_per_prompt=2)
    for hint in api.work():
        api.parts.ledger.failed(hint, WORKER, "boom", final=True)
    last_id = events_of(api, job, after=0)[-1][1]
    assert last_id == "2-over"
    api.post(f"/v1/jobs/{job['id']}/retry")  # which also hands them out

    def work():
        for hint in api.parts.ledger.rehint("scenes", older_than_s=-60):
            assert api.parts.ledger.claim(hint, WORKER)
            api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1)

    with meanwhile(work):
        events = events_of(api, job, last_event_id=last_id)
    assert sorted(data["index"] for name, _, data in events if name == "image") == [0, 1]
    assert events[-1][2]["state"] == "done"


def test_without_a_start_only_what_happens_from_now_on_is_told(api, told):
    """Images from before are not, unless they are asked for."""
    job = api.post_job(num_images_per_prompt=3)
    hints = api.work()
    api.parts.ledger.stored(hints[0], WORKER, gpu_s=0.5, render_s=1)

    def work():
        wait_for(lambda: told("job"))
        for hint in hints[1:]:
            api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1)

    with meanwhile(work):
        events = events_of(api, job)
    assert events[0][:2] == ("job", "1")
    assert [data["index"] for name, _, data in events if name == "image"] == [1, 2]


def test_previews_are_told_where_they_are_asked_for(api, told):
    """Workers learn that somebody watches; each picture is sent once, with how far the image is."""
    job = api.post_job()
    (hint,) = api.work()
    ledger = api.parts.ledger

    def work():
        wait_for(lambda: told("job") and is_heard(api, PREVIEWS_CHANNEL))
        assert ledger.put_preview(hint, WORKER, step=5, steps=20, jpeg=b"first")
        wait_for(lambda: len(told("preview")) == 1)
        assert ledger.put_preview(hint, WORKER, step=7, steps=20)
        wait_for(lambda: len(told("preview")) == 2)
        ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1)

    with meanwhile(work):
        events = events_of(api, job, previews=5)
    previews = [
        (data["index"], data["step"], data["steps"], data["url"]) for name, _, data in events if name == "preview"
    ]
    url = f"data:image/jpeg;base64,{base64.b64encode(b'first').decode()}"
    assert previews == [(0, 5, 20, url), (0, 7, 20, None)]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({"previews": 0}, {}),
        ({"after": -1}, {}),
        ({"before": 1}, {}),
        ({}, {"Last-Event-ID": "yesterday"}),
        ({}, {"Last-Event-ID": "9" * 40}),
    ],
)
def test_what_makes_no_sense_is_refused(api, query, headers):
    """422 before anything is streamed."""
    job = api.post_job()
    answer = api.get(f"/v1/jobs/{job['id']}/events", params=query, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def test_a_job_of_another_tenant_is_not_there(make_api):
    """404, as for one that nobody has."""
    api = make_api(trust_tenant_header=True)
    job = api.post_job(headers={"Farm-Tenant": "alice"})
    for path in (f"/v1/jobs/{job['id']}/events", "/v1/jobs/job_0000z3k9v1q8m4t7x2c5/events"):
        assert api.get(path, headers={"Farm-Tenant": "bob"}).status_code == 404


def test_a_stream_with_nothing_to_tell_lives(api, monkeypatch):
    """Comments between events: proxies close what is silent."""
    silences, within = [], sse.within

    async def note(seconds, awaitable):
        found = await within(seconds, awaitable)
        if found is None:
            silences.append(seconds)
        return found

    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(sse, "within", note)
    job = api.post_job()

    def work():
        wait_for(lambda: len(silences) >= 2)
        api.parts.ledger.cancel(job["id"])

    with meanwhile(work):
        answer = api.get(f"/v1/jobs/{job['id']}/events")
    assert answer.text.startswith("retry: ")
    assert answer.text.count("\n: ") >= 2


def test_a_stream_ends_within_its_time(api, monkeypatch):
    """The client is to come again, and is not told that the job has ended."""
    monkeypatch.setattr(sse, "LONGEST_S", 0.3)
    job = api.post_job()
    answer = api.get(f"/v1/jobs/{job['id']}/events")
    assert {name for name, _, _ in parse(answer.text)} <= {"job"}


def test_a_head_of_a_stream_does_not_wait_for_it(api):
    """Its headers, at once, though the job goes on."""
    job = api.post_job()
    for path in (f"/v1/jobs/{job['id']}/events", "/v1/events"):
        began_s = time.monotonic()
        head = api.head(path)
        assert time.monotonic() - began_s < PATIENCE_S / 2
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")


def test_the_farm_is_told_to_each_as_far_as_it_is_theirs(make_api, told):
    """Sync first; then jobs as they are opened and change, a tenant's own; and throughput."""
    api = make_api(trust_tenant_header=True)
    heard = {}

    def listen(tenant):
        heard[tenant] = parse(api.get("/v1/events", headers={"Farm-Tenant": tenant} if tenant else {}).text)

    def told_as(state):
        return {data["id"] for data in told("job") if data["state"] == state}

    with meanwhile(lambda: listen("alice")), meanwhile(lambda: listen(None)):
        wait_for(lambda: len(api.parts.bulletin._readers) == 2 and is_heard(api, "farm:changes"))
        jobs = {name: api.post_job(headers={"Farm-Tenant": name})["id"] for name in ("alice", "bob")}
        wait_for(lambda: told_as("queued") == set(jobs.values()))
        api.render()
        wait_for(lambda: told_as("done") == set(jobs.values()) and told("throughput"))
        api.portal.call(api.parts.watcher.close)  # the API stops, and its streams with it

    for tenant, events in heard.items():
        names = [name for name, _, _ in events]
        assert names[0] == "sync"
        assert "throughput" in names
        mine = {"alice"} if tenant else {"alice", "bob"}
        theirs = [(data["id"], data["state"]) for name, _, data in events if name == "job"]
        assert {job_id for job_id, _ in theirs} == {jobs[name] for name in mine}
        for name in mine:
            states = [state for job_id, state in theirs if job_id == jobs[name]]
            assert (states[0], states[-1]) == ("queued", "done")


def test_a_stream_outlives_an_outage_and_the_api_does_not_wait_for_streams_to_end(tmp_path):
    """Told of the outage, then of all that happened; SIGTERM ends open streams and the process within a moment.

    `farm watch` lives through it as well.
    """
    with (
        valkey() as server,
        serving(server.url, tmp_path / "log") as served,
        FarmClient(f"http://127.0.0.1:{served.port}") as client,
        ThreadPoolExecutor(1) as pool,
    ):
        ledger = Ledger.connect(Settings(redis_url=server.url, lease_s=1e6))
        url = f"http://127.0.0.1:{served.port}"
        body = {"model": "scenes", "prompts": ["a"], "num_images_per_prompt": 4}
        job = httpx.post(f"{url}/v1/jobs", json=body, timeout=PATIENCE_S).json()
        other = httpx.post(f"{url}/v1/jobs", json={**body, "num_images_per_prompt": 1}, timeout=PATIENCE_S).json()
        ledger.report(heartbeat())
        hints = ledger.feed("scenes")
        assert all(ledger.claim(hint, WORKER) for hint in hints)
        (last,) = [hint for hint in hints if hint.job == other["id"]]
        hints.remove(last)
        watched = pool.submit(watch.follow, client, other)
        stream = httpx.stream("GET", f"{url}/v1/jobs/{job['id']}/events", timeout=PATIENCE_S)
        with stream as answer, httpx.stream("GET", f"{url}/v1/events", timeout=PATIENCE_S) as farm_answer:
            lines = answer.iter_lines()

            def next_event(name):
                for line in lines:
                    if line == f"event: {name}":
                        return json.loads(next(lines).removeprefix("data: "))
                raise AssertionError(f"no {name} before the end")

            next_event("job")
            ledger.stored(hints[0], WORKER, gpu_s=0.5, render_s=1)
            assert next_event("image")["index"] == 0
            server.kill()
            next_event("outage")
            assert httpx.get(f"{url}/v1/jobs/{job['id']}/events", timeout=PATIENCE_S).status_code == 503
            server.start()
            ledger.stored(hints[1], WORKER, gpu_s=0.5, render_s=1)
            assert next_event("image")["index"] == 1
            ledger.stored(last, WORKER, gpu_s=0.5, render_s=1)
            assert watched.result(PATIENCE_S)["state"] == "done"

            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
            assert "event: end" not in list(lines)
            assert "event: end" not in list(farm_answer.iter_lines())
        assert "Application shutdown complete" in (tmp_path / "log").read_text()
        assert "exceeded" not in (tmp_path / "log").read_text()
        ledger.close()
