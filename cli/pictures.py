"""Pictures on this machine that a job names: brought to the farm first, and named by their keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.exits import CliError, Exit

if TYPE_CHECKING:
    from cli.client import FarmClient, Json

_MEDIA_TYPES: Final = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".avif": "image/avif",
}


def upload_file(client: FarmClient, path: Path) -> Json:
    """Bring a picture to the farm; return what the API tells of it. Raises CliError when it cannot be read."""
    media_type = _MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise CliError(f"{path}: pictures are {', '.join(_MEDIA_TYPES)}", code=Exit.USAGE)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", code=Exit.USAGE) from error
    return client.upload(data, media_type)


def upload_pictures(client: FarmClient, body: dict[str, Any]) -> None:
    """Bring every local file that a job's body names to the farm, once each, and put its key in its place."""
    keys: dict[str, str] = {}
    for holder, name in _named(body):
        source = holder[name]
        if isinstance(source, str) and "://" not in source and not source.startswith(("uploads/", "jobs/")):
            if source not in keys:
                keys[source] = upload_file(client, Path(source))["key"]
            holder[name] = keys[source]


def _named(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where pictures are named: an object and its field."""
    prompts = body.get("prompts")
    for holder in (body, *(prompts if isinstance(prompts, list) else [])):
        if not isinstance(holder, dict):
            continue
        yield from ((holder, name) for name in ("image", "mask_image") if name in holder)
        controlnets = holder.get("controlnets")
        for controlnet in controlnets if isinstance(controlnets, list) else []:
            if isinstance(controlnet, dict) and "image" in controlnet:
                yield controlnet, "image"
