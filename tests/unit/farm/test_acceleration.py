"""What may be given up for speed: resolved for models that have it, refused by name for others, kept and told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import Refused
from farm.jobs import EXACT, Acceleration
from farm.ledger.codec import decode_entry, decode_header, encode_entries, encode_header

ROWS = {name: Catalog().row(name) for name in ("scenes", "sdxl", "flux-dev", "sd35-medium")}


def entries_of(model="scenes", **fields):
    """Return the entries of a job for `model`."""
    return expanded_job(row=ROWS[model], **fields).entries


def test_nothing_is_given_up_by_default():
    """A job that does not ask gets exact pictures."""
    (entry,) = entries_of()
    assert entry.acceleration == EXACT
    assert entry.acceleration.approximations == ()


def test_a_prompt_asks_for_itself():
    """The job's choice is that of prompts without one of their own; what is off says so."""
    own = {"prompt": "a", "acceleration": {"deep_cache_interval": 3}}
    none = {"prompt": "b", "acceleration": {}}
    chosen = [entry.acceleration for entry in entries_of(prompts=[own, none, "c"], acceleration={"guidance_end": 0.6})]
    assert chosen == [Acceleration(deep_cache_interval=3), EXACT, Acceleration(guidance_end=0.6)]
    assert chosen[0].approximations == ("deep features kept for 3 calls",)
    assert chosen[2].approximations == ("guided from 0 to 0.6 of the run",)


def test_families_that_have_a_cache_get_it():
    """The first-block cache is Flux's, deep features are those of UNets."""
    (flux,) = entries_of("flux-dev", acceleration={"first_block_cache": 0.1})
    assert flux.acceleration.approximations == ("first-block cache at 0.1",)
    (sdxl,) = entries_of("sdxl", acceleration={"deep_cache_interval": 2, "guidance_end": 0.5})
    assert len(sdxl.acceleration.approximations) == 2


@pytest.mark.parametrize(
    ("model", "fields", "field", "choices"),
    [
        (
            "flux-dev",
            {"acceleration": {"deep_cache_interval": 2}},
            "acceleration.deep_cache_interval",
            ["a model of sd15", "a model of sdxl"],
        ),
        ("scenes", {"acceleration": {"first_block_cache": 0.1}}, "acceleration.first_block_cache", ["a model of flux"]),
        (
            "sd35-medium",
            {"prompts": [{"prompt": "a", "acceleration": {"first_block_cache": 0.1}}]},
            "prompts.0.acceleration.first_block_cache",
            ["a model of flux"],
        ),
        (
            "flux-dev",
            {"acceleration": {"guidance_end": 0.5}},
            "acceleration.guidance_end",
            ["1", "any share where true_cfg_scale is above 1"],
        ),
        (
            "scenes",
            {"acceleration": {"guidance_start": 0.2}, "guidance_scale": 1},
            "acceleration.guidance_start",
            ["0", "any share where guidance_scale is above 1"],
        ),
        ("scenes", {"acceleration": {"guidance_start": 0.6, "guidance_end": 0.6}}, "acceleration.guidance_start", None),
    ],
)
def test_what_a_model_lacks_is_refused_by_name(model, fields, field, choices):
    """The refusal names the field where the value stood, the value, and what would do."""
    with pytest.raises(Refused) as caught:
        entries_of(model, **fields)
    assert caught.value.field == field
    assert caught.value.value is not None
    assert caught.value.choices == choices


def test_flux_guided_by_a_negative_prompt_may_end_it():
    """Under true_cfg_scale there is a negative row to leave out."""
    (entry,) = entries_of("flux-dev", true_cfg_scale=3, acceleration={"guidance_end": 0.5})
    assert entry.acceleration.guidance_end == 0.5


@given(
    accelerations=st.lists(
        st.builds(
            lambda end, interval: {"guidance_end": end, "deep_cache_interval": interval},
            st.floats(0.01, 1),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_ledger_keeps_it(accelerations):
    """An entry comes back from Redis as it went there, one of an older farm as an exact one."""
    prompts = [{"prompt": f"p{i}", "acceleration": each} for i, each in enumerate(accelerations)]
    job = expanded_job(prompts=prompts)
    written = encode_header(job.header, job.entries[0])
    _, base = decode_header(written)
    assert tuple(decode_entry(text, base) for text in encode_entries(job.entries)) == job.entries
    (plain,) = entries_of()
    older = encode_header(job.header, plain).replace(',"acceleration":[0.0,1.0,0.0,1]', "")
    assert "acceleration" not in older
    assert decode_header(older)[1] == plain
