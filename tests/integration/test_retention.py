"""What is left of a job after its end, on real servers: its manifest, its expiry, and what is told of it then."""

from __future__ import annotations

import json
import time
import tracemalloc
from datetime import datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from api_client import WORKER, heartbeat
from expanded_jobs import expanded_job
from farm import manifests
from farm.errors import StorageDown
from farm.ledger import Ledger
from farm.manifests import manifest_lines, write_manifest
from farm.settings import Settings
from farm.storage import NoSuchObject, Store, manifest_key, object_key
from steady_clock import steady_clock
from waiting import PATIENCE_S, wait_for

NO_JOB = "job_00000000000000000000"


@pytest.fixture
def ledger(redis_url):
    """Return a ledger on an empty server: three strikes."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, max_attempts=1, lease_s=600), clock=steady_clock)
    yield ledger
    ledger.close()


@pytest.fixture
def store(s3):
    """Return a store with a bucket of its own."""
    store = Store.connect(Settings(**s3))
    store.ensure_bucket()
    return store


def take(ledger, count=10_000):
    """Play a worker: claim what there is, `count` at most."""
    ledger.report(heartbeat(max_batch=5000))
    hints = ledger.feed("scenes", limit=count)
    assert all(ledger.claim(hint, WORKER) for hint in hints)
    return hints


def finish(ledger, hints):
    """Play a worker that stores all of these."""
    assert all(ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.25) for hint in hints)


def read(store, job):
    """Return the lines of a manifest."""
    return [json.loads(line) for line in store.get(manifest_key(job)).splitlines()]


def keys_of(ledger, job):
    """Return all keys and members in Redis that name a job."""
    redis = ledger._connection.redis
    found = []
    for key in redis.scan_iter():
        kind = redis.type(key)
        inside = {
            b"string": lambda key: [redis.get(key)],
            b"hash": lambda key: [part for pair in redis.hgetall(key).items() for part in pair],
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"set": redis.smembers,
            b"list": lambda key: redis.lrange(key, 0, -1),
        }[kind](key)
        if job.encode() in key or any(job.encode() in part for part in inside):
            found.append(key.decode())
    return found


def test_a_manifest_tells_everything_of_job_and_images(ledger, store):
    """Stored, failed and cancelled images: what was asked for under the recipe's names, and what became of each."""
    job = ledger.open(
        expanded_job(
            created_at=steady_clock(),
            tenant="ada",
            labels={"shoot": "spring"},
            prompts=[
                {"prompt": "a red circle", "num_images_per_prompt": 3, "seed": 40},
                {"prompt": "<lora:ink:0.5> a blé square", "negative_prompt": "grey", "scheduler": "euler", "width": 64},
            ],
            num_inference_steps=7,
            output={"format": "webp", "thumbnail_px": 32, "upscale": 2},
        )
    ).id
    hints = take(ledger)
    finish(ledger, hints[:2])
    assert ledger.failed(hints[2], WORKER, "the card caught fire", final=False)
    ledger.cancel(job)
    assert write_manifest(ledger, store, job)
    told, *images = read(store, job)

    assert (told["object"], told["version"], told["id"]) == ("job", 1, job)
    assert (told["state"], told["tenant"], told["labels"]) == ("cancelled", "ada", {"shoot": "spring"})
    assert told["counts"] == {"total": 4, "stored": 2, "failed": 1, "cancelled": 1}
    assert (told["gpu_s"], told["gpu_s_per_image"], told["num_prompts"]) == (1.0, 0.5, 2)
    assert told["images_per_s"] > 0
    assert (told["reuse"], told["reused"], told["retries"]) == (False, 0, 0)
    assert told["output"]["format"] == "webp"
    times = [datetime.fromisoformat(told[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)

    assert [image["index"] for image in images] == [0, 1, 2, 3]
    assert [image["state"] for image in images] == ["stored", "stored", "failed", "cancelled"]
    assert [image["seed"] for image in images] == [40, 41, 42, 1]
    assert [image["prompt_index"] for image in images] == [0, 0, 0, 1]
    stored, failed, cancelled = images[1], images[2], images[3]
    assert stored["key"] == object_key(job, 1, "webp")
    assert stored["thumbnail_key"] == f"jobs/{job}/0000001.thumb.webp"
    assert stored["upscaled_key"] == f"jobs/{job}/0000001.x2.webp"
    assert (stored["render_s"], stored["gpu_s"], stored["worker"]) == (1.25, 0.5, "host:gpu0")
    assert datetime.fromisoformat(stored["stored_at"]).timestamp() == pytest.approx(time.time(), abs=60)
    assert (stored["num_inference_steps"], stored["attempts"]) == (7, 1)
    assert "key" not in failed
    assert (failed["error"], failed["history"]) == ("the card caught fire", ["the card caught fire"])
    assert (cancelled["prompt"], cancelled["negative_prompt"]) == ("a blé square", "grey")
    assert (cancelled["scheduler"], cancelled["width"]) == ("euler", 64)
    assert cancelled["loras"] == [{"name": "ink", "weight": 0.5}]
    assert "key" not in cancelled


def test_nothing_is_written_of_a_job_that_runs(ledger, store):
    """A chore may come late: its job's failed images wait again, and it will end another time."""
    job = ledger.open(expanded_job()).id
    assert not write_manifest(ledger, store, job)
    with pytest.raises(NoSuchObject):
        store.get(manifest_key(job))


def test_a_manifest_is_of_the_last_end(ledger, store, monkeypatch):
    """Failed images are rendered again while somebody writes of the first end: the last writer tells of the second."""
    job = ledger.open(expanded_job()).id
    (hint,) = take(ledger)
    ledger.failed(hint, WORKER, "no luck", final=True)
    put_stream, meanwhile = Store.put_stream, []

    def slow(self, key, pieces, content_type):
        lines = list(pieces)
        if not meanwhile:
            meanwhile.append(1)
            ledger.retry_failed(job)
            time.sleep(0.01)  # the two ends differ by more than the clock's last digit
            finish(ledger, take(ledger))
            assert write_manifest(ledger, store, job)
        put_stream(self, key, lines, content_type)

    monkeypatch.setattr(Store, "put_stream", slow)
    assert write_manifest(ledger, store, job)
    assert [line["state"] for line in read(store, job)] == ["done", "stored"]


@example_settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), page=st.integers(1, 7))
def test_pages_of_any_size_give_the_same_lines(valkey_server, counts, page):
    """Where a page ends within a prompt's images, nothing is lost, doubled or told of another prompt."""
    ledger = Ledger.connect(Settings(redis_url=valkey_server.url))
    prompts = [{"prompt": f"number {i}", "num_images_per_prompt": count} for i, count in enumerate(counts)]
    job = ledger.open(expanded_job(prompts=prompts)).id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_PAGE", page)
        lines = [json.loads(line) for line in manifest_lines(ledger, ledger.cancel(job))]
    ledger.close()
    expected = [(f"number {i}", i, 1 + image) for i, count in enumerate(counts) for image in range(count)]
    assert [(line["prompt"], line["prompt_index"], line["seed"]) for line in lines[1:]] == expected
    assert [line["index"] for line in lines[1:]] == list(range(sum(counts)))


