"""Follow a job to its end: the bar, and what is said when it has ended or is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import islice
from typing import Any, Final, Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from cli.client import FINAL_STATES, FarmClient, NoFarm, NotNow, total_of
from cli.exits import Exit
from cli.live import LiveJob, News
from cli.show import console, errors, failures_table, rate, span

_PATIENCE_S: Final = 60.0
_MAX_SHOWN_FAILURES: Final = 20


def follow(client: FarmClient, job: dict[str, Any]) -> dict[str, Any]:
    """Show a live bar until the job has ended; returns it as it stands then.

    A farm that is away is waited for, up to a minute. KeyboardInterrupt passes through: the job goes on.
    """
    with JobBar(job) as bar:
        return job if bar.is_over else asyncio.run(_keep_up(client, bar))


async def _keep_up(client: FarmClient, bar: JobBar) -> dict[str, Any]:
    """Show what is told of a job until it has ended; raises the last error of a farm that is away for a minute."""
    gives_up_at_s = time.monotonic() + _PATIENCE_S
    async with LiveJob(client, bar.job["id"], num_images=total_of(bar.job)) as live:
        while not bar.is_over:
            try:
                news = await live.next()
            except (NoFarm, NotNow):
                if time.monotonic() > gives_up_at_s:
                    raise
                bar.say("the farm is away; waiting for it")
            else:
                gives_up_at_s = time.monotonic() + _PATIENCE_S
                bar.tell(news)
    return bar.job


class JobBar:
    """A line that shows how far a job is: of small ones the images in seats by their steps as well."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self._told_at_s = time.monotonic()
        self._steps: dict[int, tuple[int, int]] = {}  # of images in seats: made, to make
        self._outage = ""
        self._bar = Progress(
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[ended]}", style="green"),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            transient=False,
        )
        self._task = self._bar.add_task("", total=total_of(job), ended="", **told(job))
        self._show()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.job["state"] in FINAL_STATES

    def tell(self, news: News | None) -> None:
        """Show what is new; None: nothing is, but time has passed."""
        match news:
            case News("job", job):
                self.job, self._told_at_s, self._outage = job, time.monotonic(), ""
            case News("image", image):
                self._steps.pop(image["index"], None)
            case News("preview", preview):
                self._steps[preview["index"]] = preview["step"], preview["steps"]
            case News("outage", outage):
                self._outage = str(outage.get("detail", ""))
        self._show()

    def say(self, words: str) -> None:
        """Show words beside the bar, until there is news."""
        self._bar.update(self._task, left=words)

    def _show(self) -> None:
        counts = self.job["counts"]
        ended = counts["stored"] + counts["failed"] + counts["cancelled"]
        begun = 0.0 if self.is_over else sum(step / steps for step, steps in self._steps.values() if steps)
        words = told(self.job, age_s=time.monotonic() - self._told_at_s)
        if len(self._steps) == 1 and not self.is_over:
            words["left"] = f"step {'/'.join(map(str, *self._steps.values()))}  {words['left']}"
        if self._outage:
            words["left"] = self._outage
        total = total_of(self.job)
        self._bar.update(self._task, completed=min(ended + begun, total), ended=f"{ended}/{total}", **words)


def told(job: dict[str, Any], *, age_s: float = 0.0) -> dict[str, Any]:
    """Return the words beside the bar, of a job as it stood so long ago."""
    over = job["state"] in FINAL_STATES
    failed = job["counts"]["failed"]
    left = "waiting for a worker" if job["state"] == "queued" else ""
    if job.get("paused") and not over:
        left = f"paused: farm resume {job['id']}"
    elif not over and job.get("eta_s") is not None:
        left = f"{span(max(0.0, job['eta_s'] - age_s))} left"
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
