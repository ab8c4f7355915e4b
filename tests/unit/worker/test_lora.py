"""LoRAs: the pictures that diffusers makes with them, weights back to the last bit, failures that stay small."""

from __future__ import annotations

import copy
import random
from functools import cache

import diffusers
import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from safetensors.torch import load_file, save_file

from farm.catalog import Catalog, LoraRow
from farm.errors import RenderFailed
from farm.prompts import Lora
from farm.requests import Reproducibility
from farm.schedulers import find_scheduler
from lora_files import save_kohya_lora, save_peft_lora
from tiny_models import tiny_unit
from worker.engine import Engine
from worker.lora import LoraLibrary
from worker.pipelines.latent import Loaded
from worker.pipelines.sd15 import Sd15Pipeline

# diffusers adds its second adapter to the text encoder through transformers, which minds
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

MAX_DIFFERENCE = 1e-5  # of pixels from 0 to 1

STYLE, SKETCH, OLD = Lora("style", 0.8), Lora("folder/sketch", -0.4), Lora("old", 0.7)


def never(source):
    """Stand for a hub that must not be asked."""
    raise AssertionError(f"{source} was asked for")


@pytest.fixture(scope="module")
def reference(tiny_folder):
    """Open the tiny model with diffusers."""
    return copy.deepcopy(opened(tiny_folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference):
    """Save three LoRAs: PEFT's with a text encoder, PEFT's of the UNet alone, and kohya's."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "folder").mkdir()
    save_peft_lora(reference, folder / "style.safetensors", seed=1)
    save_peft_lora(reference, folder / "folder" / "sketch.safetensors", seed=2, rank=4, alpha=4.0, with_text=False)
    save_kohya_lora(reference, folder / "old.safetensors", seed=3)
    return folder


@cache
def opened(tiny_folder):
    """Open the tiny model with diffusers, to copy from."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_model(tiny_folder, library):
    """Open the tiny model as ours, with LoRAs."""
    pipeline = copy.deepcopy(opened(tiny_folder))
    pipeline.unet.requires_grad_(requires_grad=False)
    pipeline.text_encoder.requires_grad_(requires_grad=False)
    return Sd15Pipeline(
        Loaded(
            name="tiny",
            parts={name: getattr(pipeline, name) for name in Sd15Pipeline.component_types},
            scheduler_config=dict(pipeline.scheduler.config),
            model_hash="0" * 64,
            device=torch.device("cpu"),
            device_name="cpu",
            dtype=torch.float32,
            loras=library,
        )
    )


@pytest.fixture
def ours(tiny_folder, folder):
    """Open the tiny model anew for each test."""
    return open_model(tiny_folder, LoraLibrary(Catalog(), folder, fetch=never))


@cache
def by_diffusers(tiny_folder, folder, unit):
    """Render `unit` with StableDiffusionPipeline and PEFT; float [h, w, 3]."""
    pipeline = copy.deepcopy(opened(tiny_folder))
    row = find_scheduler(unit.scheduler)
    pipeline.scheduler = getattr(diffusers, row.diffusers_class).from_config(
        {**pipeline.scheduler.config, **row.config}
    )
    names = [lora.name.replace("/", "_") for lora in unit.loras]
    for lora, name in zip(unit.loras, names, strict=True):
        path = folder / f"{lora.name}.safetensors"
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    if names:
        pipeline.set_adapters(names, [lora.weight for lora in unit.loras])
    return torch.from_numpy(
        pipeline(
            unit.prompt,
            negative_prompt=unit.negative_prompt,
            height=unit.height,
            width=unit.width,
            num_inference_steps=unit.num_inference_steps,
            guidance_scale=unit.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(unit.seed),
            output_type="np",
        ).images[0]
    )


def render(pipeline, units, *, max_batch=3, seed=0):
    """Render `units`, each joining before a random step; return the unrounded images [h, w, 3], or what failed."""
    images = {}
    decode = pipeline.coder.decode

    def keep(latents):
        pixels = decode(latents)
        images[pixels.numpy().tobytes()] = pipeline.coder.decode_image(latents).permute(1, 2, 0)
        return pixels

    pipeline.coder.decode = keep
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    engine = Engine(lambda _: pipeline, max_batch=max_batch)
    waiting, futures = list(units), []
    with torch.inference_mode():
        while waiting or not all(future.done() for future in futures):
            arrivals = chance.choice([0, 0, 1, 2])
            futures.extend(engine.submit(unit) for unit in waiting[:arrivals])
            del waiting[:arrivals]
            if not all(future.done() for future in futures):
                engine._pass(engine._next_lane())
    pipeline.coder.decode = decode
    return [future.exception() or images[future.result().pixels.tobytes()] for future in futures]


@pytest.mark.parametrize(
    "loras", [(STYLE,), (SKETCH,), (OLD,), (SKETCH, OLD, STYLE)], ids=["peft", "unet_only", "kohya", "three"]
)
def test_pictures_are_those_of_diffusers(ours, tiny_folder, folder, loras):
    """Each layout, alone and with others, changes the picture as diffusers' own way does."""
    unit = tiny_unit(loras=loras, prompt="a red circle", negative_prompt="grey", guidance_scale=4.0)
    (image,) = render(ours, [unit])
    expected = by_diffusers(tiny_folder, folder, unit)
    plain = by_diffusers(
        tiny_folder, folder, tiny_unit(prompt="a red circle", negative_prompt="grey", guidance_scale=4.0)
    )
    assert float((expected - plain).abs().max()) > 100 * MAX_DIFFERENCE, "a LoRA that does nothing proves nothing"
    assert float((image - expected).abs().max()) <= MAX_DIFFERENCE


def test_units_with_and_without_share_a_worker(ours, tiny_folder, folder):
    """Lanes of other LoRAs, weights and none take turns on one model, and every picture is diffusers' own."""
    sets = [(), (STYLE,), (Lora("style", 0.3),), (SKETCH, OLD), (), (STYLE,), (OLD,)]
    units = [
        tiny_unit(index=index, seed=index, loras=loras, scheduler=scheduler, num_inference_steps=2 + index % 4)
        for index, (loras, scheduler) in enumerate(
            zip(sets, ["euler", "ddim", "heun", "euler_ancestral"] * 2, strict=False)
        )
    ]
    for unit, image in zip(units, render(ours, units), strict=True):
        assert float((image - by_diffusers(tiny_folder, folder, unit)).abs().max()) <= MAX_DIFFERENCE, unit


def test_a_file_that_was_replaced_is_read_anew(tiny_folder, reference, tmp_path):
    """After others were rendered, a new file of the old name makes its own picture, words included."""
    save_peft_lora(reference, tmp_path / "style.safetensors", seed=1)
    pipeline = open_model(tiny_folder, LoraLibrary(Catalog(), tmp_path, fetch=never))
    unit = tiny_unit(loras=(STYLE,))
    images = render(pipeline, [unit, tiny_unit(index=1)], max_batch=1)
    save_peft_lora(reference, tmp_path / "style.safetensors", seed=7, alpha=6.0)
    (image,) = render(pipeline, [unit])
    (expected,) = render(open_model(tiny_folder, LoraLibrary(Catalog(), tmp_path, fetch=never)), [unit])
    assert torch.equal(image, expected)
    assert not torch.equal(image, images[0])


def test_weights_come_back_to_the_last_bit(ours):
    """After any LoRAs the base weights are what they were."""
    before = {name: tensor.clone() for name, tensor in ours._unet.state_dict().items()}
    with torch.inference_mode():
        ours.adapt((STYLE, SKETCH))
        assert any(not torch.equal(tensor, before[name]) for name, tensor in ours._unet.state_dict().items())
        ours.adapt((OLD,))
        ours.adapt(())
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours._unet.state_dict().items())
    assert ours.lora_hashes == {}


