"""`farm demo`: a farm of its own, a set of prompts, the pictures and their contact sheet; then everything is stopped.

It goes the way a user goes, through `farm up` as a process and the HTTP API, so it is a trial of the whole farm too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from PIL import Image

from cli import promptfiles, watch
from cli.client import FINAL_STATES, FarmClient, total_of, unix_s
from cli.download import Manifest, download
from cli.embedded import pick_ports
from cli.exits import CliError, Exit
from cli.lock import LOCK_FILE, lock
from cli.processes import child_env, python_module
from cli.sheet import Cell, contact_sheet
from cli.show import console, note
from cli.up import STATE_FILE
from farm.machine import num_cores, processor

_START_LIMIT_S: Final = 420.0
_STOP_LIMIT_S: Final = 120.0
PROMPTS: Final = Path(__file__).resolve().parents[1] / "prompts" / "scenes" / "demo.jsonl"


def run_demo(prompts: Path, out: Path) -> None:
    """Render a prompt file into `out`/demo and print the throughput as the last line.

    The farm's data are in `out`/demo-data; both are emptied first. Raises CliError when an image is missing.
    """
    pictures, data = out / "demo", out / "demo-data"
    body = promptfiles.build_body([prompts], [], {"seed": 7, "labels": {"set": prompts.stem}})
    clear(pictures, data)
    with running_farm(data) as url, FarmClient(url) as client:
        warm_up(client, body, logs=data / "logs")
        job = client.submit(body)
        note(f"{total_of(job)} images of {prompts.name} are job {job['id']}")
        job = watch.follow(client, job)
        if watch.report(client, job) is not Exit.OK:
            raise CliError(f"the demo's job ended {job['state']}; the logs are in {data / 'logs'}")
        done = download(client, job["id"], pictures)
        if done.failed:
            raise CliError("\n".join(done.failed))
        line = throughput_line(job, model=model_of(client, job), workers=client.workers())
        write_sheet(pictures, job, subtitle=line)
    console.print(f"pictures: {pictures}{os.sep}    all of them: {pictures / 'contact-sheet.png'}")
    console.print(line)


def clear(pictures: Path, data: Path) -> None:
    """Empty the demo's folders of what an earlier demo left; raises CliError while that one still runs."""
    data.mkdir(parents=True, exist_ok=True)
    with lock(data.resolve()):
        for path in data.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
    pictures.mkdir(parents=True, exist_ok=True)
    for path in (*pictures.glob("*.png"), *pictures.glob("*.jsonl")):
        path.unlink()


@contextlib.contextmanager
def running_farm(data: Path) -> Iterator[str]:
    """Run `farm up` on free ports; yields the URL of its API, and stops it whatever happens.

    Its standard input is a pipe from here: should this process be killed, the pipe ends and the farm stops itself.
    """
    (port,) = pick_ports(1)
    command = python_module("cli.main", "up", "--until-eof", "--port", str(port), "--data", str(data))
    # A session of its own: Ctrl-C must reach us alone, or the farm would be told to stop twice.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=child_env(), start_new_session=True)
    try:
        deadline = time.monotonic() + _START_LIMIT_S
        while not (data / STATE_FILE).exists():
            if process.poll() is not None:
                raise CliError("the farm did not start; the reason stands above")
            if time.monotonic() > deadline:
                raise CliError(f"the farm did not start in {_START_LIMIT_S:.0f} s; its logs are in {data / 'logs'}")
            time.sleep(0.1)
        yield json.loads((data / STATE_FILE).read_text(encoding="utf-8"))["api"]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its tether ends the rest
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def warm_up(client: FarmClient, body: dict[str, Any], *, logs: Path) -> None:
    """Render one small image first, so that loading the model does not count as rendering."""
    began = time.monotonic()
    first = client.submit({**body, "prompts": body["prompts"][:1], "num_inference_steps": 2, "labels": {}})
    with console.status("loading the model"):
        while first["state"] not in FINAL_STATES:
            time.sleep(0.1)
            first = client.job(first["id"])
    if watch.report(client, first) is not Exit.OK:
        raise CliError(f"the model does not render; the logs are in {logs}")
    note(f"model {first['model']} loaded, first image after {time.monotonic() - began:.1f} s")


def model_of(client: FarmClient, job: dict[str, Any]) -> dict[str, Any]:
    """Return the catalog's row of a job's model."""
    return next(model for model in client.models() if model["id"] == job["model"])


def throughput_line(job: dict[str, Any], *, model: dict[str, Any], workers: list[dict[str, Any]]) -> str:
    """Say how fast the job ran, on what: from the first image's start to the last one's end, model loaded before."""
    took_s = unix_s(job["finished_at"]) - unix_s(job["started_at"])
    images = total_of(job)
    what = f"{model['defaults']['num_inference_steps']} steps at {model['width']}x{model['height']}"
    gpus = [worker["gpu"]["name"] for worker in workers if worker.get("gpu")]
    if gpus:
        device = f"{len(gpus)} x {gpus[0]} ({what})" if len(gpus) > 1 else f"{gpus[0]} ({what})"
    else:
        device = f"{num_cores()} CPU cores ({processor()}; {what})"
    return f"{images} images in {took_s:.1f} s: {images / took_s:.2f} images/s on {device}"


def write_sheet(folder: Path, job: dict[str, Any], *, subtitle: str) -> None:
    """Put all pictures of a job, with their prompts, onto one sheet."""
    cells = []
    for row in Manifest(folder, job["id"]).rows:
        with Image.open(folder / row["file"]) as picture:
            cells.append(Cell(picture.convert("RGB"), row["prompt"]))
    sheet = contact_sheet(cells, title=f"Diffusion Farm: {job['model']}", subtitle=subtitle)
    sheet.save(folder / "contact-sheet.png", optimize=True)
