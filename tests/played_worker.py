"""A stand-in for a worker whose images do what their prompts say: `fails` fail, `slow` stay in their seats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farm.jobs import Hint, Unit
from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import Store
from stand_in import NAME, StandIn


class PlayedWorker(StandIn):
    """Renders everything else at once."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger.connect(settings)
        self.store = Store.connect(settings)
        self.redis_url = settings.redis_url
        self._slow: dict[Hint, Unit] = {}
        super().__init__(self.ledger, self.store)

    def seated(self) -> list[Hint]:
        """Return the units that stay in their seats; those of cancelled jobs have left them."""
        for hint in self.ledger.renew(NAME, list(self._slow)):
            self._slow.pop(hint, None)
        return list(self._slow)

    def let_go(self) -> None:
        """Finish what is held."""
        for hint in self.seated():
            super()._finish(hint, self._slow.pop(hint))

    def fail(self, hint: Hint) -> None:
        """Fail one that is held."""
        self.ledger.failed(hint, NAME, "the reason", final=True)

    def show(self, hint: Hint, *, step: int, jpeg: bytes) -> None:
        """Show how far one is that is held."""
        assert self.ledger.put_preview(hint, NAME, step=step, steps=20, jpeg=jpeg)

    def _claim(self, hint: Hint) -> None:
        super()._claim(hint)
        if self._held and "slow" in self._held[-1][1].prompt:
            claimed, unit = self._held.pop()
            self._slow[claimed] = unit

    def _finish(self, hint: Hint, unit: Unit) -> None:
        if "fails" in unit.prompt:
            self.fail(hint)
        else:
            super()._finish(hint, unit)


@contextmanager
def playing(settings: Settings) -> Iterator[PlayedWorker]:
    """Play a worker for the length of a `with` block."""
    worker = PlayedWorker(settings)
    worker.store.ensure_bucket()
    with worker:
        yield worker
    worker.ledger.close()
