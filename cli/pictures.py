"""Pictures on this machine that a job names: found and looked at, then brought to the farm and named by their keys.

A prompts file may come from a stranger. So only what it names is opened, and only a regular file that begins as a
picture does leaves this machine: no device, no pipe, no /etc/passwd. Whether it is a whole one is for the farm to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.exits import CliError, Exit
from cli.named import Named, Rename, rename_in_body, rename_in_cells
from cli.promptfiles import RawFile
from cli.show import errors
from farm.pictures import TO_COME

if TYPE_CHECKING:
    from cli.client import FarmClient, Json

_PARALLEL: Final = 4  # the farm decodes a few at once
_QUIET_S: Final = 2.0  # work that takes longer shows a bar
_MAX_TOLD: Final = 20
_MAX_BYTES: Final = 1024**3  # no farm takes more, whatever its FARM_MAX_UPLOAD_BYTES; that is for it to say
_HEAD_BYTES: Final = 32
_PIECE_BYTES: Final = 1024 * 1024

Job = Mapping[str, Any] | RawFile


class Asked(NamedTuple):
    """What is sent to the farm: a body or a file, and the query beside it."""

    job: Job
    query: Mapping[str, str]

    def renamed(self, rename: Rename) -> Asked:
        """Return the same with the files that it names renamed."""
        query = rename_in_cells(self.query, rename, str)
        job = self.job
        return Asked(job.renamed(rename) if isinstance(job, RawFile) else rename_in_body(job, rename), query)


class LocalPictures:
    """The files that a job names, each of which looks like a picture."""

    def __init__(self, asked: Asked) -> None:
        """Look at them all; raises CliError that tells each which will not do, and where the job names it."""
        self._asked = asked
        self._paths: dict[Named, Path] = {}

        def note(named: Named) -> str:
            self._paths.setdefault(named, path_of(named))
            return named.source

        asked.renamed(note)
        wrong: dict[Path, str] = {}
        for path in set(self._paths.values()):
            try:
                check(path)
            except CliError as error:
                wrong[path] = str(error)
        told = [f"{named.place}: {wrong[path]}" for named, path in self._paths.items() if path in wrong]
        if told:
            more = [f"and {len(told) - _MAX_TOLD} more"] * (len(told) > _MAX_TOLD)
            raise CliError("\n".join([*told[:_MAX_TOLD], *more]), code=Exit.USAGE)

    def __bool__(self) -> bool:
        return bool(self._paths)

    def to_come(self) -> Asked:
        """Return the job as it may be looked at before its pictures are sent."""
        return self._asked.renamed(lambda _: TO_COME) if self else self._asked

    def sent(self, client: FarmClient) -> Asked:
        """Send the pictures, each content once and a few at a time, and return the job that names their keys.

        Raises CliError that tells which picture the farm refuses, and where the job names it.
        """
        if not self:
            return self._asked
        first: dict[Path, Named] = {}
        for named, path in self._paths.items():
            first.setdefault(path, named)
        keys = dict(_in_parallel(_Sender(client), first))
        return self._asked.renamed(lambda named: keys[self._paths[named]])


def path_of(named: Named) -> Path:
    """Return which file is meant: that beside the prompts file, or where there is none that in the working folder."""
    here = Path(named.source)
    beside = here if named.folder is None else named.folder / here
    return beside if os.path.lexists(beside) or "\0" in named.source else here


def upload_file(client: FarmClient, path: Path) -> Json:
    """Bring a picture to the farm; return what the API tells of it. Raises CliError when it is none, or refused."""
    data = _read(path)
    return client.upload(data, _media_type(path, data))


def check(path: Path) -> None:
    """Raise CliError unless a file can be read, is a regular one, and begins as a picture does."""
    _media_type(path, _read(path, _HEAD_BYTES))


def media_type_of(head: bytes) -> str | None:
    """Return what a file is that begins with these 32 bytes; None for what is no picture that a farm takes."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):
        return "image/avif"
    return None


def _media_type(path: Path, data: bytes) -> str:
    media_type = media_type_of(data[:_HEAD_BYTES])
    if media_type is None:
        raise CliError(f"{path}: is no picture; PNG, JPEG, WebP and AVIF are", code=Exit.USAGE)
    return media_type


def _read(path: Path, num_bytes: int = -1) -> bytes:
    """Return the beginning of a file, or all of it; what may never end, such as a pipe or a device, is not opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CliError(f"{path}: is no file that can be sent", code=Exit.USAGE)
        if status.st_size > _MAX_BYTES:
            raise CliError(f"{path}: {status.st_size:,} bytes are more than any farm takes", code=Exit.USAGE)
        with path.open("rb") as file:
            return file.read(num_bytes)
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise CliError(f"{path}: {getattr(error, 'strerror', None) or error}", code=Exit.USAGE) from error


class _Sender:
    """Sends files, each content once, from several threads at a time."""

    def __init__(self, client: FarmClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._locks: dict[bytes, threading.Lock] = {}
        self._keys: dict[bytes, str] = {}

    def key_of(self, path: Path) -> str:
        """Send a file, unless its content was sent before, and return its key; raises CliError."""
        data = _read(path)
        digest = hashlib.sha256(data).digest()
        with self._lock:
            lock = self._locks.setdefault(digest, threading.Lock())
        with lock:
            if digest not in self._keys:
                self._keys[digest] = str(self._client.upload(data, _media_type(path, data))["key"])
            return self._keys[digest]


def _in_parallel(sender: _Sender, pictures: Mapping[Path, Named]) -> Iterator[tuple[Path, str]]:
    """Send pictures a few at a time; yield each with its key. The first that is refused ends it all."""
    bar = Progress(
        TextColumn("pictures"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn(), console=errors
    )
    task = bar.add_task("", total=len(pictures))
    quiet_until_s = time.monotonic() + _QUIET_S
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_PARALLEL))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # after an error or Ctrl-C: no more of them
        running = {pool.submit(sender.key_of, path): path for path in pictures}
        while running:
            quiet_s = quiet_until_s - time.monotonic()
            ended, _ = wait(running, timeout=quiet_s if quiet_s > 0 else None, return_when=FIRST_COMPLETED)
            if quiet_s <= 0 and not bar.live.is_started:
                stack.enter_context(bar)
            for future in ended:
                path = running.pop(future)
                bar.advance(task)
                try:
                    yield path, future.result()
                except CliError as error:
                    raise CliError(f"{pictures[path].place}: {path}: {error}", code=error.code) from error
