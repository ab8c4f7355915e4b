"""Jobs over HTTP, on a real ledger: accepted, followed, listed, cancelled, repeated."""

from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from api_client import heartbeat
from farm.queue import queue_length


def pages(api, url):
    """Yield the pages of a list, from this one on."""
    while url:
        answer = api.get(url)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        yield page
        url = page["next"]


def test_a_job_is_accepted_with_its_id_total_and_location(api):
    """A POST answers 202 with what a client needs to follow the job, and the job is there."""
    answer = api.post("/v1/jobs", json={"model": "scenes", "prompts": ["a", "b"], "num_images_per_prompt": 3})
    job = answer.json()
    assert answer.status_code == 202
    assert (job["total"], job["num_prompts"], job["state"]) == (6, 2, "queued")
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert api.get(answer.headers["location"]).json() == job


def test_a_million_images_are_one_job(api):
    """100 prompts with 10,000 seeds each are accepted, the last has the seed it should have, and all are cancelled."""
    job = api.post_job(prompts=[f"prompt {i}" for i in range(100)], num_images_per_prompt=10_000)
    assert job["total"] == 1_000_000
    last = api.get(f"/v1/jobs/{job['id']}/images/999999").json()
    assert (last["prompt"], last["seed"]) == ("prompt 99", 7 + 9_999)
    cancelled = api.delete(job["links"]["self"]).json()
    assert (cancelled["state"], cancelled["counts"]["cancelled"]) == ("cancelled", 1_000_000)


def test_ten_thousand_distinct_prompts_are_one_job(api):
    """The largest number of prompts is accepted in one POST, each with its own parameters."""
    prompts = [{"prompt": f"prompt {i}", "seed": i, "num_images_per_prompt": 1 + i % 3} for i in range(10_000)]
    job = api.post_job(prompts=prompts)
    assert job["num_prompts"] == 10_000
    assert job["total"] == sum(prompt["num_images_per_prompt"] for prompt in prompts)


def test_accepted_work_is_hinted_to_celery_at_once(api):
    """With a live worker, the POST itself puts its model's messages on the queue."""
    api.parts.ledger.report(heartbeat(max_batch=4))
    api.post_job(num_images_per_prompt=5)
    assert queue_length(api.parts.celery, "scenes") == 5


def test_a_job_is_told_from_queued_to_done(api):
    """State, counts, times and cost follow what workers tell the ledger."""
    url = api.post_job(num_images_per_prompt=4)["links"]["self"]
    assert api.get(url).json()["state"] == "queued"

    first, *others = api.work()
    assert api.parts.ledger.stored(first, "host:gpu0#1", gpu_s=0.5, render_s=1.25)
    job = api.get(url).json()
    assert job["state"] == "rendering"
    assert job["counts"] == {"total": 4, "queued": 0, "rendering": 3, "stored": 1, "failed": 0, "cancelled": 0}
    assert job["gpu_s_per_image"] == 0.5
    assert job["eta_s"] > 0
    assert job["images_per_s"] > 0

    for hint in others:
        api.parts.ledger.stored(hint, "host:gpu0#1", gpu_s=0.5, render_s=1.25)
    job = api.get(url).json()
    assert (job["state"], job["counts"]["stored"], job["gpu_s"], job["eta_s"]) == ("done", 4, 2.0, 0.0)
    created, started, finished = (
        datetime.fromisoformat(job[f"{what}_at"]) for what in ("created", "started", "finished")
    )
    assert created.utcoffset().total_seconds() == 0
    assert created <= started <= finished


def test_a_failed_image_tells_why(api):
    """A unit given up for good makes its job fail, and its image tells the reason."""
    url = api.post_job()["links"]["self"]
    (hint,) = api.work()
    api.parts.ledger.failed(hint, "host:gpu0#1", "the VAE gave NaN twice", final=True)
    assert api.get(url).json()["state"] == "failed"
    image = api.get(f"{url}/images").json()["data"][0]
    assert (image["state"], image["error"], image["url"]) == ("failed", "the VAE gave NaN twice", None)


