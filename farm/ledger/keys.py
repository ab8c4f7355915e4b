"""API keys in the ledger: what each may do, and how much it did lately. Of a key itself only its hash is here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from farm.ledger.connection import PREFIX, Connection, translate_outage

_FIELDS: Final = (
    "name",
    "tenant",
    "scopes",
    "digest",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
    "max_requests_per_minute",
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. Times are Unix times; None for what never happened or ends."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    digest: bytes = field(repr=False)  # SHA-256 of the key
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None  # give or take a minute
    max_requests_per_minute: int | None = None


class Keys:
    """The part of the ledger that concerns API keys."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis

    def add_key(self, key: ApiKey) -> None:
        """Keep a new key."""
        given = {name: getattr(key, name) for name in _FIELDS}
        given["scopes"] = " ".join(key.scopes)
        with translate_outage(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_key(key.id), mapping={name: value for name, value in given.items() if value is not None})
            pipe.sadd(f"{PREFIX}keys", key.id)
            pipe.execute()

    def key(self, key_id: str) -> ApiKey | None:
        """Return a key, revoked or expired ones too; None for one that was never made."""
        return next(iter(self._keys([key_id])), None)

    def api_keys(self) -> list[ApiKey]:
        """Return every key that was ever made, the oldest first."""
        with translate_outage():
            ids = [key_id.decode() for key_id in self._redis.smembers(f"{PREFIX}keys")]
        return sorted(self._keys(ids), key=lambda key: (key.created_at, key.id))

    def edit_key(self, key_id: str, *, name: str, max_requests_per_minute: int | None) -> ApiKey | None:
        """Give a key another name and limit; None for one that was never made."""
        limit = "" if max_requests_per_minute is None else max_requests_per_minute
        self._connection.run("key_edit", key_id, name, limit)
        return self.key(key_id)

    def revoke_key(self, key_id: str) -> ApiKey | None:
        """Let a key open nothing any more; one that was revoked stays as it is. None for one that was never made."""
        self._connection.run("key_revoke", key_id)
        return self.key(key_id)

    def use_key(self, key_id: str) -> float:
        """Count a request of a key against its limit, and note its use; return the seconds that it has to wait.

        0 means that it may go on. A minute's requests may come at once; after them one comes free every 60 seconds
        divided by the limit.
        """
        return float(self._connection.run("key_use", key_id))

    def _keys(self, ids: list[str]) -> list[ApiKey]:
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for key_id in ids:
                pipe.hmget(_key(key_id), *_FIELDS)
            rows = pipe.execute()
        return [_decode(key_id, row) for key_id, row in zip(ids, rows, strict=True) if row[0] is not None]


def _key(key_id: str) -> str:
    return f"{PREFIX}key:{key_id}"


def _decode(key_id: str, row: list[bytes | None]) -> ApiKey:
    name, tenant, scopes, digest, *numbers = row
    created_at, expires_at, revoked_at, last_used_at, limit = numbers
    return ApiKey(
        id=key_id,
        name=(name or b"").decode(),
        tenant=(tenant or b"").decode(),
        scopes=tuple((scopes or b"").decode().split()),
        digest=digest or b"",
        created_at=float(created_at or 0),
        expires_at=_moment(expires_at),
        revoked_at=_moment(revoked_at),
        last_used_at=_moment(last_used_at),
        max_requests_per_minute=None if limit is None else int(limit),
    )


def _moment(text: bytes | None) -> float | None:
    return None if text is None else float(text)
