"""Which models are resident together, by the sizes of published checkpoints."""

from __future__ import annotations

import pytest
import torch

from farm.catalog import Catalog
from farm.plans import ModelSizes, plan_for
from farm.plans.published import PUBLISHED
from farm.settings import Settings
from tiny_models import save_tiny_sd15, tiny_row
from worker.budget import Budget, Footprint, Space, one_at_a_time
from worker.gpu import Device
from worker.models import WorkerModels
from worker.pipelines.fitting import footprint_of

GIB = 2**30
RAM = 64 * GIB
PUBLISHED_MODELS = {
    "sd15": ("sd15", 512, True),
    "sdxl": ("sdxl", 1024, True),
    "flux-dev": ("flux", 1024, False),
    "sd35-large": ("sd3", 1024, True),
}


def footprint(name, *, vram_gib, max_batch=8):
    """Return the footprint of a published model, `sd15-a` and `sd15-b` being two of the size of `sd15`."""
    checkpoint = next(key for key in PUBLISHED_MODELS if name.startswith(key))
    family, side_px, guided = PUBLISHED_MODELS[checkpoint]
    sizes = ModelSizes(PUBLISHED[checkpoint], "published")
    plan = plan_for(sizes, family, vram_bytes=vram_gib * GIB, width=side_px, height=side_px, guided=guided)
    return Footprint.of(plan, max_batch=max_batch, on_card=True)


def budget(vram_gib, *, ram_bytes=RAM, **options):
    """Return the budget of a card."""
    space = Space.on_card(vram_gib * GIB, ram_bytes=ram_bytes)
    return Budget(lambda name: footprint(name, vram_gib=vram_gib), space, **options)


@pytest.mark.parametrize(
    ("vram_gib", "models", "together"),
    [
        (24, ["sd15-a", "sd15-b", "sd15-c"], True),
        (24, ["sd15", "sdxl"], True),
        (24, ["sdxl-a", "sdxl-b"], True),
        (24, ["sdxl-a", "sdxl-b", "sdxl-c"], False),
        (24, ["flux-dev", "sd15"], False),
        (12, ["sdxl", "sd15"], False),
        (12, ["sd15-a", "sd15-b"], True),
        (80, ["flux-dev", "sdxl", "sd15"], True),
        (80, ["flux-dev", "sd35-large"], True),
        (80, ["flux-dev-a", "flux-dev-b"], True),
        (80, ["flux-dev-a", "flux-dev-b", "sd35-large"], False),
    ],
)
def test_published_models_on_usual_cards(vram_gib, models, together):
    """Three of SD 1.5 share a 4090 and Flux wants it alone; an H100 takes Flux, SDXL and SD 1.5 at once."""
    assert budget(vram_gib).fits(models) is together


def test_weights_add_up_and_working_memory_counts_once():
    """Lanes step one at a time, so what the hungriest needs is enough for all."""
    space = Space(device=100, ram=10)
    assert space.holds([Footprint(30, 40), Footprint(30, 20)])
    assert not space.holds([Footprint(30, 41), Footprint(30, 20)])
    assert space.holds([Footprint(10, 0, ram=5), Footprint(10, 0, ram=5)])
    assert not space.holds([Footprint(10, 0, ram=5), Footprint(10, 0, ram=6)])
    assert space.holds([])


def test_a_context_is_on_the_card_once():
    """Two models need less than two of their plans, by the context and the workspaces."""
    one = footprint("sd15", vram_gib=24)
    space = Space.on_card(8 * GIB, ram_bytes=RAM)
    plan_bytes = 8 * GIB - 256 * 2**20
    assert space.device == plan_bytes - 768 * 2**20
    assert (
        one.held + 768 * 2**20
        == plan_for(
            ModelSizes(PUBLISHED["sd15"], ""), "sd15", vram_bytes=24 * GIB, width=512, height=512, guided=True
        ).steady_bytes
    )


