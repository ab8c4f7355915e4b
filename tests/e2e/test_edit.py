"""Jobs that are changed while a farm renders them: paused, overtaken, cancelled image by image, tried again."""

import shutil
import time
from datetime import datetime, timedelta

import pytest

from running_farm import running_farm
from tiny_models import SIZE_PX, save_tiny_sd15

MAX_BATCH = 4  # as running_farm sets it
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FORGETTING_S = 90.0  # three times as long as a worker remembers that a model is broken


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Run a farm with one CPU worker, a tiny model, and one whose weights are missing."""
    folder = tmp_path_factory.mktemp("farm")
    whole, broken = save_tiny_sd15(folder / "tiny"), folder / "broken"
    shutil.copytree(whole, broken)
    (broken / WEIGHTS).unlink()
    rows = [
        f'[[model]]\nname = "{source.name}"\nfamily = "sd15"\nsource = "{source}"\nmin_size = 8\n'
        f"width = {SIZE_PX}\nheight = {SIZE_PX}\n"
        for source in (whole, broken)
    ]
    catalog = folder / "catalog.toml"
    catalog.write_text("\n".join(rows))
    with running_farm(folder, catalog_file=str(catalog)) as farm:
        farm.start_worker()
        # First of all: the worker has forgotten by the last test that the model is broken.
        farm.failed_job = farm.post(model="broken", prompts=["a star"], num_images_per_prompt=3, seed=5)
        farm.mend = lambda: shutil.copy(whole / WEIGHTS, broken / WEIGHTS)
        yield farm


def stored_at(image):
    """Return when an image was stored."""
    return datetime.fromisoformat(image["stored_at"])


def seated_at(image):
    """Return when an image took its seat, or as much later as its upload took."""
    return stored_at(image) - timedelta(seconds=image["render_s"])


def test_a_paused_job_finishes_what_runs_and_is_overtaken(farm):
    """Nothing more of it starts and nothing that had started is lost; a younger job is rendered, then it goes on."""
    paused = farm.post(model="tiny", prompts=["long"], num_images_per_prompt=32, num_inference_steps=50)
    farm.wait_stored(paused, 1)
    assert farm.ask("POST", f"/v1/jobs/{paused}/pause")["paused"]
    stored = farm.wait_state(paused, "paused")["counts"]["stored"]
    assert stored < 32, "the pause came too late to stop anything"

    overtaking = farm.post(model="tiny", prompts=["younger"], num_images_per_prompt=8)
    assert farm.wait(overtaking)["state"] == "done"
    job = farm.job(paused)
    assert (job["state"], job["counts"]["stored"], job["counts"]["rendering"]) == ("paused", stored, 0)

    farm.ask("POST", f"/v1/jobs/{paused}/resume")
    job = farm.wait(paused)
    assert (job["state"], job["counts"]["stored"], job["retries"]) == ("done", 32, 0)


def test_a_running_image_that_is_cancelled_makes_room_for_another(farm):
    """It leaves its seat in mid-run: one of those who waited sits in it while its neighbours are still rendered."""
    job_id = farm.post(model="tiny", prompts=["seats"], num_images_per_prompt=2 * MAX_BATCH, num_inference_steps=250)
    farm.wait_state(job_id, "rendering")
    image = farm.ask("DELETE", f"/v1/jobs/{job_id}/images/1")
    assert image["state"] == "cancelled"
    job = farm.wait(job_id)
    assert (job["state"], job["counts"]["stored"], job["counts"]["cancelled"]) == ("done", 2 * MAX_BATCH - 1, 1)
    images = farm.images(job_id)
    assert [image["index"] for image in images if image["state"] == "cancelled"] == [1]
    assert images[1]["url"] is None
    stored = [image for image in images if image["state"] == "stored"]
    first = min(stored_at(image) for image in stored)
    # By a tenth of its run at least: whoever waits for the others' seats begins while the first of them is uploaded.
    early = [image for image in stored if seated_at(image) + timedelta(seconds=image["render_s"] / 10) < first]
    assert len(early) >= MAX_BATCH, "only those who sat beside it began before the first of them was done"


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
    # Two for each seat wait unclaimed, as many as there are threads are claimed, and neighbours end while it runs.
    assert len(first) <= 2 * MAX_BATCH + (MAX_BATCH + 2) + 2 * MAX_BATCH


def test_failed_images_are_rendered_once_what_was_broken_is_mended(farm):
    """A retry while the worker still thinks the model broken fails again, a later one succeeds."""
    job = farm.wait(farm.failed_job)
    assert (job["state"], job["counts"]["failed"]) == ("failed", 3)
    assert all("weights" in image["error"] for image in farm.images(farm.failed_job))
    farm.mend()
    deadline = time.monotonic() + FORGETTING_S
    while job["state"] == "failed" and time.monotonic() < deadline:
        farm.ask("POST", f"/v1/jobs/{farm.failed_job}/retry")
        job = farm.wait(farm.failed_job)
        time.sleep(0.5)
    assert (job["state"], job["counts"]["stored"]) == ("done", 3)
    assert len(set(farm.files(farm.failed_job))) == 3


def test_all_work_of_a_tenant_ends_at_once(farm):
    """A cancelled tenant's seats are free for the next: nothing of it is stored later."""
    endless = [farm.post(model="tiny", prompts=["for ever"], num_images_per_prompt=10_000) for _ in range(2)]
    farm.wait_stored(endless[0], 1)
    assert farm.ask("POST", "/v1/tenants/default/cancel")["cancelled_jobs"] == 2
    stored = [farm.job(job_id)["counts"]["stored"] for job_id in endless]
    assert farm.wait(farm.post(model="tiny", prompts=["next"]))["state"] == "done"
    assert [farm.job(job_id)["state"] for job_id in endless] == ["cancelled"] * 2
    assert [farm.job(job_id)["counts"]["stored"] for job_id in endless] == stored