def test_images_are_paged_in_order_and_stored_ones_have_urls(api):
    """Following `next` gives each image once, in order; a stored one has its key and a URL for the public host."""
    url = api.post_job(prompts=["a", {"prompt": "b", "seed": 100}], num_images_per_prompt=5)["links"]["images"]
    assert api.render(limit=4) == 4
    found = list(pages(api, f"{url}?limit=3"))
    images = [image for page in found for image in page["data"]]
    assert [len(page["data"]) for page in found] == [3, 3, 3, 1]
    assert [image["index"] for image in images] == list(range(10))
    assert [image["seed"] for image in images] == [7, 8, 9, 10, 11, 100, 101, 102, 103, 104]
    assert [image["prompt_index"] for image in images] == [0] * 5 + [1] * 5
    assert [image["state"] for image in images] == ["stored"] * 4 + ["queued"] * 6
    for image in images[:4]:
        signed = urlsplit(image["url"])
        assert signed.netloc == "images.example:8333"
        assert signed.path.endswith(image["key"])
        assert "X-Amz-Signature" in parse_qs(signed.query)
        assert (image["render_s"], image["gpu_s"], image["attempts"]) == (1.25, 0.5, 1)
    assert all(image["url"] is image["key"] is None for image in images[4:])


def test_files_beside_an_image_have_urls_once_it_is_stored(api):
    """A thumbnail and an enlarged version lie beside the image; nobody who did not ask gets their URLs."""
    asked = {"format": "jpeg", "thumbnail_px": 64, "upscale": 3}
    url = api.post_job(num_images_per_prompt=2, output=asked)["links"]["images"]
    plain = api.post_job()["links"]["images"]
    assert api.render(limit=1) == 1
    stored, queued = api.get(url).json()["data"]
    base = stored["key"].removesuffix(".jpg")
    assert urlsplit(stored["thumbnail_url"]).path.endswith(f"/{base}.thumb.webp")
    assert urlsplit(stored["upscaled_url"]).path.endswith(f"/{base}.x3.jpg")
    assert queued["thumbnail_url"] is queued["upscaled_url"] is None
    assert api.render() == 2
    image = api.get(plain).json()["data"][0]
    assert image["url"]
    assert image["thumbnail_url"] is image["upscaled_url"] is None


def test_an_image_tells_the_job_that_makes_it_again(api):
    """Every parameter as it was resolved, and only of this image: the job that it says has the same image."""
    asked = {
        "prompts": ["a", {"prompt": "b <lora:ink:0.5>", "negative_prompt": "c", "width": 64, "guidance_scale": 2.5}],
        "num_images_per_prompt": 3,
        "output": {"format": "webp", "quality": 70},
        "reproducibility": "invariant",
        "scheduler": "Euler a",
        "clip_skip": 1,
        "hires": {"scale": 1.5, "strength": 0.6},
    }
    url = api.post_job(**asked)["links"]["images"]
    told = api.get(f"{url}/4").json()
    assert told["download_url"] is None
    assert told["again"]["prompts"] == ["b"]
    assert told["again"]["loras"] == [{"name": "ink", "weight": 0.5}]
    assert told["again"]["output"] == asked["output"]
    repeated = api.post("/v1/jobs", json=told["again"])
    assert repeated.status_code == 202, repeated.text
    again = api.get(f"{repeated.json()['links']['images']}/0").json()
    assert again["again"] == told["again"]
    assert (again["prompt"], again["seed"]) == (told["prompt"], told["seed"]) == ("b", 8)


def test_a_stored_image_has_a_url_to_save_it_by(api):
    """The store is told the file's name in the signed URL, so a browser saves it whatever host it comes from."""
    job = api.post_job()
    assert api.render() == 1
    image = api.get(f"{job['links']['images']}/0").json()
    query = parse_qs(urlsplit(image["download_url"]).query)
    assert query["response-content-disposition"] == [f'attachment; filename="{job["id"]}_0000000.png"']
    assert urlsplit(image["download_url"]).path == urlsplit(image["url"]).path


def test_a_page_beyond_the_last_image_is_empty(api):
    """An offset past the end is no error: there are just no images."""
    url = api.post_job()["links"]["images"]
    page = api.get(f"{url}?offset=50").json()
    assert (page["data"], page["next"], page["total"]) == ([], None, 1)


def test_one_image_that_the_job_does_not_have_is_404(api):
    """An index past the end names what there is no image of."""
    url = api.post_job()["links"]["images"]
    assert api.get(f"{url}/0").status_code == 200
    answer = api.get(f"{url}/1")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("unknown-image")


def test_jobs_are_listed_newest_first_and_paged(api):
    """Following `next` gives every job once, newest first."""
    ids = [api.post_job(labels={"n": str(n)})["id"] for n in range(7)]
    found = list(pages(api, "/v1/jobs?limit=3"))
    assert [len(page["data"]) for page in found] == [3, 3, 1]
    listed = [job["id"] for page in found for job in page["data"]]
    assert sorted(listed) == sorted(ids)
    assert listed == sorted(listed, reverse=True)
    assert [page["has_more"] for page in found] == [True, True, False]


