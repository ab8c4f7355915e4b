"""From what a file tells back to the job that asks for it again: the body of POST /v1/jobs, as plain JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from farm.errors import Refused
from farm.jobs import EXACT
from farm.recipes.infotext import ACCELERATION_LABELS, HIRES_UPSCALERS, Infotext

if TYPE_CHECKING:
    from farm.jobs import Picture
    from farm.prompts import Lora
    from farm.recipes.recipe import Recipe

_DIGITS: Final = 9  # of LoRA weights, as tags have them
_KNOWN_BY_OTHER_MEANS: Final = frozenset({"Model hash", "Version", "Lora hashes", "VAE hash", "VAE", "User", "RNG"})


def job_of_recipe(recipe: Recipe, *, model_loras: Sequence[Lora] = ()) -> dict[str, Any]:
    """Return the job of one `invariant` image that makes the file of `recipe` again.

    `model_loras` are those that the catalog gives every image of the model: the recipe names them, the job must not.
    """
    return {
        **job_of_picture(recipe, model=recipe.model, model_loras=model_loras),
        "reproducibility": "invariant",
        "output": recipe.output.model_dump(mode="json", exclude_defaults=True),
    }


def job_of_picture(picture: Picture, *, model: str, model_loras: Sequence[Lora] = ()) -> dict[str, Any]:
    """Return the job of one image that asks for `picture` again, its files left to the defaults.

    `model_loras` are those that the catalog gives every image of the model: the picture has them, the job must not.
    """
    loras = _loras(picture, model_loras)
    # A prompt of tags alone is empty without them, and no job takes an empty one.
    tags = [] if picture.prompt else [f"<lora:{name}:{weight:.{_DIGITS}f}>" for name, weight in loras.items()]
    body: dict[str, Any] = {
        "model": model,
        "prompts": [picture.prompt or " ".join(tags)],
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "num_inference_steps": picture.num_inference_steps,
        "guidance_scale": picture.guidance_scale,
        "scheduler": picture.scheduler,
        "width": picture.width,
        "height": picture.height,
        "clip_skip": picture.clip_skip,
    }
    if picture.true_cfg_scale != 1:
        body["true_cfg_scale"] = picture.true_cfg_scale
    if loras and not tags:
        body["loras"] = [{"name": name, "weight": weight} for name, weight in loras.items()]
    if picture.image:
        body |= {"image": picture.image, "strength": picture.strength}
    if picture.mask_image:
        body["mask_image"] = picture.mask_image
    if picture.controlnets:
        body["controlnets"] = [net._asdict() for net in picture.controlnets]
    if picture.acceleration != EXACT:
        body["acceleration"] = picture.acceleration._asdict()
    if (hires := picture.hires) is not None:
        body["hires"] = {
            # The job asks for a factor, and sides are rounded to what the model renders: this one rounds to both.
            "scale": (hires.width + hires.height) / (picture.width + picture.height),
            "strength": hires.strength,
            "num_inference_steps": hires.num_inference_steps,
            "upscaler": hires.upscaler,
        }
    return body


def _loras(picture: Picture, model_loras: Sequence[Lora]) -> dict[str, float]:
    """Return what a job must ask for, by name: the picture's LoRAs less what the model brings along."""
    weights = {lora.name: lora.weight for lora in picture.loras}
    for lora in model_loras:
        weights[lora.name] = round(weights.get(lora.name, 0.0) - lora.weight, _DIGITS)
    return {name: weight for name, weight in weights.items() if weight}


def job_of_infotext(told: Infotext) -> tuple[dict[str, Any], list[str]]:
    """Return the job of one image that comes near to what another program told, and remarks on what it leaves out.

    Raises Refused when a parameter that it takes is no number or no size.
    """
    left = dict(told.parameters)
    body: dict[str, Any] = {"prompts": [told.prompt], "negative_prompt": told.negative_prompt}
    body |= {"reproducibility": "invariant"}

    def take(name: str, read: Callable[[str], Any]) -> Any:
        """Read a parameter, once; None when it is not told."""
        text = left.pop(name, None)
        if text is None:
            return None
        try:
            return read(text)
        except ValueError as error:
            raise Refused(f"the image tells {name}: {text!r}, which makes no sense", field=name, value=text) from error

    width, height = take("Size", _size) or (None, None)
    sampler, spacing = take("Sampler", str), take("Schedule type", str)
    skip = take("Clip skip", int)
    hires, remarks = _hires(take, (width, height))
    if hires is None and left.pop("Denoising strength", None) is not None:
        remarks.append("it was made over another picture, which is not in the file: rendered from noise alone")
    found = {
        "model": take("Model", str),
        "num_inference_steps": take("Steps", int),
        "guidance_scale": take("CFG scale", float),
        "seed": take("Seed", int),
        "scheduler": " ".join(filter(None, (sampler, spacing))) or None,  # the API knows A1111's labels
        "width": width,
        "height": height,
        "clip_skip": None if skip is None else max(0, skip - 1),
        "hires": hires,
        "acceleration": {
            field: value for field, label in ACCELERATION_LABELS.items() if (value := take(label, _number)) is not None
        }
        or None,
    }
    if (distilled := take("Distilled CFG Scale", float)) is not None:
        if found["guidance_scale"] not in (None, 1.0):
            found["true_cfg_scale"] = found["guidance_scale"]
        found["guidance_scale"] = distilled
    unread = sorted(left.keys() - _KNOWN_BY_OTHER_MEANS)
    if unread:
        remarks.append(f"left out: {', '.join(unread)}")
    return body | {name: value for name, value in found.items() if value is not None}, remarks


def _hires(
    take: Callable[[str, Callable[[str], Any]], Any], size: tuple[int | None, int | None]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the second pass, if there was one, and remarks."""
    scale, target = take("Hires upscale", float), take("Hires resize", _size)
    steps, upscaler = take("Hires steps", int), take("Hires upscaler", str)
    if scale is None and target is not None and None not in size and any(target):
        # A side of 0 is A1111's way to say: whatever keeps the shape.
        scale = max(side / (first or 1) for side, first in zip(target, size, strict=True))
    if scale is None:
        return None, []
    names: Mapping[str, str] = {label: name for name, label in HIRES_UPSCALERS.items()}
    remarks = [] if upscaler in names else [f"the second pass enlarges by latents, not by {upscaler}"]
    hires = {
        "scale": scale,
        "strength": take("Denoising strength", float),
        "num_inference_steps": steps or None,
        "upscaler": names.get(upscaler, "latent"),
    }
    return {name: value for name, value in hires.items() if value is not None}, remarks


def _number(text: str) -> float:
    """Read a number, whole where it is."""
    return int(text) if text.isdecimal() else float(text)


def _size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height
