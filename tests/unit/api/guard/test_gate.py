"""Nobody enters without a key where keys are asked for: no path, no method, no shape of an answer is forgotten."""

import asyncio
import base64
import logging
from contextlib import nullcontext

import pytest
from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from starlette.testclient import TestClient

from api.app import create_app
from api.guard.audit import note_made
from api.guard.credentials import new_key
from api.guard.gate import Gate, is_public, needed_scope
from api.guard.keyring import OpenedBy
from api_client import offline_api
from farm.errors import Refused
from farm.settings import Settings

OPERATOR_KEY, METRICS_KEY = "o" * 32, "m" * 32
OPERATIONS = [
    (method.upper(), path)
    for path, operations in create_app(Settings()).openapi()["paths"].items()
    for method in operations
]
PUBLIC = {("GET", "/healthz"), ("GET", "/readyz")}


@pytest.fixture(scope="module")
def closed():
    """Return a client of an API that asks for keys, and has no Redis."""
    return offline_api(auth="keys", operator_key=OPERATOR_KEY, metrics_key=METRICS_KEY)


def bearer(token):
    """Return the header that shows a key."""
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if each not in PUBLIC])
def test_every_operation_of_the_document_needs_a_key(closed, method, path):
    """Without one it is 401 with a challenge, before a body is read or anything is asked."""
    answer = closed.request(method, path, content=b"no body that anybody would read")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith(("Bearer ", "Basic "))
    assert answer.headers["content-type"].startswith("application/")


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("POST", "/"), ("DELETE", "/page/x/y"),
    ("GET", "/healthz/"), ("POST", "/healthz"), ("OPTIONS", "/v1/jobs"), ("BREW", "/v1/jobs"),
    ("GET", "/docs"), ("GET", "/v1"), ("GET", "/page"), ("GET", "/sdapi/v1/nowhere"),
])  # fmt: skip
def test_what_is_no_operation_needs_a_key_too(closed, method, path):
    """So that whoever has none learns not even which paths there are."""
    assert closed.request(method, path).status_code == 401


@pytest.mark.parametrize("host", ["x/healthz?", "x/healthz#", "testserver/healthz", "x@y/healthz?"])
def test_the_header_host_opens_no_path(closed, host):
    """The path is the one that is served, whatever a URL made of the headers would tell."""
    assert closed.get("/v1/jobs", headers={"Host": host}).status_code == 401


def test_probes_and_the_page_need_none(closed):
    """A load balancer has no key, and the page is where people type theirs in."""
    assert closed.get("/healthz").status_code == 200
    assert closed.get("/readyz").status_code == 503  # it was asked, and there is no Redis
    assert closed.get("/").status_code == 200
    assert closed.head("/").status_code == 200
    assert closed.get("/page/of/nothing.js").status_code == 404


def test_an_open_api_asks_nobody():
    """`farm up` needs no key; a wrong one is no harm either."""
    client = offline_api()
    for headers in ({}, bearer("nonsense")):
        assert client.get("/v1/whoami", headers=headers).json() == {
            "object": "caller",
            "auth": "open",
            "key_id": None,
            "tenant": "default",
            "scopes": ["metrics", "operator", "read", "submit"],
        }


@pytest.mark.parametrize("header", [
    f"Bearer {OPERATOR_KEY}", "Basic " + base64.b64encode(f"me:{OPERATOR_KEY}".encode()).decode(),
    "Basic " + base64.b64encode(f"{OPERATOR_KEY}:".encode()).decode(),
])  # fmt: skip
def test_a_key_comes_as_bearer_or_basic(closed, header):
    """Clients of A1111 know Basic alone."""
    answer = closed.get("/v1/whoami", headers={"Authorization": header})
    assert (answer.json()["key_id"], answer.json()["auth"]) == ("operator", "keys")


def test_a_wrong_key_is_told_from_none(closed):
    """In words; neither what is wrong with it nor whether it ever was one."""
    missing = closed.get("/v1/jobs").json()
    wrong = closed.get("/v1/jobs", headers=bearer("farm_x")).json()
    assert missing["type"] == wrong["type"] == "urn:diffusion-farm:problem:unauthenticated"
    assert "Authorization: Bearer" in missing["detail"]
    assert wrong["detail"] == "the key is unknown, revoked or expired"


def test_while_redis_is_away_nobody_is_taken_for_somebody(closed):
    """A key that may be good is 503, to come back with; that of the settings goes on."""
    answer = closed.get("/v1/whoami", headers=bearer(new_key().token))
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:diffusion-farm:problem:ledger-down")
    assert int(answer.headers["retry-after"]) >= 1
    assert closed.get("/v1/whoami", headers=bearer(OPERATOR_KEY)).status_code == 200


def test_the_key_for_metrics_opens_nothing_else(closed):
    """What stands in Prometheus' configuration reads figures, not jobs."""
    assert closed.get("/metrics", headers=bearer(METRICS_KEY)).status_code == 200
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/keys"), ("GET", "/v1/whoami")):
        answer = closed.request(method, path, headers=bearer(METRICS_KEY))
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:diffusion-farm:problem:forbidden")
        assert "lacks the scope" in answer.json()["detail"]