def test_a_full_last_page_has_no_next(api):
    """When the jobs end with the page, the page says so."""
    for _ in range(2):
        api.post_job()
    page = api.get("/v1/jobs?limit=2").json()
    assert (len(page["data"]), page["next"], page["has_more"]) == (2, None, False)


def test_jobs_are_listed_by_state(api):
    """A filter finds the jobs in a state, however far down the list."""
    ids = [api.post_job()["id"] for _ in range(6)]
    for job_id in ids[:2]:
        api.delete(f"/v1/jobs/{job_id}")
    cancelled = [job["id"] for page in pages(api, "/v1/jobs?state=cancelled&limit=1") for job in page["data"]]
    assert sorted(cancelled) == sorted(ids[:2])
    assert len(api.get("/v1/jobs?state=queued").json()["data"]) == 4
    assert api.get("/v1/jobs?state=done").json()["data"] == []


def test_cancelling_is_told_at_once_and_may_be_repeated(api):
    """A cancelled job says so, keeps what is stored, and stays as it is when cancelled again."""
    url = api.post_job(num_images_per_prompt=10)["links"]["self"]
    api.render(limit=3)
    job = api.delete(url).json()
    assert job["state"] == "cancelled"
    assert job["counts"] == {"total": 10, "queued": 0, "rendering": 0, "stored": 3, "failed": 0, "cancelled": 7}
    again = api.delete(url)
    assert (again.status_code, again.json()) == (200, job)


def test_a_finished_job_is_not_cancelled(api):
    """Cancelling what is done answers with the job as it ended."""
    url = api.post_job()["links"]["self"]
    api.render()
    answer = api.delete(url)
    assert (answer.status_code, answer.json()["state"]) == (200, "done")


@pytest.mark.parametrize("path", ["", "/images", "/images/0"])
@pytest.mark.parametrize(
    "job_id", ["job_00000000000000000000", "nope", "job_0", "farm:jobs", "a" * 5000, "%00", "%F0%9F%98%80"]
)
def test_an_unknown_job_is_404_never_unfinished(api, job_id, path):
    """A job nobody posted is unknown, whatever its id looks like."""
    answer = api.get(f"/v1/jobs/{job_id}{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:diffusion-farm:problem:unknown-job"
    assert problem["errors"][0]["field"] == "id"


def test_cancelling_an_unknown_job_is_404(api):
    """There is nothing to cancel, and the answer says so."""
    assert api.delete("/v1/jobs/job_00000000000000000000").status_code == 404


def test_the_same_key_and_body_give_the_same_job(api):
    """A repeated POST makes no second job; white space, order and defaults spelled out are the same body."""
    headers = {"Idempotency-Key": "order-66", "Content-Type": "application/json"}
    first = api.post("/v1/jobs", content='{"model": "scenes", "prompts": ["a", "b"]}', headers=headers)
    second = api.post(
        "/v1/jobs", content='{"prompts":["a","b"],"model":"scenes","num_images_per_prompt":1}', headers=headers
    )
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_replay_tells_the_job_as_it_stands_now(api):
    """The answer to a repeat is not a copy of the first one: the job may have gone on."""
    headers = {"Idempotency-Key": "k"}
    api.post_job(headers=headers)
    api.render()
    assert api.post_job(headers=headers)["state"] == "done"


def test_the_same_key_with_another_body_is_refused(api):
    """A key stands for one request; another body under it is the client's mistake."""
    api.post_job(headers={"Idempotency-Key": "k"})
    problem = api.post_job(expect=422, prompts=["another"], headers={"Idempotency-Key": "k"})
    assert problem["type"].endswith("idempotency-conflict")
    assert (problem["errors"][0]["field"], problem["errors"][0]["value"]) == ("Idempotency-Key", "k")


@pytest.mark.parametrize("key", ["", "has blank", "x" * 256, "tab\t"])
def test_an_unusable_idempotency_key_is_refused(api, key):
    """A key that could be mangled on its way is refused rather than half honoured."""
    problem = api.post_job(expect=422, headers={"Idempotency-Key": key})
    assert problem["errors"][0]["field"] == "Idempotency-Key"


def test_a_drawn_seed_is_reported(api):
    """A job without a seed gets one, and each of its images tells the seed it has."""
    url = api.post_job(seed=None, num_images_per_prompt=3)["links"]["images"]
    seeds = [image["seed"] for image in api.get(url).json()["data"]]
    assert seeds == list(range(seeds[0], seeds[0] + 3))
    assert 0 <= seeds[0] < 2**32
