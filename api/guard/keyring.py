"""Which key a request shows, and what it opens: asked of the ledger, and remembered for some seconds.

So a key that was revoked, by whichever process, opens nothing any more `MAX_AGE_S` later, and each process asks Redis
for a key twelve times a minute however often it is used. Blocks; what a request is answered is others' business.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar

from pydantic import SecretStr

from api.guard.credentials import digest_of, id_in
from farm.errors import Fatal, LedgerDown
from farm.ledger import ApiKey, Ledger
from farm.settings import Settings

MAX_AGE_S: Final = 5.0
"""How long what the ledger says of a key is believed."""

_MAX_REMEMBERED: Final = 4096
_NOTED_EVERY_S: Final = 60.0
_LEAST_CHARS: Final = 32

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """A key that was shown and is good, and what it is good for."""

    key_id: str
    tenant: str
    scopes: tuple[str, ...]
    is_of_settings: bool = False
    is_limited: bool = False


def keys_of(settings: Settings, *, tenant: str) -> dict[bytes, OpenedBy]:
    """Return what keys of the settings open, by their hashes; `tenant` is whose jobs they make.

    Raises Fatal for one that could be guessed, without showing it.
    """
    return {
        _digest(variable, secret): OpenedBy(scope, tenant, (scope,), is_of_settings=True)
        for variable, scope, secret in (
            ("FARM_OPERATOR_KEY", "operator", settings.operator_key),
            ("FARM_METRICS_KEY", "metrics", settings.metrics_key),
        )
        if secret is not None
    }


class Keyring:
    """The keys of a farm: those of the settings, and those of the ledger. Safe to share between threads."""

    def __init__(
        self, ledger: Ledger, of_settings: Mapping[bytes, OpenedBy], *, clock: Callable[[], float] = time.time
    ) -> None:
        """Take the settings' own keys as `keys_of` returns them."""
        self._ledger = ledger
        self._of_settings = of_settings
        self._clock = clock
        self._lock = Lock()
        self._remembered: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()  # by id; when it was asked for
        self._noted: OrderedDict[str, float] = OrderedDict()  # by id; when its use was noted

    def open(self, token: str) -> OpenedBy | None:
        """Return what a key opens; None for one that is unknown, revoked or expired. Raises LedgerDown."""
        # Hashes are compared, and in constant time: how long it takes tells nothing of how near a guess was.
        digest = digest_of(token)
        for known, opened in self._of_settings.items():
            if hmac.compare_digest(known, digest):
                return opened
        key_id = id_in(token)
        key = None if key_id is None else self._key(key_id)
        if key is None or not hmac.compare_digest(key.digest, digest) or not self._is_good(key):
            return None
        return OpenedBy(key.id, key.tenant, key.scopes, is_limited=key.max_requests_per_minute is not None)

    def is_at_hand(self, token: str) -> bool:
        """Whether `open` will answer without asking anybody: no thread is needed to wait in."""
        key_id = id_in(token)
        return key_id is None or self._is_fresh(self._recall(key_id)[0], MAX_AGE_S / 2)

    def still_opens(self, opened: OpenedBy) -> bool:
        """Whether a key that opened something was neither revoked nor has expired since; while Redis is away, yes."""
        if opened.is_of_settings:
            return True
        try:
            key = self._key(opened.key_id)
        except LedgerDown:
            return True
        return key is not None and self._is_good(key)

    def is_counted(self, opened: OpenedBy) -> bool:
        """Whether this request of a key is one to `use` it for: all of one with a limit, of others one a minute."""
        if opened.is_of_settings or opened.is_limited:
            return opened.is_limited
        with self._lock:
            if self._is_fresh(self._noted.get(opened.key_id), _NOTED_EVERY_S):
                return False
            _remember(self._noted, opened.key_id, self._clock())
        return True

    def use(self, opened: OpenedBy) -> float:
        """Count a request of a key, and note when it was used; return the seconds that it must wait, 0 for none.

        Raises LedgerDown.
        """
        return self._ledger.use_key(opened.key_id)

    def forget(self, key_id: str) -> None:
        """Ask the ledger anew: the key was changed here."""
        with self._lock:
            self._remembered.pop(key_id, None)

    def _key(self, key_id: str) -> ApiKey | None:
        asked_at, key = self._recall(key_id)
        if not self._is_fresh(asked_at, MAX_AGE_S):
            asked_at, key = self._clock(), self._ledger.key(key_id)
            with self._lock:
                _remember(self._remembered, key_id, (asked_at, key))
        return key

    def _recall(self, key_id: str) -> tuple[float | None, ApiKey | None]:
        with self._lock:
            return self._remembered.get(key_id, (None, None))

    def _is_good(self, key: ApiKey) -> bool:
        return key.revoked_at is None and (key.expires_at is None or key.expires_at > self._clock())

    def _is_fresh(self, since: float | None, max_age_s: float) -> bool:
        return since is not None and 0 <= self._clock() - since < max_age_s  # clocks are set back, too


def _remember(memory: OrderedDict[str, Value], key_id: str, value: Value) -> None:
    memory[key_id] = value
    memory.move_to_end(key_id)
    while len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)


def _digest(variable: str, secret: SecretStr) -> bytes:
    text = secret.get_secret_value()
    if len(text) < _LEAST_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        raise Fatal(
            f"{variable} must have {_LEAST_CHARS} characters or more, no blanks: `openssl rand -hex 32` makes one"
        )
    return digest_of(text)
