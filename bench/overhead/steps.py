"""CPU that the engine's thread spends on a step, an admission and a retirement, with a model that computes nothing.

    python -m overhead.steps [--passes 200]          one round, as JSON
    python -m overhead.steps --profile               where 16 seats of it go, by cProfile

The engine is the real one; its passes are made by hand, on this thread, so that nothing else is counted. Two sizes of
picture: at 64 px tensors are so small that what is left is Python and the dispatch of torch, on a card as well; at 512
px the CPU also does what is the card's work otherwise (the sampler's product, copies) and what never is (drawing
noise). Behind the forward is what a card is told, and what is drawn, while it still computes: it waits for the rest.
Reported is the lower quartile of the passes, which other load of the machine hardly moves.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Final
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from overhead.clock import Clock
from overhead.noop import SAMPLERS, STEPS, NoopPipeline, unit
from worker.engine import Engine
from worker.pipelines.base import NO_INPUTS
from worker.runs import schedule_of
from worker.sampling import NoiseSource

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
    for histories in runs._histories.values():  # noqa: SLF001
        clock.wrap(histories, "advance", "behind")
    with mock.patch.object(NoiseSource, "draw", NoiseSource.draw):
        clock.wrap(NoiseSource, "draw", "behind")
        seen = [_pass(bench, clock) for _ in range(passes)]
    by_part = {name: [each[name] for each in seen] for name in seen[0]}
    step, choose, behind = (_typical(by_part[name]) for name in ("step", "choose", "behind"))
    # Who finishes in one pass is followed by who is submitted before the next, and takes that seat in it.
    followed = [(images, later) for images, later in zip(by_part["images"], seen[1:], strict=False) if images]
    admit, submit = (_typical([later[name] / images for images, later in followed]) for name in ("admit", "submit"))
    retire = _typical([each["retire"] / each["images"] for each in seen if each["images"]])
    images_per_step = statistics.mean(by_part["images"])
    return {
        "engine_ms_per_step": choose + step + images_per_step * (admit + retire),
        "choose_ms_per_step": choose,
        "step_ms_per_step": step,
        "of_it_behind_the_forward": behind,
        "admit_ms_per_image": admit,
        "retire_ms_per_image": retire,
        "submit_ms_per_image": submit,
        "wall_ms_per_pass": _typical(by_part["wall"]),
        "images_per_step": images_per_step,
        "torch_calls_per_pass": ops_per_pass,
    }


def _pass(bench: Bench, clock: Clock) -> dict[str, float]:
    """Make one pass; return its milliseconds by part, and the images that it finished."""
    images, spent, began_s = bench.engine.stats().images, clock.spent_s, time.perf_counter()
    bench.run(1, clock)
    took_ms, ended = (time.perf_counter() - began_s) * 1000, clock.spent_s
    ms = {name: (ended[name] - spent[name]) * 1000 for name in ended}
    return {
        "choose": ms["choose"] + ms["pass"],
        "step": ms["step"] + ms["advance"] + ms["behind"],
        "behind": ms["behind"],
        "admit": ms["admit"] + ms.get("begin", 0.0),
        "retire": ms["retire"],
        "submit": ms["submit"],
        "wall": took_ms - ms["submit"] - ms["model"],
        "images": bench.engine.stats().images - images,
    }


def _typical(values: Sequence[float]) -> float:
    """Return the lower quartile: on a busy machine other processes empty the caches between many passes."""
    return sorted(values)[len(values) // 4]


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
    parser.add_argument("--passes", type=int, default=200)
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
