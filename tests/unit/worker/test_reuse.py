"""What counts as the same image: the hash covers all that the bytes depend on, and nothing of which job asked."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from farm.catalog import Catalog, ControlNetRow, LoraRow
from farm.errors import Fatal, StorageDown
from farm.jobs import Acceleration, ControlNet, Hires, Picture
from farm.prompts import Lora
from farm.requests import Output
from farm.storage import content_key
from farm.weights import DIGESTS_FILE, Digests
from tiny_models import tiny_row, tiny_unit
from worker.gpu import Device
from worker.identity import Identities, Identity, Unknown
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.reuse import Reuse, content_hash
from worker.seat import BatchKey, Rendered, Timings

CPU = Device(torch.device("cpu"), "cpu", None)


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """Return a models folder with a small model whose weights have been read, and a file of every other kind."""
    (tmp_path / "tiny").symlink_to(tiny_folder)
    digests = Digests(tmp_path / DIGESTS_FILE)
    for path in tiny_folder.rglob("*.safetensors"):
        digests.of(path.resolve())
    unet = next(tiny_folder.glob("unet/*.safetensors")).read_bytes()
    for name in ("loras/ink", "embeddings/deep/mood", "upscalers/sharp", "canny/diffusion_pytorch_model"):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(unet)
    (tmp_path / "canny/config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def identities(folder):
    """Return what a CPU worker of that folder renders with; it looks again each time."""
    catalog = Catalog(
        [tiny_row("tiny")],
        [LoraRow(name="rowed", family="sd15", source="loras/ink.safetensors")],
        [ControlNetRow(name="canny", family="sd15", source="canny")],
    )
    ticks = iter(range(0, 10_000, 100))
    return Identities(catalog, folder, CPU, clock=lambda: next(ticks))


def unit_of(**changes):
    """Return a unit that wants to be reused."""
    return replace(tiny_unit(), model="tiny", reuse=True, **changes)


def hash_of(identities, unit, inputs=NO_INPUTS, batch_shapes=(2,)):
    """Return the hash of a unit as a worker would compute it."""
    return content_hash(unit, inputs, identities.of(unit), batch_shapes)


CHANGES = {
    "prompt": "something else",
    "negative_prompt": "something else",
    "seed": 99,
    "num_inference_steps": 9,
    "guidance_scale": 1.25,
    "scheduler": "ddim",
    "width": 32,
    "height": 32,
    "guided": False,
    "true_cfg_scale": 2.0,
    "clip_skip": 1,
    "loras": (Lora("ink", 0.5),),
    "image": "uploads/a.png",
    "mask_image": "uploads/a.png",
    "strength": 0.5,
    "controlnets": (ControlNet("canny", "uploads/a.png"),),
    "hires": Hires(32, 32, 0.5, 3, "latent"),
    "acceleration": Acceleration(guidance_end=0.5),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Picture)])
def test_every_parameter_of_a_picture_counts(identities, name):
    """A parameter that somebody adds to Picture is in the hash by itself; this test wants a value for it."""
    unit = unit_of()
    assert getattr(unit, name) != CHANGES[name]
    assert hash_of(identities, unit) != hash_of(identities, replace(unit, **{name: CHANGES[name]}))


def test_which_job_asks_does_not_count(identities):
    """Job, index and attempt are not in the bytes, so they are not in the hash."""
    unit = unit_of()
    assert hash_of(identities, unit) == hash_of(identities, replace(unit, job="job_other", index=77, attempt=3))


@pytest.mark.parametrize(
    "output", [{"format": "webp"}, {"quality": 50}, {"thumbnail_px": 32}, {"upscale": 2}, {"safety_checker": True}]
)
def test_every_file_that_is_asked_for_counts(identities, output):
    """An earlier image without the thumbnail that is wanted now is of no use."""
    assert hash_of(identities, unit_of()) != hash_of(identities, unit_of(output=Output(**output)))


def test_pixels_of_pictures_and_the_batch_shape_count(identities):
    """A picture is what it shows; a mask is no picture; a batch of another shape rounds otherwise."""
    unit, pixels = unit_of(), np.zeros((4, 6, 3), np.uint8)
    other = pixels.copy()
    other[3, 5, 2] = 1
    variants = [
        Inputs(image=pixels),
        Inputs(image=other),
        Inputs(image=pixels.reshape(6, 4, 3)),
        Inputs(image=pixels, mask=pixels[..., 0]),
        Inputs(controls=(pixels,)),
        Inputs(controls=(pixels, other)),
    ]
    hashes = {hash_of(identities, unit, inputs) for inputs in variants}
    assert len(hashes) == len(variants)
    assert hash_of(identities, unit, batch_shapes=(2,)) != hash_of(identities, unit, batch_shapes=(4,))


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_every_part_of_the_identity_counts(identities, name):
    """Whatever a worker says of itself tells images apart."""
    unit, identity = unit_of(), identities.of(unit_of())
    value = getattr(identity, name)
    other = {
        str: "other",
        int: 24,
        dict: {"other": "other"},
    }.get(type(value)) or value.model_copy(update={"scheduler_config": {"beta_end": 0.02}})
    changed = replace(identity, **{name: other})
    assert content_hash(unit, NO_INPUTS, identity, [2]) != content_hash(unit, NO_INPUTS, changed, [2])


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"loras": (Lora("ink", 0.5),)}, "loras/ink.safetensors"),
        ({"loras": (Lora("rowed", 0.5),)}, "loras/ink.safetensors"),
        ({"prompt": "in a Mood of blue"}, "embeddings/deep/mood.safetensors"),
        ({"negative_prompt": "<mood>"}, "embeddings/deep/mood.safetensors"),
        ({"output": Output(upscale=2, upscaler="sharp")}, "upscalers/sharp.safetensors"),
        ({"controlnets": (ControlNet("canny", "uploads/a.png"),)}, "canny/diffusion_pytorch_model.safetensors"),
    ],
)
def test_files_beside_the_model_count_where_they_are_used(identities, folder, changes, file):
    """Another LoRA, embedding or upscaler under the same name is another image; who does not use it stays as it is."""
    plain, using = hash_of(identities, unit_of()), hash_of(identities, unit_of(**changes))
    path = folder / file
    path.write_bytes(path.read_bytes() + b"\0")
    assert hash_of(identities, unit_of(**changes)) != using
    assert hash_of(identities, unit_of()) == plain


def test_what_is_not_there_is_unknown(identities, folder):
    """Nothing is downloaded, and weights that nobody has read are not read: the image is rendered, which does both."""
    for changes in (
        {"model": "none"},
        {"loras": (Lora("none", 1.0),)},
        {"controlnets": (ControlNet("none", "uploads/a.png"),)},
        {"output": Output(upscale=2, upscaler="none")},
    ):
        with pytest.raises(Unknown):
            identities.of(replace(unit_of(), **changes))
    (folder / DIGESTS_FILE).write_text("{}")
    with pytest.raises(Unknown, match="has never been read"):
        identities.of(unit_of())


class Store:
    """Keeps objects, or raises."""

    def __init__(self) -> None:
        self.objects = {}
        self.down: Exception | None = None
        self.asked = 0

    def _ask(self):
        self.asked += 1
        if self.down is not None:
            raise self.down

    def get(self, key):
        self._ask()
        return self.objects[key]

    def put(self, key, data, _content_type):
        self._ask()
        self.objects[key] = data

    def copy(self, source, target):
        self._ask()
        self.objects[target] = self.objects[source]


class Engine:
    """Has learnt nothing about memory."""

    class Stats:
        """All that is asked of them."""

        caps: dict[str, int] = {}  # noqa: RUF012  as the real ones
        max_batch = 2

    def stats(self):
        return self.Stats


def rendered(identities, **changes):
    """Return an image that was made with what lies here now, but for `changes`."""
    here = identities.of(unit_of())
    timings = Timings(0.1, 0.2, 1.0, 0.3, 0.5, 20, 2.0, changes.pop("batch_shape", 2))
    facts = {"model_hash": here.model, "device": "cpu", "dtype": "float32", "warnings": (), **changes}
    return Rendered(pixels=np.zeros((8, 8, 3), np.uint8), timings=timings, **facts)


def test_an_image_is_remembered_and_found(identities):
    """The index tells where it lies, and another job's copy goes where that job's image belongs."""
    store = Store()
    reuse = Reuse(store, Engine(), identities)
    first, second = unit_of(job="job_a"), unit_of(job="job_b", index=5)
    assert not reuse.answer(first, NO_INPUTS)
    store.objects["jobs/job_a/0000000.png"] = b"picture"
    reuse.remember(first, NO_INPUTS, rendered(identities))
    assert reuse.answer(second, NO_INPUTS)
    assert store.objects["jobs/job_b/0000005.png"] == b"picture"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_hash": "other"},
        {"lora_hashes": {"ink": "other"}},
        {"upscaler_hash": "other"},
        {"inversion_hashes": {"mood": "other"}},
        {"batch_shape": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_image_made_with_something_else_is_not_remembered(identities, changes):
    """A file was replaced under the worker, or memory ran out: what lies here now would not make that image."""
    store = Store()
    Reuse(store, Engine(), identities).remember(unit_of(), NO_INPUTS, rendered(identities, **changes))
    assert store.objects == {}


@pytest.mark.parametrize("down", [StorageDown("away"), Fatal("refused")])
def test_a_store_that_is_away_costs_a_rendering_and_no_more(identities, down):
    """Neither looking nor remembering fails a unit."""
    store = Store()
    store.down = down
    reuse = Reuse(store, Engine(), identities)
    assert not reuse.answer(unit_of(), NO_INPUTS)
    reuse.remember(unit_of(), NO_INPUTS, rendered(identities))
    assert store.asked == 2


def test_who_does_not_ask_costs_the_store_nothing(identities):
    """Jobs without `reuse` are not looked up."""
    store = Store()
    reuse = Reuse(store, Engine(), identities)
    unit = replace(unit_of(), reuse=False)
    assert not reuse.answer(unit, NO_INPUTS)
    reuse.remember(unit, NO_INPUTS, rendered(identities))
    assert store.asked == 0


def test_a_limit_that_memory_has_taught_is_part_of_it(identities, monkeypatch):
    """A lane that was cut down to one seat renders at another shape: its images are not those of full lanes."""
    store = Store()
    reuse = Reuse(store, Engine(), identities)
    reuse.remember(unit_of(job="job_a"), NO_INPUTS, rendered(identities))
    assert len(store.objects) == 1
    full = next(iter(store.objects))
    unit = unit_of(job="job_a")
    assert full == content_key(hash_of(identities, unit, batch_shapes=(2,)))
    monkeypatch.setattr(Engine.Stats, "caps", {str(BatchKey.of(unit)): 1})
    reuse.remember(unit, NO_INPUTS, rendered(identities, batch_shape=1))
    assert sorted(store.objects) == sorted({full, content_key(hash_of(identities, unit, batch_shapes=(1,)))})
