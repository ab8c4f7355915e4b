"""The API while servers that it needs are away: it says so, loses nothing, and recovers by itself."""

import logging
import signal
import time
import urllib.request
from dataclasses import replace

import pytest

from api import health
from api.app import create_app
from api_client import Api, api_settings, heartbeat
from farm.queue import make_celery
from farm.storage import Store
from servers import free_ports, valkey
from waiting import PATIENCE_S

JOB = {"model": "scenes", "prompts": ["a"]}


@pytest.fixture
def own_valkey():
    """Return a Valkey that the test may kill."""
    with valkey() as server:
        yield server


def test_every_endpoint_is_503_while_redis_is_away_and_recovers(own_valkey):
    """Redis is killed for real: each endpoint that needs it answers 503 at once, and works again when it is back."""
    with Api(create_app(api_settings(own_valkey.url))) as api:
        job = api.post_job()
        own_valkey.kill()
        for method, path in (
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs"),
            ("GET", f"/v1/jobs/{job['id']}"),
            ("GET", f"/v1/jobs/{job['id']}/images"),
            ("GET", f"/v1/jobs/{job['id']}/images/0"),
            ("DELETE", f"/v1/jobs/{job['id']}"),
            ("DELETE", f"/v1/jobs/{job['id']}/images/0"),
            ("POST", f"/v1/jobs/{job['id']}/pause"),
            ("POST", f"/v1/jobs/{job['id']}/resume"),
            ("POST", f"/v1/jobs/{job['id']}/retry"),
            ("GET", "/v1/tenants"),
            ("GET", "/v1/tenants/default"),
            ("PUT", "/v1/tenants/default"),
            ("POST", "/v1/tenants/default/cancel"),
            ("POST", "/v1/keys"),
            ("GET", "/v1/keys"),
            ("GET", "/v1/keys/0123456789"),
            ("PATCH", "/v1/keys/0123456789"),
            ("DELETE", "/v1/keys/0123456789"),
            ("GET", "/v1/throughput"),
            ("GET", "/v1/workers"),
            ("GET", "/v1/models"),
        ):
            answer = api.request(method, path, json=JOB if path == "/v1/jobs" else {})
            assert answer.status_code == 503, (method, path)
            assert answer.json()["type"] == "urn:diffusion-farm:problem:ledger-down"
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
        assert api.get("/healthz").status_code == 200
        assert "farm_ledger_up 0.0" in api.get("/metrics").text

        own_valkey.start()
        assert api.get(f"/v1/jobs/{job['id']}").json()["id"] == job["id"]
        assert api.post_job()["state"] == "queued"


def test_readiness_names_who_is_away(own_valkey, s3, monkeypatch):
    """Ready with both; 503 names Redis when it is killed, and S3 when nobody listens there."""
    monkeypatch.setattr(health, "_PATIENCE_S", PATIENCE_S)  # a bucket is made, and the machine may be busy
    with Api(create_app(api_settings(own_valkey.url, **s3))) as api:
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert api.parts.store.ready() is None, "a missing bucket is made"

        own_valkey.kill()
        checks = _not_ready(api)
        assert (checks["redis"]["ok"], checks["s3"]["ok"]) == (False, True)

        own_valkey.start()
        nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
        api.app.state.parts = replace(
            api.parts, store=Store.connect(api_settings(own_valkey.url, **{**s3, "s3_endpoint": nobody}))
        )
        checks = _not_ready(api)
        assert (checks["redis"]["ok"], checks["s3"]["ok"]) == (True, False)
        assert checks["s3"]["detail"]


def test_readiness_does_not_wait_for_a_redis_that_hangs(own_valkey):
    """A Redis that takes connections and never answers is told as away within seconds."""
    with Api(create_app(api_settings(own_valkey.url))) as api:
        api.post_job()
        own_valkey._process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            checks = _not_ready(api)
            assert time.monotonic() - started < PATIENCE_S
            assert "answer" in checks["redis"]["detail"]  # "no answer within", or "does not answer": who was first
            assert api.get("/healthz").status_code == 200
        finally:
            own_valkey._process.send_signal(signal.SIGCONT)


def _not_ready(api):
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("not-ready")
    return answer.json()["checks"]


def test_a_job_is_accepted_though_celery_cannot_be_told(make_api, caplog):
    """Once the ledger has the job the POST succeeds; that the broker is away is logged."""
    api = make_api()
    nowhere = make_celery(api_settings(f"redis://127.0.0.1:{free_ports(1)[0]}/0"))
    api.app.state.parts = replace(api.parts, celery=nowhere)
    api.parts.ledger.report(heartbeat())
    with caplog.at_level(logging.WARNING):
        job = api.post_job(num_images_per_prompt=3)
    assert job["total"] == 3
    assert [record.action for record in caplog.records if hasattr(record, "action")] == ["feed_failed"]
    assert api.get(job["links"]["self"]).json()["counts"]["queued"] == 3


def test_a_signed_url_fetches_the_image(make_api, s3):
    """The URL that the API gives is one by which anybody can fetch the bytes that a worker stored."""
    api = make_api(**s3, s3_public_endpoint=None)
    url = api.post_job()["links"]["images"]
    api.render()
    api.parts.store.ensure_bucket()
    image = api.get(url).json()["data"][0]
    api.parts.store.put(image["key"], b"pixels", "image/png")
    with urllib.request.urlopen(image["url"], timeout=PATIENCE_S) as answer:  # noqa: S310  our own store
        assert (answer.read(), answer.headers["Content-Type"]) == (b"pixels", "image/png")
