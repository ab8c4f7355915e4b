"""How a worker is put together: its name, its locks, what it reads from messages, how it goes."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from farm.catalog import Catalog
from farm.errors import Fatal, UnknownModel
from farm.jobs import Hint
from farm.settings import Settings
from farm.storage import Store
from worker.app import (
    Drain,
    _all_signals_drain,
    default_node,
    measures_batches,
    prepare_bucket,
    read_hint,
    served_models,
    sole_use,
)
from worker.description import as_told
from worker.gpu import Device, Telemetry

WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""
CPU = Device(torch.device("cpu"), "cpu", None)
CARD = Device(torch.device("cpu"), "NVIDIA GeForce RTX 4090", "GPU-8a6e1c1e-0000-1111-2222-333333333333")


@pytest.fixture(autouse=True)
def _locks_of_our_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["job_a", 0, 1], Hint("job_a", 0, 1)),
        (("job_a", 7, 2), Hint("job_a", 7, 2)),
        ([], None),
        (["job_a", 0], None),
        (["job_a", 0, 1, 1], None),
        (["job_a", "0", 1], None),
        (["job_a", -1, 1], None),
        (["job_a", 0, 0], None),
        ([None, 0, 1], None),
        ([["job_a"], 0, 1], None),
    ],
)
def test_a_message_says_a_hint_or_nothing(arguments, hint):
    """Whatever lies in a queue, a thread never dies of it."""
    assert read_hint(arguments) == hint


def test_models_to_serve():
    """Some by name, or all; a name that the catalog lacks ends the start with the choices."""
    catalog = Catalog()
    assert served_models("", catalog) == tuple(catalog.names)
    assert served_models(" scenes, ", catalog) == ("scenes",)
    with pytest.raises(UnknownModel):
        served_models("scenes,nonsense", catalog)


def test_one_worker_per_gpu_whatever_its_name_or_farm():
    """Two farms cannot share a card, two workers cannot share a name; CPU workers share the CPU."""
    one, other = Settings(redis_url="redis://one/0"), Settings(redis_url="redis://other/0")
    with sole_use("box:gpu0", CARD, one), ExitStack() as others:
        with pytest.raises(Fatal, match="already owns"):
            others.enter_context(sole_use("box:gpu1", CARD, other))
        with pytest.raises(Fatal, match=str(os.getpid())):
            others.enter_context(sole_use("box:gpu0", CPU, one))
        for node, settings in (("box:cpu0", one), ("box:cpu1", one), ("box:cpu0", other)):
            others.enter_context(sole_use(node, CPU, settings))
    with sole_use("box:gpu0", CARD, other):
        pass


def test_seats_are_measured_on_gpus_unless_somebody_says_otherwise():
    """By itself a GPU measures and a CPU does not; `on` and `off` hold for both."""
    gpu = Device(torch.device("cuda"), CARD.kind, CARD.uuid)
    choices = ("auto", "on", "off")
    assert [measures_batches(choice, gpu) for choice in choices] == [True, True, False]
    assert [measures_batches(choice, CPU) for choice in choices] == [False, True, False]


def test_a_worker_started_by_hand_has_a_lasting_name():
    """It follows from host and device, so that a restart finds its predecessor's units."""
    assert default_node(CPU).endswith(":cpu0")
    assert default_node(CARD).endswith(":gpu-8a6e1c1e")


def test_telemetry_is_reported_in_the_ledgers_units():
    """Bytes and fractions, and what the card does not tell stays unknown."""
    gpu = as_told(Telemetry(CARD.uuid, 61, 311.5, None, 97, 1024, None), CARD.kind)
    assert (gpu.name, gpu.utilisation, gpu.memory_used_bytes) == (CARD.kind, 0.97, 1 << 30)
    assert gpu.memory_total_bytes is None


def test_storage_may_come_later_but_must_not_refuse_us(s3):
    """A worker starts without storage; wrong credentials end its start with the reason."""
    prepare_bucket(Store.connect(Settings(s3_endpoint="http://127.0.0.1:1", s3_access_key="a", s3_secret_key="b")))
    with pytest.raises(Fatal, match="refuses our credentials"):
        prepare_bucket(Store.connect(Settings(**{**s3, "s3_secret_key": "wrong"})))


def test_a_lost_device_ends_the_process_with_a_drain(monkeypatch):
    """Only a new process can use the card again: we ask ourselves to go, and say that it was no good end."""
    told = threading.Event()
    monkeypatch.setattr("os.kill", lambda pid, number: (pid, number) == (os.getpid(), signal.SIGTERM) and told.set())
    done = []
    engine = SimpleNamespace(is_alive=True, stop=lambda: done.append("engine stopped"))
    drain = Drain(SimpleNamespace(drain=lambda: done.append("renderer draining")), engine)
    drain.start()
    engine.is_alive = False
    assert told.wait(WAIT_S)
    drain.finish()
    drain.over()
    assert done == ["renderer draining", "engine stopped"]
    assert drain.lost_device


def test_every_polite_signal_drains(monkeypatch):
    """Ctrl-C, a terminal that closes and SIGQUIT mean what SIGTERM means, whatever Celery had in mind."""
    handlers = {number: f"Celery's for {number.name}" for number in signal.Signals}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    _all_signals_drain()
    polite = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    assert {handlers[number] for number in polite} == {"Celery's for SIGTERM"}


def test_a_process_that_has_grown_makes_room_for_a_new_one(monkeypatch):
    """What is left in RAM after models went is what counts; the end is a good one, and asked for once."""
    asked = []
    monkeypatch.setattr("os.kill", lambda _pid, number: asked.append(number))
    monkeypatch.setattr("worker.app._WATCH_ENGINE_S", 0.01)
    looked = threading.Event()
    stats = SimpleNamespace(floor_bytes=2**30)

    def look():
        looked.set()
        return stats

    drain = Drain(
        SimpleNamespace(drain=lambda: None),
        SimpleNamespace(is_alive=True, stop=lambda: None, stats=look),
        recycle_bytes=2**30,
    )
    drain.start()
    for _ in range(2):
        looked.clear()
        assert looked.wait(WAIT_S)
    assert asked == []
    stats.floor_bytes += 1
    deadline = time.monotonic() + WAIT_S
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # it looks again
    drain.finish()
    drain.over()
    assert asked == [signal.SIGTERM]
    assert not drain.lost_device
