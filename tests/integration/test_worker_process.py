"""A real worker process with a real Valkey and a real S3 server. What may end in mid-job is in tests/faults."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expanded_jobs import expanded_job
from farm.feeding import feed
from farm.jobs import JobState
from farm.ledger.previews import PREVIEWS_CHANNEL
from farm.queue import queue_length
from farm.recipes import read_recipe
from farm.requests import Reproducibility
from faulty import MAX_BATCH, faulty_farm
from waiting import PATIENCE_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LONG_RUN = {"steps": 1000, "width": 128, "height": 128}
"""A minute or more: whatever the test does meanwhile comes before its end."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Run Redis, S3 and one worker for all tests here."""
    with faulty_farm(tmp_path_factory.mktemp("farm"), lease_s=12, s3_timeout_s=30) as farm:
        farm.worker("test:cpu0")
        yield farm


def test_a_job_is_rendered(farm):
    """Its images lie under their keys and carry their recipes, and the worker tells of them."""
    images = farm.finish(farm.post(12, steps=6))
    recipes = [read_recipe(image) for image in images]
    assert [recipe.prompt for recipe in recipes[::4]] == ["picture 0", "picture 1", "picture 2"]
    assert [recipe.seed for recipe in recipes[:4]] == [100, 101, 102, 103]
    farm.wait(lambda: farm.ledger.workers()[0].images >= 12)
    (report,) = farm.ledger.workers()
    assert report.node == "test:cpu0"
    assert report.resident == ("tiny",)


def test_images_ride_together_and_cancelling_frees_their_seats_within_a_step(farm):
    """Seats are shared; a job of many steps is gone at once, and what comes next does not wait for it."""
    before = farm.ledger.workers()[0]
    job = farm.post(30, **LONG_RUN)
    farm.wait(lambda: farm.ledger.job(job).counts.rendering >= MAX_BATCH)

    def are_shared():
        now = farm.ledger.workers()[0]
        return now.seat_steps - before.seat_steps > now.steps - before.steps

    farm.wait(are_shared)
    report = farm.ledger.workers()[0]
    farm.ledger.cancel(job)
    farm.finish(farm.post(3, steps=6))
    farm.wait(lambda: farm.ledger.workers()[0].images >= report.images + 3)  # the latest report
    assert farm.ledger.workers()[0].steps - report.steps < 500, "a seat was held to its run's end"
    assert farm.ledger.job(job).state is JobState.CANCELLED
    assert list(farm.store.list(f"jobs/{job}/")) == []


def test_a_job_that_is_watched_shows_what_it_is_about_to_be(farm):
    """Wanted before it was there, by the model that ships: steps go by, and the last preview is much like the image."""
    (farm.folder / "scenes").symlink_to(ROOT / "models" / "scenes")
    worker = farm.worker("scenes:cpu0", FARM_WORKER_MODELS="scenes")
    listener = farm.raw.pubsub()
    listener.subscribe(PREVIEWS_CHANNEL)
    job = expanded_job(prompts=["a blue fish above a yellow star by the sea"], num_inference_steps=48)
    job_id = job.header.id
    farm.ledger.want_previews(job_id, every_steps=3, for_s=600)
    farm.s3_line.hang()  # the image is not stored before its last preview has been looked at
    farm.ledger.open(job)
    feed(farm.ledger, farm.app, ["scenes"])
    try:
        farm.wait(lambda: (seen := farm.ledger.preview(job_id, 0)) and seen.jpeg and seen.jpeg_step >= 30)
        shown = farm.ledger.preview(job_id, 0).jpeg
    finally:
        farm.s3_line.mend()
    (image,) = farm.finish(job_id)
    assert farm.ledger.previews(job_id) == {}
    told = []
    while (message := listener.get_message(timeout=1)) is not None:
        if message["type"] == "message":
            told.append(message["data"].decode().split()[:4])
    listener.close()
    assert {(name, index, steps) for name, index, _, steps in told} == {(job_id, "0", "48")}
    assert len({step for _, _, step, _ in told}) > 1
    assert len(shown) < 20_000
    preview, picture = (Image.open(io.BytesIO(data)).convert("RGB") for data in (shown, image))
    assert preview.size == picture.size
    likeness = np.corrcoef(
        *(np.asarray(each.resize((16, 16), Image.Resampling.BOX)).ravel() for each in (preview, picture))
    )
    assert likeness[0, 1] > 0.4  # 0.5 is what a sketch reaches that was learned from one picture
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0, farm.tail()


def test_a_job_can_be_watched_while_it_is_rendered(farm):
    """Its worker hears of it, and shows the next steps."""
    job = farm.post(3, **LONG_RUN)
    farm.wait(lambda: farm.ledger.job(job).counts.rendering == 3)
    assert farm.ledger.previews(job) == {}
    farm.ledger.want_previews(job, every_steps=3)
    farm.wait(lambda: len(seen := farm.ledger.previews(job)) == 3 and all(each.jpeg for each in seen.values()))
    before = farm.ledger.preview(job, 0).step
    farm.wait(lambda: farm.ledger.preview(job, 0).step > before)
    farm.ledger.cancel(job)
    farm.wait(lambda: farm.ledger.previews(job) == {})


@pytest.mark.long
def test_a_worker_measures_its_device_and_holds_no_more_than_pays(tmp_path):
    """The first worker leaves a curve; a second one that is told of a saturated device renders one image at a time.

    What it has no use for it neither claims nor has handed out: two units wait behind the one that renders.
    """
    with faulty_farm(tmp_path, measure_batch="on", tuning_dir=tmp_path / "tuning") as farm:
        first = farm.worker("first:cpu0")
        farm.finish(farm.post(4, steps=4, reproducibility=Reproducibility.FAST))
        (path,) = (tmp_path / "tuning").glob("*.json")
        content = json.loads(path.read_text())
        (entry,) = content["entries"].values()
        assert entry["origin"]["rounds"] == entry["value"]["rounds"] == 3
        assert entry["origin"]["card"].startswith("cpu, ")
        assert {"1", "2"} <= set(entry["value"]["step_ms"])
        farm.wait(lambda: farm.ledger.workers()[0].caps)
        first.kill()
        first.wait()

        entry["value"] |= {"step_ms": {"1": 10, "2": 20, "3": 30}, "end": "flat"}
        path.write_text(json.dumps(content))
        farm.worker("second:cpu0")
        job = farm.post(20, steps=6, reproducibility=Reproducibility.FAST)
        held, handed = [], []

        def is_done():
            held.append(max((len(farm.held_by(each.name, job)) for each in farm.workers("second")), default=0))
            handed.append(queue_length(farm.app, "tiny"))
            return farm.ledger.job(job).state.is_final

        farm.wait(is_done)
        report = farm.workers("second")[0]
        assert (report.seats, list(report.caps.values()), report.max_batch) == (1, [1], MAX_BATCH)
        assert report.seat_steps == report.steps
        assert 1 < max(held) <= 1 + 2
        assert max(handed) <= 2 * 1 + 1
        farm.finish(job)
