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
from farm.queue import queue_length
from farm.recipes import read_recipe
from farm.requests import Reproducibility
from faulty import MAX_BATCH, faulty_farm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Run Redis, S3 and one worker for all tests here."""
    with faulty_farm(tmp_path_factory.mktemp("farm")) as farm:
        farm.worker("test:cpu0")
        yield farm


def test_a_job_is_rendered_in_shared_batches(farm):
    """Images of several prompts ride together, lie under their keys and carry their recipes."""
    images = farm.finish(farm.post(12, steps=30))
    recipes = [read_recipe(image) for image in images]
    assert [recipe.prompt for recipe in recipes[::4]] == ["picture 0", "picture 1", "picture 2"]
    assert [recipe.seed for recipe in recipes[:4]] == [100, 101, 102, 103]
    (report,) = farm.ledger.workers()
    assert report.node == "test:cpu0"
    assert report.resident == ("tiny",)
    farm.wait(lambda: farm.ledger.workers()[0].images >= 12)
    report = farm.ledger.workers()[0]
    assert report.seat_steps > report.steps


def test_cancelling_frees_the_seats_within_a_step(farm):
    """A job of many steps is gone at once, and what comes next does not wait for it."""
    job = farm.post(30, steps=1000)
    farm.wait(lambda: farm.ledger.job(job).counts.rendering >= MAX_BATCH)
    farm.ledger.cancel(job)
    farm.finish(farm.post(3))
    farm.wait(lambda: farm.ledger.workers()[0].images >= 3)  # the latest report
    assert farm.ledger.workers()[0].steps < 1000, "a seat was held to its run's end"
    assert farm.ledger.job(job).state is JobState.CANCELLED
    assert list(farm.store.list(f"jobs/{job}/")) == []


def test_a_job_that_is_watched_shows_what_it_is_about_to_be(farm):
    """Wanted before it was there, by the model that ships: steps go by, and the last preview is much like the image."""
    (farm.folder / "scenes").symlink_to(ROOT / "models" / "scenes")
    worker = farm.worker("scenes:cpu0", FARM_WORKER_MODELS="scenes")
    job = expanded_job(prompts=["a blue fish above a yellow star by the sea"], num_inference_steps=80)
    farm.ledger.want_previews(job.header.id, every_steps=5)
    farm.ledger.open(job)
    feed(farm.ledger, farm.app, ["scenes"])
    seen = {}

    def is_done():
        preview = farm.ledger.preview(job.header.id, 0)
        if preview is not None:
            seen[preview.step] = preview
        return farm.ledger.job(job.header.id).state.is_final

    farm.wait(is_done)
    (image,) = farm.finish(job.header.id)
    assert farm.ledger.previews(job.header.id) == {}
    assert len(seen) > 3
    assert {preview.steps for preview in seen.values()} == {80}
    shown = {preview.jpeg_step: preview.jpeg for preview in seen.values() if preview.jpeg is not None}
    assert max(shown) >= 50  # on a busy machine nobody may look while the very last is there
    assert max(map(len, shown.values())) < 20_000
    preview, picture = (Image.open(io.BytesIO(data)).convert("RGB") for data in (shown[max(shown)], image))
    assert preview.size == picture.size
    likeness = np.corrcoef(
        *(np.asarray(each.resize((16, 16), Image.Resampling.BOX)).ravel() for each in (preview, picture))
    )
    assert likeness[0, 1] > 0.5
    worker.terminate()
    assert worker.wait(40) == 0, farm.tail()


def test_a_job_can_be_watched_while_it_is_rendered(farm):
    """Its worker hears of it, and shows the next steps."""
    job = farm.post(3, steps=1000)
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
