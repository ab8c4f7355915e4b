"""What is left to do when a job starts or settles: written by the script that commits the state, done by anybody.

A chore that is taken comes again when its lease ends, unless it was done: so it is done at least once.
"""

from __future__ import annotations

from collections.abc import Sequence

from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.records import Chore


class Chores:
    """The durable to-do list, and what its doers tell the ledger."""

    def __init__(self, connection: Connection, *, keep_jobs_s: float) -> None:
        self._connection = connection
        self._keep_jobs_s = keep_jobs_s

    def take_chores(self, kinds: Sequence[str], *, limit: int = 16, lease_s: float = 60.0) -> list[Chore]:
        """Return chores that are due, at most `limit` of each kind; nobody else gets them for `lease_s`."""
        flat = self._connection.run("chores", limit, lease_s, *kinds)
        return [_chore(*flat[i : i + 4]) for i in range(0, len(flat), 4)]

    def chore_done(self, chore: Chore) -> None:
        """Take a chore off the list."""
        self._connection.run("chore_end", chore.kind, chore.member, "", 0)

    def keep_chore(self, chore: Chore, lease_s: float) -> None:
        """Go on with a chore that takes long: nobody else gets it for `lease_s` from now."""
        self._connection.run("chore_end", chore.kind, chore.member, lease_s, 0)

    def chore_later(self, chore: Chore, delay_s: float) -> None:
        """Try a chore again in `delay_s`; it remembers how often it was tried."""
        self._connection.run("chore_end", chore.kind, chore.member, delay_s, 1)

    def manifest_written(self, job_id: str) -> bool:
        """Note that a settled job's manifest is in the store; False when the job is not settled any more.

        From then on it may expire, `keep_jobs_s` after its end: a chore of the kind "expire" says when.
        """
        return bool(self._connection.run("manifest", job_id, self._keep_jobs_s))

    def note_delivery(self, job_id: str, event: str, text: str) -> None:
        """Keep `text`, which tells how far a webhook has got, with its job; nothing when the job is gone."""
        self._connection.run("delivery", job_id, event, text)

    def deliveries(self, job_id: str) -> dict[str, str]:
        """Return what was noted last of each event of a job."""
        with translate_outage():
            noted = self._connection.redis.hgetall(f"{PREFIX}job:{job_id}:webhooks")
        return {event.decode(): text.decode() for event, text in noted.items()}

    def expire_job(self, job_id: str) -> bool:
        """Forget a job whose manifest is in the store; False when it cannot go yet, or is gone."""
        return bool(self._connection.run("expire", job_id))


def _chore(kind: bytes, member: bytes, due_at: bytes, tries: bytes) -> Chore:
    job, event, count = member.decode().split("|")
    return Chore(kind=kind.decode(), job=job, event=event, count=int(count), due_at=float(due_at), tries=int(tries))
