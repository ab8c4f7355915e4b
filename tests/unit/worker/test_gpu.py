"""A worker has one device, of its own, and can tell how it is."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from farm.errors import Fatal
from farm.settings import Settings
from worker.gpu import DeviceLock, Place, choose_place, occupy


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that makes torch claim to see so many GPUs."""

    def gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        properties = SimpleNamespace(name="NVIDIA GeForce RTX 4090", uuid="01234567-89ab")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    return gpus


@pytest.mark.parametrize(("wanted", "count"), [("auto", 0), ("cpu", 0), ("cpu", 4)])
def test_cpu(pretend, wanted, count):
    """The CPU is taken when it is asked for, and when there is nothing else."""
    pretend(count)
    place = choose_place(wanted)
    assert (place.device, place.kind, place.uuid) == (torch.device("cpu"), "cpu", None)
    assert place.node.endswith(":cpu")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_the_one_gpu(pretend, wanted):
    """A visible GPU is taken, and its place is named after its UUID."""
    pretend(1)
    place = choose_place(wanted)
    assert place.device == torch.device("cuda", 0)
    assert (place.kind, place.uuid) == ("NVIDIA GeForce RTX 4090", "GPU-01234567-89ab")
    assert place.node.endswith(":GPU-01234567")
    assert choose_place(wanted, "desk").node == "desk"


def test_cuda_without_a_gpu_is_fatal(pretend):
    """Who demands CUDA does not get a CPU in secret."""
    pretend(0)
    with pytest.raises(Fatal, match="no CUDA device"):
        choose_place("cuda")


def test_several_gpus_are_fatal(pretend):
    """An unpinned worker says how to pin it."""
    pretend(2)
    with pytest.raises(Fatal, match=r"2 CUDA devices are visible.*CUDA_VISIBLE_DEVICES"):
        choose_place("auto")


def test_second_owner_is_refused(tmp_path):
    """Two workers on one device: the second is told who the first is; other devices are free."""
    folder = tmp_path / "locks"
    with (
        DeviceLock(folder, "GPU-1"),
        DeviceLock(folder, "GPU-2"),
        pytest.raises(Fatal, match=r"process \d+, already owns device GPU-1"),
    ):
        DeviceLock(folder, "GPU-1").acquire()
    with DeviceLock(tmp_path / "locks", "GPU-1"):
        pass


def test_lock_of_a_dead_process_is_free(tmp_path):
    """A killed worker's lock goes with it."""
    script = (
        "import os, pathlib, sys, worker.gpu as gpu\n"
        "gpu.DeviceLock(pathlib.Path(sys.argv[1]), 'cpu').acquire()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert (tmp_path / "cpu.lock").exists()
    with DeviceLock(tmp_path, "cpu"):
        pass


def test_occupied_place_is_locked(tmp_path):
    """Workers of one name cannot run at once; on a CPU, those of other names can."""
    settings = Settings(device="cpu", worker_name="desk/1")
    other = Settings(device="cpu", worker_name="desk/2")
    with occupy(settings, lock_dir=tmp_path) as place, occupy(other, lock_dir=tmp_path):
        assert place.node == "desk/1"
        with pytest.raises(Fatal, match="desk_1"), occupy(settings, lock_dir=tmp_path):
            pass
    with occupy(settings, lock_dir=tmp_path):
        pass


def test_cpu_has_no_telemetry():
    """A CPU answers None rather than made-up numbers."""
    place = choose_place("cpu")
    assert place.telemetry() is None
    assert place.memory() is None


def test_telemetry_lives_with_what_the_card_reports(monkeypatch):
    """A card that does not report one number still reports the others; without a driver there is None."""

    def unsupported(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    place = Place("here", torch.device("cuda", 0), "NVIDIA GeForce RTX 4090", "GPU-1")
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda _: "handle",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=5 << 30, total=24 << 30),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97),
        "nvmlDeviceGetTemperature": lambda *_: 71,
        "nvmlDeviceGetPowerUsage": unsupported,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    gpu = place.telemetry()
    assert (gpu.name, gpu.uuid) == ("NVIDIA GeForce RTX 4090", "GPU-1")
    assert (gpu.temperature_c, gpu.power_w, gpu.utilisation) == (71, None, 0.97)
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (5 << 30, 24 << 30)
    monkeypatch.setattr(pynvml, "nvmlInit", unsupported)
    assert place.telemetry() is None
