"""CPU that the engine's thread spends on a step, an admission and a retirement, with a model that computes nothing.

    python -m overhead.steps [--passes 300]          one round, as JSON
    python -m overhead.steps --profile               where 16 seats of it go, by cProfile

The engine is the real one; its passes are made by hand, on this thread, so that nothing else is counted. Two sizes of
picture: at 64 px tensors are so small that what is left is Python and the dispatch of torch, which a card waits for as
well; at 512 px the CPU also does what is the card's work otherwise (the sampler's product, copies) and what never is
(drawing noise).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from itertools import count
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overhead.clock import Clock
from overhead.noop import SAMPLERS, STEPS, NoopPipeline, unit
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS
from worker.runs import schedule_of

BATCHES: Final = (1, 8, 16, 32)
SIZES_PX: Final = (64, 512)
WARM_UP_PASSES: Final = 150  # until seats are at different calls, and every table is made


class OpCounter(TorchDispatchMode):
    """Counts calls of torch's kernels."""

    num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        del types
        self.num_ops += 1
        return func(*args, **(kwargs or {}))


class Bench:
    """One engine, kept full: as many units wait as a worker has spare threads."""

    def __init__(self, *, batch: int, size_px: int) -> None:
        picture = torch.full((64, 64, 3), 9, dtype=torch.uint8)
        self.pipeline = NoopPipeline(size_px=size_px, max_batch=batch, pictures=[picture])
        self.engine: Any = Engine(lambda _: self.pipeline, max_batch=batch)
        self._size_px = size_px
        self._index = count()
        for number in range(len(SAMPLERS) * len(STEPS)):  # or admissions would also make tables, each once
            schedule_of(self.pipeline, unit(number, size_px=size_px), NO_INPUTS)
        self._target = batch + 2
        self._submitted = 0

    def run(self, passes: int, clock: Clock) -> None:
        """Make passes; submitting is counted apart, for it is other threads' work."""
        engine = self.engine
        with torch.inference_mode():
            for _ in range(passes):
                with clock.part("submit"):
                    while self._submitted - engine.stats().images < self._target:
                        engine.submit(unit(next(self._index), size_px=self._size_px))
                        self._submitted += 1
                with clock.part("choose"):
                    lane = engine._next_lane()  # noqa: SLF001
                with clock.part("pass"):
                    engine._pass(lane)  # noqa: SLF001


def measure(*, batch: int, size_px: int, passes: int) -> dict[str, float]:
    """Return CPU milliseconds of one engine, and how many calls of torch a step makes."""
    bench, clock = Bench(batch=batch, size_px=size_px), Clock()
    engine = bench.engine
    bench.run(WARM_UP_PASSES, clock)
    ops = OpCounter()
    with ops:
        before = engine.stats()
        bench.run(20, clock)
    ops_per_pass = ops.num_ops / (engine.stats().steps - before.steps)
    clock = Clock()
    for method, name in (("_admit", "admit"), ("_step", "step"), ("_retire", "retire")):
        clock.wrap(engine, method, name)
    runs = engine._runs  # noqa: SLF001
    clock.wrap(runs, "begin", "begin")
    clock.wrap(runs, "advance", "advance")
    clock.wrap(bench.pipeline, "predict", "model")
    clock.wrap(bench.pipeline, "decode", "model")
    before, began_s = engine.stats(), time.perf_counter()
    bench.run(passes, clock)
    took_s, after = time.perf_counter() - began_s, engine.stats()
    images, steps = after.images - before.images, after.steps - before.steps
    ms = {name: spent_s * 1000 for name, spent_s in clock.spent_s.items()}
    engine_ms = sum(ms[name] for name in ("choose", "pass", "admit", "begin", "step", "advance", "retire"))
    return {
        "engine_ms_per_step": engine_ms / steps,
        "wall_ms_per_step": (took_s * 1000 - ms["submit"] - ms["model"]) / steps,
        "choose_ms_per_step": (ms["choose"] + ms["pass"]) / steps,
        "step_ms_per_step": (ms["step"] + ms["advance"]) / steps,
        "of_it_runs_advance_ms": ms["advance"] / steps,
        "admit_ms_per_image": (ms["admit"] + ms["begin"]) / max(1, images),
        "retire_ms_per_image": ms["retire"] / max(1, images),
        "submit_ms_per_image": ms["submit"] / max(1, images),
        "torch_calls_per_pass": ops_per_pass,
        "images_per_step": images / steps,
    }


def profile(*, batch: int, passes: int) -> None:
    """Print which functions the passes of an engine are spent in, for the Python alone and for all of it."""
    for size_px in SIZES_PX:
        bench = Bench(batch=batch, size_px=size_px)
        bench.run(WARM_UP_PASSES, Clock())
        profiler = cProfile.Profile(time.thread_time)
        profiler.enable()
        bench.run(passes, Clock())
        profiler.disable()
        print(f"{passes} passes of {batch} seats of {size_px} px")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure everything once and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.profile:
        profile(batch=16, passes=arguments.passes)
        return
    rows = {
        f"{size_px} px, {batch} seats": measure(batch=batch, size_px=size_px, passes=arguments.passes)
        for size_px in SIZES_PX
        for batch in BATCHES
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
