"""What is measured of one model, in which order, and what becomes of each number.

A measurement that fails leaves its reason, and the others their numbers; one above the card's ceiling is refused.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from farm.errors import Fatal
from farm.jobs import EXACT
from farm.plans import Where
from worker.bench import table
from worker.bench.ceilings import AboveCeilingError
from worker.bench.judging import Judge, digits, in_words
from worker.bench.memory import TorchMemory, cap, measure_phases
from worker.bench.on_disk import Subject, on_disk
from worker.bench.pools import leaving_no_pool
from worker.bench.reference import measure_reference
from worker.bench.startup import measure_startup
from worker.bench.sweep import NotFullError, Rate, measure_closed, measure_mixed, measure_rate
from worker.bench.units import native_unit
from worker.bench.whole_farm import measure_farm
from worker.forward import Optimisation
from worker.forward.compiled import COMPILE_AFTER
from worker.residents import free_cached_memory
from worker.tuning.curves import best_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from farm.jobs import Acceleration
    from farm.plans import Plan
    from farm.settings import Settings
    from worker.bench.ceilings import Ceilings
    from worker.bench.energy import PowerDriver
    from worker.bench.results import ResultFile
    from worker.bench.voice import Voice
    from worker.bench.work import Work
    from worker.pipelines.latent import LatentModel

_GIB: Final = 1 << 30
_RISE: Final = 1.01
_PATIENCE: Final = 2
"""Larger batches are not tried when so many in a row have not brought another percent."""
_WARM_STEPS: Final = 3
_FARM_S: Final = 60.0
_FARM_ROUNDS: Final = (4, 16)
"""The job that the whole farm is measured with takes some minute, within so many batches."""


@dataclass(frozen=True)
class Wishes:
    """What is to be measured beyond batches."""

    batches: Sequence[int]
    seconds: float  # of a window, at least
    compare: bool = True
    compiled: bool = False
    mixed: bool = True
    startup: bool = False
    end_to_end: bool = False
    memory_bytes: int | None = None  # of a smaller card that this one is to pass for
    acceleration: Acceleration = EXACT  # what pictures give up to be made sooner
    label: str = ""  # what sets these results apart from others of the same model
    scratch: Path | None = None  # where weights are written


class ModelRun:
    """The measurements of one model."""

    def __init__(
        self,
        subject: Subject,
        wishes: Wishes,
        ceilings: Ceilings,
        *,
        settings: Settings,
        results: ResultFile,
        voice: Voice,
        power: PowerDriver | None,
    ) -> None:
        self._subject = subject
        self._row = subject.row
        self._wishes = wishes
        self._ceilings = ceilings
        self._settings = settings
        self._results = results
        self._voice = voice
        self._power = power
        words = [self._row.name]
        words += [] if wishes.memory_bytes is None else [f"in {wishes.memory_bytes / _GIB:g} GiB"]
        self._section = " ".join([*words, wishes.label]).strip()
        self._problems: list[str] = []
        self._rates: dict[int, Rate] = {}
        self._best = 0
        self._plan: Plan
        self._pipeline: LatentModel
        self._work: Work
        self._judge: Judge

    def measure(self) -> list[str]:
        """Measure all that is wished for; return what went wrong."""
        wishes = self._wishes
        if not self._attempt("loading", self._load):
            return self._problems
        self._attempt("batches", self._sweep)
        steps: list[tuple[str, bool, Callable[[], None]]] = [
            ("mixed load", wishes.mixed and not self._skips_work, self._mix),
            ("memory", wishes.memory_bytes is not None, self._phases),
            ("the farm's job on the bare engine", wishes.end_to_end, self._close),
            # From here on the card is others'.
            ("unloading", True, self._unload),
            ("diffusers", wishes.compare, self._compare),
            ("start-up and whole farm", wishes.startup or wishes.end_to_end, self._from_disk),
        ]
        for name, is_wished, step in steps:
            if is_wished and (self._best or step == self._unload):
                self._attempt(name, step)
        self._voice.table(self._section, *table.sweep(self._known))
        return self._problems

    @property
    def _known(self) -> dict[str, Any]:
        found: dict[str, Any] = self._results.document["models"].get(self._section, {})
        return found

    def _put(self, *keys: str, value: Any) -> None:
        self._results.put("models", self._section, *keys, value=value)

    def _attempt(self, name: str, step: Callable[[], None]) -> bool:
        """Do one step; return whether it went well. A failure is told, and kept beside the numbers."""
        try:
            with self._voice.stage(f"{self._section}: {name}"):
                step()
        except AboveCeilingError as error:
            self._tell("refused", name, str(error))
        except Exception as error:  # noqa: BLE001  the other measurements are worth having
            self._tell("failed", name, f"{type(error).__name__}: {error}")
        else:
            return True
        return False

    def _tell(self, kind: str, name: str, reason: str) -> None:
        self._put(kind, name, value=reason)
        self._problems.append(f"{self._section}, {name}: {reason}")
        self._voice.fail(f"{name} {kind}: {reason}")

    def _load(self) -> None:
        wishes, subject = self._wishes, self._subject
        if wishes.memory_bytes is not None:
            cap(subject.device.torch, wishes.memory_bytes)
        self._plan = subject.plan(wishes.memory_bytes)
        self._pipeline = leaving_no_pool(subject.device.torch, lambda: subject.load(wishes.memory_bytes))
        self._work = subject.work()
        unit = native_unit(self._row, 0)
        self._judge = Judge(self._ceilings, self._pipeline, self._plan, self._work, guided=unit.guided)
        self._results.begin(
            self._section,
            {
                "model": self._row.name,
                "weights": subject.weights,
                "width": unit.width,
                "height": unit.height,
                "num_inference_steps": unit.num_inference_steps,
                "guided": unit.guided,
                "guidance_scale": unit.guidance_scale,
                "scheduler": unit.scheduler,
                "dtype": str(self._pipeline.dtype).removeprefix("torch."),
                "plan": self._plan.summary,
                "optimisations": list(self._pipeline.forward.optimisations),
                "approximations": [
                    *self._pipeline.approximations,
                    *self._pipeline.fast_approximations,
                    *wishes.acceleration.approximations,
                ],
            },
        )
        work = {"step_tflop": self._work.step, "decode_tflop": self._work.decode, "encode_tflop": self._work.encode}
        self._put("work", value={name: digits(tflop) for name, tflop in work.items()})
        self._voice.note(f"{subject.weights} weights, {self._plan.summary}")

    def _sweep(self) -> None:
        """Measure each batch size until memory, or the rise of the rate, ends."""
        self._put("batches", value={})
        num_lazy = 0
        for batch in self._wishes.batches:
            try:
                rate = measure_rate(self._pipeline, self._row, batch, seconds=self._wishes.seconds, power=self._power)
                found = self._judge.rate(rate, skips_work=self._skips_work)
            except NotFullError as error:
                self._put("batches", str(batch), value={"skipped": str(error)})
                self._voice.note(f"batch {batch}: {error}")
                break
            except AboveCeilingError as error:
                self._tell("refused", f"batch {batch}", str(error))
                continue
            self._put("batches", str(batch), value=found)
            self._voice.note(f"batch {batch}: {in_words(found)}")
            fastest = max((each.images_per_s for each in self._rates.values()), default=0.0)
            num_lazy = 0 if rate.images_per_s > _RISE * fastest else num_lazy + 1
            self._rates[batch] = rate
            if num_lazy == _PATIENCE:
                break
        if self._rates:
            self._best = best_of({batch: rate.images_per_s for batch, rate in self._rates.items()})
            self._put("best_batch", value=self._best)

    @property
    def _skips_work(self) -> bool:
        """Whether less is computed than is counted: what a cache keeps is no rate of the card's."""
        return self._wishes.acceleration != EXACT

    def _mix(self) -> None:
        """Measure a mixed load, as work a second beside the work a second of the best batch of one kind."""
        uniform = self._known["batches"][str(self._best)]
        images = ceil(self._wishes.seconds * uniform["images_per_s"])
        mixed = measure_mixed(self._pipeline, self._row, self._work, self._best, images=images)
        found = self._judge.mixed(mixed, uniform)
        self._put("mixed", value={"batch": self._best, **found})
        self._voice.note(f"{found['share_of_uniform']:.0%} of the rate of the best batch of one kind")

    def _phases(self) -> None:
        found = measure_phases(self._pipeline, self._row, self._plan, TorchMemory(self._pipeline.device))
        self._put("memory", value=found)
        for phase, sizes in found.items():
            self._voice.note(f"{phase}: planned {sizes['planned_gib']} GiB, measured {sizes['measured_gib']} GiB")

    def _close(self) -> None:
        acceleration = self._wishes.acceleration
        images_per_s = measure_closed(
            self._pipeline, self._row, self._best, images=self._farm_images, acceleration=acceleration
        )
        self._put("end_to_end", value={"images": self._farm_images, "engine_images_per_s": digits(images_per_s)})

    def _unload(self) -> None:
        del self._pipeline
        gc.collect()
        free_cached_memory()

    def _compare(self) -> None:
        """Measure diffusers' pipeline, one image at a time and in our best batch, and the ratios."""
        if any(part.is_lossy or part.where is not Where.RESIDENT for part in self._plan.components):
            raise Fatal(f"diffusers' pipeline is measured whole on the card, and the plan is: {self._plan.summary}")
        dtype = getattr(torch, self._known["workload"]["dtype"])
        device = self._subject.device.torch
        pipeline = leaving_no_pool(device, lambda: self._subject.reference(dtype))
        ours = self._rates[self._best].images_per_s
        kinds = {"one at a time": (1, False), "same batch": (self._best, False)}
        if self._wishes.compiled:
            kinds["compiled, same batch"] = (self._best, True)
        self._put("diffusers", value={})
        for name, (batch, compiled) in kinds.items():
            measure = partial(measure_reference, pipeline, self._row, batch=batch, compiled=compiled)
            rate = leaving_no_pool(device, measure)
            found = {"batch": batch, "images_per_s": digits(rate), "ratio": digits(ours / rate)}
            self._put("diffusers", name, value=found)
            self._voice.note(f"{name}: {rate:.3f} images/s; ours is {ours / rate:.2f} times that")
        del pipeline
        gc.collect()
        free_cached_memory()

    @property
    def _farm_images(self) -> int:
        low, high = _FARM_ROUNDS
        rounds = ceil(_FARM_S * self._rates[self._best].images_per_s / self._best)
        return self._best * min(max(rounds, low), high)

    def _from_disk(self) -> None:
        """Measure what begins with files, in processes of their own."""
        dtype = getattr(torch, self._known["workload"]["dtype"])
        place = on_disk(self._subject, dtype, models_dir=self._settings.models_dir, scratch=self._wishes.scratch)
        with place as (folder, weights):
            env = {
                "FARM_MODELS_DIR": str(folder),
                "FARM_DEVICE": self._subject.device.torch.type,
                "FARM_OPTIMISE": self._settings.optimise,
                "FARM_PRECISION": self._settings.precision or "",
            }
            if self._wishes.startup:
                steps = self._row.num_inference_steps
                found = measure_startup(self._row.name, steps=steps, weights=weights, env=env)
                self._put("startup", value=found)
                for name, seconds in found.items():
                    self._voice.note(f"first image of a {name} worker after {seconds['first_image_s']} s")
            if self._wishes.end_to_end:
                self._measure_farm(env)

    def _measure_farm(self, env: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory() as logs:
            images = self._farm_images
            # A worker compiles what has been in demand for some time: that must be over before the clock runs.
            compiles = Optimisation.COMPILE in self._known["workload"]["optimisations"]
            rate = measure_farm(
                self._row,
                batch=self._best,
                images=images,
                warm_steps=COMPILE_AFTER + _WARM_STEPS if compiles else _WARM_STEPS,
                acceleration=self._wishes.acceleration,
                settings=env,
                logs=Path(logs),
            )
        bare = self._known["end_to_end"]["engine_images_per_s"]
        self._put("end_to_end", "farm_images_per_s", value=digits(rate))
        self._put("end_to_end", "ratio", value=digits(rate / bare))
        self._voice.note(f"the whole farm: {rate:.3f} images/s, {rate / bare:.1%} of the bare engine's")
