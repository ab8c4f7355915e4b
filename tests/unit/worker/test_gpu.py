"""A worker has one device, of its own, and can tell how it is."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest
import torch

from farm.errors import Fatal
from worker.gpu import Device, DeviceLock, choose_device, read_memory, read_telemetry


@pytest.fixture
def pretend(monkeypatch):
    """Return a function that makes torch claim to see so many GPUs."""

    def gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        properties = SimpleNamespace(name="NVIDIA GeForce RTX 4090", uuid="0123-45")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    return gpus


@pytest.mark.parametrize(("wanted", "count"), [("auto", 0), ("cpu", 0), ("cpu", 4)])
def test_cpu(pretend, wanted, count):
    """The CPU is taken when it is asked for, and when there is nothing else."""
    pretend(count)
    assert choose_device(wanted) == Device(torch.device("cpu"), "cpu", None)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_the_one_gpu(pretend, wanted):
    """A visible GPU is taken, and known by its UUID."""
    pretend(1)
    device = choose_device(wanted)
    assert device.torch == torch.device("cuda", 0)
    assert device.kind == "NVIDIA GeForce RTX 4090"
    assert device.id == "GPU-0123-45"


def test_cuda_without_a_gpu_is_fatal(pretend):
    """Who demands CUDA does not get a CPU in secret."""
    pretend(0)
    with pytest.raises(Fatal, match="no CUDA device"):
        choose_device("cuda")


def test_several_gpus_are_fatal(pretend):
    """An unpinned worker says how to pin it."""
    pretend(2)
    with pytest.raises(Fatal, match=r"2 CUDA devices are visible.*CUDA_VISIBLE_DEVICES"):
        choose_device("auto")


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


def test_cpu_has_no_telemetry():
    """A CPU answers None rather than made-up numbers."""
    device = choose_device("cpu")
    assert read_telemetry(device) is None
    assert read_memory(device) is None


def test_telemetry_lives_with_what_the_card_reports(monkeypatch):
    """A card that does not report one number still reports the others; without a driver there is None."""

    def unsupported(*_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    device = Device(torch.device("cuda", 0), "NVIDIA GeForce RTX 4090", "GPU-1")
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
    telemetry = read_telemetry(device)
    assert (telemetry.temperature_c, telemetry.power_w, telemetry.utilisation_percent) == (71, None, 97)
    assert (telemetry.memory_used_mib, telemetry.memory_total_mib) == (5 * 1024, 24 * 1024)
    monkeypatch.setattr(pynvml, "nvmlInit", unsupported)
    assert read_telemetry(device) is None
