"""The pictures that a unit names, fetched and decoded: from the farm's bucket, or from a host that is allowed.

Runs in the threads that wait for the engine, never in the engine's own. Thousands of units share a picture, so what was
decoded is kept, up to a bound. Resizing is the pipeline's part: it knows the size of its pass.
"""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from farm.errors import FarmError, Fatal, Refused, RenderFailed, StorageDown, Transient
from farm.pictures import check_source, hosts_of, is_url, read_picture
from farm.storage import NoSuchObject
from worker.pipelines.base import NO_INPUTS, Inputs

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from farm.jobs import Unit
    from farm.settings import Settings
    from farm.storage import Store

_CACHE_BYTES: Final = 256 * 2**20
_TIMEOUT_S: Final = 20.0
_GONE: Final = frozenset({400, 401, 403, 404, 405, 406, 410, 451})
"""Answers of a web server that will be the same next time."""


class InputAway(Transient):
    """The host that a picture is to come from does not give it now; it may later."""


class Pictures:
    """Fetches pictures. Safe to share between threads."""

    def __init__(
        self, store: Store, *, hosts: Collection[str], max_bytes: int, max_pixels: int, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._max_cached_bytes = cache_bytes
        self._lock = threading.Lock()  # guards the cache alone: nobody waits for another's download
        self._cache: OrderedDict[tuple[str, str], NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0
        self._opener = urllib.request.build_opener(_AllowedRedirects(hosts))

    @classmethod
    def of(cls, store: Store, settings: Settings) -> Pictures:
        """Build from the settings."""
        return cls(
            store,
            hosts=hosts_of(settings.input_hosts),
            max_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_upload_pixels,
        )

    def fetch(self, unit: Unit) -> Inputs:
        """Return the pictures that `unit` names.

        Raises RenderFailed, naming field, source and reason, when one is missing, not allowed or no picture;
        StorageDown or InputAway when it may be had later.
        """
        if not (unit.image or unit.controlnets):
            return NO_INPUTS
        return Inputs(
            image=self._get("image", unit.image, "RGB") if unit.image else None,
            mask=self._get("mask_image", unit.mask_image, "L") if unit.mask_image else None,
            controls=tuple(
                self._get(f"controlnets.{position}.image", controlnet.image, "RGB")
                for position, controlnet in enumerate(unit.controlnets)
            ),
        )

    def _get(self, field: str, source: str, mode: str) -> NDArray[np.uint8]:
        """Return a picture as uint8 [h, w, 3], or [h, w] in mode L."""
        key = (source, mode)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        try:
            check_source(source, self._hosts, field_name=field)
            data = self._download(source) if is_url(source) else self._store.get(source)
            image, _ = read_picture(data, max_pixels=self._max_pixels)
        except (Refused, NoSuchObject) as error:
            raise RenderFailed(f"{field} {source!r}: {error}") from error
        except Transient:
            raise
        except Fatal as error:  # refused credentials, which are no fault of the unit
            raise StorageDown(f"{field} {source!r}: {error}") from error
        pixels = _pixels(image, mode)
        self._keep(key, pixels)
        return pixels

    def _keep(self, key: tuple[str, str], pixels: NDArray[np.uint8]) -> None:
        """Put a picture into the cache, and the ones longest unused out of it."""
        with self._lock:
            if key in self._cache or pixels.nbytes > self._max_cached_bytes:
                return
            self._cache[key] = pixels
            self._cached_bytes += pixels.nbytes
            while self._cached_bytes > self._max_cached_bytes:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.nbytes

    def _download(self, url: str) -> bytes:
        """Return what lies at an allowed URL; raises Refused or InputAway."""
        try:
            with self._opener.open(url, timeout=_TIMEOUT_S) as answer:
                data: bytes = answer.read(self._max_bytes + 1)
        except urllib.error.HTTPError as error:
            with error:
                kind: type[FarmError] = Refused if error.code in _GONE else InputAway
                raise kind(f"the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputAway(f"the server cannot be reached: {error}") from error
        if len(data) > self._max_bytes:
            raise Refused(f"is larger than a picture may be ({self._max_bytes:,} bytes)")
        return data


class _AllowedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to hosts that are allowed, and to no others."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = hosts

    def redirect_request(  # noqa: PLR0917  urllib's own signature
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Check the new place before anything is asked of it."""
        if not is_url(newurl):
            raise Refused(f"is redirected to {newurl!r}, which is no URL")
        check_source(newurl, self._hosts, field_name="redirect")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pixels(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    """Return an image's pixels; what is transparent lies on white, or on black where it is a mask."""
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "black" if mode == "L" else "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    pixels = np.asarray(image.convert(mode))
    pixels.setflags(write=False)  # shared by units, hence by threads
    return pixels
