"""States, ids and the request model."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from farm.jobs import Counts, JobState, derive_state, new_job_id
from farm.requests import JobSpec, Output

numbers = st.integers(min_value=0, max_value=50)


@given(queued=numbers, rendering=numbers, stored=numbers, failed=numbers, cancelled=st.booleans())
def test_state_follows_from_counts(queued, rendering, stored, failed, cancelled):
    """A job is final exactly when nothing of it is left to do, or it was cancelled."""
    total = queued + rendering + stored + failed
    counts = Counts(
        total=total,
        queued=0 if cancelled else queued,
        rendering=0 if cancelled else rendering,
        stored=stored,
        failed=failed,
        cancelled=queued + rendering if cancelled else 0,
    )
    state = derive_state(counts, cancelled=cancelled)
    assert state.is_final == (cancelled or queued + rendering == 0)
    if queued + rendering == 0:
        assert state is (JobState.FAILED if failed else JobState.DONE)
    elif not cancelled:
        assert state is (JobState.RENDERING if rendering + stored + failed else JobState.QUEUED)


def test_ids_sort_by_age_and_differ():
    """Listing newest first is listing by id, and ids of one millisecond differ."""
    older, newer = new_job_id(1_700_000_000.0), new_job_id(1_700_000_000.001)
    assert older < newer
    assert len({new_job_id(1.0) for _ in range(1000)}) == 1000
    assert re.fullmatch(r"job_[0-9a-z]{20}", new_job_id())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["  "]}, "prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 10_000}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": -2}, "seed"),
        ({"stepz": 3}, "stepz"),
        ({"output": {"format": "bmp"}}, "output"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_bad_requests_name_their_field(change, field):
    """Whatever is wrong, the error's location starts with the field that is."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"model": "scenes", "prompts": ["a"], **change})
    assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_defaults_are_what_the_readme_says():
    """A model and a prompt are a whole job."""
    spec = JobSpec.model_validate({"model": "scenes", "prompts": ["a red circle"]})
    assert (spec.num_images_per_prompt, spec.priority, spec.output) == (1, "normal", Output(format="png"))
