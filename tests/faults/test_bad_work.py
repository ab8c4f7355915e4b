"""Work that cannot be done: models that cannot be loaded, and a unit that kills whoever takes it."""

from __future__ import annotations

import pytest

from farm.jobs import JobState
from faulty import MAX_ATTEMPTS
from odd_worker import POISON

pytestmark = pytest.mark.slow

DEATHS_IN_COMPANY = 2
"""From then on a unit is rendered while its worker holds nothing else."""


def test_models_that_cannot_be_loaded_fail_their_jobs_alone(farm, undisturbed):
    """One is missing, one's weights are cut short: the reasons are in the ledger, other models' jobs go on."""
    weights = farm.folder / "corrupt" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    jobs = [farm.post(6, model=model) for model in ("broken", "corrupt")]
    job = farm.post()
    farm.wait(lambda: all(farm.ledger.job(bad).state.is_final for bad in jobs))
    farm.finish(job, like=undisturbed)
    for bad, reason in zip(jobs, ("nowhere", "corrupt"), strict=True):
        assert farm.ledger.job(bad).state is JobState.FAILED
        assert all(reason in image.error for image in farm.ledger.images(bad))
    farm.check_quiet()


def test_a_unit_that_kills_its_worker_is_given_up_and_its_neighbours_are_stored(farm, undisturbed):
    """It dies with whoever renders it until its attempts are used up; after two it is alone, and no neighbour dies."""
    poison = farm.post(3, prompts=[f"a {POISON}"], num_images_per_prompt=1)
    job = farm.post_endless()
    farm.wait(lambda: farm.ledger.job(poison).state.is_final)
    (image,) = farm.ledger.images(poison)
    assert farm.ledger.job(poison).state is JobState.FAILED
    assert len(image.history) == image.attempts == MAX_ATTEMPTS
    farm.launcher()
    farm.finish_begun(job, like=undisturbed)
    assert all(len(image.history) <= DEATHS_IN_COMPANY for image in farm.images(job))
