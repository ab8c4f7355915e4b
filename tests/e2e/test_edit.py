"""Jobs that are changed while a farm renders them: paused, overtaken, cancelled image by image, tried again."""

import time
from datetime import datetime

from odd_worker import GATED

MAX_BATCH = 4  # as running_farm sets it
FORGETTING_S = 120.0  # a worker remembers for 30 s that a model is broken


def stored_at(image):
    """Return when an image was stored."""
    return datetime.fromisoformat(image["stored_at"])


def test_a_paused_job_finishes_what_runs_and_is_overtaken(farm):
    """Nothing more of it starts and nothing that had started is lost; a younger job is rendered, then it goes on."""
    with farm.shut_gate():
        paused = farm.post(
            model="tiny", prompts=["free", f"held {GATED}"], num_images_per_prompt=16, num_inference_steps=4
        )
        farm.wait_stored(paused, 1)
        assert farm.ask("POST", f"/v1/jobs/{paused}/pause")["paused"]
    stored = farm.wait_state(paused, "paused")["counts"]["stored"]
    # Those before the gate, and of those behind it what was claimed.
    assert 1 <= stored <= 16 + MAX_BATCH + 2

    overtaking = farm.post(model="tiny", prompts=["younger"], num_images_per_prompt=8, num_inference_steps=4)
    assert farm.wait(overtaking)["state"] == "done"
    job = farm.job(paused)
    assert (job["state"], job["counts"]["stored"], job["counts"]["rendering"]) == ("paused", stored, 0)

    farm.ask("POST", f"/v1/jobs/{paused}/resume")
    job = farm.wait(paused)
    assert (job["state"], job["counts"]["stored"], job["retries"]) == ("done", 32, 0)


def test_a_running_image_that_is_cancelled_makes_room_for_another(farm):
    """It leaves its seat in mid-run: one of those who waited sits in it while its neighbours are still rendered."""
    # A thousand steps of a larger model last longer than anybody may look away.
    long = {"scheduler": "euler", "num_inference_steps": 1000}
    job_id = farm.post(model="scenes", prompts=["seats"], num_images_per_prompt=2 * MAX_BATCH, **long)
    with farm.ledger() as ledger:

        def seated():
            """Return the images that sit and have made a step."""
            ledger.want_previews(job_id, for_s=60, every_steps=1000)
            return set(ledger.previews(job_id))

        farm.wait_until(lambda: len(seated()) == MAX_BATCH, "all seats to be taken")
        first = seated()
        leaves = min(first)
        image = farm.ask("DELETE", f"/v1/jobs/{job_id}/images/{leaves}")
        assert image["state"] == "cancelled"
        farm.wait_until(lambda: seated() - first, "somebody else to sit down")
        assert len(seated() - {leaves}) == MAX_BATCH, "more sit there than there is room for"
    job = farm.job(job_id)
    assert (job["counts"]["stored"], job["counts"]["cancelled"]) == (0, 1)
    farm.ask("DELETE", f"/v1/jobs/{job_id}")
    images = farm.images(job_id)
    assert images[leaves]["url"] is None


def test_an_interactive_job_does_not_wait_for_a_bulk_job(farm):
    """Behind 100,000 images one of a higher priority waits for those that were handed out already, and no more."""
    bulk = farm.post(model="tiny", prompts=["bulk"], num_images_per_prompt=100_000, priority="bulk")
    farm.wait_stored(bulk, 2 * MAX_BATCH)
    urgent = farm.post(model="tiny", prompts=["now"], priority="interactive")
    job = farm.wait(urgent)
    assert job["state"] == "done"
    assert farm.job(bulk)["state"] == "rendering"
    (image,) = farm.images(urgent)
    bulk_images = farm.ask("GET", f"/v1/jobs/{bulk}/images?limit=1000")["data"]
    farm.ask("DELETE", f"/v1/jobs/{bulk}")
    stored = [stored_at(each) for each in bulk_images if each["state"] == "stored"]
    first = [moment for moment in stored if datetime.fromisoformat(job["created_at"]) < moment < stored_at(image)]
    # Two for each seat wait unclaimed, as many as there are threads are claimed, and neighbours end while it runs:
    # about twenty. What comes on top is what they get done while the one thread that has it stands still.
    assert len(first) < 500


def test_failed_images_are_rendered_once_what_was_broken_is_mended(farm):
    """A retry while the worker still thinks the model broken fails again, a later one succeeds."""
    job = farm.wait(farm.broken_job)
    assert (job["state"], job["counts"]["failed"]) == ("failed", 3)
    assert all("weights" in image["error"] for image in farm.images(farm.broken_job))
    farm.mend()
    deadline = time.monotonic() + FORGETTING_S
    while job["state"] == "failed" and time.monotonic() < deadline:
        farm.ask("POST", f"/v1/jobs/{farm.broken_job}/retry")
        job = farm.wait(farm.broken_job)
        time.sleep(0.5)
    assert (job["state"], job["counts"]["stored"]) == ("done", 3)
    assert len(set(farm.files(farm.broken_job))) == 3


def test_all_work_of_a_tenant_ends_at_once(farm):
    """A cancelled tenant's seats are free for the next: nothing of it is stored later."""
    endless = [farm.post(model="tiny", prompts=["for ever"], num_images_per_prompt=10_000) for _ in range(2)]
    farm.wait_stored(endless[0], 1)
    assert farm.ask("POST", "/v1/tenants/default/cancel")["cancelled_jobs"] == 2
    stored = [farm.job(job_id)["counts"]["stored"] for job_id in endless]
    assert farm.wait(farm.post(model="tiny", prompts=["next"]))["state"] == "done"
    assert [farm.job(job_id)["state"] for job_id in endless] == ["cancelled"] * 2
    assert [farm.job(job_id)["counts"]["stored"] for job_id in endless] == stored
