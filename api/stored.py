"""`GET /stored/{key}`: what signed links lead to when FARM_S3_PUBLIC_ENDPOINT is `api`.

The request goes on to S3 with the signature that the link carries, and S3 alone decides what that opens: nothing here
holds a secret, or keeps one byte. So whoever reaches the API sees its pictures, wherever the storage is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Final
from urllib.parse import parse_qsl

import httpx
from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from api.links import PATH
from api.parts import Farm, Parts
from api.problems import FORBIDDEN, NOT_FOUND, HttpProblem
from api.streaming import Streamed
from farm.errors import StorageDown

router = APIRouter(include_in_schema=False)
"""Not in the OpenAPI document: a link is followed, never put together."""

_SIGNATURE: Final = "x-amz-signature"
_PARAMETERS: Final = frozenset({"response-content-disposition"})  # beside x-amz-*
_CONDITIONS: Final = ("range", "if-range", "if-none-match", "if-modified-since", "if-match", "if-unmodified-since")
_OF_NO_BODY: Final = frozenset({"content-range", "etag", "last-modified"})
_TOLD: Final = (*_OF_NO_BODY, "accept-ranges", "content-disposition", "content-length", "content-type")
_FOUND: Final = frozenset({200, 206})
_WITHOUT_BODY: Final = frozenset({304, 412, 416})
_NO_LINK: Final = "this is no signed link"
_HEADERS: Final = {
    # A link is a secret of whoever was told it; the same link leads to the same bytes until it expires.
    "Cache-Control": "private, max-age=600, no-transform",
    # As links to S3 itself: pages of other sites that were given one may show it.
    "Cross-Origin-Resource-Policy": "cross-origin",
    # Whatever it is, it acts in nobody's name.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}


class Stored(Streamed):
    """An object that is sent as it comes; what it takes is given back when it is sent, or nobody wants it any more."""

    def __init__(self, found: httpx.Response, headers: Mapping[str, str], until: AsyncExitStack) -> None:
        super().__init__(_pieces(found), found.status_code, headers=headers)
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with self._until:
            await super().__call__(scope, receive, send)


@router.get(PATH + "{key:path}")
async def get_stored(request: Request, farm: Farm, key: str) -> Response:
    """Send an object to whoever was given a link to it, whole or in ranges; unchanged ones are not sent again."""
    url = _url_in_storage(farm, key, request.scope["query_string"].decode("latin-1"))
    asked = {name: value for name in _CONDITIONS if (value := request.headers.get(name)) is not None}
    async with AsyncExitStack() as until:
        # As it is stored: a compressed answer would have another length and other ranges.
        found = await farm.passage.open(url, {**asked, "Accept-Encoding": "identity"}, until)
        told = {name: value for name in _TOLD if (value := found.headers.get(name)) is not None}
        status = found.status_code
        if status in _FOUND:
            return Stored(found, {**_HEADERS, **told}, until.pop_all())
        if status in _WITHOUT_BODY:
            return Response(
                status_code=status, headers={**_HEADERS, **{name: told[name] for name in _OF_NO_BODY & set(told)}}
            )
        raise _problem_of(status, key)


def _problem_of(status: int, key: str) -> HttpProblem | StorageDown:
    """Return what it means that the storage answers so."""
    match status:
        case 400 | 403:  # 400: a date or a signature that cannot be read
            return HttpProblem(FORBIDDEN, "the link has expired, or is not as it was told; ask for a new one")
        case 404:
            return HttpProblem(NOT_FOUND, "the storage has nothing there, or nothing there any more")
        case _:
            return StorageDown(f"the storage answers {status} for {key}")


def _url_in_storage(farm: Parts, key: str, query: str) -> httpx.URL:
    """Return where the storage is asked; raises HttpProblem for what no link of ours looks like."""
    if not farm.settings.links_through_api:
        raise HttpProblem(NOT_FOUND, "links lead to the storage itself here")
    names = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
    is_ours = all(name.startswith("x-amz-") or name in _PARAMETERS for name in names)
    # A path with dots in it would be shortened on its way, and lead out of the bucket.
    if _SIGNATURE not in names or not is_ours or {"", ".", ".."} & set(key.split("/")):
        raise HttpProblem(FORBIDDEN, _NO_LINK)
    try:
        return httpx.URL(f"{farm.store.presigned_url(key).partition('?')[0]}?{query}")
    except httpx.InvalidURL as error:
        raise HttpProblem(FORBIDDEN, _NO_LINK) from error


async def _pieces(found: httpx.Response) -> AsyncIterator[bytes]:
    """Yield a body; raises StorageDown when it breaks off."""
    try:
        async for piece in found.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        raise StorageDown(f"the storage broke off: {error!r}") from error
