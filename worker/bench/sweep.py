"""How many images a second the bare engine makes in steady state: of one kind at each batch size, and of a mix.

Units wait in the engine's queue from the start, so that no seat is ever empty for want of work. What is counted begins
after the first images are out and ends before the queue does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import ceil
from statistics import mean
from typing import TYPE_CHECKING, Final

from farm.jobs import EXACT
from worker.bench.driving import Driver
from worker.bench.energy import EnergyMeter
from worker.bench.memory import TorchMemory
from worker.bench.units import mixed_units, native_unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from farm.catalog import ModelRow
    from farm.jobs import Acceleration
    from worker.bench.energy import Energy, PowerDriver
    from worker.bench.work import Work
    from worker.pipelines.base import Pipeline

    Clock = Callable[[], float]

_WARM_STEPS: Final = 3
_MIN_ROUNDS: Final = 2
_MAX_ROUNDS: Final = 20
_FULL: Final = 0.99
_MIXED_ROUNDS: Final = 6
"""The least: two to fill, two to measure, two to keep the queue from running dry meanwhile."""


class NotFullError(Exception):
    """Seats stayed empty, or memory ran out: what was measured is not this batch size."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What was measured over a window of steady state."""

    images: int
    seconds: float
    calls: int  # of the denoiser, for one image
    step_ms: float
    decode_ms: float
    mean_batch: float
    peak_bytes: int | None
    energy: Energy | None

    @property
    def images_per_s(self) -> float:
        """The rate."""
        return self.images / self.seconds


@dataclass(frozen=True, slots=True)
class MixedRate:
    """What was done within a window of a mixed load; work that was begun before or not finished within counts too."""

    images: int
    seconds: float
    tflop: float

    @property
    def tflops(self) -> float:
        """The rate, TFLOP/s."""
        return self.tflop / self.seconds


def measure_rate(
    pipeline: Pipeline,
    row: ModelRow,
    batch: int,
    *,
    seconds: float,
    acceleration: Acceleration = EXACT,
    power: PowerDriver | None = None,
    clock: Clock = time.perf_counter,
) -> Rate:
    """Render images of the row's own kind in full batches for some `seconds`, two batches at least.

    Raises NotFullError, with the reason, where a step did not carry `batch` seats.
    """
    if pipeline.max_batch is not None and pipeline.max_batch < batch:
        raise NotFullError(f"the memory plan has {pipeline.max_batch} seats")
    memory = TorchMemory(pipeline.device)
    with Driver(pipeline, max_batch=batch, clock=clock) as driver:
        short = [native_unit(row, i, num_inference_steps=_WARM_STEPS, acceleration=acceleration) for i in range(batch)]
        driver.render(short)
        # The second time nothing is made for the first time: what it takes is what a batch will take.
        timings = driver.render(short)[-1].timings
        if driver.engine.stats().oom_count:
            raise NotFullError("out of memory")
        round_s = timings.denoise_s / timings.steps * row.num_inference_steps + batch * timings.decode_s
        rounds = min(_MAX_ROUNDS, max(_MIN_ROUNDS, ceil(seconds / max(round_s, 1e-6))))
        memory.reset()
        count = batch * (1 + rounds)
        futures = driver.submit([native_unit(row, i, acceleration=acceleration) for i in range(count)])
        driver.wait(futures[:batch])
        with EnergyMeter(power) as meter:
            results = driver.wait(futures[batch:])
        if driver.engine.stats().oom_count:
            raise NotFullError("out of memory")
    mean_batch = mean(each.timings.mean_batch for each in results)
    if mean_batch < _FULL * batch:
        raise NotFullError(f"steps carried {mean_batch:.2f} seats, not {batch}")
    return Rate(
        images=len(results),
        seconds=driver.ended_at(futures[batch:]) - driver.ended_at(futures[:batch]),
        calls=results[0].timings.steps,
        step_ms=1000 * mean(each.timings.denoise_s / each.timings.steps for each in results),
        decode_ms=1000 * mean(each.timings.decode_s for each in results),
        mean_batch=mean_batch,
        peak_bytes=memory.peak_bytes(),
        energy=meter.energy,
    )


def measure_closed(
    pipeline: Pipeline, row: ModelRow, batch: int, *, images: int, acceleration: Acceleration = EXACT
) -> float:
    """Return the images/s of a job of so many images from its first to its last, as a whole farm is measured."""
    with Driver(pipeline, max_batch=batch) as driver:
        driver.render([native_unit(row, i, num_inference_steps=_WARM_STEPS) for i in range(batch)])
        began = driver.clock()
        futures = driver.submit([native_unit(row, i, acceleration=acceleration) for i in range(images)])
        driver.wait(futures)
    return images / (driver.ended_at(futures) - began)


def measure_mixed(
    pipeline: Pipeline,
    row: ModelRow,
    work: Work,
    batch: int,
    *,
    images: int,
    clock: Clock = time.perf_counter,
) -> MixedRate:
    """Render a mix that keeps the queue full, and count the work of a window in which it was.

    The window begins when as many images as seats are out, and ends when fewer than that wait.
    """
    units = mixed_units(row, max(images, _MIXED_ROUNDS * batch))
    with Driver(pipeline, max_batch=batch, clock=clock) as driver:
        driver.render([replace(unit, num_inference_steps=_WARM_STEPS) for unit in units[: 4 * batch]])

        marks: list[tuple[float, int, float]] = []

        def done() -> tuple[float, int, float]:
            finished = driver.finished
            whole = sum(work.image(calls=unit.num_inference_steps, guided=unit.guided) for unit in finished)
            begun = sum(
                work.denoise(calls=call, guided=units[hint.index].guided)
                for hint, (call, _) in driver.engine.progress().items()
            )
            return clock(), len(finished), whole + begun

        def look() -> None:
            is_window_open = len(marks) == 1
            if (is_window_open and driver.engine.stats().waiting < batch) or (
                not marks and len(driver.finished) >= batch
            ):
                marks.append(done())

        driver.wait(driver.submit(units, on_image=look))
    (began_at, images_before, before), (ended_at, images_after, after) = marks
    return MixedRate(images_after - images_before, ended_at - began_at, after - before)