def test_invariant_bytes_do_not_depend_on_what_was_in_the_weights(tiny_folder, folder):
    """A unit with a LoRA has the same bytes on a fresh model and after others, with others in between."""
    unit = tiny_unit(index=9, loras=(STYLE,), reproducibility=Reproducibility.INVARIANT, num_inference_steps=4)
    others = [tiny_unit(index=i, seed=i, loras=loras) for i, loras in enumerate([(OLD,), (), (SKETCH, STYLE)])]
    library = LoraLibrary(Catalog(), folder, fetch=never)
    (alone,) = render(open_model(tiny_folder, library), [unit])
    *_, beside = render(open_model(tiny_folder, library), [*others, unit], seed=4)
    assert torch.equal(alone, beside)


def test_two_names_of_one_module_are_one(ours, folder):
    """Files that call CLIP's layers by other names change the same weights, which come back all the same."""
    layer = "encoder.layers.0.self_attn.q_proj"
    module = ours._patch._parts["text_encoder"].get_submodule(layer)
    before = module.weight.clone()
    for name in (layer, f"text_model.{layer}"):
        ones = {
            f"text_encoder.{name}.lora_{side}.weight": torch.ones(shape)
            for side, shape in (("A", (1, 16)), ("B", (16, 1)))
        }
        save_file(ones, folder / f"{len(name)}.safetensors")
    with torch.inference_mode():
        ours.adapt((Lora(str(len(layer))), Lora(str(len(f"text_model.{layer}")))))
        assert torch.allclose(module.weight, before + 2)
        ours.adapt(())
    assert torch.equal(module.weight, before)


