"""Who renders beside whom: many units at once, or one that has to be alone. It knows no units, and renders nothing.

A unit whose workers died is suspected of having killed them. Rendered while its worker holds nothing else, the next
death has one suspect and costs nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from farm.errors import Transient


class AnotherIsAlone(Transient):
    """Two cannot both be alone in one room: the second has to come again, or go elsewhere."""


class Company:
    """A room for many, or for one. Who has to be alone waits for the others to leave; nobody enters meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the two below
        self._num_inside = 0
        self._is_closed = False  # by one who is alone inside, or waits to be

    @contextmanager
    def joined(self, *, waits: Callable[[], bool]) -> Iterator[None]:
        """Be inside for the length of a `with` block, as soon as nobody is alone there or wants to be.

        `waits` is asked at every `wake`, and whoever waits no longer enters.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed or not waits())
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, *, go_on: Callable[[], None]) -> Iterator[None]:
        """Be the only one inside for the length of a `with` block; who asks is inside already.

        `go_on` is asked while it waits, at every `wake` at least; what it raises ends the wait. Raises AnotherIsAlone
        when another one asked first: they would wait for each other.
        """
        with self._changed:
            if self._is_closed:
                raise AnotherIsAlone("another one has to be alone")
            self._is_closed = True
            try:
                while self._num_inside > 1:
                    go_on()
                    self._changed.wait()
            except BaseException:
                self._open()
                raise
        try:
            yield
        finally:
            with self._changed:
                self._open()

    def wake(self) -> None:
        """Let everybody who waits ask whether to go on."""
        with self._changed:
            self._changed.notify_all()

    def _open(self) -> None:
        self._is_closed = False
        self._changed.notify_all()
