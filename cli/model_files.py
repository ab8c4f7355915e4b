"""`farm models pull` and `verify`: the files behind catalog rows, fetched and checked, with a bar to watch."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from cli import show
from cli.exits import CliError, Exit
from farm.catalog import load_catalog
from farm.errors import Fatal, HubDown
from farm.settings import Settings
from farm.weights import DIGESTS_FILE, Digests, Hub, Weights, compute_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from farm.catalog import Catalog

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def pull(names: Sequence[str], *, prefer_fp16: bool, settings: Settings | None = None) -> None:
    """Bring the files of these rows here, and say where they are. Raises CliError at the first that cannot be had."""
    settings = settings or Settings()
    catalog = _load(settings)
    weights = Weights(settings.models_dir, Hub(token=_token(settings)))
    for name in names:
        with _in_words(name), _bar() as watch:
            found = _find(catalog, weights, name, prefer_fp16=prefer_fp16, on_progress=watch(name))
        num_bytes = sum(path.stat().st_size for path in found)
        folder = _common(found)
        show.console.print(f"[bold]{escape(name)}[/] is here: {num_bytes / 1e9:.2f} GB of weights in {escape(folder)}")


def verify(names: Sequence[str], *, prefer_fp16: bool, settings: Settings | None = None) -> None:
    """Check the weights of these rows, downloading nothing.

    A file of the hub has its sha256 in its name in the cache; others are compared with their first reading. Raises
    CliError that names the files that are not what they were.
    """
    settings = settings or Settings()
    catalog = _load(settings)
    weights = Weights(settings.models_dir, Hub(is_asked=False))
    digests = Digests(settings.models_dir / DIGESTS_FILE)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "file", "GB", "sha256"):
        table.add_column(column, no_wrap=column != "file", overflow="fold")
    table.add_column("verdict")
    corrupt = []
    with _bar() as watch:
        for name in names:
            with _in_words(name):
                found = _find(catalog, weights, name, prefer_fp16=prefer_fp16, on_progress=None)
                for path in found:
                    known = digests.recorded(path)
                    expected = _hub_digest(path) or known
                    digest = compute_digest(path, watch(path.name))
                    if expected is not None and digest != expected:
                        corrupt.append(path)
                        verdict = f"[red]corrupt: it was {expected[:12]}…[/]"
                    else:
                        digests.record(path, digest)
                        verdict = _describe(path, known)
                    size = f"{path.stat().st_size / 1e9:.3f}"
                    table.add_row(escape(name), escape(_short(path, found)), size, f"{digest[:12]}…", verdict)
    show.console.print(table)
    if corrupt:
        raise CliError("corrupt: " + ", ".join(str(path) for path in corrupt))


def _find(
    catalog: Catalog,
    weights: Weights,
    name: str,
    *,
    prefer_fp16: bool,
    on_progress: Callable[[int, int], None] | None,
) -> list[Path]:
    """Return the files of weights of a model with its own LoRAs, of a LoRA, or of a ControlNet."""
    options: dict[str, Any] = {"prefer_fp16": prefer_fp16, "on_progress": on_progress}
    if name in catalog:
        row = catalog.row(name)
        loras = [weights.file(catalog.loras[lora.name], on_progress=on_progress) for lora in row.loras]
        return [*weights.model(row, **options).weights.values(), *loras]
    if name in catalog.controlnets:
        return list(weights.part(catalog.controlnets[name], "controlnet", **options).weights)
    if name in catalog.loras:
        return [weights.file(catalog.loras[name], on_progress=on_progress)]
    choices = ", ".join([*catalog.names, *catalog.loras, *catalog.controlnets])
    raise CliError(f"the catalog has no {name!r}; it has: {choices}", code=Exit.USAGE)


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    try:
        yield
    except HubDown as error:
        raise CliError(f"{name}: {error}; try again later") from error
    except (Fatal, OSError) as error:
        raise CliError(f"{name}: {error}") from error


@contextmanager
def _bar() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show bars; what is yielded begins one of that name and returns what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=show.console, transient=True) as progress:

        def begin(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(escape(name), total=None, visible=False)

            def move(done_bytes: int, num_bytes: int) -> None:
                progress.update(task, completed=done_bytes, total=num_bytes, visible=done_bytes < num_bytes)

            return move

        yield begin


def _describe(path: Path, known: str | None) -> str:
    if _hub_digest(path) is not None:
        return "as the hub has it"
    return "as it was" if known is not None else "read for the first time"


def _hub_digest(path: Path) -> str | None:
    """Return the sha256 that the hub gave for a file of its cache, whose large files are named for it."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _common(paths: Sequence[Path]) -> str:
    """Return the folder that all of these are in."""
    first, *rest = [path.parents for path in paths]
    return str(next(folder for folder in first if all(folder in parents for parents in rest)))


def _short(path: Path, paths: Sequence[Path]) -> str:
    return str(path.relative_to(_common(paths)))


def _load(settings: Settings) -> Catalog:
    try:
        return load_catalog(settings.catalog_file)
    except Fatal as error:
        raise CliError(str(error)) from error


def _token(settings: Settings) -> str | None:
    return None if settings.hf_token is None else settings.hf_token.get_secret_value()
