"""`farm replay`: render a picture again by the recipe in its file, and say whether it is the same.

Our own pictures are compared, byte by byte, then pixel by pixel; where they differ, their recipes tell why. What other
programs made is rendered as near to it as their text allows, and compared with nothing.
"""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import httpx
from PIL import Image, ImageChops
from rich.markup import escape

from cli import watch
from cli.client import FarmClient, trusts_proxies
from cli.exits import CliError, Exit
from cli.show import console, errors
from farm.errors import Refused
from farm.prompts import Lora
from farm.recipes import NoRecipe, Recipe, job_of_infotext, job_of_recipe, read_infotext_of, read_recipe
from farm.requests import Reproducibility

_URL_OF: Final = {"image": "url", "thumbnail": "thumbnail_url", "upscaled": "upscaled_url"}
_HASH_DIGITS: Final = 12


def replay(client: FarmClient, path: Path, *, model: str | None, out: Path | None, verify: bool) -> Exit:
    """Render the picture in `path` again and compare; keep it as `out` if that is given.

    `model` takes the place of the one that the file names. With `verify` only the very same bytes will do.
    """
    try:
        original = path.read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", code=Exit.USAGE) from error
    try:
        body, recipe, remarks = plan(client, original, model)
    except Refused as error:
        raise CliError(f"{path}: {error}", code=Exit.USAGE) from error
    if recipe is None and verify:
        raise CliError(f"{path}: another program made it: there are no bytes to compare with", code=Exit.USAGE)
    for remark in remarks:
        errors.print(f"[yellow]note[/] {escape(remark)}")
    job = client.submit(body)
    console.print(f"[bold]{escape(job['id'])}[/]  {escape(path.name)} again, by {escape(job['model'])}")
    try:
        job = watch.follow(client, job)
    except KeyboardInterrupt:
        watch.detach(client, job["id"])
        return Exit.INTERRUPTED
    if code := watch.report(client, job):
        return code
    again = fetch(client, job["id"], "image" if recipe is None else recipe.file)
    if out is not None:
        write(out, again)
    if recipe is None:
        return Exit.OK
    return tell(original, again, recipe, verify=verify)


def plan(client: FarmClient, original: bytes, model: str | None) -> tuple[dict[str, Any], Recipe | None, list[str]]:
    """Return the job to submit, the recipe if the file has one of ours, and remarks; raises Refused and CliError."""
    try:
        recipe = read_recipe(original)
    except NoRecipe:
        body, remarks = job_of_infotext(read_infotext_of(original))
        body |= {"model": model} if model else {}
        if "model" not in body:
            raise CliError("the picture names no model: choose one with --model", code=Exit.USAGE) from None
        client.model(body["model"])  # an unknown one is told of with the choices, before anything is submitted
        return body, None, ["another program made it: the bytes cannot be compared", *remarks]
    remarks = []
    if recipe.reproducibility is Reproducibility.FAST:
        remarks.append("it was made under `fast`, which promises the picture but not its last bits")
    brings = client.model(model or recipe.model)["defaults"].get("loras", {})
    body = job_of_recipe(recipe, model_loras=[Lora(name, weight) for name, weight in brings.items()])
    return body | ({"model": model} if model else {}), recipe, remarks


def fetch(client: FarmClient, job_id: str, file: str) -> bytes:
    """Return a file of the only image of a job."""
    image = next(client.all_images(job_id))
    url = image[_URL_OF[file]]
    try:
        return httpx.get(url, timeout=60.0, trust_env=trusts_proxies(url)).raise_for_status().content
    except httpx.HTTPError as error:
        raise CliError(f"the picture is rendered, but the storage does not give it: {error}") from error


def write(path: Path, data: bytes) -> None:
    """Write the picture made again."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error


def tell(original: bytes, again: bytes, recipe: Recipe, *, verify: bool) -> Exit:
    """Say whether the files are the same, or else how far apart and why; returns the exit code that tells.

    Of a picture made under `fast` the pixels are enough, unless `verify` wants the bytes.
    """
    if original == again:
        console.print(f"[green]identical[/]: the same {len(again)} bytes")
        return Exit.OK
    distance = pixel_distance(original, again)
    if distance is None:
        errors.print("[red]not the same[/]: the pictures are of different sizes")
    elif distance:
        errors.print(f"[red]not the same[/]: pixels differ by up to {distance} of 255")
    else:
        errors.print("[yellow]the same pixels[/], in files that differ")
    for line in differences(recipe, read_recipe(again)):
        errors.print(f"  {escape(line)}")
    is_enough = distance == 0 and recipe.reproducibility is Reproducibility.FAST and not verify
    return Exit.OK if is_enough else Exit.FAILED


def pixel_distance(original: bytes, again: bytes) -> int | None:
    """Return the largest difference of a colour of a pixel, 0 to 255; None when the sizes differ."""
    with Image.open(io.BytesIO(original)) as first, Image.open(io.BytesIO(again)) as second:
        if first.size != second.size:
            return None
        difference = ImageChops.difference(first.convert("RGB"), second.convert("RGB"))
    return max(difference.tobytes())


def differences(was: Recipe, now: Recipe) -> list[str]:
    """Return a line for each part of the recipes that differs: weights, device, shape of the batch and so on."""
    lines = []
    for each in fields(Recipe):
        before, after = getattr(was, each.name), getattr(now, each.name)
        if before != after:
            lines.append(f"{each.name}: was {_shown(before)}, is {_shown(after)}")
    return lines


def _shown(value: object) -> str:
    is_hash = isinstance(value, str) and len(value) > _HASH_DIGITS and value.isalnum()
    return f"{str(value)[:_HASH_DIGITS]}…" if is_hash else str(value)
