"""What the engine's thread never waits for: files being written, the storage, Redis."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from expanded_jobs import expanded_job
from farm.ledger import Ledger, WorkerReport
from overhead.noop import NoopPipeline
from servers import valkey
from worker import files
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS
from worker.render import Outcome, Renderer

ME = "here:cpu0#1"
SHORT, LONG = 2, 30  # steps
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


class Gate:
    """Holds back whoever calls something, while it is shut, and tells that somebody came."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def before(self, call):
        """Return `call`, behind this gate."""

        def waiting(*args, **kwargs):
            self.reached.set()
            assert self.opened.wait(2 * WAIT_S)
            return call(*args, **kwargs)

        return waiting


class Store:
    """Keeps what is put."""

    def __init__(self):
        self.keys = []

    def put(self, key, _data, _content_type):
        """Put."""
        self.keys.append(key)


class Pictures:
    """No unit of these tests names any."""

    def fetch(self, _unit):
        """Return nothing."""
        return NO_INPUTS


class StepByStep(NoopPipeline):
    """A model that computes nothing, and makes a step when the test allows one."""

    def __init__(self):
        super().__init__(size_px=128, max_batch=4, pictures=[torch.full((64, 64, 3), 9, dtype=torch.uint8)])
        self.allowed = threading.Semaphore(0)

    def predict(self, latents, rides, *, guided, batch_shape):
        """Wait to be allowed."""
        assert self.allowed.acquire(timeout=2 * WAIT_S)
        return super().predict(latents, rides, guided=guided, batch_shape=batch_shape)


def until(is_so):
    """Wait for it."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("away", ["encoding", "storage", "Redis"])
def test_the_engine_steps_on_whatever_an_image_waits_for(away, monkeypatch):
    """One image is stuck on its way out; its neighbour makes all its steps meanwhile; both are counted in the end."""
    gate, store, pipeline = Gate(), Store(), StepByStep()
    engine = Engine(lambda _: pipeline, max_batch=4)
    with valkey() as server, ThreadPoolExecutor(2) as threads:
        ledger = Ledger.connect(server.settings())
        renderer = Renderer(ME, ledger=ledger, engine=engine, store=store, pictures=Pictures(), max_undelivered=4)
        prompts = [{"prompt": "a cat", "num_inference_steps": steps} for steps in (SHORT, LONG)]
        job = expanded_job(prompts=prompts, scheduler="euler")
        ledger.open(job)
        worker = WorkerReport(name=ME, node=ME, pid=1, device="cpu", models=("scenes",), max_batch=4, started_at=0)
        ledger.report(worker)
        engine.start()
        try:
            short, long = (threads.submit(renderer.render, hint) for hint in ledger.feed("scenes"))
            until(lambda: engine.stats().running + engine.stats().waiting == 2)
            if away == "encoding":
                monkeypatch.setattr(files, "encode_image", gate.before(files.encode_image))
            elif away == "storage":
                monkeypatch.setattr(store, "put", gate.before(store.put))
            else:
                os.kill(server.pid, signal.SIGSTOP)
            pipeline.allowed.release(SHORT + 1)  # the first step may have begun before the second unit came
            if away == "Redis":
                until(lambda: len(store.keys) == 1)  # now it asks to be counted
            else:
                assert gate.reached.wait(WAIT_S)

            pipeline.allowed.release(LONG)
            until(lambda: engine.stats().images == 2)

            assert not short.done()
            assert not long.done()
            os.kill(server.pid, signal.SIGCONT)
            gate.opened.set()
            assert [short.result(WAIT_S), long.result(WAIT_S)] == [Outcome.STORED] * 2
            assert ledger.job(job.header.id).counts.stored == 2
        finally:
            os.kill(server.pid, signal.SIGCONT)
            gate.opened.set()
            pipeline.allowed.release(10 * LONG)
            engine.stop()
            ledger.close()
