"""Follow a job to its end: the bar, and what is said when it has ended or is left alone."""

from __future__ import annotations

import contextlib
import time
from itertools import islice
from typing import Any, Final

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cli.client import FINAL_STATES, FarmClient, NoFarm, NotNow, total_of
from cli.exits import Exit
from cli.show import console, errors, failures_table, rate, span

_POLL_S: Final = 0.5
_PATIENCE_S: Final = 60.0
_MAX_SHOWN_FAILURES: Final = 20


def follow(client: FarmClient, job: dict[str, Any]) -> dict[str, Any]:
    """Show a live bar until the job has ended; returns it as it stands then.

    A farm that is away is waited for, up to a minute. KeyboardInterrupt passes through: the job goes on.
    """
    bar = Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TextColumn("{task.fields[left]}", style="dim"),
        console=console,
        transient=False,
    )
    with bar:
        task = bar.add_task("", total=total_of(job), **told(job))
        while True:
            show(bar, task, job)
            if job["state"] in FINAL_STATES:
                return job
            time.sleep(_POLL_S)
            job = patiently(client, job["id"], bar, task)


def patiently(client: FarmClient, job_id: str, bar: Progress, task: TaskID) -> dict[str, Any]:
    """Ask for a job until the farm answers; gives up, with the last error, after a minute."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.job(job_id)
        except (NoFarm, NotNow):
            if time.monotonic() > deadline:
                raise
            bar.update(task, left="the farm is away; waiting for it")
            time.sleep(_POLL_S)


def show(bar: Progress, task: TaskID, job: dict[str, Any]) -> None:
    """Bring the bar up to date."""
    counts = job["counts"]
    bar.update(task, completed=counts["stored"] + counts["failed"] + counts["cancelled"], **told(job))


def told(job: dict[str, Any]) -> dict[str, Any]:
    """Return the words beside the bar."""
    over = job["state"] in FINAL_STATES
    failed = job["counts"]["failed"]
    left = "waiting for a worker" if job["state"] == "queued" else ""
    if job.get("paused") and not over:
        left = f"paused: farm resume {job['id']}"
    elif not over and job.get("eta_s") is not None:
        left = f"{span(job['eta_s'])} left"
    if failed:
        left = f"{failed} failed  {left}"
    return {"state": str(job["state"]), "rate": rate(job.get("images_per_s")), "left": left}


def report(client: FarmClient, job: dict[str, Any]) -> Exit:
    """Say how a job ended, with the reasons of failed images; returns the exit code that tells."""
    counts = job["counts"]
    if job["state"] == "done":
        return Exit.OK
    if counts["failed"]:
        failed = list(islice((image for image in client.all_images(job["id"]) if image["state"] == "failed"),
                             _MAX_SHOWN_FAILURES))  # fmt: skip
        errors.print(f"[red]{counts['failed']} of {total_of(job)} images failed[/]")
        errors.print(failures_table(failed))
        if counts["failed"] > len(failed):
            errors.print(f"and {counts['failed'] - len(failed)} more")
    if job["state"] == "cancelled":
        errors.print(f"[magenta]{job['id']} was cancelled[/]; {counts['stored']} images were stored before")
    return Exit.FAILED


def detach(client: FarmClient, job_id: str) -> None:
    """Say how to come back to a job that is left alone."""
    api = f" --api {client.url}" if client.url != "http://127.0.0.1:8080" else ""
    with contextlib.suppress(OSError):
        console.print(f"\n{escape(job_id)} goes on without you")
        console.print(f"  watch it:   farm watch{api} {job_id}")
        console.print(f"  cancel it:  farm cancel{api} {job_id}")