@pytest.mark.parametrize(("path", "challenge"), [
    ("/v1/jobs", "Bearer"), ("/v1/images/generations", "Bearer"), ("/sdapi/v1/txt2img", "Basic"),
    ("/internal/progress", "Basic"),
])  # fmt: skip
def test_basic_is_asked_for_where_clients_know_nothing_else(closed, path, challenge):
    """Elsewhere a browser would open a window of its own over our page."""
    assert closed.post(path).headers["www-authenticate"].startswith(f"{challenge} ")


def test_refusals_are_told_in_the_words_of_their_api(closed):
    """A 401 has the shape that an OpenAI or A1111 client reads."""
    assert closed.post("/v1/images/generations", json={"prompt": "a"}).json()["error"]["message"]
    assert {"error", "detail"} <= closed.post("/sdapi/v1/txt2img", json={}).json().keys()
    assert closed.post("/v1/jobs", json={}).json()["status"] == 401


@pytest.mark.parametrize(("method", "path", "scope"), [
    ("GET", "/v1/jobs", "read"), ("HEAD", "/v1/jobs", "read"), ("POST", "/v1/jobs", "submit"),
    ("DELETE", "/v1/jobs/x", "submit"), ("PUT", "/v1/tenants/x", "submit"), ("GET", "/metrics", "metrics"),
    ("POST", "/v1/jobs:preview", "read"), ("POST", "/internal/progress", "read"), ("BREW", "/v1/jobs", "submit"),
])  # fmt: skip
def test_what_changes_nothing_needs_less(method, path, scope):
    """A key that may only read can ask for previews and progress, though these are POSTs."""
    assert needed_scope(method, path) == scope
    assert not is_public(method, path)


@pytest.fixture
def audited(caplog):
    """Return a function that tells the lines of the audit log."""
    caplog.set_level(logging.INFO, logger="api.audit")
    return lambda: [record for record in caplog.records if getattr(record, "action", "") == "audit"]


def test_refusals_stand_in_the_audit_log(closed, audited):
    """Who, from where, what, and that it was denied; reading that goes well does not stand there."""
    closed.get("/v1/keys")
    closed.post("/v1/jobs", headers=bearer(METRICS_KEY))
    closed.get("/v1/whoami", headers=bearer(OPERATOR_KEY))
    nobody, metrics = audited()
    assert (nobody.who, nobody.tenant, nobody.status, nobody.outcome) == ("nobody", None, 401, "denied")
    assert (nobody.what, nobody.client) == ("GET /v1/keys", "testclient")
    assert (metrics.who, metrics.status, metrics.outcome) == ("key:metrics", 403, "denied")


def test_what_was_made_is_told_though_no_header_does(audited):
    """OpenAI's and A1111's answers name no job; the thread that opened it does."""

    async def endpoint(scope, receive, send):
        if scope["path"].endswith("img"):
            await run_in_threadpool(note_made, "/v1/jobs/job_x")
        await Response("ok")(scope, receive, send)

    client = offline_api()
    gated = Gate(endpoint, settings=Settings())

    async def app(scope, receive, send):
        await gated({**scope, "app": client.app}, receive, send)

    other = TestClient(app)
    other.post("/sdapi/v1/txt2img")
    other.post("/sdapi/v1/interrupt")
    assert [line.target for line in audited()] == ["/v1/jobs/job_x", "/sdapi/v1/interrupt"]


def test_what_fails_for_want_of_a_server_is_told_as_failed(closed, audited):
    """A change that was let in and came to nothing."""
    closed.post("/v1/keys", json={"name": "a"}, headers=bearer(OPERATOR_KEY))
    (line,) = audited()
    assert (line.what, line.status, line.outcome) == ("create_key", 503, "failed")


def test_a_path_forges_no_line(closed, caplog):
    """What a client sends is quoted, and cut."""
    caplog.set_level(logging.INFO)
    closed.delete("/v1/jobs/x%0aaction=audit%20who=key:operator" + "y" * 500)
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert len(getattr(record, "target", "")) <= 200


@pytest.mark.parametrize("is_good", [True, False])
def test_a_stream_ends_when_its_key_does(closed, monkeypatch, is_good):
    """Streams last for an hour: a key that is revoked meanwhile is noticed at the next piece, some seconds later."""
    keyring = closed.app.state.parts.keyring
    monkeypatch.setattr(keyring, "open", lambda _token: OpenedBy("0123456789", "alice", ("read",)))
    monkeypatch.setattr(keyring, "is_counted", lambda _opened: False)
    monkeypatch.setattr(keyring, "still_opens", lambda _opened: is_good)
    sent = []

    async def stream(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"first", b"second"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
            monkeypatch.setattr("api.guard.gate.MAX_AGE_S", 0.0)  # as if they had gone by

    async def send(message):
        sent.append(message.get("body"))

    headers = [(b"authorization", b"Bearer a-key"), (b"host", b"testserver")]
    scope = {"type": "http", "method": "GET", "path": "/v1/events", "headers": headers, "app": closed.app}
    with nullcontext() if is_good else pytest.raises(Refused, match="revoked"):
        asyncio.run(Gate(stream, settings=closed.app.state.parts.settings)(scope, None, send))
    assert sent == ([None, b"first", b"second"] if is_good else [None, b"first"])
