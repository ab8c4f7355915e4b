"""Pictures that a job names: where they may lie, and what counts as one. Fetching and resizing is the worker's part.

A source is a key of the farm's bucket, or the URL of a host that FARM_INPUT_HOSTS allows: no job can make the farm
fetch what its operator has not allowed. The API refuses other sources, the worker checks again before it asks.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from PIL import Image, ImageOps, UnidentifiedImageError

from farm.errors import Refused

if TYPE_CHECKING:
    from farm.requests import ControlNetSpec, JobSpec, PromptSpec
    from farm.storage import ImageFormat

FORMATS: Final[dict[str, ImageFormat]] = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp", "AVIF": "avif"}
"""What is read, by Pillow's name and by ours."""

TO_COME: Final = "uploads/to-come"
"""Stands, in a preview alone, for a picture that will be uploaded when the job is sent. Nothing ever lies there."""

_KEY: Final = re.compile(r"(?:uploads|jobs)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def pictures_of(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield (field, source) of every picture that a job names, the job's own first."""
    yield from _named("", spec)
    for position, prompt in enumerate(spec.prompts):
        if not isinstance(prompt, str):
            yield from _named(f"prompts.{position}.", prompt)


def _named(prefix: str, spec: JobSpec | PromptSpec) -> Iterator[tuple[str, str]]:
    for name in ("image", "mask_image"):
        source: str | None = getattr(spec, name)
        if source is not None:
            yield f"{prefix}{name}", source
    controlnets: tuple[ControlNetSpec, ...] = spec.controlnets or ()
    for position, controlnet in enumerate(controlnets):
        yield f"{prefix}controlnets.{position}.image", controlnet.image


def hosts_of(setting: str) -> frozenset[str]:
    """Return the hosts that a comma-separated setting names; `host`, or `host:port` where the port is not the usual."""
    return frozenset(host.strip().lower() for host in setting.split(",") if host.strip())


def is_url(source: str) -> bool:
    """Whether `source` is no key."""
    return "://" in source


def check_source(source: str, hosts: Collection[str], *, field_name: str) -> None:
    """Raise Refused unless `source` is a key of the farm's own, or a URL whose host is one of `hosts`."""
    if is_url(source):
        if not _is_allowed(source, hosts):
            allowed = [f"https://{host}/…" for host in sorted(hosts)]
            reason = "is of no host that FARM_INPUT_HOSTS allows" if hosts else "is a URL, and no host is allowed here"
            raise Refused(
                f"{reason}; upload the picture with POST /v1/uploads and name its key",
                field=field_name,
                value=source,
                choices=["uploads/…", "jobs/…", *allowed],
            )
    elif not _KEY.fullmatch(source):
        raise Refused(
            "is no key of a picture: POST /v1/uploads and a job's images have one",
            field=field_name,
            value=source,
            choices=["uploads/…", "jobs/…"],
        )


def _is_allowed(url: str, hosts: Collection[str]) -> bool:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or parts.username is not None or re.search(r"[\x00-\x20\x7f\\]", url):
        return False
    usual = port in (None, _DEFAULT_PORTS[parts.scheme])
    return f"{host}:{port or _DEFAULT_PORTS[parts.scheme]}" in hosts or (usual and host in hosts)


def read_picture(data: bytes, *, max_pixels: int) -> tuple[Image.Image, ImageFormat]:
    """Decode a whole picture, turned the way its EXIF says; return it with the name of its format, as in FORMATS.

    Raises Refused, without a field, for what is no PNG, JPEG, WebP or AVIF, is broken, or has more than `max_pixels`:
    these are counted before they are decoded.
    """
    try:
        # Pillow warns of sizes that it deems large; ours is the limit that counts.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            _check_pixels(*image.size, max_pixels)
            image.load()
            return ImageOps.exif_transpose(image), FORMATS[image.format or ""]
    except Refused:
        raise
    except UnidentifiedImageError as error:
        raise Refused("is no picture of a format that is read", choices=list(FORMATS.values())) from error
    except Exception as error:  # decoders raise anything on bytes made to break them
        raise Refused(f"is no whole picture: {error}", choices=list(FORMATS.values())) from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refused(
            f"{width}x{height} pixels are more than a picture may have ({max_pixels:,})",
            value=width * height,
            choices=[f"1 to {max_pixels}"],
        )
