"""What happens to jobs, as it happens: hints on a channel, and the log of a job's ends that tells it exactly.

A hint says which job to look at again. It may be lost, so whoever needs to know looks now and then without one; the
log (`job:<id>:log`) has every end of an image in order, so that nobody misses any or sees one twice.
"""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from farm.jobs import UnitState
from farm.ledger.connection import PREFIX, translate_outage
from farm.ledger.previews import PREVIEWS_CHANNEL
from farm.ledger.records import Heard, ImageChange, Look, PreviewTold
from farm.ledger.reports import STATUS_FIELDS, Reports

MAX_ENDED: Final = 1000
"""Ends of images that one look brings."""

_CHANNEL: Final = f"{PREFIX}changes"
_STATES: Final = (UnitState.STORED, UnitState.FAILED, UnitState.CANCELLED)
_STATE_SHIFT: Final = 30  # an end is its index and, above it, which of the states
_INDEX_MASK: Final = (1 << _STATE_SHIFT) - 1
_END: Final = struct.Struct(">I")


class Changes(Reports):
    """The part of the ledger that concerns watching: its reads, and what is told of them."""

    @property
    def last_change(self) -> object:
        """Another object after each change that was made by this ledger object: not by others of the same Redis."""
        return self._connection.last_change

    def look(self, positions: Mapping[str, int | None]) -> dict[str, Look]:
        """Look at several jobs in one round trip; those that are not there are left out.

        With a position, a job's look has up to MAX_ENDED ends of images from there on; with None it has none. The
        status is never younger than they are: of a job that has settled, `num_ended` counts them all.
        """
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for job_id, position in positions.items():
                key = f"{PREFIX}job:{job_id}"
                pipe.hmget(key, *STATUS_FIELDS)
                pipe.strlen(f"{key}:log")
                if position is not None:
                    pipe.getrange(f"{key}:log", *_bounds(position, MAX_ENDED))
            pipe.time()
            *rows, time_of_server = pipe.execute()
        answers = iter(rows)
        found: dict[str, tuple[list[Any], int, tuple[ImageChange, ...]]] = {}
        for job_id, position in positions.items():
            row, num_bytes = next(answers), next(answers)
            ended = () if position is None else _decode(next(answers), position)
            if row[0] is not None:
                found[job_id] = row, num_bytes // _END.size, ended
        statuses = self.statuses_of([row for row, _, _ in found.values()], self._connection.unix_s(time_of_server))
        return {
            # Ends that came between the commands are told with those that the length counts, or later.
            job_id: Look(status, max(num_ended, ended[-1].position + 1 if ended else 0), ended)
            for status, (job_id, (_, num_ended, ended)) in zip(statuses, found.items(), strict=True)
        }

    def ended(self, job_id: str, position: int, limit: int = MAX_ENDED) -> tuple[ImageChange, ...]:
        """Return up to `limit` ends of a job's images from `position` on; none of a job that is not there."""
        with translate_outage():
            text = self._redis.getrange(f"{PREFIX}job:{job_id}:log", *_bounds(position, limit))
        return _decode(text, position)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Listen for the length of a `with` block, on a connection of its own. For one thread."""
        channel = self._redis.pubsub()
        try:
            with translate_outage():
                channel.subscribe(_CHANNEL, PREVIEWS_CHANNEL)
            yield Listener(channel)
        finally:
            channel.close()


class Listener:
    """Hears what is told of jobs while it is there."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def hear(self, timeout_s: float) -> Heard | None:
        """Wait up to `timeout_s` for something to be told; return all of it, None after a quiet wait.

        Raises LedgerDown when the connection broke and cannot be made again; the next call tries to.
        """
        jobs: set[str] = set()
        previews: dict[str, list[PreviewTold]] = defaultdict(list)
        is_gap, has_heard = False, False
        deadline_s = time.monotonic() + timeout_s
        with translate_outage():
            while message := self._channel.get_message(
                timeout=0 if has_heard else max(0.0, deadline_s - time.monotonic())
            ):
                has_heard = True
                if message["type"] == "subscribe":
                    is_gap = True  # from here on we hear; a connection that was lost is made again unasked
                elif message["type"] == "message":
                    job_id, *told = message["data"].decode().split(" ")
                    if message["channel"] == _CHANNEL.encode():
                        jobs.add(job_id)
                    else:
                        index, step, steps, has_picture = map(int, told)
                        previews[job_id].append(PreviewTold(index, step, steps, has_picture=bool(has_picture)))
        if not has_heard:
            return None
        return Heard(frozenset(jobs), {job: tuple(told) for job, told in previews.items()}, is_gap=is_gap)


def _bounds(position: int, limit: int) -> tuple[int, int]:
    return position * _END.size, (position + limit) * _END.size - 1


def _decode(text: bytes, position: int) -> tuple[ImageChange, ...]:
    return tuple(
        ImageChange(word & _INDEX_MASK, _STATES[word >> _STATE_SHIFT], at)
        for at, (word,) in enumerate(_END.iter_unpack(text), position)
    )
