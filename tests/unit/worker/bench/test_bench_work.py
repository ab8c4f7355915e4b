"""The work of an image, counted on the published networks, against the figures that the project plans with."""

from functools import cache

import pytest
import torch

from farm.catalog import Catalog
from worker.bench.published import CHECKPOINTS, build, component_names
from worker.bench.work import Work, tflop_of, work_of

FIGURES = {  # TFLOP of one row of a step, of decoding, of encoding one prompt
    "sd15": (0.803, 2.51, 0.013),
    "sdxl": (6.761, 10.47, 0.013 + 0.098),
    "flux-dev": (74.39, 10.47, 0.013 + 4.85),
    "flux-schnell": (69.47, 10.47, 0.013 + 4.85 / 2),  # 256 tokens of T5
}


@cache
def published_work(name):
    """Return the work of a published model at its native size."""
    row = Catalog().row(name)
    networks = {part: build(name, part) for part in component_names(name)}
    return work_of(networks, row, width=row.width, height=row.height)


@pytest.mark.parametrize("name", [*list(FIGURES)[:-1], pytest.param("flux-schnell", marks=pytest.mark.long)])
def test_the_work_of_published_models_is_the_known_one(name):
    """Denoiser, VAE and text encoders take what is known of them, attention included, within two percent."""
    found = published_work(name)
    assert (found.step, found.decode, found.encode) == pytest.approx(FIGURES[name], rel=0.02, abs=5e-4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(CHECKPOINTS) - set(FIGURES)))
def test_the_work_of_every_published_model_can_be_counted(name):
    """No published model lacks an input that its denoiser wants."""
    found = published_work(name)
    assert found.step > found.encode > 0
    assert found.decode > 1


@pytest.mark.parametrize(
    ("name", "tflop"),
    [
        ("sd15", 34.7),
        ("sdxl", 416.4),
        ("flux-dev", 2098),
        pytest.param("flux-schnell", 291, marks=pytest.mark.long),
    ],
)
def test_the_work_of_whole_images_is_the_known_one(name, tflop):
    """Steps, twice where guided, and VAE and text on top add up to the floor that the project knows."""
    row = Catalog().row(name)
    work = published_work(name)
    assert work.image(calls=row.num_inference_steps, guided=row.guidance == "cfg") == pytest.approx(tflop, rel=0.02)


def test_guidance_doubles_the_denoiser_alone():
    """Decoding and encoding are done once for an image, guided or not."""
    work = Work(step=2.0, decode=3.0, encode=1.0)
    assert work.image(calls=10, guided=False) == 24
    assert work.image(calls=10, guided=True) == 44


def test_a_multiply_add_is_two():
    """A product of matrices takes two operations for each pair of numbers."""
    a, b = torch.empty(100, 200, device="meta"), torch.empty(200, 300, device="meta")
    assert tflop_of(lambda: a @ b) == pytest.approx(2 * 100 * 200 * 300 / 1e12)
