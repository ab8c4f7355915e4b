"""AUTOMATIC1111's text about an image, which galleries read: how a recipe is told in it, and how it is read.

    <prompt>
    Negative prompt: <negative prompt>
    Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.0, Seed: 1, Size: 512x512, …

The text is for others, and for what others made: it rounds, and a prompt may look like what follows it. Our own images
are read by their JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from farm.errors import Refused
from farm.jobs import EXACT
from farm.schedulers import find_scheduler

if TYPE_CHECKING:
    from farm.jobs import Acceleration, ControlNet
    from farm.recipes.recipe import Recipe

HIRES_UPSCALERS: Final[Mapping[str, str]] = MappingProxyType({"latent": "Latent", "lanczos": "Lanczos"})
"""A1111's names for the ways to enlarge that we know."""

ACCELERATION_LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "guidance_start": "Guidance start",
        "guidance_end": "Guidance end",
        "first_block_cache": "First block cache",
        "deep_cache_interval": "DeepCache interval",
    }
)
"""What an acceleration is called there; A1111 has no names for it."""

_NEGATIVE: Final = "Negative prompt:"
_SHORT_MODEL_HASH: Final = 10  # hex digits that A1111 shows
_SHORT_LORA_HASH: Final = 12
_MIN_PARAMETERS: Final = 3  # a line with fewer belongs to the prompt, as A1111 has it
_PARAMETER: Final = re.compile(r'\s*(?P<name>\w[\w /-]*):\s*(?P<value>"(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True, slots=True)
class Infotext:
    """What such a text says; `parameters` by A1111's names, as they stand there, without quotes."""

    prompt: str
    negative_prompt: str
    parameters: Mapping[str, str]


def infotext(recipe: Recipe) -> str:
    """Tell `recipe` as AUTOMATIC1111 would: prompt with LoRA tags, negative prompt if any, one line of parameters."""
    tags = "".join(f" <lora:{lora.name}:{lora.weight:g}>" for lora in recipe.loras)
    negative = f"\n{_NEGATIVE} {recipe.negative_prompt}" if recipe.negative_prompt else ""
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in _parameters(recipe))
    return f"{(recipe.prompt + tags).lstrip(' ') if tags else recipe.prompt}{negative}\n{line}"


def _parameters(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Yield names and values of the last line; the model comes late, for readers that take a ControlNet's for it."""
    scheduler = find_scheduler(recipe.scheduler)
    yield "Steps", recipe.num_inference_steps
    yield "Sampler", scheduler.a1111_sampler
    yield "Schedule type", scheduler.a1111_schedule
    if recipe.guidance_scale > 1 and (not recipe.guided or recipe.true_cfg_scale > 1):  # an input of the model: Flux
        yield "CFG scale", recipe.true_cfg_scale
        yield "Distilled CFG Scale", recipe.guidance_scale
    else:
        yield "CFG scale", recipe.guidance_scale
    yield "Seed", recipe.seed
    yield "Size", f"{recipe.width}x{recipe.height}"
    if recipe.clip_skip:
        yield "Clip skip", recipe.clip_skip + 1  # A1111 counts the layer that it stops at
    if recipe.image:
        yield "Denoising strength", recipe.strength
    if (hires := recipe.hires) is not None:
        if not recipe.image:
            yield "Denoising strength", hires.strength
        if hires.width * recipe.height == hires.height * recipe.width:
            yield "Hires upscale", f"{hires.width / recipe.width:g}"
        else:
            yield "Hires resize", f"{hires.width}x{hires.height}"
        yield "Hires steps", hires.num_inference_steps
        yield "Hires upscaler", HIRES_UPSCALERS[hires.upscaler]
    yield from _acceleration(recipe.acceleration)
    for number, net in enumerate(recipe.controlnets):
        yield f"ControlNet {number}", _controlnet(net)
    yield from _file_hashes(recipe)
    yield "Model hash", recipe.model_sha256[:_SHORT_MODEL_HASH]
    yield "Model", recipe.model
    if recipe.file == "upscaled":
        yield "Postprocess upscale by", recipe.output.upscale
        yield "Postprocess upscaler", recipe.output.upscaler
    yield "Version", f"diffusion-farm {recipe.farm_version}"


def _acceleration(acceleration: Acceleration) -> Iterator[tuple[str, object]]:
    """Yield what was given up for speed."""
    for field, label in ACCELERATION_LABELS.items():
        if (value := getattr(acceleration, field)) != getattr(EXACT, field):
            yield label, f"{value:g}"


def _file_hashes(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Yield what tells apart files of one name."""
    for label, sha256 in (("Lora hashes", recipe.lora_sha256), ("TI hashes", recipe.inversion_sha256)):
        if sha256:
            yield label, ", ".join(f"{name}: {digest[:_SHORT_LORA_HASH]}" for name, digest in sha256.items())


def _controlnet(net: ControlNet) -> str:
    """Tell a ControlNet as A1111's extension of that name does."""
    return (
        f"Module: none, Model: {net.model}, Weight: {net.conditioning_scale}, Resize Mode: Just Resize, "
        f"Guidance Start: {net.guidance_start}, Guidance End: {net.guidance_end}, Control Mode: Balanced"
    )


def _quoted(value: object) -> str:
    """Quote what would end the field early, as AUTOMATIC1111 does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def read_infotext(text: str) -> Infotext:
    """Take such a text apart; raises Refused when it ends without a line of parameters."""
    *lines, last = text.strip().split("\n")
    parameters = {match["name"]: _unquoted(match["value"].strip()) for match in _PARAMETER.finditer(last)}
    if len(parameters) < _MIN_PARAMETERS:
        raise Refused("the text in this image is no recipe: it has no line of parameters")
    prompt: list[str] = []
    negative: list[str] = []
    words = prompt
    for line in lines:
        if line.startswith(_NEGATIVE):
            words = negative
            words.append(line.removeprefix(_NEGATIVE))
        else:
            words.append(line)
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), parameters)


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:  # a quotation mark of somebody who does not quote
            return value
    return value
