"""What the command line prints: tables, bars, the banner. It asks nobody; it is given JSON and shows it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.client import FINAL_STATES, total_of, unix_s

# A pipe has no width: what reads it wants whole ids, not what fits on eighty columns.
_PIPE_COLUMNS: Final = 160
console: Final = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
errors: Final = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else _PIPE_COLUMNS
)

STATE_STYLE: Final = {
    "queued": "yellow",
    "rendering": "cyan",
    "paused": "blue",
    "done": "green",
    "failed": "red",
    "cancelled": "magenta",
    "stored": "green",
}
_ID_COLUMNS: Final = 24
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400

Json = Mapping[str, Any]


def note(message: str) -> None:
    """Print one event with its time."""
    console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/] {escape(message)}")


def fail(message: str) -> None:
    """Print an error."""
    errors.print(Text("error: ", style="bold red") + Text(message))


class Stages:
    """The start-up as it goes: a line for each part; lines stay, so that a log without a terminal reads the same."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_live()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` as starting, then as ready with the time it took."""
        began = time.monotonic()
        if console.is_terminal:
            spinner = Spinner("dots", f"[bold]{name:<10}[/] starting")
            self._live = Live(spinner, console=console, transient=True, refresh_per_second=10)
            self._live.start()
        try:
            yield
        finally:
            self._end_live()
        console.print(f"[green]✓[/] [bold]{name:<10}[/] ready in {time.monotonic() - began:.1f} s")

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def banner(*, url: str, s3: str, data: Path, workers: Sequence[Json]) -> None:
    """Say where everything is, once a farm is ready."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("API", f"[link={url}]{url}[/]")
    table.add_row("S3", s3)
    table.add_row("data", escape(str(data)))
    for worker in workers:
        device = (worker.get("gpu") or {}).get("name") or worker.get("device", "")
        table.add_row("worker", escape(f"{worker.get('node', '?')} on {device}, {worker.get('max_batch', '?')} seats"))
    api = "" if url == "http://127.0.0.1:8080" else f" --api {url}"
    table.add_row("try", escape(f'farm submit{api} -p "a red heart left of a green house at night"'))
    console.print(Panel(table, title="[bold]the farm is ready[/]", subtitle="Ctrl-C stops it", expand=False))


def jobs_table(jobs: Sequence[Json]) -> Table:
    """Return the table of jobs."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("job", no_wrap=True, min_width=_ID_COLUMNS)  # an id cut short is no id
    table.add_column("state", no_wrap=True, min_width=len("rendering"))
    table.add_column("model", no_wrap=True)
    for name in ("images", "rate", "left", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("labels", no_wrap=True, overflow="ellipsis")
    for job in jobs:
        counts = job.get("counts") or {}
        failed = counts.get("failed")
        labels = " ".join(f"{key}={value}" for key, value in (job.get("labels") or {}).items())
        table.add_row(
            str(job.get("id")),
            state_text(job),
            escape(str(job.get("model", ""))),
            f"{counts.get('stored', 0)}/{total_of(job)}" + (f", {failed} failed" if failed else ""),
            rate(job.get("images_per_s")),
            "-" if job.get("state") in FINAL_STATES else span(job.get("eta_s")),
            age(job.get("created_at")),
            escape(labels),
        )
    return table


def job_table(job: Json) -> Table:
    """Return the details of one job."""
    counts = job.get("counts") or {}
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    parts = [
        f"{counts[name]} {name}"
        for name in ("stored", "rendering", "queued", "failed", "cancelled")
        if counts.get(name)
    ]
    rows: list[tuple[str, Any]] = [
        ("job", str(job.get("id"))),
        ("state", state_text(job)),
        ("model", escape(str(job.get("model", "")))),
        ("priority", str(job.get("priority", "normal"))),
        ("images", f"{total_of(job)}: {', '.join(parts) or 'none'}"),
        ("created", age(job.get("created_at")) + " ago"),
    ]
    if job.get("paused"):
        rows.append(("left", f"paused; farm resume {job.get('id')} lets it go on"))
    elif job.get("state") not in FINAL_STATES:
        rows.append(("left", span(job.get("eta_s"))))
    rows.append(("rate", rate(job.get("images_per_s"))))
    if job.get("gpu_s"):
        rows.append(("device time", f"{job['gpu_s']:.1f} s"))
    if job.get("price") is not None:
        rows.append(("price", f"{job['price']:.4g}"))
    if job.get("retries"):
        rows.append(("retries", str(job["retries"])))
    if job.get("labels"):
        rows.append(("labels", escape(" ".join(f"{key}={value}" for key, value in job["labels"].items()))))
    for name, value in rows:
        table.add_row(name, value)
    return table


def tenants_table(tenants: Sequence[Json]) -> Table:
    """Return the table of tenants: their limits, then their use of the farm."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tenant", no_wrap=True)
    for name in ("weight", "max queued", "max running", "queued", "running", "images", "device time", "open jobs"):
        table.add_column(name, justify="right", no_wrap=True)
    for tenant in tenants:
        limits = (tenant.get(name) for name in ("max_queued_images", "max_running"))
        table.add_row(
            escape(str(tenant.get("name"))),
            f"{tenant.get('weight', 1):g}",
            *("-" if limit is None else str(limit) for limit in limits),
            *(str(tenant.get(name, 0)) for name in ("queued_images", "running_images", "images_stored")),
            span(tenant.get("gpu_s")),
            str(tenant.get("open_jobs", 0)),
        )
    return table


def keys_table(keys: Sequence[Json]) -> Table:
    """Return the table of API keys: whose they are, what they are good for, and how they stand."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("key", "tenant", "scopes", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("a minute", "made", "used"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis")
    for key in keys:
        ends = key.get("expires_at")
        state = "revoked" if key.get("revoked_at") else f"until {ends}" if ends else "good"
        if ends and not key.get("revoked_at") and unix_s(ends) <= time.time():
            state = "expired"
        table.add_row(
            str(key.get("id")),
            escape(str(key.get("tenant"))),
            " ".join(key.get("scopes") or ()),
            f"[red]{state}[/]" if state in {"revoked", "expired"} else state,
            str(key.get("max_requests_per_minute") or "-"),
            age(key.get("created_at")),
            age(key.get("last_used_at")),
            escape(str(key.get("name", ""))),
        )
    return table


