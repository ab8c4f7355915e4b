"""`farm up` as a user meets it: real processes, real servers, real images, and nothing left behind.

It renders with the model that ships when its weights are there, with a random tiny one otherwise.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cli.embedded import pick_ports

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "models" / "scenes"
PATIENCE_S = 300.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1000),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc"),
]


class Farm:
    """One `farm up` after the other on the same data; every process they start carries a mark of its own."""

    def __init__(self, data, env):
        self.data = data
        self.mark = f"FARM_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        (self.port,) = pick_ports(1)
        self.env = {**os.environ, **env, name: value, "FARM_DEVICE": "cpu", "FARM_API": f"http://127.0.0.1:{self.port}"}
        self.log = data.with_name("up.log")
        self.process = None

    def command(self, *arguments, **options):
        """Run a `farm` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            **options,
        )

    def launch(self):
        """Start `farm up` and do not wait."""
        arguments = ["up", "--port", str(self.port), "--data", str(self.data), "--workers", "1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments], env=self.env, cwd=ROOT, stdout=log, stderr=log
            )

    def start(self):
        """Start `farm up` and wait until it says that it is ready."""
        starts = self.said().count("the farm is ready")
        self.launch()
        self.until(lambda: self.said().count("the farm is ready") > starts)

    def said(self):
        """Return what all `farm up` of this data printed."""
        return self.log.read_text() if self.log.exists() else ""

    def until(self, condition):
        """Wait until something is so; fails at once when `farm up` ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.everything_said()
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"farm up ended with {self.process.returncode}\n{self.everything_said()}")
            time.sleep(0.05)

    def is_ready(self):
        """Tell whether the API reaches Redis and S3."""
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").is_success
        return False

    def everything_said(self):
        """Return all logs, for the report of a failure."""
        logs = sorted((self.data / "logs").glob("*.log"))
        return "\n".join([self.said(), *(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)])

    def end(self, number):
        """Send `farm up` a signal and return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    @property
    def children(self):
        """Return the children's process numbers by name."""
        return json.loads((self.data / "farm.json").read_text())["children"]

    def alive(self):
        """Return the command lines of all processes that carry the mark or work in the data folder, by number.

        Valkey writes its title over its environment, so the mark alone would not find it.
        """
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                at_home = (folder / "cwd").readlink().is_relative_to(self.data.resolve())
                if at_home or self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a model's name and the settings that make the farm know it."""
    if (SCENES / "model_index.json").exists():
        return "scenes", {}
    from tiny_models import SIZE_PX, save_tiny_sd15  # noqa: PLC0415  imports torch

    folder = tmp_path_factory.mktemp("models")
    save_tiny_sd15(folder / "tiny")
    row = {"name": "tiny", "family": "sd15", "source": str(folder / "tiny"), "width": SIZE_PX, "height": SIZE_PX}
    lines = [f"{name} = {json.dumps(value)}" for name, value in {**row, "min_size": 8}.items()]
    (folder / "catalog.toml").write_text("\n".join(["[[model]]", *lines]))
    return "tiny", {"FARM_CATALOG_FILE": str(folder / "catalog.toml")}


