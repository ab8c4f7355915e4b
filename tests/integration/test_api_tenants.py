"""Tenants over HTTP, on a real ledger: what each may take, and what of the farm each sees."""

import re
from pathlib import Path

import pytest

from api_client import WORKER, heartbeat

PAGE = Path(__file__).parents[2] / "docs" / "fairness.md"
ALICE, BOB = ({"Farm-Tenant": name} for name in ("alice", "bob"))


@pytest.fixture(scope="module")
def _behind_gateway(share_api):
    return share_api(trust_tenant_header=True)


@pytest.fixture
def gateway(_behind_gateway, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of an API that stands behind a gateway, its ledger empty: it believes the header."""
    return _behind_gateway


def slug_of(answer):
    """Return the kind of problem that an answer tells."""
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["type"].rpartition(":")[2]


# -- limits and use


def test_limits_are_set_and_use_is_told(api):
    """A PUT answers with all there is to know, and so do GET and the list."""
    limits = {"weight": 2, "max_queued_images": 10, "max_running": 3}
    tenant = api.put("/v1/tenants/default", json=limits).json()
    assert tenant == {
        "object": "tenant",
        "name": "default",
        **limits,
        "queued_images": 0,
        "running_images": 0,
        "images_stored": 0,
        "gpu_s": 0.0,
        "open_jobs": 0,
    }
    job = api.post_job(num_images_per_prompt=6)
    first, *_others = api.work(limit=8)
    assert api.parts.ledger.stored(first, WORKER, gpu_s=0.75, render_s=1.0)
    tenant = api.get("/v1/tenants/default").json()
    assert {
        name: tenant[name] for name in ("queued_images", "running_images", "images_stored", "gpu_s", "open_jobs")
    } == {
        "queued_images": 3,  # of six no more than three go out at once
        "running_images": 2,
        "images_stored": 1,
        "gpu_s": 0.75,
        "open_jobs": 1,
    }
    assert api.get("/v1/tenants").json()["data"] == [tenant]
    api.delete(job["links"]["self"])
    assert api.get("/v1/tenants/default").json()["open_jobs"] == 0


def test_a_put_sets_what_it_leaves_out_to_its_default(api):
    """PUT is all of it: a limit goes when it is not sent again."""
    api.put("/v1/tenants/alice", json={"weight": 3, "max_queued_images": 5})
    tenant = api.put("/v1/tenants/alice", json={"max_running": 1}).json()
    assert (tenant["weight"], tenant["max_queued_images"], tenant["max_running"]) == (1.0, None, 1)


def test_a_tenant_that_nobody_heard_of_has_the_defaults(api):
    """Tenants are not made: any name has its limits, and only those with some or with jobs are listed."""
    tenant = api.get("/v1/tenants/nobody").json()
    assert (tenant["weight"], tenant["max_queued_images"], tenant["open_jobs"]) == (1.0, None, 0)
    assert api.get("/v1/tenants").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": "2"}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"max_queued_images": -1}, "max_queued_images"),
        ({"max_running": 1.5}, "max_running"),
        ({"max_runing": 1}, "max_runing"),
        ([], "body"),
    ],
)
def test_limits_that_make_no_sense_are_refused(api, body, field):
    """The field is named, and nothing is kept."""
    answer = api.put("/v1/tenants/alice", json=body)
    assert (answer.status_code, slug_of(answer)) == (422, "invalid-request")
    assert answer.json()["errors"][0]["field"] == field
    assert api.get("/v1/tenants").json()["data"] == []


def test_a_slip_of_the_pen_is_answered_with_the_limit_that_was_meant(api):
    """The choices are a tenant's fields, not a job's."""
    (error,) = api.put("/v1/tenants/alice", json={"max_runing": 1}).json()["errors"]
    assert "did you mean `max_running`?" in error["message"]
    assert error["choices"] == ["weight", "max_queued_images", "max_running"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "slug"),
    [
        (b"{", {}, 400, "malformed-json"),
        (b" " * 5000, {}, 413, "body-too-large"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
    ],
)
def test_a_body_that_is_none_is_refused(api, content, headers, status, slug):
    """As for jobs: each with its own answer."""
    answer = api.put("/v1/tenants/alice", content=content, headers=headers)
    assert (answer.status_code, slug_of(answer)) == (status, slug)


@pytest.mark.parametrize("name", ["a b", "a:b", "a" * 65, "%00", "ä", "a%2Fb%0A"])
def test_a_name_that_could_be_part_of_something_else_is_refused(api, name):
    """Names become parts of keys: letters, digits, dots, underscores and dashes, 64 of them."""
    answer = api.put(f"/v1/tenants/{name}", json={})
    assert answer.status_code in (404, 422)  # a slash makes it another path
    assert api.get("/v1/tenants").json()["data"] == []


def test_a_tenants_full_queue_is_429_and_names_its_limit(api):
    """The job that would exceed it is refused as a whole, with Retry-After; when there is room it is taken."""
    api.put("/v1/tenants/default", json={"max_queued_images": 10})
    job = api.post_job(num_images_per_prompt=8)
    answer = api.post("/v1/jobs", json={"model": "scenes", "prompts": ["a"], "num_images_per_prompt": 3})
    assert (answer.status_code, slug_of(answer)) == (429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1
    assert "tenant default" in answer.json()["detail"]
    assert "(10)" in answer.json()["detail"]
    api.delete(job["links"]["self"])
    api.post_job(num_images_per_prompt=3)


def test_all_jobs_of_a_tenant_are_cancelled(gateway):
    """Waiting, running and paused ones; not those that had ended, and nobody else's."""
    done = gateway.post_job(headers=ALICE)["links"]["self"]
    gateway.render()
    waiting, paused, others = (gateway.post_job(headers=who)["links"]["self"] for who in (ALICE, ALICE, BOB))
    gateway.post(f"{paused}/pause")
    gateway.work(limit=1)
    answer = gateway.post("/v1/tenants/alice/cancel")
    assert answer.json() == {"object": "tenant.cancelled", "name": "alice", "cancelled_jobs": 2}
    states = [gateway.get(url).json()["state"] for url in (done, waiting, paused)]
    assert states == ["done", "cancelled", "cancelled"]
    assert gateway.get(others).json()["state"] in ("queued", "rendering")
    assert gateway.post("/v1/tenants/alice/cancel").json()["cancelled_jobs"] == 0


# -- who sees what


def test_a_tenant_sees_its_own_jobs_and_no_others(gateway):
    """Another's job is 404 to every method and path; the operator, who sends no header, sees both."""
    mine, other = (gateway.post_job(headers=who) for who in (ALICE, BOB))
    assert (mine["tenant"], other["tenant"]) == ("alice", "bob")
    url = other["links"]["self"]
    for method, path in (
        ("GET", url),
        ("DELETE", url),
        ("POST", f"{url}/pause"),
        ("POST", f"{url}/resume"),
        ("POST", f"{url}/retry"),
        ("GET", f"{url}/images"),
        ("GET", f"{url}/images/0"),
        ("DELETE", f"{url}/images/0"),
    ):
        answer = gateway.request(method, path, headers=ALICE)
        assert (answer.status_code, slug_of(answer)) == (404, "unknown-job"), (method, path)
    assert gateway.get(url, headers=BOB).json() == gateway.get(url).json() == other

    def listed(query="", headers=None):
        return [job["id"] for job in gateway.get(f"/v1/jobs{query}", headers=headers).json()["data"]]

    assert listed(headers=ALICE) == [mine["id"]]
    assert listed("?tenant=bob", ALICE) == []
    assert sorted(listed()) == sorted([mine["id"], other["id"]])
    assert listed("?tenant=bob") == [other["id"]]


def test_a_tenants_pages_lead_through_all_its_jobs(gateway):
    """However many jobs of others lie between."""
    ids = [gateway.post_job(headers=who)["id"] for who in (ALICE, BOB, BOB, ALICE, BOB)]
    found, url = [], "/v1/jobs?limit=1"
    while url:
        page = gateway.get(url, headers=ALICE).json()
        found += [job["id"] for job in page["data"]]
        url = page["next"]
    assert sorted(found) == sorted([ids[0], ids[3]])


def test_tenants_are_the_operators_business(gateway):
    """With the header every path of theirs is 403, its own name's too."""
    for method, path in (
        ("GET", "/v1/tenants"),
        ("GET", "/v1/tenants/alice"),
        ("PUT", "/v1/tenants/alice"),
        ("POST", "/v1/tenants/alice/cancel"),
    ):
        answer = gateway.request(method, path, headers=ALICE, json={"weight": 1000} if method == "PUT" else None)
        assert (answer.status_code, slug_of(answer)) == (403, "forbidden"), (method, path)
    assert gateway.get("/v1/tenants").json()["data"] == []


def test_an_idempotency_key_is_its_tenants_own(gateway):
    """Two clients may count their orders alike."""
    first, second = (gateway.post_job(headers={**who, "Idempotency-Key": "order-1"})["id"] for who in (ALICE, BOB))
    assert first != second
    assert gateway.post_job(headers={**ALICE, "Idempotency-Key": "order-1"})["id"] == first


def test_a_header_that_is_not_trusted_means_nothing(api):
    """By default a client can neither make itself a tenant nor take itself for another."""
    job = api.post_job(headers=ALICE)
    assert job["tenant"] == "default"
    assert api.get(job["links"]["self"], headers=BOB).status_code == 200
    assert api.get("/v1/tenants", headers=BOB).status_code == 200


@pytest.mark.parametrize("name", ["", "a b", "alice,bob", "a" * 65, "a:b"])
def test_a_name_that_is_none_makes_nobody_the_operator(gateway, name):
    """A gateway that sends nonsense is refused, never believed to be the operator."""
    for answer in (gateway.get("/v1/tenants", headers={"Farm-Tenant": name}),
                   gateway.get("/v1/jobs", headers={"Farm-Tenant": name})):  # fmt: skip
        assert (answer.status_code, slug_of(answer)) == (422, "invalid-request")
        assert answer.json()["errors"][0]["field"] == "Farm-Tenant"


def test_a_header_sent_twice_is_refused(gateway):
    """A gateway that adds its header to the client's would else let the client choose."""
    answer = gateway.get("/v1/jobs", headers=[("Farm-Tenant", "alice"), ("Farm-Tenant", "bob")])
    assert (answer.status_code, slug_of(answer)) == (422, "invalid-request")
    assert answer.json()["errors"][0]["field"] == "Farm-Tenant"


# -- order


def hand_out(api, count, **jobs):
    """Post a job for each tenant, then let a worker come; return whose the first hand-outs are."""
    tenants = {}
    for name, body in jobs.items():
        tenants[api.post_job(headers={"Farm-Tenant": name}, **body)["id"]] = name
    api.parts.ledger.report(heartbeat(max_batch=64))
    return [tenants[hint.job] for hint in api.parts.ledger.feed("scenes", limit=count)]


def test_the_example_of_the_page_is_what_happens(gateway):
    """Alice of weight 2 and Bob of weight 1 go as docs/fairness.md has it."""
    row = re.search(r"^\| goes to \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [name.strip().lower() for name in row.group(1).split("|")]
    gateway.put("/v1/tenants/alice", json={"weight": 2})
    thousand = {"num_images_per_prompt": 1000}
    assert hand_out(gateway, len(expected), alice=thousand, bob=thousand) == expected


def test_priority_goes_first_and_bulk_is_not_forgotten(gateway):
    """Carol's interactive image is next whatever her account says; Dave's bulk images go after 16 others each."""
    order = hand_out(
        gateway,
        51,
        alice={"num_images_per_prompt": 1000},
        carol={"priority": "interactive"},
        dave={"priority": "bulk", "num_images_per_prompt": 50},
    )
    assert order == ["carol", *["alice"] * 15, "dave", *["alice"] * 16, "dave", *["alice"] * 16, "dave"]


# -- metrics


def test_prometheus_is_told_of_each_tenant(gateway):
    """Queued, running, stored and device time by tenant; the busiest hundred when there are more."""
    gateway.post_job(headers=ALICE, num_images_per_prompt=3)
    (first, second) = gateway.work(limit=2)
    assert gateway.parts.ledger.stored(first, WORKER, gpu_s=0.5, render_s=1.0)
    assert second
    text = gateway.get("/metrics").text
    for line in (
        'farm_tenant_images_queued{tenant="alice"} 1.0',
        'farm_tenant_images_running{tenant="alice"} 1.0',
        'farm_tenant_images_stored_total{tenant="alice"} 1.0',
        'farm_tenant_gpu_seconds_total{tenant="alice"} 0.5',
    ):
        assert line in text
    for number in range(120):
        gateway.put(f"/v1/tenants/idle-{number}", json={})
    lines = [
        line for line in gateway.get("/metrics").text.splitlines() if line.startswith("farm_tenant_images_queued{")
    ]
    assert len(lines) == 100
    assert any('tenant="alice"' in line for line in lines)
