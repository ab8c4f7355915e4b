"""From a seat at a step to a small JPEG with whoever watches its job.

`show` and `learn` run on the engine's thread: they choose, and begin to copy. Everything else is done on a thread of
its own, in the order in which it came. One that cannot keep up shows less: of each unit the latest picture waits.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from PIL import Image

from farm.errors import LedgerDown
from worker.downloads import Download
from worker.previews.sketch import SCALE, Sketch, sample_latents, shrunk
from worker.previews.watched import Watched
from worker.uploads import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from farm.jobs import Hint, Unit, Watch
    from worker.pipelines.base import Pipeline
    from worker.previews.watched import Closeness
    from worker.runs import Runs
    from worker.seat import Seat

log: Final = logging.getLogger(__name__)

MAX_SIDE_PX: Final = 256
MAX_JPEG_BYTES: Final = 20_000
_QUALITIES: Final = (85, 60, 30, 10)  # the first that is small enough; noise needs the last
_STOP_S: Final = 1.0
_INTERVAL_S: Final = 0.2
"""A unit is told of no more often, however fast its steps and however closely it is watched."""
_LESSONS: Final = 8
"""Pictures that a model's sketch is learned from, beside the sample; more make it no better."""


@dataclass(slots=True)
class _News:
    """What is to be told of a unit."""

    step: int
    steps: int
    latents: Download | None = None  # [1, *latent_shape], for a picture
    model: str = ""  # the hash of its weights
    side_px: int = 0  # the picture's longer one


@dataclass(slots=True)
class _Lesson:
    """What a model's sketch is to be learned from."""

    model: str
    latents: Download  # [1, *latent_shape]
    pixels: Download | NDArray[np.uint8]  # [h, w, 3]


