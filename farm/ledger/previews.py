"""How far images in seats are and what they look like by now, for whoever watches. Nothing here is worth keeping.

    API     want_previews(job)   a key that expires. The claims of the job's units answer it, and workers hear of it, if
                                 some hold units of the job, on the channel `farm:watched`
    worker  put_preview(…)       one hash per job, two fields per image: how far, and the latest picture. Told on the
                                 channel `farm:previews`: "<job> <index> <step> <steps> <1 with a new picture, or 0>"
    API     preview, previews    read the hash

An image's preview is gone as soon as no worker holds the image: stored, failed, cancelled or given back. The hash
expires besides, a minute after it was last written to. Pictures on the channel there are none: who hears of one reads
it, if it still wants it then.
"""

from __future__ import annotations

from typing import Final

from farm.jobs import Hint
from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.records import Preview

PREVIEWS_CHANNEL: Final = f"{PREFIX}previews"
MAX_PREVIEW_BYTES: Final = 32 * 1024
MAX_WATCH_S: Final = 3600.0
_EXPIRY_S: Final = 60


class Previews:
    """The part of the ledger that concerns what is seen of images before they are there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis

    def want_previews(self, job_id: str, *, for_s: float = 60.0, every_steps: int = 5) -> None:
        """Have workers show images of a job for `for_s`, from the next step on: how far they are, and pictures.

        The job need not be there yet. Whoever goes on watching repeats it in time; that it is said often costs workers
        nothing. Of several who watch the one who wants pictures after the fewest steps has its way. Raises ValueError
        for numbers that make no sense.
        """
        if every_steps < 1 or not 0 < for_s <= MAX_WATCH_S:
            raise ValueError(f"previews every {every_steps} steps for {for_s} s")
        self._connection.run("want_previews", job_id, every_steps, for_s)

    def preview(self, job_id: str, index: int) -> Preview | None:
        """Return what is seen of one image; None when nobody watches, or no worker has begun it."""
        fields = _fields_of(index)
        with translate_outage():
            told, picture = self._redis.hmget(_key(job_id), *fields)
        return None if told is None else _preview(told, picture)

    def previews(self, job_id: str) -> dict[int, Preview]:
        """Return what is seen of all images of a job that are in seats now, by index."""
        with translate_outage():
            found = self._redis.hgetall(_key(job_id))
        return {
            int(field): _preview(told, found.get(field + b":jpeg"))
            for field, told in found.items()
            if not field.endswith(b":jpeg")
        }

    def put_preview(self, hint: Hint, worker: str, *, step: int, steps: int, jpeg: bytes | None = None) -> bool:
        """Tell how far a unit is, and with `jpeg` what it looks like; False when it is not this worker's any more.

        Without `jpeg` the latest picture stays. Raises ValueError for a picture of more than MAX_PREVIEW_BYTES.
        """
        if jpeg is not None and len(jpeg) > MAX_PREVIEW_BYTES:
            raise ValueError(f"a preview of {len(jpeg)} bytes")
        outcome = self._connection.run(
            "put_preview", hint.job, hint.index, hint.attempt, worker, step, steps, _EXPIRY_S, jpeg or b""
        )
        return bool(outcome == b"kept")


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}:previews"


def _fields_of(index: int) -> tuple[str, str]:
    return str(index), f"{index}:jpeg"


def _preview(told: bytes, picture: bytes | None) -> Preview:
    step, steps, at = told.split(b" ")
    shown, jpeg = (None, None) if picture is None else picture.split(b" ", 1)
    return Preview(
        step=int(step), steps=int(steps), jpeg=jpeg, at=float(at), jpeg_step=None if shown is None else int(shown)
    )