def test_a_large_manifest_takes_little_memory(ledger, monkeypatch):
    """Twenty pages of images are told in the memory of a few of them."""
    monkeypatch.setattr(manifests, "_PAGE", 100)
    status = ledger.cancel(ledger.open(expanded_job(num_images_per_prompt=500, prompts=["a", "b", "c", "d"])).id)
    lines = manifest_lines(ledger, status)
    next(lines)
    tracemalloc.start()
    try:
        num_images = sum(1 for _ in lines)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_images == 2_000
    assert peak_bytes < 300_000


def test_an_ended_job_gets_its_manifest_by_itself(make_api, s3):
    """While it runs 409 says what is missing; when it has ended the API leads to the manifest within seconds."""
    api = make_api(**s3, s3_public_endpoint=s3["s3_endpoint"])
    job = api.post_job(num_images_per_prompt=2)["id"]
    api.work()
    answer = api.get(f"/v1/jobs/{job}/manifest", follow_redirects=False)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:diffusion-farm:problem:manifest-not-ready"
    assert "2 images" in answer.json()["detail"]
    api.delete(f"/v1/jobs/{job}")
    answer = wait_for(lambda: (it := api.get(f"/v1/jobs/{job}/manifest", follow_redirects=False)).is_redirect and it)
    assert answer.status_code == 307
    lines = [json.loads(line) for line in httpx.get(answer.headers["location"], timeout=PATIENCE_S).text.splitlines()]
    assert [line["state"] for line in lines] == ["cancelled"] * 3


