"""A worker played by a thread: it renders nothing, but does to ledger and store what a real one does."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from api_client import WORKER, heartbeat
from farm.jobs import Hint, Unit
from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import CONTENT_TYPES, Store, object_key


def picture_of(unit: Unit) -> bytes:
    """Return a picture of the unit's size and format whose colour follows from its seed."""
    file = io.BytesIO()
    colour = tuple(unit.seed * prime % 256 for prime in (37, 101, 17))
    Image.new("RGB", (unit.width, unit.height), colour).save(file, unit.output.format)
    return file.getvalue()


class PlayedWorker:
    """Takes units as they come: prompts with `fails` fail, those with `slow` stay in their seats until let go."""

    def __init__(self, settings: Settings, model: str = "scenes") -> None:
        self.ledger = Ledger.connect(settings)
        self.store = Store.connect(settings)
        self.redis_url = settings.redis_url
        self.held: dict[Hint, Unit] = {}
        self._model = model
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def start(self) -> None:
        """Report, and begin."""
        self.store.ensure_bucket()
        self._report()
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more."""
        self._stopped.set()
        self._thread.join()
        self.ledger.close()

    def let_go(self) -> None:
        """Finish what is held."""
        for hint, unit in list(self.held.items()):
            del self.held[hint]
            self._store(hint, unit)

    def _report(self) -> None:
        self.ledger.report(heartbeat(self._model, max_batch=32))

    def _work(self) -> None:
        while not self._stopped.wait(0.02):
            self._report()
            # What the API has handed to Celery is claimed by nobody else.
            hints = [*self.ledger.feed(self._model), *self.ledger.rehint(self._model, older_than_s=0.0)]
            for hint in hints:
                self._take(hint)
            gone = self.ledger.renew(WORKER, list(self.held))
            for hint in gone:
                self.held.pop(hint, None)

    def _take(self, hint: Hint) -> None:
        unit = self.ledger.claim(hint, WORKER)
        if unit is None:
            return
        if "fails" in unit.prompt:
            self.ledger.failed(hint, WORKER, "the reason", final=True)
        elif "slow" in unit.prompt:
            self.held[unit.hint] = unit
        else:
            self._store(hint, unit)

    def _store(self, hint: Hint, unit: Unit) -> None:
        image_format = unit.output.format
        self.store.put(object_key(unit.job, unit.index, image_format), picture_of(unit), CONTENT_TYPES[image_format])
        self.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.0)


@contextmanager
def playing(settings: Settings) -> Iterator[PlayedWorker]:
    """Play a worker for the length of a `with` block."""
    worker = PlayedWorker(settings)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
