"""What becomes of a job over HTTP, on a real ledger: paused, resumed, tried again, cancelled image by image."""

import pytest

from api_client import WORKER, heartbeat
from farm.jobs import Hint
from farm.queue import queue_length


def take_all(api):
    """Play a worker that takes what was handed out before, by the API itself, and then what there is room for."""
    ledger = api.parts.ledger
    ledger.report(heartbeat(max_batch=32))
    hints = [*ledger.rehint("scenes", older_than_s=-1), *ledger.feed("scenes")]
    assert all(ledger.claim(hint, WORKER) for hint in hints)
    return hints


def settle(api, hints, *, failed=()):
    """Store what these hand-outs ask for, but for the images in `failed`."""
    for hint in hints:
        if hint.index in failed:
            assert api.parts.ledger.failed(hint, WORKER, "no such LoRA", final=True)
        else:
            assert api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.0)


def counts_of(job):
    """Return a job's counts that are not 0."""
    return {state: count for state, count in job["counts"].items() if count and state != "total"}


# -- pause and resume


def test_a_paused_job_starts_nothing_and_lets_others_go_first(api):
    """Its running images are finished, what nobody had claimed goes back, a younger job overtakes; then it goes on."""
    url = api.post_job(num_images_per_prompt=8)["links"]["self"]
    running, _unclaimed = api.work(limit=1), api.parts.ledger.feed("scenes", limit=3)

    job = api.post(f"{url}/pause").json()
    assert (job["state"], job["paused"]) == ("rendering", True)
    assert counts_of(job) == {"queued": 7, "rendering": 1}
    settle(api, running)
    job = api.get(url).json()
    assert (job["state"], job["paused"], counts_of(job)) == ("paused", True, {"queued": 7, "stored": 1})

    younger = api.post_job()["id"]
    overtaking = take_all(api)
    assert [hint.job for hint in overtaking] == [younger]
    settle(api, overtaking)

    job = api.post(f"{url}/resume").json()
    assert (job["state"], job["paused"]) == ("rendering", False)
    settle(api, take_all(api))
    job = api.get(url).json()
    assert (job["state"], counts_of(job)) == ("done", {"stored": 8})


