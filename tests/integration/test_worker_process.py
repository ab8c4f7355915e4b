"""A real worker process with a real Valkey and a real S3 server. What may end in mid-job is in tests/faults."""

from __future__ import annotations

import json

import pytest

from farm.jobs import JobState
from farm.queue import queue_length
from farm.recipes import read_recipe
from farm.requests import Reproducibility
from faulty import MAX_BATCH, faulty_farm

pytestmark = pytest.mark.slow


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
