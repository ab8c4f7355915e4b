"""A worker that draws plain pictures: plays a worker's part on the real ledger and store, in a thread; no torch."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import TracebackType
from typing import Self

from PIL import Image, PngImagePlugin

from api_client import heartbeat
from farm.errors import FarmError
from farm.jobs import Hint, Picture, Unit
from farm.ledger import Ledger
from farm.recipes import Recipe, exif_of, text_chunks_of
from farm.storage import CONTENT_TYPES, Store, object_key

NAME = "stand-in:cpu#1"
_PAUSE_S = 0.02


class StandIn:
    """Renders what comes for `models` while its `with` block lasts; image of seed s is of one colour, `colour_of(s)`.

    `holding` keeps it from finishing images: what it has claimed stays at half of its steps. `fails_with` is the reason
    that images fail with from then on. Jobs of more than `max_images` are cancelled when their first image comes.
    """

    def __init__(
        self, ledger: Ledger, store: Store, *, models: tuple[str, ...] = ("scenes",), max_images: int = 1000
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._models = models
        self._max_images = max_images
        self._ends = threading.Event()
        self._is_free = threading.Event()
        self._is_free.set()
        self._held: list[tuple[Hint, Unit]] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.fails_with: str | None = None
        self.units: list[Unit] = []

    def __enter__(self) -> Self:
        self._report()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._is_free.set()
        self._thread.join()  # soon: it looks before each image
        self._ledger.forget(NAME)

    @property
    def held(self) -> list[Hint]:
        """What it has claimed and not finished, oldest first."""
        return [hint for hint, _ in self._held]

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Finish nothing for the length of a `with` block, or until `go_on`."""
        self._is_free.clear()
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        """Finish what is held, and what comes."""
        self._is_free.set()

    def _report(self) -> None:
        node = NAME.partition("#")[0]
        self._ledger.report(heartbeat(name=NAME, node=node, models=self._models, max_batch=64))

    def _work(self) -> None:
        reported_at = time.monotonic()
        while not self._ends.wait(_PAUSE_S):
            try:
                if time.monotonic() > reported_at + 1:
                    self._report()
                    self._ledger.renew(NAME, self.held)
                    reported_at = time.monotonic()
                for model in self._models:
                    # The API has handed some out by itself, as messages that nobody reads here.
                    for hint in [*self._ledger.feed(model), *self._ledger.rehint(model, older_than_s=0)]:
                        if not self._ends.is_set():
                            self._claim(hint)
                while self._held and self._is_free.is_set() and not self._ends.is_set():
                    self._finish(*self._held.pop(0))
            except FarmError:  # the test has taken something down
                continue

    def _claim(self, hint: Hint) -> None:
        if self._ledger.job(hint.job).header.total > self._max_images:
            self._ledger.cancel(hint.job)
            return
        unit = self._ledger.claim(hint, NAME)
        if unit is not None:
            self.units.append(unit)
            self._held.append((hint, unit))
            steps = unit.num_inference_steps
            self._ledger.put_preview(hint, NAME, step=steps // 2, steps=steps, jpeg=_file(unit, "JPEG", size=(16, 16)))

    def _finish(self, hint: Hint, unit: Unit) -> None:
        if self.fails_with is not None:
            self._ledger.failed(hint, NAME, self.fails_with, final=True)
            return
        image_format = unit.output.format
        data = _file(unit, image_format.upper())
        self._store.put(object_key(hint.job, hint.index, image_format), data, CONTENT_TYPES[image_format])
        self._ledger.stored(hint, NAME, gpu_s=0.1, render_s=0.1)


def colour_of(seed: int) -> tuple[int, int, int]:
    """Return the colour of the picture with this seed."""
    return (seed * 40 % 256, 100, 200)


def _file(unit: Unit, image_format: str, *, size: tuple[int, int] | None = None) -> bytes:
    picture = {field.name: getattr(unit, field.name) for field in fields(Picture)}
    recipe = Recipe(
        **picture,
        model=unit.model,
        reproducibility=unit.reproducibility,
        output=unit.output,
        model_sha256="0123456789abcdef" * 4,
        device="cpu",
        dtype="float32",
        farm_version="0",
    )
    image = Image.new("RGB", size or (unit.width, unit.height), colour_of(unit.seed))
    buffer = io.BytesIO()
    if image_format == "PNG":
        info = PngImagePlugin.PngInfo()
        for keyword, text in text_chunks_of(recipe).items():
            info.add_itxt(keyword, text)
        image.save(buffer, "PNG", pnginfo=info)
    else:
        image.save(buffer, image_format, exif=exif_of(recipe))
    return buffer.getvalue()
