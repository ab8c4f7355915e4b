"""The transitions of jobs and units, and the one name for all that the ledger does.

Reads are in reports.py; what concerns workers, tenants, chores and previews in files of these names. All share one
connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from farm.errors import IdempotencyConflict, JobCancelled, LedgerDown, QueueFull, UnknownJob
from farm.expand import locate, unit_of
from farm.jobs import Entry, ExpandedJob, Header, Hint, Unit, UrgentHint, Watch
from farm.ledger.changes import Changes
from farm.ledger.chores import Chores
from farm.ledger.clients import Clients
from farm.ledger.codec import decode_entry, encode_entries, encode_header
from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.keys import Keys
from farm.ledger.overview import Overview
from farm.ledger.previews import Previews
from farm.ledger.records import ImageStatus, JobStatus, Opened
from farm.ledger.servers import Servers
from farm.ledger.tenants import Tenants
from farm.settings import Settings

_STAGED_PER_CALL: Final = 1000  # keeps each command, and so every other client's wait, below about 10 ms
_STAGING_EXPIRY_S: Final = 600
_REAP_LIMIT: Final = 256
_RETRIED_PER_CALL: Final = 500
_SUSPECT_AFTER_DEATHS: Final = 2
"""A unit whose workers died this often is rendered alone: then the next death has one suspect."""
_MAX_REASON_CHARS: Final = 2000


class Ledger(Changes, Servers, Tenants, Chores, Previews, Overview, Keys, Clients):
    """Progress of every job, in Redis.

    Any number of processes may use it at once. All methods raise LedgerDown while Redis does not answer; repeating a
    call is always safe. `worker` is a name unique to a process, `<node>#<boot>`, where the node is the GPU's stable
    name.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        lease_s: float,
        max_attempts: int,
        idempotency_expiry_s: int,
        keep_jobs_s: float,
    ) -> None:
        Changes.__init__(self, connection)
        Servers.__init__(self, connection, alive_s=lease_s)
        Tenants.__init__(self, connection)
        Keys.__init__(self, connection)
        Clients.__init__(self, connection)
        Overview.__init__(self, connection)
        Chores.__init__(self, connection, keep_jobs_s=keep_jobs_s)
        Previews.__init__(self, connection)
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._idempotency_expiry_s = idempotency_expiry_s

    @classmethod
    def connect(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], float] | None = None,
        socket_timeout_s: float = 10.0,
        retries: int = 2,
    ) -> Ledger:
        """Build a ledger on `settings.redis_url`, without any I/O.

        `clock` replaces the server's, for tests. A call on a server that hangs takes `socket_timeout_s` times one
        more than `retries`: whoever has clients waiting takes less of both.
        """
        return cls(
            Connection(settings.redis_url, clock=clock, socket_timeout_s=socket_timeout_s, retries=retries),
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            idempotency_expiry_s=settings.idempotency_expiry_s,
            keep_jobs_s=settings.keep_jobs_s,
        )

    def close(self) -> None:
        """Close the connections."""
        self._connection.redis.close()

    # -- a job comes in, a job goes

    def open(
        self,
        job: ExpandedJob,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        max_queued_images: int | None = None,
    ) -> Opened:
        """Accept a job: all of it or nothing.

        With an `idempotency_key` (per tenant) that was used before for the same `fingerprint` the earlier job is
        answered. Raises IdempotencyConflict for another fingerprint, QueueFull when the farm would hold more than
        `max_queued_images`, or its tenant more than that one's limit.
        """
        header = job.header
        entries_key = f"{PREFIX}job:{header.id}:entries"
        encoded = encode_entries(job.entries)
        # Entries are staged in pieces under a key that expires, so that neither a large job blocks Redis nor a crash
        # in between leaves anything; the commit makes the job visible in one step.
        with translate_outage(), self._connection.redis.pipeline(transaction=True) as pipe:
            while piece := list(islice(encoded, _STAGED_PER_CALL)):
                pipe.rpush(entries_key, *piece)
                pipe.expire(entries_key, _STAGING_EXPIRY_S)  # with each, in one step: any may be the last that arrives
                pipe.execute()
        outcome, detail, *more = self._connection.run(
            "open",
            header.id,
            encode_header(header, job.entries[0]),
            header.model,
            header.tenant,
            header.priority,
            header.total,
            header.num_entries,
            "" if header.webhook is None else " ".join(header.webhook.events),
            idempotency_key or "",
            fingerprint,
            self._idempotency_expiry_s,
            "" if max_queued_images is None else max_queued_images,
            " ".join(header.afterwards),
        )
        match outcome:
            case b"created" | b"replayed":
                return Opened(id=detail.decode(), created=outcome == b"created")
            case b"conflict":
                raise IdempotencyConflict(
                    f"the Idempotency-Key was used with another body, for job {detail.decode()}",
                    field="Idempotency-Key",
                    value=idempotency_key,
                )
            case b"full":
                raise QueueFull(
                    f"{int(detail):,} images wait already; with this job it would be more than the farm takes "
                    f"({max_queued_images:,})",
                    retry_after_s=60,
                )
            case b"tenant_full":
                raise QueueFull(
                    f"{int(detail):,} images of tenant {header.tenant} wait already; with this job it would be more "
                    f"than its limit ({int(more[0]):,})",
                    retry_after_s=60,
                )
            case _:  # a piece was sent twice or lost with the connection: nothing was kept
                raise LedgerDown("the connection to Redis broke while the job was written; nothing was kept")

    def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; a settled one stays as it is. Its running seats are told through `news`.

        Raises UnknownJob.
        """
        return self._edit("cancel", job_id)

    def pause(self, job_id: str) -> JobStatus:
        """Let nothing more of a job start, what runs is finished; a settled one stays as it is. Raises UnknownJob."""
        return self._edit("pause", job_id)

    def resume(self, job_id: str) -> JobStatus:
        """Let a paused job go on, ahead of its tenant's younger jobs. Raises UnknownJob."""
        return self._edit("resume", job_id)

    def _edit(self, script: str, job_id: str) -> JobStatus:
        if self._connection.run(script, job_id) == b"unknown":
            raise _unknown(job_id)
        return self.job(job_id)

    def cancel_image(self, job_id: str, index: int) -> ImageStatus:
        """Cancel one image; one that is stored, failed or cancelled stays as it is. Raises UnknownJob."""
        if index < 0 or self._connection.run("cancel_image", job_id, index) == b"unknown":
            raise UnknownJob(f"there is no image {index} of a job {job_id!r}", field="index", value=index)
        return self.image(job_id, index)

    def cancel_tenant(self, tenant: str) -> int:
        """Cancel all jobs of a tenant that are not settled; return how many."""
        outcomes = [self._connection.run("cancel", job_id) for job_id in self.open_jobs(tenant)]
        return outcomes.count(b"cancelled")

    def retry_failed(self, job_id: str) -> JobStatus:
        """Let a job's failed images wait again, with no strike on their record.

        Raises UnknownJob, and JobCancelled for a job that was.
        """
        while True:
            outcome, *count = self._connection.run("retry", job_id, _RETRIED_PER_CALL)
            if outcome == b"unknown":
                raise _unknown(job_id)
            if outcome == b"cancelled":
                raise JobCancelled(f"{job_id} was cancelled: send its prompts as a new job", field="id", value=job_id)
            if count[0] < _RETRIED_PER_CALL:
                return self.job(job_id)

    # -- units go out and come back

    def feed(self, model: str, limit: int = 64) -> list[Hint]:
        """Hand out the next units of `model` in fair order; each must be published to Celery.

        By priority, but a lower one that was passed over 16 times has its turn; then the tenant that has had the least
        GPU time for its weight; then jobs in order; then images given back before fresh ones. Not more than two units
        for each seat that serves the model wait unclaimed, or three if interactive ones are among them; without a live
        worker there are none.
        """
        return _hints(self._connection.run("feed", model, limit, self.alive_s))

    def rehint(self, model: str, *, older_than_s: float, limit: int = 64) -> list[Hint]:
        """Return units handed out more than `older_than_s` ago and claimed by nobody: their messages are lost."""
        return _hints(self._connection.run("rehint", model, older_than_s, limit))

    def claim(self, hint: Hint, worker: str, *, token: str | None = None) -> Unit | None:
        """Grant `worker` a lease on the unit, or None: drop the message (stored, cancelled, held, or stale).

        Whoever asks again because an answer was lost gives the same `token` (of letters and digits) as before, and is
        answered the same.
        """
        header_json, outcome, *watch = self._connection.run(
            "claim",
            hint.job,
            hint.index,
            hint.attempt,
            worker,
            self._lease_s,
            token or secrets.token_hex(6),
            _SUSPECT_AFTER_DEATHS,
        )
        if header_json is None:
            return None
        header, base = self._decode_header(header_json)
        entry = self._entry(header, base, hint.index)
        unit = unit_of(header, entry, index=hint.index, attempt=hint.attempt, alone=outcome == b"1")
        return replace(unit, watch=Watch(watch[0], watch[1] / 1000)) if watch else unit

    def renew(self, worker: str, hints: Sequence[Hint]) -> frozenset[Hint]:
        """Extend the worker's leases; return the units that are not its any more."""
        if not hints:
            return frozenset()
        flat = [part for hint in hints for part in (hint.job, hint.index, hint.attempt)]
        gone = self._connection.run("renew", worker, self._lease_s, *flat)
        return frozenset(hints[position - 1] for position in gone)

    def stored(self, hint: Hint, worker: str, *, gpu_s: float, render_s: float, reused: bool = False) -> bool:
        """Count an image that lies in the store; False when it was counted before or is not this worker's to count.

        `gpu_s` is its share of device time, `render_s` the time from admission to pixels; `reused` says that it was not
        rendered but found.
        """
        outcome = self._connection.run(
            "stored",
            hint.job,
            hint.index,
            hint.attempt,
            worker,
            node_of(worker),
            round(gpu_s * 1000),
            round(render_s * 1000),
            int(reused),
        )
        return bool(outcome == b"counted")

    def failed(self, hint: Hint, worker: str, reason: str, *, final: bool, delay_s: float = 0.0) -> bool:
        """Give a unit up with a reason: for good if `final`, else until it has used up its attempts.

        With `delay_s` it is not handed out again before, give or take a heartbeat. Returns False when the unit was not
        this worker's any more.
        """
        reason = reason[:_MAX_REASON_CHARS] or "no reason given"
        outcome = self._give_back(hint, worker, reason, final=final, delay_s=delay_s)
        return outcome in (b"again", b"failed")

    def release(self, hint: Hint, worker: str) -> bool:
        """Give a unit back unfinished, without a strike; False when it was not this worker's any more."""
        return self._give_back(hint, worker, "", final=False) == b"again"

    def _give_back(self, hint: Hint, worker: str, reason: str, *, final: bool, delay_s: float = 0.0) -> bytes:
        outcome: bytes = self._connection.run(
            "give_back", hint.job, hint.index, hint.attempt, worker, reason, self._max_attempts, int(final), delay_s
        )
        return outcome

    def reap(self, *, as_of: float | None = None) -> int:
        """Take back units whose lease has expired, and let those wait no longer whose delay is over.

        Leases that ended after `as_of`, a Unix time of the ledger's clock, are left alone: a call that was held up
        by an outage would be there before the renewals that were, too. Returns how many leases had expired.
        """
        return self._reap("", "", as_of)

    def reap_node(self, node: str, *, keep: str) -> int:
        """Take back at once all units of the node's earlier processes; `keep` is the present one.

        The caller has proven that they are dead (it owns the GPU's lock).
        """
        return self._reap(node, keep)

    def _reap(self, node: str, keep: str, as_of: float | None = None) -> int:
        until = "" if as_of is None else as_of
        again, failed = self._connection.run("reap", self._max_attempts, _REAP_LIMIT, node, keep, self.alive_s, until)
        return int(again) + int(failed)

    def _entry(self, header: Header, base: Entry, index: int) -> Entry:
        position, _ = locate(header.runs, index)
        with translate_outage():
            text = self._connection.redis.lindex(f"{PREFIX}job:{header.id}:entries", position)
        if text is None:
            raise UnknownJob(f"job {header.id} has lost its prompt {position}", field="id", value=header.id)
        return decode_entry(text, base)


def _unknown(job_id: str) -> UnknownJob:
    return UnknownJob(f"there is no job {job_id!r}", field="id", value=job_id)


def node_of(worker: str) -> str:
    """Return the stable node name within a worker's name."""
    return worker.partition("#")[0]


def _hints(flat: list[bytes]) -> list[Hint]:
    def hint(job: bytes, index: bytes, attempt: bytes, priority: bytes) -> Hint:
        kind = UrgentHint if priority == b"interactive" else Hint
        return kind(job.decode(), int(index), int(attempt))

    return [hint(*flat[i : i + 4]) for i in range(0, len(flat), 4)]
