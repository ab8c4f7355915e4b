"""Signatures of Standard Webhooks: the secrets' form, and HMAC-SHA256 over id, timestamp and body. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from farm.errors import Fatal

PREFIX: Final = "whsec_"

_LEAST_BYTES: Final = 24
_MOST_BYTES: Final = 64


def keys_of(secrets: str) -> tuple[bytes, ...]:
    """Return the keys of `whsec_…` secrets separated by blanks, the one to be used from now on first.

    Raises Fatal for what is no such secret, without showing it.
    """
    return tuple(_key_of(secret, position) for position, secret in enumerate(secrets.split(), start=1))


def _key_of(secret: str, position: int) -> bytes:
    name = f"FARM_WEBHOOK_SECRET: secret {position}"
    if not secret.startswith(PREFIX):
        raise Fatal(f"{name} does not begin with {PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise Fatal(f"{name} is not base64 after {PREFIX}: {error}") from error
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise Fatal(f"{name} has {len(key)} bytes; Standard Webhooks wants {_LEAST_BYTES} to {_MOST_BYTES}")
    return key


def signature(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one `v1,<base64>` per key, so that either secret of a rotation verifies.

    `timestamp` is the moment of this attempt, Unix time in seconds.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{_digest(key, signed)}" for key in keys)


def _digest(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
