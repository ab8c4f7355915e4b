"""Text encoders that live in RAM: on the device while they encode, one at a time, and for many prompts at once.

A visit of a T5 is gigabytes over the bus, as long as several steps; so whoever must go encodes what is waiting as well.
Who waits is the engine's to say, what encoding means the family's; what was encoded lies in the family's cache.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from farm.errors import RenderFailed
from farm.plans import Where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from farm.jobs import Unit
    from worker.pipelines.placement import Placement
    from worker.text.cache import EmbeddingCache

_MAX_AHEAD: Final = 64
"""Units that are looked at: a look at each of a million waiting ones would cost more than it saves."""


class NotAtHand(Exception):
    """A text encoder is wanted that may not come now."""


class Visits:
    """The text encoders of one model that live in RAM (`away`), and their comings and goings."""

    def __init__(self, placement: Placement | None, parts: Sequence[str]) -> None:
        self._placement = placement
        self.away = tuple(part for part in parts if placement and placement.plan.component(part).where is Where.EVICTED)
        self._invited: str | None = None  # whoever may come and stay; None: all may, for one prompt
        self._stays = ExitStack()

    @contextmanager
    def at_hand(self, part: str) -> Iterator[None]:
        """Have `part` on the device while the context is open; raises NotAtHand where `staying` lets another one in."""
        if self._placement is None or part not in self.away:
            yield
        elif self._invited is None:
            with self._placement.on_device(part):
                yield
        elif part != self._invited:
            raise NotAtHand(part)
        else:
            self._stays.enter_context(self._placement.on_device(part))  # where it stays already nothing happens
            yield

    @contextmanager
    def staying(self, part: str) -> Iterator[None]:
        """Let `part` alone come, if it is wanted at all, and stay until the context ends; '' is nobody."""
        with ExitStack() as stays:
            self._stays, self._invited = stays, part
            try:
                yield
            finally:
                self._invited = None


def encode_ahead(
    units: Sequence[Unit], encode: Callable[[Unit], object], visits: Visits, cache: EmbeddingCache
) -> None:
    """Have the words of `units` in `cache`, as many as it holds, with one visit of each encoder that must come.

    `encode` puts them there; it asks one encoder after the other. Nobody comes as long as the next units, to half of
    what the cache holds, are there. Words that cannot be encoded are left to whoever renders the unit.
    """
    units = units[:_MAX_AHEAD]
    if not visits.away or _are_ready(units, encode, visits, cache):
        return
    for part in visits.away:
        full = cache.served_bytes + cache.max_bytes * 3 // 4  # the last one may be large
        with visits.staying(part):
            for unit in units:
                with suppress(NotAtHand, RenderFailed):
                    encode(unit)
                if cache.served_bytes >= full:
                    break  # whatever came next would drive the first ones out


def _are_ready(units: Sequence[Unit], encode: Callable[[Unit], object], visits: Visits, cache: EmbeddingCache) -> bool:
    """Return whether all of `units` are in `cache`, or so many of the first ones that a visit can wait."""
    enough = cache.served_bytes + cache.max_bytes // 2
    with visits.staying(""):
        for unit in units:
            try:
                with suppress(RenderFailed):
                    encode(unit)
            except NotAtHand:
                return False
            if cache.served_bytes >= enough:
                return True
    return True
