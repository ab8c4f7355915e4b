"""DeepCache of UNets: exactly the deep features of the last whole call, each seat by its own count of calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acceleration_parity import AcceleratedStudio, counted, render_together
from farm.errors import RenderFailed
from farm.expand import expand, unit_of
from farm.jobs import Acceleration, Hires
from farm.recipes import Recipe, job_of_recipe
from farm.requests import JobSpec, Reproducibility
from farm.schedulers import find_scheduler
from parity import BROWNIAN_WARNING, MAX_DIFFERENCE, units_of
from tiny_models import SIZE_PX, save_tiny_sdxl, tiny_row, tiny_unit
from worker.caching import Memory, Phase, phase_of
from worker.caching.rows import DEEP
from worker.files import recipe_of
from worker.pipelines.base import Ride

pytestmark = pytest.mark.filterwarnings(BROWNIAN_WARNING)

SCHEDULERS = [find_scheduler(name) for name in ("euler", "euler_ancestral", "dpmpp_2m", "heun", "pndm", "unipc")]


@pytest.fixture(scope="module")
def sd15(tiny_folder):
    """Set up a tiny SD 1.5."""
    return AcceleratedStudio.load(tiny_folder)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """Set up a tiny SDXL."""
    return AcceleratedStudio.load(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny"), family="sdxl")


@pytest.fixture(params=["sd15", "sdxl"])
def studio(request):
    """Return each of the two."""
    return request.getfixturevalue(request.param)


def deep_units(**fields):
    """Return units whose whole calls are every, every second, every third and every fourth one."""
    units = units_of(SCHEDULERS, seed=4, guidance_scale=4.0, num_inference_steps=6, **fields)
    return [
        replace(unit, acceleration=Acceleration(deep_cache_interval=1 + index % 4)) for index, unit in enumerate(units)
    ]


def test_images_are_those_of_the_plain_reference(studio):
    """Alone and in lanes of other intervals and phases, with a UNet that is whole or shallow call by call."""
    units = deep_units()
    for unit in units[1:4]:
        studio.assert_all_same([unit], seed=0, max_batch=1)
    studio.assert_all_same(units, seed=3, max_batch=4)


def test_it_goes_with_a_guidance_window(studio):
    """When guidance ends, the prompt's own deep feature is still there."""
    units = [
        replace(unit, acceleration=unit.acceleration._replace(guidance_end=0.7)) for unit in deep_units() if unit.index
    ]
    studio.assert_all_same(units, seed=5, max_batch=3)


def test_it_shows(studio):
    """With and without it images differ by far more than is tolerated, or the others would prove nothing."""
    unit = tiny_unit(num_inference_steps=6)
    deep = replace(unit, acceleration=Acceleration(deep_cache_interval=3))
    assert (studio.by_diffusers(deep) - studio.by_diffusers(unit)).abs().max() > 10 * MAX_DIFFERENCE


def test_deep_blocks_are_spared(sd15):
    """The middle block runs for whole calls alone; the outermost ones always."""
    unit = tiny_unit(num_inference_steps=7, acceleration=Acceleration(deep_cache_interval=3))
    with counted(sd15.ours._unet.mid_block) as middle, counted(sd15.ours._unet.conv_out) as outer:
        sd15.render([unit], seed=0, max_batch=1)
    assert (middle, outer) == ([2] * 3, [2] * 7)


def test_whole_calls_share_a_forward_with_those_of_others(sd15):
    """A seat at a whole call sits in the forward of those without a cache: it is the same forward."""
    plain = tiny_unit(index=0, num_inference_steps=4)
    deep = tiny_unit(index=1, num_inference_steps=4, acceleration=Acceleration(deep_cache_interval=2))
    with counted(sd15.ours._unet.mid_block) as middle:
        render_together(sd15.ours, [plain, deep])
    assert middle == [4, 2, 4, 2]


def test_invariant_bytes_do_not_depend_on_company(studio):
    """Whoever else is whole or shallow: not a bit differs, with and without the cache."""
    studio.assert_company_is_of_no_account(deep_units(reproducibility=Reproducibility.INVARIANT)[:5], max_batch=3)