def test_a_job_whose_images_are_tried_again_has_no_manifest_until_it_ends_again(make_api, s3):
    """The first end's manifest is not passed off as the second's."""
    api = make_api(**s3, max_attempts=1)
    job = api.post_job()["id"]
    (hint,) = api.work()
    api.parts.ledger.failed(hint, WORKER, "no luck", final=True)
    wait_for(lambda: api.get(f"/v1/jobs/{job}/manifest", follow_redirects=False).is_redirect)
    api.parts.ledger.retry_failed(job)
    assert api.get(f"/v1/jobs/{job}/manifest", follow_redirects=False).status_code == 409
    api.render()
    wait_for(lambda: api.get(f"/v1/jobs/{job}/manifest", follow_redirects=False).is_redirect)
    assert [line["state"] for line in read(api.parts.store, job)] == ["done", "stored"]


def test_a_job_expires_from_redis_and_stays_in_the_store(make_api, s3):
    """After its time no key names it and no list shows it; 410 leads to its manifest, and its images are there."""
    api = make_api(**s3, keep_jobs_s=1)
    job = api.post_job(num_images_per_prompt=3)["id"]
    other = api.post_job()["id"]  # goes on
    hints = [hint for hint in api.work() if hint.job == job]
    for hint in hints:
        api.parts.store.put(object_key(job, hint.index, "png"), b"picture", "image/png")
    finish(api.parts.ledger, hints)
    answer = wait_for(lambda: (it := api.get(f"/v1/jobs/{job}")).status_code == 410 and it)

    wait_for(lambda: keys_of(api.parts.ledger, job) == [], "the end of the chore that forgot it")
    assert [each["id"] for each in api.get("/v1/jobs").json()["data"]] == [other]
    problem = answer.json()
    assert problem["type"] == "urn:diffusion-farm:problem:job-expired"
    assert problem["manifest"] == f"/v1/jobs/{job}/manifest"
    for path in ("/images", "/images/0"):
        assert api.get(f"/v1/jobs/{job}{path}").status_code == 410
    assert api.delete(f"/v1/jobs/{job}").status_code == 410
    assert api.get(problem["manifest"], follow_redirects=False).status_code == 307
    assert [line["state"] for line in read(api.parts.store, job)] == ["done", *["stored"] * 3]
    assert api.parts.store.get(object_key(job, 2, "png")) == b"picture"


def test_an_expired_job_is_its_tenants_alone(make_api, s3):
    """To another tenant it never was; whose it was is in the manifest."""
    api = make_api(**s3, keep_jobs_s=0, trust_tenant_header=True)
    job = api.post_job(headers={"Farm-Tenant": "ada"})["id"]
    api.delete(f"/v1/jobs/{job}", headers={"Farm-Tenant": "ada"})
    wait_for(lambda: api.get(f"/v1/jobs/{job}", headers={"Farm-Tenant": "ada"}).status_code == 410)
    for path in ("", "/manifest"):
        answer = api.get(f"/v1/jobs/{job}{path}", headers={"Farm-Tenant": "bob"}, follow_redirects=False)
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:diffusion-farm:problem:unknown-job"
    assert api.get(f"/v1/jobs/{job}").status_code == 410  # the operator sees all


def test_an_idempotency_key_lasts_no_longer_than_its_job(make_api, s3):
    """What has expired answers nobody's repeat: the same request is a new job then."""
    api = make_api(**s3, keep_jobs_s=0)
    key = {"Idempotency-Key": "order-66"}
    job = api.post_job(headers=key)["id"]
    assert api.post_job(headers=key)["id"] == job
    api.delete(f"/v1/jobs/{job}")
    wait_for(lambda: api.get(f"/v1/jobs/{job}").status_code == 410)
    again = api.post_job(headers=key)
    assert again["id"] != job
    assert again["state"] == "queued"


def test_a_job_nobody_posted_is_unknown_and_has_no_manifest(make_api, s3):
    """404, for the job and for its manifest, with the store asked in vain or not to be asked."""
    for api in (make_api(**s3), make_api()):
        for path in ("", "/manifest"):
            answer = api.get(f"/v1/jobs/{NO_JOB}{path}", follow_redirects=False)
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:diffusion-farm:problem:unknown-job")


def test_a_job_does_not_expire_while_its_manifest_cannot_be_written(make_api):
    """With the store away nothing is forgotten."""
    api = make_api(keep_jobs_s=0)
    job = api.post_job()["id"]
    api.delete(f"/v1/jobs/{job}")
    with pytest.raises(StorageDown):
        write_manifest(api.parts.ledger, api.parts.store, job)
    time.sleep(1)
    assert api.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert not api.parts.ledger.expire_job(job)
