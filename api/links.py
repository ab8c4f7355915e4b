"""Signed links: where a client may fetch what is stored, without a key, until they expire.

S3 signs them. Whether they lead to S3 itself or through the API's own address (api/stored.py) is the operator's choice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request

from api.parts import Parts, parts_of
from farm.errors import Fatal
from farm.storage import Store

PATH: Final = "/stored/"
"""What links through the API begin with, before the object's key."""

_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_SCHEMES: Final = frozenset({"http", "https"})


@dataclass(frozen=True, slots=True)
class Links:
    """Makes the links that one client is told."""

    store: Store
    base: str | None
    """The API's address as that client knows it, without a closing slash; None for links that lead to S3 itself."""

    def to(self, key: str, *, save_as: str | None = None, expiry_s: int | None = None) -> str:
        """Return the link to an object, which need not exist yet; arguments as for `Store.presigned_url`. No I/O."""
        url = self.store.presigned_url(key, save_as=save_as, expiry_s=expiry_s)
        return url if self.base is None else f"{self.base}{PATH}{quote(key)}?{urlsplit(url).query}"

    def origin(self) -> str:
        """Return scheme, host and port of links; nothing where the store has no credentials to sign with."""
        try:
            url = urlsplit(self.to("jobs/"))
        except Fatal:
            return ""
        return f"{url.scheme}://{url.netloc}"


def base_of(request: Request, farm: Parts) -> str | None:
    """Return the API's address for links that are told in answer to a request; None if they do not lead through it.

    FARM_PUBLIC_URL, or what the request was addressed to. What a proxy says of that is believed of everybody: whoever
    lies is told links that lead nowhere.
    """
    if not farm.settings.links_through_api:
        return None
    if farm.settings.public_url is not None:
        return farm.settings.public_url
    told = request.headers
    scheme = _first(told.get("x-forwarded-proto")).lower()
    prefix = _first(told.get("x-forwarded-prefix")).rstrip("/")
    authority = _first(told.get("x-forwarded-host")) or told.get("host", "")
    if not _AUTHORITY.fullmatch(authority):  # none is sent by HTTP/1.0, and anything may be
        host, port = request.scope.get("server") or ("localhost", None)
        authority = host if port is None else f"{host}:{port}"
    return "".join(
        (
            scheme if scheme in _SCHEMES else request.scope["scheme"],
            "://",
            authority,
            prefix if _PREFIX.fullmatch(prefix) else "",
        )
    )


def _first(header: str | None) -> str:
    """Return what the outermost of several proxies has said."""
    return "" if header is None else header.partition(",")[0].strip()


async def links_of(request: Request) -> Links:
    """Return what makes the links of a request's answer."""
    farm = await parts_of(request)
    return Links(farm.store, base_of(request, farm))


SignedLinks = Annotated[Links, Depends(links_of)]
"""Annotation of an endpoint's parameter that is to make links."""
