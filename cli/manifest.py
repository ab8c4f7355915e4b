"""`farm manifest`: the list of all images of a job that has ended, printed or saved, as long as the store keeps it."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from cli import show
from cli.client import FarmClient, trusts_proxies
from cli.exits import CliError


def bring_manifest(client: FarmClient, job_id: str, out: Path | None) -> None:
    """Write a job's manifest to `out`, which appears when it is whole, or to standard output.

    Raises CliError when there is none yet, with what the API says of that.
    """
    url = client.manifest_url(job_id)
    try:
        with httpx.stream("GET", url, timeout=60.0, trust_env=trusts_proxies(url)) as answer:
            answer.raise_for_status()
            if out is None:
                for chunk in answer.iter_bytes():
                    sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                return
            half = out.with_name(f".{out.name}.part")
            with half.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
            half.replace(out)
    except httpx.HTTPError as error:
        raise CliError(f"the manifest of {job_id} cannot be fetched: {error}") from error
    except OSError as error:
        raise CliError(f"{out or 'standard output'}: {error.strerror or error}") from error
    show.console.print(f"the manifest of {job_id} is in {out}", markup=False)
