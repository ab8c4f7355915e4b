"""Bring a job's images into a folder: in parallel, again and again without doing anything twice.

A file appears under its name only when it is whole. Beside the images lies `<job>.jsonl`, one line for each: which file
it is, its size, prompt and seed; a later download skips what it names and what is there at that size.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.client import FarmClient, total_of, trusts_proxies
from cli.exits import CliError
from cli.show import console
from farm import filenames

_PARALLEL: Final = 8
_TRIES: Final = 3
_EXTRA_URLS: Final = ("thumbnail_url", "upscaled_url")


@dataclass
class Downloaded:
    """What a download did."""

    fetched: int = 0
    skipped: int = 0
    missing: int = 0  # images that are not stored (yet, or never)
    failed: list[str] = field(default_factory=list)


class Manifest:
    """Which images of a job lie in a folder under which name; append-only, so that a cut-off download costs a line."""

    def __init__(self, folder: Path, job_id: str, *, with_extras: bool = False) -> None:
        self._folder = folder
        self._with_extras = with_extras
        self._job_id = job_id
        self._path = folder / f"{job_id}.jsonl"
        self._lock = threading.Lock()
        self._rows: dict[int, dict[str, Any]] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._rows[row["index"]] = row
                except (ValueError, KeyError, TypeError):
                    continue  # the line a crash cut off

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is known of each image, by index."""
        return [self._rows[index] for index in sorted(self._rows)]

    def has(self, index: int) -> bool:
        """Whether this image lies here, whole."""
        row = self._rows.get(index)
        try:
            return row is not None and (self._folder / row["file"]).stat().st_size == row["bytes"]
        except OSError:
            return False

    def missing_extras(self, image: dict[str, Any]) -> dict[Path, str]:
        """Return where an image's extras go and their URLs, of those that are wanted and not here."""
        extras = extras_of(image, self.path_for(image)) if self._with_extras else {}
        return {path: url for path, url in extras.items() if not path.exists()}

    def path_for(self, image: dict[str, Any]) -> Path:
        """Return where to put an image; another job's file of that name is left alone."""
        row = self._rows.get(image["index"])
        if row is not None:
            return self._folder / str(row["file"])
        path = self._folder / file_name(image)
        return path.with_stem(f"{path.stem}-{self._job_id[-6:]}") if path.exists() else path

    def add(self, image: dict[str, Any], path: Path, num_bytes: int) -> None:
        """Write down an image; before the file takes its name, so that no file is ever unaccounted for."""
        row = {
            "index": image["index"],
            "file": path.name,
            "bytes": num_bytes,
            "seed": image["seed"],
            "prompt": image["prompt"],
        }
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._rows[image["index"]] = row


def file_name(image: dict[str, Any]) -> str:
    """Return a name that sorts by index and says what is in the picture."""
    suffix = PurePosixPath(image["key"]).suffix
    return filenames.file_name(index=image["index"], prompt=image["prompt"], seed=image["seed"], suffix=suffix)


def extras_of(image: dict[str, Any], path: Path) -> dict[Path, str]:
    """Return where an image's thumbnail and enlarged version go, beside it at `path`, and their URLs."""
    urls = [url for name in _EXTRA_URLS if (url := image.get(name))]
    suffixes = [PurePosixPath(urlsplit(url).path).name.partition(".")[2] for url in urls]
    return {path.with_name(f"{path.stem}.{suffix}"): url for suffix, url in zip(suffixes, urls, strict=True)}


def download(
    client: FarmClient, job_id: str, folder: Path, *, with_extras: bool = False, parallel: int = _PARALLEL
) -> Downloaded:
    """Bring all stored images of a job into `folder`, showing a bar; raises CliError if it cannot be written.

    `with_extras` brings their thumbnails and enlarged versions as well.
    """
    done = Downloaded()
    total = total_of(client.job(job_id))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(folder, job_id, with_extras=with_extras)
    except OSError as error:
        raise CliError(f"{folder}: {error.strerror}") from error
    bar = Progress(
        TextColumn("download"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with ExitStack() as stack:
        stack.enter_context(bar)
        pool = stack.enter_context(ThreadPoolExecutor(parallel))
        local = stack.enter_context(httpx.Client(timeout=60.0, trust_env=False))
        remote = stack.enter_context(httpx.Client(timeout=60.0))
        task = bar.add_task("", total=total)

        def one(image: dict[str, Any]) -> None:
            web = remote if trusts_proxies(image["url"]) else local
            bring(web, image, manifest)

        def wanted() -> Iterator[dict[str, Any]]:
            for image in client.all_images(job_id):
                if image["url"] is None:
                    done.missing += 1
                elif manifest.has(image["index"]) and not manifest.missing_extras(image):
                    done.skipped += 1
                else:
                    yield image
                    continue
                bar.advance(task)

        for image, problem in in_parallel(pool, one, wanted(), ahead=2 * parallel):
            bar.advance(task)
            if problem is None:
                done.fetched += 1
            else:
                done.failed.append(f"image {image['index']}: {problem}")
    return done


def in_parallel(
    pool: ThreadPoolExecutor, work: Any, wanted: Iterable[dict[str, Any]], *, ahead: int
) -> Iterator[tuple[dict[str, Any], Exception | None]]:
    """Do `work` for each image, at most `ahead` at a time: pages are asked for only as their images are needed."""
    queue = iter(wanted)
    running: dict[Future[None], dict[str, Any]] = {}
    while True:
        for image in islice(queue, ahead - len(running)):
            running[pool.submit(work, image)] = image
        if not running:
            return
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield running.pop(future), error


def bring(web: httpx.Client, image: dict[str, Any], manifest: Manifest) -> None:
    """Fetch what is missing of an image and its extras; raises as `fetch` does."""
    if not manifest.has(image["index"]):
        fetch(web, image, manifest)
    for path, url in manifest.missing_extras(image).items():
        fetch_half(web, url, path).replace(path)


def fetch(web: httpx.Client, image: dict[str, Any], manifest: Manifest) -> None:
    """Fetch one image and give it its name once it is whole; raises httpx.HTTPError or OSError after three tries."""
    path = manifest.path_for(image)
    half = fetch_half(web, image["url"], path)
    manifest.add(image, path, half.stat().st_size)
    half.replace(path)


def fetch_half(web: httpx.Client, url: str, path: Path) -> Path:
    """Fetch what will be at `path` to a file beside it, whole; return that. Raises as `fetch` does."""
    half = path.with_name(f".{path.name}.part")
    for tries_left in reversed(range(_TRIES)):
        try:
            with web.stream("GET", url) as response, half.open("wb") as file:
                response.raise_for_status()
                for chunk in response.iter_bytes():
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            break
        except httpx.HTTPError:
            half.unlink(missing_ok=True)
            if not tries_left:
                raise
    return half
