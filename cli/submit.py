"""`farm submit`: from the command line's words to a job, its bar and its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from cli import watch
from cli.client import FarmClient, total_of
from cli.download import Downloaded, download
from cli.exits import Exit
from cli.pictures import Asked, LocalPictures
from cli.promptfiles import RawFile
from cli.show import console, errors


def submit(
    client: FarmClient,
    job_asked: dict[str, Any] | RawFile,
    query: Mapping[str, str],
    *,
    wait: bool,
    folder: Path | None,
) -> Exit:
    """Submit a job, after the pictures of this machine that it names.

    Unless told not to, follow it to its end, then bring its images into `folder`.
    """
    asked = Asked(job_asked, query)
    if pictures := LocalPictures(asked):
        client.preview(*pictures.to_come())  # what else is wrong with the job is told before the first is sent
        asked = pictures.sent(client)
    job = client.submit(*asked)
    images = total_of(job)
    console.print(f"[bold]{escape(job['id'])}[/]  {images} image{'s' * (images != 1)} of {escape(job['model'])}")
    if not wait:
        return Exit.OK
    return follow(client, job, folder=folder)


def follow(client: FarmClient, job: dict[str, Any], *, folder: Path | None) -> Exit:
    """Follow a job to its end and bring its images into `folder`; Ctrl-C leaves the job alone."""
    try:
        job = watch.follow(client, job)
    except KeyboardInterrupt:
        watch.detach(client, job["id"])
        return Exit.INTERRUPTED
    code = watch.report(client, job)
    if folder is None or not job["counts"]["stored"]:
        return code
    return code or tell_download(download(client, job["id"], folder), folder)


def tell_download(done: Downloaded, folder: Path) -> Exit:
    """Say what a download did; returns the exit code that tells."""
    parts = [f"{done.fetched} fetched"]
    parts += [f"{done.skipped} were there"] * bool(done.skipped)
    parts += [f"{done.missing} not stored (not yet, or failed)"] * bool(done.missing)
    console.print(f"{escape(str(folder))}: {', '.join(parts)}")
    for line in done.failed[:20]:
        errors.print(f"[red]{escape(line)}[/]")
    if done.failed:
        errors.print("run the same farm download again: it goes on where this one ended")
    return Exit.FAILED if done.failed or done.missing else Exit.OK