@pytest.fixture
def farm(tmp_path, model):
    """Return a farm that is not started yet; whatever the test leaves running is ended."""
    farm = Farm(tmp_path / "data", model[1])
    yield farm
    if farm.process is not None:
        farm.process.kill()
        farm.process.wait()
    while alive := farm.alive():  # a failed test: nothing may start anything any more, so this ends
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def submit(farm, model, folder, *, images):
    """Render two prompts to the end, into a folder."""
    arguments = [
        "-p",
        "a red circle",
        "-p",
        "a blue star at night",
        "-n",
        str(images // 2),
        "--steps",
        "3",
        "--seed",
        "5",
    ]
    done = farm.command("submit", *arguments, "--model", model[0], "-o", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr + farm.everything_said()
    return done.stdout.split()[0]


def pictures(folder):
    """Return the bytes of all pictures of a folder, by name; each can be opened."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            picture.load()
        found[path.name] = path.read_bytes()
    return found


def test_a_farm_renders_and_survives_what_happens_to_it(farm, model, tmp_path):
    """Rendered, a server killed, `farm up` killed, started again: jobs and images are there, and nothing is left."""
    farm.start()
    job = submit(farm, model, tmp_path / "first", images=4)
    first = pictures(tmp_path / "first")
    assert len(first) == 4

    # A second farm on the same port or the same data is refused, and says why.
    again = farm.command("up", "--port", str(farm.port), "--data", str(tmp_path / "other"))
    assert (again.returncode, "a farm runs at" in again.stderr) == (5, True), again.stderr
    again = farm.command("up", "--port", str(pick_ports(1)[0]), "--data", str(farm.data))
    assert (again.returncode, "in use by another" in again.stderr) == (5, True), again.stderr

    running = farm.alive()
    assert set(farm.children.values()) < set(running), running

    # The servers die; they come back, and so does work.
    for name in ("valkey", "seaweedfs"):
        os.kill(farm.children[name], signal.SIGKILL)
        farm.until(lambda name=name: f"{name} ended with SIGKILL" in farm.said())
    farm.until(farm.is_ready)
    submit(farm, model, tmp_path / "second", images=2)

    # `farm up` is killed without a chance to clean up: nothing outlives it.
    farm.end(signal.SIGKILL)
    farm.until(lambda: not farm.alive())

    farm.launch()  # what lies there needs no worker
    farm.until(farm.is_ready)
    status = farm.command("status")
    assert status.returncode == 0, status.stderr
    assert job in status.stdout
    download = farm.command("download", job, "-o", str(tmp_path / "later"))
    assert download.returncode == 0, download.stdout + download.stderr
    assert pictures(tmp_path / "later") == first

    assert farm.end(signal.SIGTERM) == 0
    assert farm.alive() == {}
    assert "was killed" not in farm.said()


def test_a_start_can_be_called_off(farm):
    """Ctrl-C in the middle of the start ends everything that had begun."""
    farm.launch()
    farm.until((farm.data / "logs" / "workers.log").exists)
    assert farm.end(signal.SIGINT) == 0
    assert farm.alive() == {}


def test_a_demo_ends_with_its_throughput(farm, model, tmp_path):
    """Pictures, their sheet, the throughput as the last line; nothing is left, and it works over its own remains."""
    prompts = tmp_path / "two.json"
    prompts.write_text(json.dumps({"model": model[0], "prompts": ["a star", "a boat"], "num_inference_steps": 2}))
    farm.data = tmp_path / "out" / "demo-data"
    arguments = ["demo", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    (farm.data / "valkey").mkdir(parents=True)
    (farm.data / "valkey" / "remains").touch()
    done = farm.command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"2 images in [\d.]+ s: [\d.]+ images/s on .*", done.stdout.splitlines()[-1])
    assert len(pictures(tmp_path / "out" / "demo")) == 3
    assert (tmp_path / "out" / "demo" / "contact-sheet.png").exists()
    assert not (farm.data / "valkey" / "remains").exists()
    assert not (farm.data / "farm.json").exists()
    assert farm.alive() == {}


def test_a_killed_demo_takes_its_farm_along(farm, tmp_path):
    """The farm stops itself when the demo that started it is gone."""
    command = [sys.executable, "-m", "cli.main", "demo", "--out", str(tmp_path)]
    with farm.log.open("ab") as log:
        farm.process = subprocess.Popen(command, env=farm.env, cwd=ROOT, stdout=log, stderr=log)
    farm.until((tmp_path / "demo-data" / "logs" / "workers.log").exists)
    farm.data = tmp_path / "demo-data"
    farm.end(signal.SIGKILL)
    farm.until(lambda: not farm.alive())


def test_a_taken_port_ends_the_start(farm):
    """Nothing is started when the API's port belongs to somebody else."""
    with socket.create_server(("127.0.0.1", farm.port)):
        refused = farm.command("up", "--port", str(farm.port), "--data", str(farm.data))
    assert refused.returncode == 5
    assert f"port {farm.port} on 127.0.0.1 is taken" in refused.stderr
    assert farm.alive() == {}
