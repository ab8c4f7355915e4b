"""What the benchmark says while it runs: plain lines for people, or a JSON object a line for `farm bench` to draw."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from worker.bench.table import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Voice:
    """Says what goes on. Lines for people go to standard error, so that results can be piped."""

    def __init__(self, *, as_events: bool) -> None:
        self._as_events = as_events

    @contextmanager
    def stage(self, words: str) -> Iterator[None]:
        """Say that something begins and, unless it fails, that it is done."""
        began = time.monotonic()
        self._say("begin", words, plain=f"{words} …")
        yield
        self._say("done", words, plain="", seconds=round(time.monotonic() - began, 1))

    def note(self, words: str) -> None:
        """Say what was found."""
        self._say("note", words, plain=f"  {words}")

    def fail(self, words: str) -> None:
        """Say what went wrong; the run goes on."""
        self._say("fail", words, plain=f"  FAILED: {words}")

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
        self._say("table", title, plain=f"\n{title}\n{text(head, rows)}\n", head=list(head), rows=[*map(list, rows)])

    def result(self, document: Mapping[str, Any]) -> None:
        """Give the whole result to a program that asked for it."""
        if self._as_events:
            self._say("result", "", plain="", document=document)
        else:
            print(json.dumps(document, indent=2))  # noqa: T201  this is what standard output is for

    def _say(self, event: str, words: str, *, plain: str, **more: Any) -> None:
        if self._as_events:
            print(json.dumps({"event": event, "words": words, **more}), flush=True)  # noqa: T201
        elif plain:
            print(plain, file=sys.stderr, flush=True)  # noqa: T201