def test_hashes_of_what_is_in_the_weights(ours):
    """The sha256 of each file is known while it is in the weights: recipes name it."""
    with torch.inference_mode():
        ours.adapt((SKETCH, STYLE))
    assert set(ours.lora_hashes) == {"style", "folder/sketch"}
    assert all(len(digest) == 64 for digest in ours.lora_hashes.values())


def test_a_lora_of_the_catalog_is_fetched(tiny_folder, folder):
    """A row's file comes from wherever its source says."""
    row = LoraRow(name="hub-style", family="sd15", source="owner/style", filename="style.safetensors")
    asked = []

    def fetch(source):
        asked.append(source)
        return folder / "style.safetensors"

    pipeline = open_model(
        tiny_folder, LoraLibrary(Catalog(loras=(*Catalog().loras.values(), row)), folder, fetch=fetch)
    )
    (by_row, by_file) = render(pipeline, [tiny_unit(loras=(Lora("hub-style", 0.8),)), tiny_unit(loras=(STYLE,))])
    assert torch.equal(by_row, by_file)
    assert asked == [row]


def _write_broken(folder):
    (folder / "broken.safetensors").write_bytes((folder / "style.safetensors").read_bytes()[:5000])
    (folder / "pickled.pt").write_bytes(b"\x80\x04.")
    save_file({"lycoris.lokr_w1": torch.zeros(2, 2)}, folder / "lokr.safetensors")
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = {f"{layer}.lora_A.weight": torch.ones(2, 99), f"{layer}.lora_B.weight": torch.ones(99, 2)}
    save_file(wide, folder / "wide.safetensors")
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 16)}, folder / "half.safetensors")
    elsewhere = {f"unet.nowhere.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(elsewhere, folder / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "there is no LoRA 'missing'; there are: .*folder/sketch.*style"),
        ("broken", "cannot be read"),
        ("pickled", "is a pickle .pickled.pt., which can run code"),
        ("lokr", "LyCORIS"),
        ("wide", r"for another model: its unet.down_blocks.1.*is \[99, 99\], this model's \[16, 16\]"),
        ("half", "one of the two matrices"),
        ("elsewhere", "there is no unet.nowhere.to_q here"),
        ("lcm-sdxl", "for models of family sdxl, not sd15"),
    ],
)
def test_a_lora_that_cannot_be_used_fails_its_units_alone(ours, folder, name, reason):
    """The units that ask for it fail with its name and the reason; their neighbours are rendered."""
    _write_broken(folder)
    good = tiny_unit(index=0)
    (clean,) = render(ours, [good])
    failed, fine = render(ours, [tiny_unit(index=1, loras=(STYLE, Lora(name))), good])
    assert isinstance(failed, RenderFailed)
    with pytest.raises(RenderFailed, match=reason):
        raise failed
    assert torch.equal(fine, clean)