def test_whole_calls_change_no_bits(sd15):
    """An image whose every call is whole has the bytes of one without the cache, also beside one that has it."""
    plain = tiny_unit(num_inference_steps=2, reproducibility=Reproducibility.INVARIANT)
    deep = replace(plain, num_inference_steps=4, acceleration=Acceleration(deep_cache_interval=2), index=1)
    (alone,) = sd15.render([plain], seed=0, max_batch=2)
    beside, _ = render_together(sd15.ours, [plain, deep])
    assert sd15.by_us(alone).equal(sd15.by_us(beside))


def ride(call, memory, **acceleration):
    """Return a ride at `call` of eight."""
    return Ride(None, 0.0, 5.0, call, 8, acceleration=Acceleration(**acceleration), memory=memory)


def test_phases():
    """Whole calls are counted from the run's beginning; one is made out of turn for a side that has no feature yet."""
    memory = Memory()
    whole, shallow = Phase(skips_blocks=False, is_shallow=False), Phase(skips_blocks=False, is_shallow=True)
    feature = np.zeros(1)
    assert phase_of(ride(1, memory, deep_cache_interval=4), guided=True) == whole
    memory._kept["toward", DEEP] = feature  # type: ignore[assignment]
    assert phase_of(ride(1, memory, deep_cache_interval=4), guided=False) == shallow
    late = {"deep_cache_interval": 4, "guidance_start": 0.25}
    assert phase_of(ride(1, memory, **late), guided=True) == shallow
    assert phase_of(ride(2, memory, **late), guided=True) == whole
    memory._kept["without", DEEP] = feature  # type: ignore[assignment]
    assert phase_of(ride(3, memory, **late), guided=True) == shallow
    assert phase_of(ride(4, memory, **late), guided=True) == whole
    assert phase_of(ride(5, None, **late), guided=True) == whole


def test_streamed_layers_cannot_be_skipped(sd15, monkeypatch):
    """Where each layer fetches the next, a unit with a cache fails with the reason, and others do not."""
    monkeypatch.setattr(sd15.ours, "_is_streamed", True)
    plain = tiny_unit(num_inference_steps=2)
    sd15.render([plain], seed=0, max_batch=1)
    with pytest.raises(RenderFailed, match="leave out first_block_cache and deep_cache_interval"):
        sd15.render([replace(plain, acceleration=Acceleration(deep_cache_interval=2))], seed=0, max_batch=1)


def test_a_second_pass_begins_anew(sd15):
    """Of hires fix each pass counts its own calls, and the first one's features, of another size, are gone."""
    unit = tiny_unit(
        num_inference_steps=3,
        hires=Hires(2 * SIZE_PX, 2 * SIZE_PX, 1.0, 3, "latent"),
        acceleration=Acceleration(deep_cache_interval=3, guidance_end=0.7),
    )
    with counted(sd15.ours._unet.mid_block) as middle, counted(sd15.ours._unet.conv_out) as outer:
        sd15.render([unit], seed=0, max_batch=1)
    assert (middle, outer) == ([2, 2], [2, 2, 1] * 2)


def test_the_recipe_asks_for_the_same_bytes(sd15, tiny_folder):
    """From the file's recipe back to a job and its unit: the same options and picture, other neighbours or not."""
    asked = Acceleration(guidance_start=0.1, guidance_end=0.7, deep_cache_interval=2)
    unit = tiny_unit(num_inference_steps=6, reproducibility=Reproducibility.INVARIANT, acceleration=asked)
    (first,) = sd15.render([unit], seed=0, max_batch=2)
    recipe = Recipe.from_json(recipe_of(unit, first).to_json())
    assert recipe.approximations == asked.approximations == first.approximations
    body = JobSpec.model_validate(job_of_recipe(recipe))
    row = tiny_row(tiny_folder)
    job = expand(body, row, job_id="j", tenant="t", created_at=0.0, drawn_seed=0, max_prompts=1, max_images=1)
    again = unit_of(job.header, job.entries[0], index=0, attempt=1)
    assert again.acceleration == asked
    other = tiny_unit(index=1, num_inference_steps=5, reproducibility=Reproducibility.INVARIANT)
    second, _ = sd15.render([again, other], seed=3, max_batch=2)
    assert (second.pixels == first.pixels).all()
    assert sd15.by_us(second).equal(sd15.by_us(first))
