"""A real worker process with a real Valkey and a real S3 server. What may end in mid-job is in tests/faults."""

from __future__ import annotations

import pytest

from farm.jobs import JobState
from farm.recipes import read_recipe
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
