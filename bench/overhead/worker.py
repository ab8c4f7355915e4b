"""The worker as it is, with a model that computes nothing: CPU per image, by part, and images per second.

    python -m overhead.worker --out FILE [--size-px 512] [--step-ms 0]      under FARM_* settings, until SIGTERM

`worker.app.run` whole: Celery, claims, leases, heartbeats, the engine, PNG and recipe, S3. `--step-ms` is how long a
card takes for a step, which is slept.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch

from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import Store
from overhead.clock import Clock, cpu_s_of_threads
from overhead.noop import NoopPipeline
from overhead.pictures import picture
from worker import app, files, images
from worker.engine import Engine
from worker.inputs import Pictures
from worker.render import Renderer
from worker.upkeep import Upkeep

_SAMPLE_S: Final = 0.5
_PARTS: Final = (
    (Renderer, "render", "renderer"),
    (Ledger, "claim", "claim"),
    (Pictures, "fetch", "pictures"),
    (Engine, "submit", "submit"),
    (images, "text_chunks_of", "recipe"),
    (files, "recipe_of", "recipe"),
    (files, "encode_image", "png"),
    (Store, "put", "put"),
    (Ledger, "stored", "settle"),
    (Upkeep, "beat", "upkeep"),
    (Upkeep, "find_work", "upkeep"),
    (Upkeep, "renew", "upkeep"),
)
"""What is timed: CPU of whatever thread calls it, less that of parts within."""


class NoopModels:
    """Stands where the worker's models do: every model is the one that computes nothing."""

    def __init__(self, *, size_px: int, max_batch: int, step_s: float) -> None:
        self._options = {"size_px": size_px, "max_batch": max_batch, "step_s": step_s}
        self._pictures = [torch.from_numpy(picture(size_px, number)) for number in range(4)]

    def __call__(self, *_: object, **_options: object) -> NoopModels:
        """Return itself, whatever is built of settings."""
        return self

    def load(self, _model: str) -> NoopPipeline:
        """Return the pipeline."""
        return NoopPipeline(**self._options, pictures=self._pictures)

    def fits(self, _models: Collection[str]) -> bool:
        """Say yes."""
        return True

    def read_ahead(self, _model: str) -> None:
        """Do nothing."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Diary(threading.Thread):
    """Notes all counters every half second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(name="diary", daemon=True)
        self._clock = clock
        self._engine: Engine | None = None
        self.samples: list[dict[str, Any]] = []

    def watch(self, engine: Engine) -> Engine:
        """Take the counts of this engine."""
        self._engine = engine
        return engine

    def run(self) -> None:
        """Note until the process ends."""
        while True:
            if self._engine is not None:
                stats = self._engine.stats()
                self.samples.append(
                    {
                        "at_s": time.monotonic(),
                        "images": stats.images,
                        "steps": stats.steps,
                        "seat_steps": stats.seat_steps,
                        "busy_s": stats.busy_s,
                        "parts_s": dict(self._clock.spent_s),
                        "threads_s": dict(cpu_s_of_threads()),
                        "process_s": time.process_time(),
                    }
                )
            time.sleep(_SAMPLE_S)


def main() -> None:
    """Work until told to end, then write the diary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--step-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    settings = Settings()
    clock = Clock()
    for owner, attribute, name in _PARTS:
        clock.wrap(owner, attribute, name)
    diary = Diary(clock)
    diary.start()
    models = NoopModels(size_px=arguments.size_px, max_batch=settings.max_batch, step_s=arguments.step_ms / 1000)

    def make_engine(*args: Any, **options: Any) -> Engine:
        return diary.watch(Engine(*args, **options))

    with mock.patch.object(app, "WorkerModels", models), mock.patch.object(app, "Engine", make_engine):
        code = app.main()
    arguments.out.write_text(json.dumps({"code": code, "samples": diary.samples}))


if __name__ == "__main__":
    main()
