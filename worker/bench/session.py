"""One run of the benchmark: the card, then each model. What is measured of a model is in worker/bench/model_run.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.bench.ceilings import measure_ceilings
from worker.bench.energy import power_driver
from worker.bench.model_run import ModelRun
from worker.bench.pools import leaving_no_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.settings import Settings
    from worker.bench.model_run import Wishes
    from worker.bench.on_disk import Subject
    from worker.bench.results import ResultFile
    from worker.bench.voice import Voice
    from worker.gpu import Device


def run_session(
    device: Device,
    subjects: Sequence[Subject],
    wishes: Wishes,
    *,
    settings: Settings,
    results: ResultFile,
    voice: Voice,
) -> list[str]:
    """Measure all that is wished for and return what went wrong; the rest stands in `results`.

    Without the card's ceilings no rate can be judged: should they fail, so does the run.
    """
    with voice.stage(f"ceilings of {device.kind}"):
        ceilings = leaving_no_pool(device.torch, lambda: measure_ceilings(device.torch, tell=voice.note))
    tflops = {name: round(rate, 3) for name, rate in ceilings.tflops.items()}
    results.put("ceilings", value={"tflops": tflops, "copy_gb_per_s": round(ceilings.copy_gb_per_s, 1)})
    power = power_driver(device)
    problems = []
    for subject in subjects:
        run = ModelRun(subject, wishes, ceilings, settings=settings, results=results, voice=voice, power=power)
        problems += run.measure()
    return problems
