"""CPU seconds by what they were spent on, each thread counting its own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


class Clock:
    """CPU of all threads that enter a part; what one part calls within another is counted there alone."""

    def __init__(self) -> None:
        self._books: list[Counter[str]] = []
        self._mine = threading.local()

    @property
    def spent_s(self) -> Counter[str]:
        """Seconds by part, of all threads; parts that have not ended are not told yet."""
        total: Counter[str] = Counter()
        for book in list(self._books):
            total.update(book.copy())
        return total

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is within as this part's."""
        mine = self._mine
        if not hasattr(mine, "book"):
            mine.book, mine.part, mine.since = Counter(), "", 0.0
            self._books.append(mine.book)
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        mine, now = self._mine, time.thread_time()
        outer: str = mine.part
        if outer:
            mine.book[outer] += now - mine.since
        mine.since, mine.part = now, name
        return outer

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count a function of a module, or a method of an object or a class, as this part."""
        inner: Callable[..., Any] = getattr(owner, attribute)

        @wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)


def cpu_s_of_threads() -> Counter[str]:
    """Return the CPU seconds of this process' Python threads, by name without its number."""
    total: Counter[str] = Counter()
    for thread in threading.enumerate():
        if thread.ident is not None:
            try:
                spent_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            except OSError:  # it has just ended
                continue
            total[thread.name.partition("-")[0].rstrip("_0123456789")] += spent_s
    return total
