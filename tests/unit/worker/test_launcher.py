"""Which workers a machine runs, and that none of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from farm.errors import Fatal
from farm.settings import Settings
from worker.launcher import Child, Device, Launcher, choose_devices, choose_gpus, main, worker_env

UUIDS = ["GPU-aaaa-0000", "GPU-aabb-1111", "GPU-cccc-2222"]
GPUS = [Device(f"gpu{number}", uuid, "cuda") for number, uuid in enumerate(UUIDS)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, GPUS),
        ("0,2", [GPUS[0], GPUS[2]]),
        ("GPU-cccc", [GPUS[2]]),
        ("GPU-aabb-1111, GPU-aaaa", [GPUS[1], GPUS[0]]),
        ("GPU-aa", []),  # two begin so
        ("1,7,0", [GPUS[1]]),  # CUDA stops at the first that it does not know
        ("-1", []),
        ("", []),
        ("MIG-x/1", [Device("mig0", "MIG-x/1", "cuda")]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible, expected):
    """A launcher that may see some GPUs starts workers on those alone."""
    assert choose_gpus(UUIDS, visible) == expected


def test_one_worker_for_each_gpu_else_some_on_the_cpu():
    """The number of CPU workers counts only where workers run on the CPU."""
    auto, cpu, cuda = (Settings(device=device) for device in ("auto", "cpu", "cuda"))
    assert choose_devices(auto, gpus=GPUS, cpu_workers=2) == GPUS
    assert [d.name for d in choose_devices(auto, gpus=[], cpu_workers=2)] == ["cpu0", "cpu1"]
    assert [d.name for d in choose_devices(cpu, gpus=GPUS, cpu_workers=1)] == ["cpu0"]
    with pytest.raises(Fatal, match="no NVIDIA GPU"):
        choose_devices(cuda, gpus=[], cpu_workers=1)


def test_a_worker_sees_one_device_and_has_a_lasting_name():
    """The name survives restarts: it is how a new worker knows its predecessor's units."""
    settings = Settings(worker_name="box")
    env = worker_env(GPUS[1], settings, num_workers=3)
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-aabb-1111"
    assert env["FARM_WORKER_NAME"] == "box:gpu1"
    assert "FARM_TORCH_THREADS" not in env
    cpu = worker_env(Device("cpu0", "", "cpu"), settings, num_workers=2)
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert int(cpu["FARM_TORCH_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
    assert float(cpu["FARM_RAM_SHARE"]) == 0.25  # of 0.5 for all


def test_asking_for_cuda_without_a_gpu_ends_with_a_reason(monkeypatch, capsys):
    """Nothing is started and nothing loops."""
    monkeypatch.setenv("FARM_DEVICE", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main([]) == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err


def alive(pid):
    """Tell whether a process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(is_so):
    """Wait for a condition."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


SLEEPER = "import time; time.sleep(300)"
CRASHER = "raise SystemExit(3)"


@pytest.fixture
def run_launcher():
    """Run a launcher beside the test, and stop it afterwards."""
    running = []

    def run(launcher):
        thread = threading.Thread(target=launcher.run)
        thread.start()
        running.append((launcher, thread))

    yield run
    for launcher, thread in running:
        launcher.stop()
        thread.join()


def test_a_worker_that_dies_is_started_again(run_launcher):
    """Killed from outside, it is back soon, as another process."""
    child = Child("box:cpu0", {})
    launcher = Launcher([child], [sys.executable, "-c", SLEEPER])
    run_launcher(launcher)

    def pid():
        process = child.process  # which the launcher's thread may take away
        return None if process is None else process.pid

    wait_until(pid)
    first = pid()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid() not in (None, first))
    assert alive(pid())


def test_threads_of_workers_wait_without_spinning(run_launcher, tmp_path, monkeypatch):
    """On a busy machine that is many times faster; who sets the variable has the last word."""
    tell = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, os.environ['OMP_WAIT_POLICY']).touch(); {SLEEPER}"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run_launcher(Launcher([Child("box:cpu0", {})], [sys.executable, "-c", tell]))
    wait_until((tmp_path / "PASSIVE").exists)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    run_launcher(Launcher([Child("box:cpu1", {})], [sys.executable, "-c", tell]))
    wait_until((tmp_path / "ACTIVE").exists)


def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(run_launcher):
    """A crash loop costs little, and is never given up."""
    child = Child("box:cpu0", {}, pause_s=0.05)
    run_launcher(Launcher([child], [sys.executable, "-c", CRASHER]))
    wait_until(lambda: child.pause_s >= 0.4)


def test_pauses_double_up_to_half_a_minute():
    """Between the starts of a worker that dies young; one that lived for half a minute is started again at once."""
    child = Child("box:cpu0", {}, started_at_s=100.0)
    launcher = Launcher([child], [])
    pauses_s = []
    for _ in range(8):
        launcher._bury(child, 1, 101.0)
        pauses_s.append(child.start_at_s - 101.0)
    assert pauses_s == [0.5, 1, 2, 4, 8, 16, 30, 30]
    launcher._bury(child, 1, 130.0)
    assert (child.start_at_s, child.pause_s) == (130.0, 0.5)


def test_stop_ends_every_worker(run_launcher):
    """After `run` has returned there is no process of ours."""
    children = [Child(f"box:cpu{number}", {}) for number in range(3)]
    launcher = Launcher(children, [sys.executable, "-c", SLEEPER])
    run_launcher(launcher)
    wait_until(lambda: all(child.process is not None for child in children))
    pids = [child.process.pid for child in children]
    launcher.stop()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_workers_end_when_the_launcher_is_killed(tmp_path):
    """A tethered process gets SIGTERM, time to drain, once its parent is gone however it went."""
    worker = (
        "import pathlib, signal, sys, time\n"
        "from worker.tether import end_with_parent\n"
        f"log = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (log / 'drained').touch() or sys.exit(0))\n"
        "end_with_parent()\n"
        "(log / 'started').touch()\n"
        "time.sleep(300)\n"
    )
    parent = (
        "import sys\n"
        "from worker.launcher import Child, Launcher\n"
        f"Launcher([Child('box:cpu0', {{}})], [sys.executable, '-c', {worker!r}]).run()\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", parent])
    wait_until((tmp_path / "started").exists)
    launcher.kill()
    launcher.wait()
    wait_until((tmp_path / "drained").exists)
