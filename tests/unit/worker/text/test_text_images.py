"""Pictures of weighted and long prompts are diffusers' pictures of the same embeddings, whoever sits beside them."""

from __future__ import annotations

import hashlib
import random

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from farm.requests import Reproducibility
from plain_prompts import encode_plainly
from tiny_models import save_tiny_sd15, tiny_row, tiny_unit
from worker.engine import Engine
from worker.files import recipe_of
from worker.pipelines.loading import load_pipeline

LONG = "a small house, with a red roof, near the sea, " * 5
PROMPTS = {
    "a red circle": [[("a red circle", 1.0)]],
    "a (red:1.4) [circle]": [[("a ", 1), ("red", 1.4), (" ", 1), ("circle", 1 / 1.1)]],
    LONG: [[(LONG, 1)]],
    LONG + "(x:0.5)": [[(LONG, 1), ("x", 0.5)]],
    "a BREAK (b:1.3)": [[("a", 1)], [("b", 1.3)]],
    "": [[]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a tiny model whose text encoder has a mean to keep, as every trained one has."""
    folder = save_tiny_sd15(tmp_path_factory.mktemp("weighted") / "tiny")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    torch.manual_seed(0)
    torch.nn.init.normal_(text_encoder.final_layer_norm.bias, 0.2, 0.3)
    text_encoder.save_pretrained(folder / "text_encoder")
    return folder


def by_diffusers(pipeline, unit):
    """Render `unit` with StableDiffusionPipeline from embeddings made in plain loops; uint8 [h, w, 3]."""
    texts = [PROMPTS[unit.prompt], PROMPTS[unit.negative_prompt]][: 1 + unit.guided]
    encoder = (pipeline.tokenizer, pipeline.text_encoder)
    length = max(encode_plainly(*encoder, sections)[0].shape[1] // 77 for sections in texts)
    prompt, *negative = (encode_plainly(*encoder, sections, num_chunks=length)[0] for sections in texts)
    images = pipeline(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative[0] if negative else None,
        height=unit.height,
        width=unit.width,
        num_inference_steps=unit.num_inference_steps,
        guidance_scale=unit.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(unit.seed),
        output_type="pt",
    ).images
    return (images[0] * 255).permute(1, 2, 0)


def units_of_all_prompts(**fields):
    """Return a unit for each pair of prompts."""
    return [
        tiny_unit(index=index, prompt=prompt, negative_prompt=negative, seed=index, num_inference_steps=3, **fields)
        for index, (prompt, negative) in enumerate((one, other) for one in PROMPTS for other in PROMPTS)
    ]


def render(pipeline, units, *, max_batch, seed=0):
    """Render `units` in one lane, joining at random; return the pixels in order."""
    chance = random.Random(seed)  # noqa: S311 - makes up a test case
    engine = Engine(lambda _: pipeline, max_batch=max_batch)
    waiting = list(units)
    chance.shuffle(waiting)
    futures = {}
    while waiting or not all(future.done() for future in futures.values()):
        for _ in range(chance.choice([0, 1, 2])):
            if waiting:
                unit = waiting.pop()
                futures[unit.index] = engine.submit(unit)
        if not all(future.done() for future in futures.values()):
            engine._pass(engine._next_lane())
    return [futures[unit.index].result() for unit in units]


@pytest.mark.parametrize(
    ("guidance_scale", "every"),
    [
        pytest.param(0.0, 7, id="unguided"),  # each prompt once: the negative ones are not read
        pytest.param(4.0, 5, id="guided"),  # each prompt and each negative one
        pytest.param(4.0, 1, id="guided, all pairs", marks=pytest.mark.long),
    ],
)
def test_in_mixed_company(folder, guidance_scale, every):
    """Prompts of one, two and three chunks, weighted or not, share a lane and come out as each alone in diffusers."""
    reference = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    reference.scheduler = diffusers.EulerDiscreteScheduler.from_config(reference.scheduler.config)
    units = units_of_all_prompts(guidance_scale=guidance_scale)[::every]
    pipeline = load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))
    for unit, rendered in zip(units, render(pipeline, units, max_batch=5), strict=True):
        assert rendered.warnings == ()
        expected = by_diffusers(reference, unit)
        # Rounding to whole numbers is at most a half, and a hair where the two lie on either side of one.
        difference = (torch.from_numpy(rendered.pixels) - expected).abs().max()
        assert difference <= 0.51, f"{unit.prompt!r} and {unit.negative_prompt!r}: {difference}"


def test_invariant_pictures_do_not_depend_on_the_length_of_others(folder):
    """At one fixed shape the bytes are the same alone and among prompts of other lengths."""
    units = units_of_all_prompts(guidance_scale=4.0, reproducibility=Reproducibility.INVARIANT)[::3]
    pipeline = load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))
    together = render(pipeline, units, max_batch=4)
    for unit, rendered in list(zip(units, together, strict=True))[::2]:
        (alone,) = render(pipeline, [unit], max_batch=4)
        assert rendered.pixels.tobytes() == alone.pixels.tobytes()


def test_embeddings_in_the_models_folder_are_found(folder, tmp_path):
    """A file in `embeddings/` beside the models changes the picture of the prompt that names it, and no other."""
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": torch.randn(2, 16)}, tmp_path / "embeddings" / "toy.safetensors")
    units = [tiny_unit(index=index, prompt=prompt) for index, prompt in enumerate(["a <toy>", "a boat"])]
    pictures = [
        [
            rendered.pixels.tobytes()
            for rendered in render(
                load_pipeline(tiny_row(folder), models_dir=models_dir, device=torch.device("cpu")), units, max_batch=1
            )
        ]
        for models_dir in (tmp_path, tmp_path / "elsewhere")
    ]
    assert pictures[0][0] != pictures[1][0]
    assert pictures[0][1] == pictures[1][1]


def test_recipes_hear_of_the_embeddings_that_were_used(tmp_path):
    """An image knows the sha256 of every textual inversion that its texts named, and of no other."""
    folder = save_tiny_sd15(tmp_path / "tiny")
    (folder / "embeddings").mkdir()
    for name in ("easy", "night", "other"):
        save_file({"emb_params": torch.randn(2, 16)}, folder / "embeddings" / f"{name}.safetensors")
    pipeline = load_pipeline(tiny_row(folder), models_dir=folder, device=torch.device("cpu"))
    engine = Engine(lambda _: pipeline, max_batch=2)
    engine.start()
    units = [tiny_unit(index=0, prompt="an <easy> house", negative_prompt="night"), tiny_unit(index=1)]
    with_two, with_none = [engine.submit(unit).result(timeout=60) for unit in units]
    engine.stop()
    digests = {
        name: hashlib.sha256((folder / "embeddings" / f"{name}.safetensors").read_bytes()).hexdigest()
        for name in ("easy", "night")
    }
    assert with_two.inversion_hashes == digests
    assert with_none.inversion_hashes == {}
    recipe = recipe_of(units[0], with_two, "image")
    assert recipe.inversion_sha256 == digests