class Previews:
    """Shows units of watched jobs by `tell(hint, step, steps, jpeg or None)`, which may raise LedgerDown."""

    def __init__(
        self,
        tell: Callable[[Hint, int, int, bytes | None], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._watched = Watched(clock)
        self._sampled: set[str] = set()  # models; the engine's thread alone, as the next
        self._lessons_given: dict[str, int] = {}  # by model
        self._sketches: dict[str, Sketch] = {}  # by model; the thread of previews alone
        self._changed = threading.Condition()  # guards what follows
        self._lessons: list[_Lesson] = []
        self._news: dict[Hint, _News] = {}
        self._is_stopped = False
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="previews", daemon=True)

    # -- for other threads

    def start(self) -> None:
        """Start the thread that draws."""
        self._thread.start()

    def stop(self) -> None:
        """Show nothing more. Returns within a second, even if Redis is away."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join(_STOP_S)

    def watch(self, job: str, watch: Watch) -> None:
        """Show the units of `job`, from the next step on; any thread."""
        self._watched.add(job, watch)

    # -- for the engine's thread

    @property
    def watched(self) -> Mapping[str, Closeness]:
        """The jobs that somebody watches; empty when there is nothing to do."""
        return self._watched.jobs

    def show(self, runs: Runs, pipeline: Pipeline, seats: Sequence[Seat]) -> None:
        """Tell how far those of `seats` are that somebody watches, and copy the latents of those whose turn it is."""
        now_s = self._clock()
        found: dict[Hint, _News] = {}
        for seat in seats:
            closeness = self._watched.jobs.get(seat.unit.job)
            # Of the seats that stepped some may have failed, or begun anew.
            if closeness is None or seat.slot < 0 or not seat.call or seat.told_at_s + _INTERVAL_S > now_s:
                continue
            if closeness.until_s <= now_s:
                self._watched.prune()
                continue
            found[seat.unit.hint] = self._look_at(runs, pipeline, seat, closeness)
            seat.told_at_s = now_s
        if found:
            with self._changed:
                for hint, news in found.items():
                    waiting = self._news.get(hint)
                    if waiting is None or waiting.latents is None or news.latents is not None:
                        self._news[hint] = news
                self._changed.notify()

    def learn(self, runs: Runs, pipeline: Pipeline, seat: Seat, pixels: NDArray[np.uint8]) -> None:
        """Let the sketch of a model learn from a finished seat and its `pixels` [h, w, 3], if it has use for more.

        Watched or not: whoever watches later sees the better.
        """
        given = self._lessons_given.get(pipeline.model_hash, 0)
        if given < _LESSONS:
            self._lessons_given[pipeline.model_hash] = given + 1
            self._give_lesson(pipeline, Download(runs.latents(seat)), pixels)

    def failed(self, error: Exception) -> None:
        """Show nothing more of all that is watched now, for `error` is what came of it."""
        log.warning("no previews: %s", error, extra={"action": "preview_failed"})
        self._watched.clear()

    def _look_at(self, runs: Runs, pipeline: Pipeline, seat: Seat, closeness: Closeness) -> _News:
        step = seat.earlier_calls + seat.call
        news = _News(step, step + seat.calls - seat.call + _calls_to_follow(pipeline, seat))
        if step < seat.shown_step:  # the pass has begun anew
            seat.shown_step = 0
        # Of who is done, the picture itself comes next.
        if news.step < news.steps and step - seat.shown_step >= closeness.every_steps:
            if pipeline.model_hash not in self._sampled:
                self._begin_with(pipeline, pipeline.latent_shape(seat.unit.height, seat.unit.width)[0])
            seat.shown_step = step
            news.latents = Download(runs.estimate(seat))
            news.model = pipeline.model_hash
            news.side_px = min(MAX_SIDE_PX, max(seat.unit.width, seat.unit.height))
        return news

    def _begin_with(self, pipeline: Pipeline, channels: int) -> None:
        """Let a model's VAE decode a small piece of noise, for there may be no picture yet to learn from."""
        self._sampled.add(pipeline.model_hash)  # once, whatever comes of it
        sample = torch.from_numpy(sample_latents(channels))[None]
        self._give_lesson(pipeline, Download(sample), Download(pipeline.decode(upload(sample, pipeline.device))))

    def _give_lesson(self, pipeline: Pipeline, latents: Download, pixels: Download | NDArray[np.uint8]) -> None:
        with self._changed:
            self._lessons.append(_Lesson(pipeline.model_hash, latents, pixels))
            self._changed.notify()

    # -- the thread

    def catch_up(self) -> None:
        """Learn, draw and tell all that waits: what the thread does over and over."""
        with self._changed:
            lessons, news = self._lessons, self._news
            self._lessons, self._news = [], {}
        try:
            for lesson in lessons:
                self._take(lesson)
            for hint, each in news.items():
                self._tell(hint, each.step, each.steps, self._jpeg(each))
            self._is_away = False
        except LedgerDown as error:
            if not self._is_away:
                log.info("no previews: %s", error, extra={"action": "ledger_down"})
            self._is_away = True
        except Exception:
            log.exception("a preview failed; going on", extra={"action": "preview_failed"})

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped or self._lessons or self._news)
                if self._is_stopped:
                    return
            self.catch_up()

    def _take(self, lesson: _Lesson) -> None:
        (latents,) = lesson.latents.wait()
        pixels = lesson.pixels.wait()[0] if isinstance(lesson.pixels, Download) else lesson.pixels
        self._sketches.setdefault(lesson.model, Sketch(latents.shape[1])).learn(latents[0], pixels)

    def _jpeg(self, news: _News) -> bytes | None:
        """Return the picture of what is to be told, None where there is to be none."""
        sketch = self._sketches.get(news.model)
        if news.latents is None or sketch is None:
            return None
        (latents,) = news.latents.wait()
        pixels = sketch.draw(shrunk(latents[0], MAX_SIDE_PX // SCALE))
        return None if pixels is None else jpeg_of(pixels, news.side_px)


def jpeg_of(pixels: NDArray[np.uint8], side_px: int) -> bytes | None:
    """Return a JPEG of `pixels` [h, w, 3], its longer side so long; None when it cannot be small enough."""
    image = Image.fromarray(pixels)
    factor = side_px / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= MAX_JPEG_BYTES:
            return file.getvalue()
    return None


def _calls_to_follow(pipeline: Pipeline, seat: Seat) -> int:
    """Return about how many model calls a seat's next pass will make, as many per step as this one."""
    if seat.next_pass is None:
        return 0

    def steps_of(unit: Unit, *, has_start: bool) -> int:
        steps = unit.num_inference_steps
        return steps - (pipeline.first_step(steps, unit.strength) if has_start else 0)

    now = steps_of(seat.unit, has_start=seat.inputs.has_start)
    return round(steps_of(seat.next_pass.unit, has_start=True) * seat.calls / max(1, now))
