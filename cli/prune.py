"""`farm prune`: delete from the store what is old, after showing what that is and asking.

Works on Redis and the store directly, with a worker's settings; what is old enough and what is still needed is
farm/pruning.py's to say.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli import show
from cli.embedded import env_of_running
from cli.exits import CliError, Exit
from farm.errors import Fatal, LedgerDown, StorageDown
from farm.ledger import Ledger
from farm.pruning import Amount, OnProgress, Pruning, Survey
from farm.settings import Settings
from farm.storage import Store

_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class PruneOptions:
    """What is asked for. `data` is the folder of a farm that `farm up` runs; None: FARM_* say where things are."""

    older_than: str
    jobs: bool = False
    uploads: bool = False
    files: bool = False
    dry_run: bool = False
    yes: bool = False
    force: bool = False
    data: Path | None = None


def parse_age(text: str) -> float:
    """Return the seconds that `30d`, `12h` or `90m` mean; raises CliError for anything else."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise CliError(f"--older-than {text!r}: say it as 30d, 12h, 90m or 45s", code=Exit.USAGE)
    return float(match[1]) * _UNIT_S[match[2]]


def run_prune(options: PruneOptions, settings: Settings | None = None) -> None:
    """Delete what is older, of jobs, uploads and files if none is named alone. Raises CliError with the reason."""
    before = time.time() - parse_age(options.older_than)
    settings = settings or _settings(options.data)
    ledger = Ledger.connect(settings, socket_timeout_s=5, retries=1)
    try:
        is_blind = not _answers(ledger, settings, force=options.force)
        pruning = Pruning(Store.connect(settings), None if is_blind else ledger, before=before)
        everything = not (options.jobs or options.uploads or options.files)
        with _bar("looking") as watch:
            survey = pruning.survey(
                jobs=options.jobs or everything,
                uploads=options.uploads or everything,
                files=options.files or everything,
                on_progress=watch(None),
            )
        show.console.print(_table(survey))
        if survey.spared:
            show.console.print(
                f"{survey.spared} jobs, uploads or files are as old and stay: work that goes on needs them"
            )
        if not survey.total.objects or options.dry_run:
            return
        if not options.yes and not typer.confirm(f"Delete {_words(survey.total)} for good?"):
            raise CliError("nothing was deleted")
        with _bar("deleting") as watch:
            deleted = pruning.delete(survey, on_progress=watch(survey.total.objects))
        show.console.print(f"deleted {_words(deleted)}")
    except LedgerDown as error:
        raise CliError(f"stopped, for what is still needed cannot be told: {error}") from error
    except (StorageDown, Fatal) as error:
        raise CliError(f"stopped: {error}") from error
    finally:
        ledger.close()


def _settings(data: Path | None) -> Settings:
    if data is None:
        return Settings()
    fields: dict[str, Any] = {}
    for name, value in env_of_running(data).items():
        fields[name.removeprefix("FARM_").lower()] = value
    return Settings(**fields)


def _answers(ledger: Ledger, settings: Settings, *, force: bool) -> bool:
    """Whether Redis can say what is needed; raises CliError if it cannot and nobody insists."""
    try:
        ledger.ping()
    except LedgerDown as error:
        if force:
            return False
        host = settings.redis_url.rpartition("@")[2]
        raise CliError(
            f"Redis at {host} does not answer, so nobody knows which jobs still need their files: {error}\n"
            "If that farm is gone for good, --force deletes whatever is old"
        ) from error
    return True


def _table(survey: Survey) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", "objects", "size"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    jobs = Amount()
    for amount in survey.jobs.values():
        jobs.objects += amount.objects
        jobs.num_bytes += amount.num_bytes
    rows = (
        (f"{len(survey.jobs):,} jobs", jobs),
        ("index", survey.entries),
        ("uploads", survey.uploads),
        ("files", survey.files),
    )
    for name, amount in rows:
        table.add_row(name, f"{amount.objects:,}", _size(amount.num_bytes))
    return table


def _words(amount: Amount) -> str:
    return f"{amount.objects:,} objects, {_size(amount.num_bytes)}"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004  as drives are sold
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """Show a bar; what is yielded takes the number of objects, if it is known, and returns what moves the bar."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[size]}"))
    with Progress(*columns, TimeRemainingColumn(), console=show.console, transient=True) as progress:

        def begin(num_objects: int | None) -> OnProgress:
            task = progress.add_task("", total=num_objects, size="")
            seen = Amount()

            def move(objects: int, num_bytes: int) -> None:
                seen.objects += objects
                seen.num_bytes += num_bytes
                progress.update(task, completed=seen.objects, size=_size(seen.num_bytes))

            return move

        yield begin