def workers_table(workers: Sequence[Json]) -> Table:
    """Return the table of workers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("worker", "device", "resident"):
        table.add_column(name, no_wrap=True)
    for name in ("seats", "waiting", "images", "failures", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in workers:
        table.add_row(
            escape(str(worker.get("node") or worker.get("name"))),
            escape(str((worker.get("gpu") or {}).get("name") or worker.get("device", ""))),
            escape(", ".join(worker.get("resident") or ()) or "-"),
            f"{worker.get('running', 0)}/{worker.get('seats') or worker.get('max_batch', '?')}",
            str(worker.get("waiting", 0)),
            str(worker.get("images", 0)),
            str(worker.get("failures") or "-"),
            age(worker.get("seen_at")),
        )
    return table


def rates_table(throughput: Json) -> Table:
    """Return the farm's rates over its windows."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("last", no_wrap=True)
    for name in ("images", "rate"):
        table.add_column(name, justify="right", no_wrap=True)
    rows: dict[str, Json] = throughput.get("total") or {}
    figures = [("device s/image", "gpu_s_per_image", ".2f"), ("seats taken", "mean_seat_occupancy", ".1f")]
    # Not every farm can tell these.
    for name, field, form in (("J/image", "joules_per_image", ".0f"), ("price/1,000", "price_per_1000_images", ".3f")):
        if any(row.get(field) is not None for row in rows.values()):
            figures.append((name, field, form))
    for name, _, _ in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for window, row in rows.items():
        told = ["-" if row.get(field) is None else format(row[field], form) for _, field, form in figures]
        table.add_row(window, str(row.get("images", 0)), rate(row.get("images_per_s")), *told)
    return table


def models_table(models: Sequence[Json]) -> Table:
    """Return the catalog as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("model", "family", "served", "size", "steps", "guidance", "scheduler"):
        table.add_column(name, no_wrap=True)
    table.add_column("description")
    for model in models:
        defaults = model.get("defaults") or {}
        table.add_row(
            escape(str(model.get("id"))),
            escape(str(model.get("family", "-"))),
            "yes" if model.get("available") else "no",
            f"{model.get('width', '?')}x{model.get('height', '?')}",
            str(defaults.get("num_inference_steps", "-")),
            str(defaults.get("guidance_scale", "-")),
            escape(str(defaults.get("scheduler", "-"))),
            escape(str(model.get("description", ""))),
        )
    return table


def failures_table(images: Sequence[Json]) -> Table:
    """Return the failed images of a job with their reasons."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("image", justify="right")
    table.add_column("prompt", max_width=48, no_wrap=True, overflow="ellipsis")
    table.add_column("reason")
    for image in images:
        table.add_row(
            str(image.get("index")), escape(str(image.get("prompt"))), escape(str(image.get("error") or "unknown"))
        )
    return table


def state_text(job: Json) -> Text:
    """Return a state in its colour."""
    state = str(job.get("state", "?"))
    return Text(state, style=STATE_STYLE.get(state, ""))


def rate(images_per_s: float | None) -> str:
    """Return a rate in a unit that reads well."""
    if not images_per_s:
        return "-"
    return f"{images_per_s:.2f}/s" if images_per_s >= 1 else f"{images_per_s * _MINUTE:.1f}/min"


def span(seconds: float | None) -> str:
    """Return a time span in its two largest units."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    for large, small, unit, below in ((_DAY, _HOUR, "d", "h"), (_HOUR, _MINUTE, "h", "m"), (_MINUTE, 1, "m", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large}{unit}" + (f" {rest}{below}" if rest else "")
    return f"{whole}s"


def age(moment: str | None) -> str:
    """Return how long ago a moment (RFC 3339) was."""
    return "-" if moment is None else span(max(0.0, time.time() - unix_s(moment)))
