"""sha256 of files, remembered on disk by path, mtime and size: weights of 24 GB must not be read at every start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

log: Final = logging.getLogger(__name__)

DIGESTS_FILE: Final = ".digests.json"
"""The name of the file in the models folder in which workers and the command line keep them."""
_CHUNK_BYTES: Final = 16 * 1024 * 1024


class Digests:
    """Digests of files, kept in the JSON file `cache` if it can be written; a broken one is begun anew.

    Several processes may share one: the last to write wins, and nothing worse than hashing twice comes of it.
    """

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known: dict[str, tuple[int, int, str]] | None = None

    def of(self, path: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
        """Return the sha256 of a file, hex; `on_progress` hears how many of its bytes have been read."""
        status = path.stat()
        key, version = str(path.resolve()), (status.st_mtime_ns, status.st_size)
        known = self._load().get(key)
        if known is not None and known[:2] == version:
            return known[2]
        digest = compute(path, on_progress)
        self.record(path, digest)
        return digest

    def record(self, path: Path, digest: str) -> None:
        """Remember the digest of a file as it is now."""
        status = path.stat()
        self._load()[str(path.resolve())] = (status.st_mtime_ns, status.st_size, digest)
        self._save()

    def recorded(self, path: Path) -> str | None:
        """Return the digest that a file had when it was last hashed; None if never, or if it was written since."""
        status = path.stat()
        known = self._load().get(str(path.resolve()))
        return known[2] if known is not None and known[:2] == (status.st_mtime_ns, status.st_size) else None

    def _load(self) -> dict[str, tuple[int, int, str]]:
        if self._known is None:
            self._known = {}
            try:
                content = json.loads(self._cache.read_text("utf-8")) if self._cache is not None else {}
                for key, (mtime_ns, size_bytes, digest) in content.items():
                    self._known[str(key)] = (int(mtime_ns), int(size_bytes), str(digest))
            except FileNotFoundError:
                pass
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.warning("%s is begun anew: %s", self._cache, error, extra={"action": "digests_lost"})
        return self._known

    def _save(self) -> None:
        """Replace the file as a whole; a folder that cannot be written to costs time, not images."""
        if self._cache is None:
            return
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self._cache.parent, prefix=self._cache.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._known, file, indent=0)
            Path(temporary).replace(self._cache)
        except OSError as error:
            log.info("digests are not kept: %s", error, extra={"action": "digests_unsaved"})
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


def compute(path: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """Return the sha256 of a file, hex, read just now."""
    whole = hashlib.sha256()
    num_bytes, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            whole.update(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, num_bytes)
    return whole.hexdigest()


def digest_of_set(named: dict[str, str]) -> str:
    """Return one sha256, hex, over the digests of several files by their names."""
    whole = hashlib.sha256()
    for name in sorted(named):
        whole.update(f"{name} {named[name]}\n".encode())
    return whole.hexdigest()
