"""Who renders beside whom: many units at once, or one that has to be alone. It knows no units, and renders nothing.

A unit whose workers died is suspected of having killed them. Rendered with nothing beside it, the next death has one
suspect and costs nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Company:
    """A room for many, or for one. Who has to be alone waits for the others to leave; nobody enters meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the two below
        self._num_inside = 0
        self._is_closed = False  # by one who is alone inside, or waits to be

    @contextmanager
    def joined(self, *, alone: bool, go_on: Callable[[], None]) -> Iterator[None]:
        """Be inside for the length of a `with` block.

        `go_on` is asked while it waits, at every `wake` at least; what it raises ends the wait.
        """
        with self._changed:
            self._wait_until(lambda: not self._is_closed, go_on)
            if alone:
                self._close(go_on)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                if alone:
                    self._is_closed = False
                self._changed.notify_all()

    def wake(self) -> None:
        """Let everybody who waits ask whether to go on."""
        with self._changed:
            self._changed.notify_all()

    def _close(self, go_on: Callable[[], None]) -> None:
        self._is_closed = True
        try:
            self._wait_until(lambda: self._num_inside == 0, go_on)
        except BaseException:
            self._is_closed = False
            self._changed.notify_all()
            raise

    def _wait_until(self, is_so: Callable[[], bool], go_on: Callable[[], None]) -> None:
        while not is_so():
            go_on()
            self._changed.wait()
