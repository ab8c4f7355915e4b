"""The page at `/`: a few hand-written files that a browser runs as they are, spoken to by nobody but people.

Owns how they are served: the names under which browsers may keep them for ever, and the policy that lets the page load
nothing but them, the API's answers and the store's images. What the page shows it gets from the API like any client.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from fastapi import APIRouter, Request, Response

from api.links import SignedLinks
from api.problems import NOT_FOUND, HttpProblem

router = APIRouter(include_in_schema=False)

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_RELEASE: Final = b"{release}"
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_ASK_FIRST: Final = "no-cache"


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    etag: str


@dataclass(frozen=True, slots=True)
class _Release:
    """All files of the page, under a name that follows from their content."""

    name: str
    files: dict[str, _File]


@cache
def release() -> _Release:
    """Read the page's files, once."""
    folder = resources.files(__package__) / "files"
    bodies = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    name = hashlib.sha256(b"".join(key.encode() + bodies[key] for key in sorted(bodies))).hexdigest()[:16]
    # Modules import each other by relative paths, so the name of the release stands in one place.
    bodies["index.html"] = bodies["index.html"].replace(_RELEASE, name.encode())
    return _Release(
        name,
        {
            key: _File(body, _TYPES[key.rpartition(".")[2]], f'"{hashlib.sha256(body).hexdigest()[:16]}"')
            for key, body in bodies.items()
        },
    )


@router.get("/")
async def page(request: Request, links: SignedLinks) -> Response:
    """Answer with the page itself; browsers ask each time whether it has changed."""
    return _answer(
        request,
        release().files["index.html"],
        {
            "Cache-Control": _ASK_FIRST,
            "Content-Security-Policy": policy(links.origin()),
            "Cross-Origin-Opener-Policy": "same-origin",
        },
    )


@router.get("/page/{of_release}/{name}")
async def page_file(request: Request, of_release: str, name: str) -> Response:
    """Answer with one of its files: for ever under the name of this release, for the moment under another's."""
    found = release().files.get(name)
    if found is None or name == "index.html":
        raise HttpProblem(NOT_FOUND, "the page has no such file")
    keep = _FOR_EVER if of_release == release().name else _ASK_FIRST
    return _answer(request, found, {"Cache-Control": keep})


def _answer(request: Request, file: _File, headers: dict[str, str]) -> Response:
    headers["ETag"] = file.etag
    if file.etag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def policy(image_origin: str) -> str:
    """Return the Content-Security-Policy: everything from here, and images from the store as well."""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            f"img-src 'self' data: blob: {image_origin}".rstrip(),
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