def test_a_pause_may_be_repeated_and_a_settled_job_stays_as_it_is(api):
    """Pausing twice, resuming what runs and either after the end change nothing and are 200."""
    url = api.post_job(num_images_per_prompt=2)["links"]["self"]
    assert api.post(f"{url}/resume").json()["state"] == "queued"
    first, second = (api.post(f"{url}/pause") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.json()["state"] == "paused"
    api.post(f"{url}/resume")
    api.render()
    for verb in ("pause", "resume"):
        answer = api.post(f"{url}/{verb}")
        assert (answer.status_code, answer.json()["state"], answer.json()["paused"]) == (200, "done", False)


def test_paused_jobs_are_listed_by_their_state(api):
    """`state=paused` finds them, and nothing else does."""
    paused, running = (api.post_job() for _ in range(2))
    api.post(f"/v1/jobs/{paused['id']}/pause")
    assert [job["id"] for job in api.get("/v1/jobs?state=paused").json()["data"]] == [paused["id"]]
    assert [job["id"] for job in api.get("/v1/jobs?state=queued").json()["data"]] == [running["id"]]


def test_a_paused_job_may_be_cancelled(api):
    """Nothing of it is left to wait."""
    url = api.post_job(num_images_per_prompt=3)["links"]["self"]
    api.post(f"{url}/pause")
    job = api.delete(url).json()
    assert (job["state"], job["paused"], counts_of(job)) == ("cancelled", False, {"cancelled": 3})
    assert api.post(f"{url}/resume").json()["state"] == "cancelled"
    assert api.work() == []


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_what_waits_again_is_hinted_to_celery_at_once(api, verb):
    """As a POST does: with a live worker the messages are on the queue when the answer is."""
    url = api.post_job(num_images_per_prompt=3)["links"]["self"]
    if verb == "retry":
        settle(api, api.work(), failed={0, 1, 2})
    else:
        api.post(f"{url}/pause")
        api.parts.ledger.report(heartbeat(max_batch=32))
    before = queue_length(api.parts.celery, "scenes")
    assert api.post(f"{url}/{verb}").status_code == 200
    assert queue_length(api.parts.celery, "scenes") - before == 3


# -- retry


def test_failed_images_are_tried_again_with_a_clean_slate(api):
    """A failed job goes on: only its failed images are rendered, and their history stays."""
    url = api.post_job(num_images_per_prompt=4)["links"]["self"]
    settle(api, api.work(), failed={1, 3})
    failed = api.get(url).json()
    assert (failed["state"], counts_of(failed)) == ("failed", {"stored": 2, "failed": 2})

    job = api.post(f"{url}/retry").json()
    assert (job["state"], job["finished_at"], counts_of(job)) == ("rendering", None, {"stored": 2, "queued": 2})
    hints = take_all(api)
    assert [hint.index for hint in hints] == [1, 3]
    settle(api, hints)
    job = api.get(url).json()
    assert (job["state"], counts_of(job)) == ("done", {"stored": 4})
    image = api.get(f"{url}/images/1").json()
    assert (image["state"], image["error"], image["attempts"]) == ("stored", None, 2)


def test_a_retried_image_has_all_its_attempts_again(make_api):
    """An image that used up its attempts may fail as often once more before it is given up."""
    api = make_api(max_attempts=2)
    url = api.post_job()["links"]["self"]

    def fail_once():
        (hint,) = take_all(api)
        assert api.parts.ledger.failed(hint, WORKER, "out of luck", final=False)
        return api.get(url).json()["state"]

    assert [fail_once(), fail_once()] == ["queued", "failed"]
    api.post(f"{url}/retry")
    assert [fail_once(), fail_once()] == ["queued", "failed"]


def test_a_retry_without_failed_images_changes_nothing(api):
    """A job that is done stays done, one that runs goes on."""
    url = api.post_job(num_images_per_prompt=2)["links"]["self"]
    assert api.post(f"{url}/retry").json()["state"] == "queued"
    api.render()
    done = api.get(url).json()
    answer = api.post(f"{url}/retry")
    assert (answer.status_code, answer.json()) == (200, done)


def test_a_cancelled_job_is_not_tried_again(api):
    """409, and what to do instead."""
    url = api.post_job(num_images_per_prompt=2)["links"]["self"]
    hints = api.work(limit=1)
    settle(api, hints, failed={0})
    api.delete(url)
    answer = api.post(f"{url}/retry")
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:diffusion-farm:problem:job-cancelled"
    assert "new job" in answer.json()["detail"]
    assert api.get(url).json()["state"] == "cancelled"


# -- single images


def test_single_images_are_cancelled_and_the_rest_is_done(api):
    """One that waits and one that runs: neither is stored any more, and the job is done without them."""
    url = api.post_job(num_images_per_prompt=4)["links"]["self"]
    running = api.work(limit=2)
    for index in (1, 3):
        image = api.delete(f"{url}/images/{index}")
        assert (image.status_code, image.json()["state"], image.json()["index"]) == (200, "cancelled", index)
    assert counts_of(api.get(url).json()) == {"queued": 1, "rendering": 1, "cancelled": 2}

    ledger = api.parts.ledger
    assert ledger.renew(WORKER, running) == {Hint(running[1].job, 1, 1)}, "its worker is told that it is gone"
    assert not ledger.stored(running[1], WORKER, gpu_s=0.5, render_s=1.0)
    settle(api, running[:1])
    assert api.render() == 1
    job = api.get(url).json()
    assert (job["state"], counts_of(job), job["gpu_s"]) == ("done", {"stored": 2, "cancelled": 2}, 1.0)
    states = [image["state"] for image in api.get(f"{url}/images").json()["data"]]
    assert states == ["stored", "cancelled", "stored", "cancelled"]


def test_a_settled_image_is_not_cancelled(api):
    """Stored and failed ones stay as they are, a cancelled one too, all of them 200."""
    url = api.post_job(num_images_per_prompt=3)["links"]["self"]
    settle(api, api.work(limit=2), failed={1})
    before = [api.get(f"{url}/images/{index}").json()["state"] for index in range(3)]
    after = [api.delete(f"{url}/images/{index}").json()["state"] for index in range(3)]
    again = [api.delete(f"{url}/images/{index}").json()["state"] for index in range(3)]
    assert before == ["stored", "failed", "queued"]
    assert after == again == ["stored", "failed", "cancelled"]
    assert api.delete(f"{url}/images/0").json()["url"], "what is stored can still be fetched"


def test_a_job_cancelled_image_by_image_is_cancelled(api):
    """When the last of them goes, so does the job."""
    url = api.post_job(num_images_per_prompt=2)["links"]["self"]
    assert [api.delete(f"{url}/images/{index}").status_code for index in (0, 1)] == [200, 200]
    job = api.get(url).json()
    assert (job["state"], counts_of(job)) == ("cancelled", {"cancelled": 2})
    assert job["finished_at"]


def test_cancelling_an_image_that_the_job_does_not_have_is_404(api):
    """An index past the end, and a job nobody posted, each with its own problem."""
    url = api.post_job()["links"]["self"]
    answer = api.delete(f"{url}/images/1")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-image")
    answer = api.delete("/v1/jobs/job_00000000000000000000/images/0")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-job")


@pytest.mark.parametrize("verb", ["pause", "resume", "retry"])
@pytest.mark.parametrize("job_id", ["job_00000000000000000000", "nope", "farm:jobs", "a" * 5000, "%00"])
def test_a_verb_on_an_unknown_job_is_404(api, verb, job_id):
    """There is nothing to change, and the answer says so."""
    answer = api.post(f"/v1/jobs/{job_id}/{verb}")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-job")


@pytest.mark.parametrize("verb", ["pause", "resume", "retry"])
def test_a_verb_answers_to_post_alone(api, verb):
    """A GET by a crawler or a preview changes nothing: 405 with what would do."""
    url = api.post_job()["links"]["self"]
    answer = api.get(f"{url}/{verb}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
