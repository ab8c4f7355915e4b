"""How the ledger talks to Redis: one client, scripts by name, and every outage told as LedgerDown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from farm.errors import LedgerDown

PREFIX: Final = "farm:"
_SHARED: Final = ("keys", "changes", "backlog", "settling", "serving", "rates")
_OF_NO_JOB: Final = frozenset({"chores", "chore_end", "demand", "key_edit", "key_revoke", "key_use", "want_previews"})
_OUTAGE: Final = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError)


class Connection:
    """A Redis client with the ledger's scripts; no I/O until it is used."""

    def __init__(
        self, url: str, *, clock: Callable[[], float] | None = None, socket_timeout_s: float = 10.0, retries: int = 2
    ) -> None:
        # The quick retries bridge a dropped connection; repeating is safe because every script is. A real outage
        # is the callers' to wait out.
        # Any: redis-py's annotations mix its answers with and without decoding, and sync with async.
        self.redis: Any = Redis.from_url(
            url,
            socket_timeout=socket_timeout_s,
            socket_connect_timeout=socket_timeout_s / 2,
            socket_keepalive=True,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=retries),
        )
        self._clock = clock
        self.last_change: object = object()
        """Another object after each script that has run through here and may have changed a job."""

    @cached_property
    def _scripts(self) -> dict[str, Script]:
        folder = files("farm.ledger") / "scripts"
        shared = "".join((folder / "shared" / f"{name}.lua").read_text(encoding="utf-8") for name in _SHARED)
        return {
            script.name.removesuffix(".lua"): self.redis.register_script(shared + script.read_text(encoding="utf-8"))
            for script in folder.iterdir()
            if script.name.endswith(".lua")
        }

    def run(self, script: str, *args: str | float | bytes) -> Any:
        """Run a script atomically; its first argument is the time, by the server's clock unless one was given."""
        now = "" if self._clock is None else repr(self._clock())
        try:
            with translate_outage():
                return self._scripts[script](args=[now, *args])
        finally:  # one whose answer was lost may have run
            if script not in _OF_NO_JOB:
                self.last_change = object()

    def now(self) -> float:
        """Return Unix time by the ledger's clock."""
        if self._clock is not None:
            return self._clock()
        with translate_outage():
            return self.unix_s(self.redis.time())

    def unix_s(self, answer: tuple[int, int]) -> float:
        """Return the Unix time that the answer to a TIME tells, or that of the clock that was given."""
        seconds, microseconds = answer
        return float(seconds + microseconds / 1e6) if self._clock is None else self._clock()


@contextmanager
def translate_outage() -> Iterator[None]:
    """Raise LedgerDown for whatever means that Redis cannot serve us now."""
    try:
        yield
    except _OUTAGE as error:
        raise LedgerDown(f"Redis does not answer: {error}") from error
    except ResponseError as error:
        # A server that shuts down, or still loads its file, answers with errors of these names.
        if str(error).startswith(("LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")):
            raise LedgerDown(f"Redis does not serve: {error}") from error
        raise
    except RedisError as error:
        raise LedgerDown(f"Redis failed: {error}") from error