def test_running_out_of_memory_in_the_middle_leaves_no_lora_behind(ours, monkeypatch):
    """When putting a LoRA in fails half way, the weights are the base's again."""
    before = {name: tensor.clone() for name, tensor in ours._unet.state_dict().items()}
    calls = iter(range(100))

    def product(layer, _device):
        if next(calls) == 5:
            raise torch.OutOfMemoryError("no memory")
        return torch.ones(layer.up.shape[0], *layer.down.shape[1:])

    monkeypatch.setattr("worker.lora.patch._product", product)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        ours.adapt((STYLE,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours._unet.state_dict().items())


def test_each_layer_of_kohyas_files_has_an_alpha_of_its_own(ours, reference, folder):
    """Alphas that differ from layer to layer are kept apart; diffusers ignores all but the most frequent one."""
    save_kohya_lora(reference, folder / "mixed.safetensors", seed=5, alphas=(1.0, 8.0, 3.0))
    state = load_file(folder / "mixed.safetensors")
    before = {name: tensor.clone() for name, tensor in ours._unet.state_dict().items()}
    with torch.inference_mode():
        ours.adapt((Lora("mixed", 0.5),))
    num_layers = 0
    for name, weight in ours._unet.state_dict().items():
        flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        expected = before[name]
        if f"{flat}.alpha" in state:
            num_layers += 1
            product = state[f"{flat}.lora_up.weight"] @ state[f"{flat}.lora_down.weight"]
            expected = expected + 0.5 * float(state[f"{flat}.alpha"]) / 2 * product
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert num_layers > 10


def test_weights_in_eight_bits_keep_theirs_and_are_helped_beside(ours, tiny_folder, folder):
    """Added to fp8 weights a LoRA would be rounded away; computed beside them it is all there, and gone without trace.

    The reference is a model of the same rounded weights in 32 bits, to which the LoRA is added.
    """
    eight, wide = torch.float8_e4m3fn, open_model(tiny_folder, LoraLibrary(Catalog(), folder, fetch=never))
    for module in wide._unet.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            for parameter in module.parameters():
                parameter.copy_(parameter.to(eight))
    apply_layerwise_casting(ours._unet, eight, torch.float32, skip_modules_pattern=("norm",))
    assert ours._unet.conv_in.weight.dtype == wide._unet.conv_out.weight.to(eight).dtype
    units = [tiny_unit(loras=loras) for loras in ((), (SKETCH,), (Lora("sketch_double", 0.5), SKETCH), ())]
    save_peft_lora(
        copy.deepcopy(opened(tiny_folder)),
        folder / "sketch_double.safetensors",
        seed=8,
        with_text=False,
    )
    expected, images = render(wide, units), render(ours, units)
    for image, other in zip(images, expected, strict=True):
        assert float((image - other).abs().max()) <= MAX_DIFFERENCE
    assert float((images[0] - images[1]).abs().max()) > 100 * MAX_DIFFERENCE
    assert torch.equal(images[0], images[3])


class Packed(torch.Tensor):
    """Stands for the classes of torchao's weights, which say that they have 16 bits and cannot be added to."""


def test_packed_weights_keep_theirs_and_are_helped_beside(ours, tiny_folder, folder):
    """Beside weights of another library's class a LoRA changes the picture as if it were in them, and not them."""
    plain = open_model(tiny_folder, LoraLibrary(Catalog(), folder, fetch=never))
    linears = [module for module in ours._unet.modules() if isinstance(module, torch.nn.Linear)]
    before = [linear.weight.clone() for linear in linears]
    for linear in linears:
        linear.weight = torch.nn.Parameter(linear.weight.data.as_subclass(Packed), requires_grad=False)
    units = [tiny_unit(loras=(SKETCH,)), tiny_unit()]
    for image, other in zip(render(ours, units), render(plain, units), strict=True):
        assert float((image - other).abs().max()) <= MAX_DIFFERENCE
    assert all(torch.equal(linear.weight, weight) for linear, weight in zip(linears, before, strict=True))
