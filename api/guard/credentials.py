"""What an API key looks like, how one is made, and how one comes with a request. Knows no key but the one in hand.

A key is `farm_<id>_<secret>`: letters and digits only, so that a double click takes all of it, and a form that scanners
for leaked secrets find and verify by themselves (`KEY_FORM`, and the checksum at the end).

Only the SHA-256 of a key is kept anywhere. Slow hashes (bcrypt, argon2) protect what people make up: a password can be
guessed, 32 random bytes cannot, however fast the hash; and this one is computed for every request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import zlib
from typing import Final, NamedTuple

from starlette.requests import HTTPConnection

KEY_FORM: Final = re.compile(r"farm_[0-9a-z]{10}_[0-9A-Za-z]{49}")

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID_DIGITS: Final = 36
_ID_CHARS: Final = 10
_SECRET_BYTES: Final = 32
_SECRET_CHARS: Final = 43  # of 62 digits: 32 bytes
_CHECKSUM_CHARS: Final = 6  # likewise: 32 bits
_MAX_HEADER_CHARS: Final = 1024


class NewKey(NamedTuple):
    """A key at the moment of its making, the only one at which it is known."""

    id: str
    token: str
    digest: bytes


def new_key() -> NewKey:
    """Make a key."""
    key_id = _digits(secrets.randbelow(_ID_DIGITS**_ID_CHARS), _ID_CHARS, base=_ID_DIGITS)
    body = f"farm_{key_id}_{_digits(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_CHARS)}"
    token = body + _checksum(body)
    return NewKey(key_id, token, digest_of(token))


def digest_of(token: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(token.encode()).digest()


def id_in(token: str) -> str | None:
    """Return the id that a key names; None for what is no key, or one with a slip of the pen."""
    if not KEY_FORM.fullmatch(token) or not token.endswith(_checksum(token[:-_CHECKSUM_CHARS])):
        return None
    return token.split("_")[1]


def tokens_in(request: HTTPConnection) -> tuple[str, ...]:
    """Return what a request shows as a key: its Bearer token, or the password and the user of Basic; none without.

    Clients of A1111 know Basic alone, and people put a key where they would put a password or a name.
    """
    header = request.headers.get("authorization", "")
    if len(header) > _MAX_HEADER_CHARS:
        return ()
    scheme, _, credentials = header.partition(" ")
    credentials = credentials.strip()
    match scheme.lower():
        case "bearer":
            shown: tuple[str, ...] = (credentials,)
        case "basic":
            shown = _basic(credentials)
        case _:
            shown = ()
    return tuple(token for token in shown if token)


def _basic(credentials: str) -> tuple[str, ...]:
    try:
        user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ()
    return password, user


def _digits(number: int, length: int, *, base: int = len(_DIGITS)) -> str:
    text = ""
    for _ in range(length):
        number, digit = divmod(number, base)
        text = _DIGITS[digit] + text
    return text


def _checksum(body: str) -> str:
    return _digits(zlib.crc32(body.encode()), _CHECKSUM_CHARS)