def test_a_full_lane_needs_more_than_one_seat():
    """Working memory is that of the lane's cap, or of as many seats as the plan allows."""
    few, many, more = (footprint("sdxl", vram_gib=12, max_batch=seats).working for seats in (1, 12, 64))
    assert few < many == more  # the plan for 12 GiB has twelve seats


def test_encoders_that_wait_in_ram_count_there():
    """Flux on a 4090 keeps T5's 9.5 GB and CLIP in RAM."""
    flux = footprint("flux-dev", vram_gib=24)
    assert 9.5e9 < flux.ram < 10e9
    assert footprint("sd15", vram_gib=24).ram == 0


def test_the_setting_is_an_upper_bound():
    """Models that would fit stay apart when fewer are allowed; one is always allowed."""
    assert not budget(24, max_models=2).fits(["sd15-a", "sd15-b", "sd15-c"])
    assert budget(24, max_models=2).fits(["sd15-a", "sd15-b"])
    assert budget(24, max_models=1).fits(["sd15-a"])


def test_a_model_of_unknown_size_goes_alone():
    """Nobody shares with a model that cannot be measured, and it is measured once."""
    asked = []

    def measure(name):
        asked.append(name)
        return None if name == "riddle" else Footprint(1, 1)

    fits = Budget(measure, Space(device=100, ram=100)).fits
    assert not fits(["sd15", "riddle"])
    assert fits(["riddle"])
    assert fits(["sd15", "sdxl"])
    assert sorted(asked) == ["riddle", "sd15", "sdxl"]


def test_a_model_larger_than_the_budget_may_be_alone():
    """Whether a single model fits is the business of its plan, which knows smaller layouts."""
    assert Budget(lambda _: Footprint(200, 0), Space(device=100, ram=0)).fits(["large"])


def test_one_at_a_time():
    """Without a budget no two models share."""
    assert one_at_a_time(["a"])
    assert not one_at_a_time(["a", "b"])


# -- from files


def measured(row, models_dir, memory_bytes=RAM):
    """Return the footprint on a CPU."""
    return footprint_of(row, models_dir, torch.device("cpu"), memory_bytes=memory_bytes, max_batch=4)


def test_a_model_on_disk_is_measured_by_its_files(tmp_path):
    """On a CPU its weights count as float32, in RAM, which is the device."""
    save_tiny_sd15(tmp_path / "tiny")
    small = measured(tiny_row(tmp_path / "tiny"), tmp_path)
    shared = 256 * 2**20  # text embeddings
    weights = sum(path.stat().st_size for path in (tmp_path / "tiny").rglob("*.safetensors"))
    assert shared < small.held <= shared + weights
    assert small.working > 0
    assert small.ram == 0


def test_a_model_that_is_not_here_counts_as_published(tmp_path):
    """Of a hub model nothing is downloaded to measure it."""
    row = Catalog().row("sd15")
    assert measured(row, tmp_path).held == pytest.approx(4.4e9, rel=0.1)


def test_a_model_without_a_plan_is_of_unknown_size(tmp_path):
    """One that fits nowhere, and one whose file is broken, are told as unknown; their loader says why."""
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    assert measured(tiny_row("broken.safetensors"), tmp_path) is None
    row = Catalog().row("sd15")
    assert measured(row, tmp_path, memory_bytes=GIB) is None


def test_a_worker_measures_its_own_models(tmp_path):
    """Tiny ones fit beside each other, as far as the setting allows; a name that the catalog lacks fits beside none."""
    save_tiny_sd15(tmp_path / "tiny")
    catalog = Catalog([tiny_row(tmp_path / "tiny", name=name) for name in "abc"])

    def fits(models, **settings):
        device = Device(torch.device("cpu"), "cpu", None)
        return WorkerModels(Settings(models_dir=tmp_path, **settings), catalog, device).fits(models)

    assert fits("ab")
    assert fits("abc")
    assert not fits("abc", max_resident_models=2)
    assert not fits("abc", ram_share=1e-6)
    assert not fits(["a", "unknown"])
