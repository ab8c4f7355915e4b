"""A real worker on a simulated GPU: `worker.app.run` as it is, with another engine and a bucket that keeps nothing.

So Celery, the claims, leases, heartbeats, feeding and the delivery of each image are the farm's own, in a process of
their own. What stands in for writing the PNG and its PUT is a pause, for on the farm's home these burn the CPUs of the
GPUs' hosts, which this machine does not have.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from farm.jobs import Hint, Unit
from farm.settings import Settings
from simulation.cards import Card
from simulation.gpu import Finished, SimulatedGpu
from worker import app
from worker.account import EngineStats
from worker.seat import EngineStopped, Rendered, Timings, UnitCancelled

_PIXELS = np.zeros((8, 8, 3), np.uint8)


@dataclass(frozen=True)
class Plan:
    """What every simulated worker of a run is told."""

    card: Card
    max_batch: int
    put_s: float


class SimulatedEngine:
    """Stands where worker.engine.Engine does: takes units, ends their futures when the card would have."""

    def __init__(self, _load: object, *, plan: Plan, **_options: object) -> None:
        self._plan = plan
        self._gpu: SimulatedGpu[tuple[Unit, Future[Rendered]]] = SimulatedGpu(plan.card, plan.max_batch)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.lateness_s: list[float] = []  # futures ended later than their images were finished, by so much

    @property
    def is_alive(self) -> bool:
        """Whether units are still taken."""
        return not self._stopped

    def start(self) -> None:
        """Start the thread that ends futures."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Take no more units; those that are here end with EngineStopped."""
        with self._changed:
            self._stopped = True
            left = self._gpu.remove(lambda _: True)
            self._changed.notify_all()
        for _, future in left:
            future.set_exception(EngineStopped("the simulation ends"))
        self._thread.join(timeout_s)

    def submit(self, unit: Unit, _inputs: object = None) -> Future[Rendered]:
        """Queue a unit; its future ends with an image of no worth."""
        future: Future[Rendered] = Future()
        with self._changed:
            if self._stopped:
                raise EngineStopped("the simulation ends")
            self._gpu.submit((unit, future), time.monotonic())
            self._changed.notify_all()
        return future

    def cancel(self, job: str, index: int | None = None) -> int:
        """Take out one unit of a job, or all of them; return how many there were."""
        with self._changed:
            gone = self._gpu.remove(lambda seat: seat[0].job == job and index in (None, seat[0].index))
        for _, future in gone:
            future.set_exception(UnitCancelled("cancelled"))
        return len(gone)

    @property
    def seats(self) -> int:
        """The seats of the card."""
        return self._plan.max_batch

    @property
    def load_s(self) -> Mapping[str, float]:
        """Nothing is loaded."""
        return {}

    @property
    def resident_models(self) -> tuple[str, ...]:
        """The one model, always there."""
        return (self._plan.card.model,)

    def expect(self, model: str) -> None:
        """Do nothing: there is nothing to read ahead."""

    def give_back(self, models: object) -> None:
        """Do nothing: the one model is never left."""

    def progress(self) -> Mapping[Hint, tuple[int, int]]:
        """Return nothing: nobody asks a simulated worker."""
        return {}

    def stats(self) -> EngineStats:
        """Return the counters that heartbeats carry."""
        with self._changed:
            steps = self._gpu.diary.steps
            return EngineStats(
                steps=len(steps),
                seat_steps=sum(seats for _, _, seats in steps),
                busy_s=sum(ended - began for began, ended, _ in steps),
                images=len(self.lateness_s),
                failed=0,
                oom_count=0,
                max_batch=self._plan.max_batch,
                seats=self._plan.max_batch,
                waiting=self._gpu.num_waiting,
                running=self._gpu.num_seated,
                caps={},
                resident_models=(self._plan.card.model,),
            )

    def diary(self) -> dict[str, Any]:
        """Return all that happened here."""
        return {
            "steps": self._gpu.diary.steps,
            "refills": self._gpu.diary.refills,
            "lateness_s": self.lateness_s,
        }

    def _run(self) -> None:
        while not self._stopped:
            with self._changed:
                now = time.monotonic()
                finished = self._gpu.advance(now)
                self.lateness_s += [now - each.finished_at for each in finished]
                if not finished and not self._stopped:
                    wakes_at = self._gpu.next_event_at
                    self._changed.wait(None if wakes_at is None else max(0.0, wakes_at - now))
            for each in finished:
                each.unit[1].set_result(_rendered(each, self._plan.card))


def _rendered(finished: Finished[tuple[Unit, Future[Rendered]]], card: Card) -> Rendered:
    timings = Timings(
        queued_s=finished.admitted_at - finished.submitted_at,
        encode_s=0.0,
        denoise_s=finished.finished_at - finished.admitted_at,
        decode_s=0.0,
        gpu_s=finished.gpu_s,
        steps=card.steps,
        mean_batch=1.0,
        batch_shape=None,
    )
    return Rendered(_PIXELS, timings, model_hash="0" * 64, device=f"simulated {card.name}", dtype="none", warnings=())


class NullStore:
    """A bucket that takes `put_s` for each object and keeps none."""

    def __init__(self, put_s: float) -> None:
        self._put_s = put_s

    def connect(self, _settings: Settings) -> NullStore:
        """Return itself: there is nothing to connect to."""
        return self

    def ensure_bucket(self) -> None:
        """Do nothing."""

    def put(self, _key: str, _data: bytes, _content_type: str) -> None:
        """Take as long as a put does."""
        time.sleep(self._put_s)


def work(settings: Settings, plan: Plan, folder: Path) -> None:
    """Run one worker until SIGTERM, then write its diary into `folder`. The body of a forked process."""
    with (folder / "logs" / "workers.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    tempfile.tempdir = str(folder)  # locks of nodes that never come back are not for the system's folder
    engines: list[SimulatedEngine] = []

    def make_engine(*args: object, **options: object) -> SimulatedEngine:
        engines.append(SimulatedEngine(*args, plan=plan, **options))
        return engines[-1]

    with ExitStack() as stack:
        replace = partial(mock.patch.object, app)
        stack.enter_context(replace("Engine", make_engine))
        stack.enter_context(replace("Store", NullStore(plan.put_s)))
        app.run(settings)
    diary = json.dumps(engines[0].diary())
    (folder / f"{settings.worker_name}.json").write_text(diary)
