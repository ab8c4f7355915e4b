"""What A1111 tells of pictures beside them: the members of `info`, and its text within a file taken apart. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

from api.a1111.mapping import Wanted
from api.a1111.requests import Img2Img
from farm.jobs import Entry
from farm.ledger import ImageStatus
from farm.recipes import Infotext, Recipe, infotext
from farm.requests import JobSpec

_SHORT_HASH: Final = 10  # hex digits that A1111 shows


def info_of(
    want: Wanted,
    spec: JobSpec,
    entry: Entry,
    images: Sequence[ImageStatus],
    recipes: Sequence[Recipe],
    *,
    begun_at: float,
    version: str,
) -> str:
    """Return `info` as A1111's JSON text: of the images that are answered, in their order, and their recipes.

    `entry` is the job's first prompt as it was resolved; `begun_at` is Unix time.
    """
    asked = want.asked
    sampler = want.scheduler.a1111_sampler
    prompts = [prompt if isinstance(prompt, str) else prompt.prompt for prompt in spec.prompts[:1]]
    seeds = [image.seed for image in images] or [entry.seed]
    count = len(seeds)
    model_hash = recipes[0].model_sha256[:_SHORT_HASH] if recipes else None
    document = {
        "prompt": prompts[0],
        "all_prompts": prompts * count,
        "negative_prompt": spec.negative_prompt,
        "all_negative_prompts": [spec.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": asked.subseed,
        "all_subseeds": [asked.subseed] * count,
        "subseed_strength": asked.subseed_strength,
        "width": entry.width,
        "height": entry.height,
        "sampler_name": sampler,
        "cfg_scale": entry.true_cfg_scale if entry.true_cfg_scale > 1 else entry.guidance_scale,
        "steps": entry.num_inference_steps,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": want.row.name,
        "sd_model_hash": model_hash,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": _denoising_strength(want, entry),
        "extra_generation_params": _extra(want, entry),
        "index_of_first_image": 0,
        "infotexts": [infotext(recipe) for recipe in recipes],
        "styles": asked.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(begun_at)),
        "clip_skip": entry.clip_skip + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"diffusion-farm {version}",
    }
    return json.dumps(document, ensure_ascii=False)


def _denoising_strength(want: Wanted, entry: Entry) -> float | None:
    if isinstance(want.asked, Img2Img):
        return entry.strength
    return None if entry.hires is None else entry.hires.strength


def _extra(want: Wanted, entry: Entry) -> dict[str, Any]:
    extra: dict[str, Any] = {"Schedule type": want.scheduler.a1111_schedule}
    if (hires := entry.hires) is not None:
        extra |= {
            "Hires upscale": hires.width / entry.width,
            "Hires steps": hires.num_inference_steps,
            "Hires upscaler": hires.upscaler.capitalize(),
        }
    for number, net in enumerate(entry.controlnets):
        extra[f"ControlNet {number}"] = f"Module: none, Model: {net.model}, Weight: {net.conditioning_scale}"
    return extra


def parameters_of(told: Infotext) -> dict[str, Any]:
    """Return A1111's `parameters` of a picture: what its text says, the size as two."""
    found: dict[str, Any] = {"Prompt": told.prompt, "Negative prompt": told.negative_prompt, **told.parameters}
    width, mark, height = str(told.parameters.get("Size", "")).partition("x")
    if mark:
        found |= {"Size-1": width, "Size-2": height}
    return found
