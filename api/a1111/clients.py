"""Which client it is that calls: whose options hold, and whose pictures "current" means.

A1111 has one of each for all. Here every client has its own, told apart by what unmodified clients send:

1. the key, where the farm asks for keys; in an open farm, what Basic credentials are sent, whatever they are;
2. within that a cookie, which the first answer brings and any client with a session sends from then on;
3. without either, its address.

Who sends no cookie shares "current" with those of the same key, credentials or address who send none. Task ids
(`force_task_id`) are known to all of a key or tenant: whoever has one may ask for it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request, Response

from api.guard.callers import Asker
from api.guard.credentials import tokens_in

COOKIE: Final = "farm_client"
_FORM: Final = re.compile(r"[0-9a-f]{32}")
_MAX_AGE_S: Final = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Client:
    """What the ledger keeps for a client, by name (farm/ledger/clients.py)."""

    scope: str
    """Whose task ids it uses: a key's or a tenant's."""
    shared: str
    """Those who show the same key or credentials, or come from the same address, and no cookie."""
    own: str
    """The client itself, as far as it can be told apart."""
    options: str
    """Whose options hold for it."""


def client_of(request: Request, response: Response, caller: Asker) -> Client:
    """Return which client sends a request; the answer brings a cookie to one that has none."""
    cookie = request.cookies.get(COOKIE, "")
    if not _FORM.fullmatch(cookie):
        cookie = ""
        response.set_cookie(COOKIE, secrets.token_hex(16), max_age=_MAX_AGE_S, httponly=True, samesite="lax", path="/")
    return told_apart(
        caller.identity,
        has_key=caller.opened_by is not None,
        credentials=tokens_in(request),
        cookie=cookie,
        address=request.client.host if request.client else "",
    )


def told_apart(identity: str, *, has_key: bool, credentials: tuple[str, ...], cookie: str, address: str) -> Client:
    """Return the client that these make."""
    is_named = has_key or bool(credentials)
    if has_key:
        shared = identity
    elif credentials:
        digest = hashlib.sha256("\n".join(credentials).encode()).hexdigest()
        shared = f"{identity} as {digest}"
    else:
        shared = f"{identity} at {address}"
    # The cookie by itself: a client on the move keeps what is its own.
    own = f"{shared if is_named else identity} with {cookie}" if cookie else shared
    return Client(scope=identity, shared=shared, own=own, options=shared if is_named else own)


Calling = Annotated[Client, Depends(client_of)]
"""Annotation of an endpoint's parameter that is to receive which client calls."""
