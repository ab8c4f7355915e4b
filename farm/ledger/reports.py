"""What the ledger knows, read without changing it: jobs, images, throughput."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from farm.errors import UnknownJob
from farm.expand import locate
from farm.jobs import Counts, Entry, UnitState
from farm.ledger.codec import STORED_TIMES_BYTES, decode_entry, decode_header
from farm.ledger.connection import PREFIX, Connection, translate_outage
from farm.ledger.rates import WINDOWS, rate_of, sum_buckets
from farm.ledger.records import ImageStatus, JobStatus, Rate, Throughput

STATUS_FIELDS: Final = (  # of a job's hash: what `Reports.statuses_of` makes a status of
    "header",
    "rendering",
    "stored",
    "failed",
    "retries",
    "gpu_ms",
    "cancelled_at",
    "started_at",
    "finished_at",
    "paused_at",
    "dropped",
    "reused",
    "manifest_at",
)
_STORED: Final = STATUS_FIELDS.index("stored")
_FINISHED_AT: Final = STATUS_FIELDS.index("finished_at")


class Reports:
    """The ledger's reads of jobs and of what was done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.redis
        # Statuses are read again and again, and a header never changes.
        self._decode_header = lru_cache(maxsize=256)(decode_header)

    def ping(self) -> None:
        """Raise LedgerDown unless Redis answers."""
        with translate_outage():
            self._redis.ping()

    def job(self, job_id: str) -> JobStatus:
        """Return a job's status; raises UnknownJob."""
        statuses = self._statuses([job_id])
        if not statuses:
            raise UnknownJob(f"there is no job {job_id!r}", field="id", value=job_id)
        return statuses[0]

    def jobs(self, limit: int = 50, before: str | None = None) -> list[JobStatus]:
        """Return up to `limit` jobs, newest first, older than job `before` if given."""
        upper = f"({before}" if before else "+"
        with translate_outage():
            ids = self._redis.zrevrangebylex(f"{PREFIX}jobs", upper, "-", 0, limit)
        return self._statuses(job_id.decode() for job_id in ids)

    def num_jobs(self) -> int:
        """Return how many jobs the ledger knows."""
        with translate_outage():
            return int(self._redis.zcard(f"{PREFIX}jobs"))

    def _statuses(self, ids: Iterable[str]) -> list[JobStatus]:
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(f"{PREFIX}job:{job_id}", *STATUS_FIELDS)
            rows = pipe.execute()
        found = [row for row in rows if row[0] is not None]
        return self.statuses_of(found, self._connection.now()) if found else []

    def statuses_of(self, rows: Sequence[list[Any]], now: float) -> list[JobStatus]:
        """Return the status that each row of STATUS_FIELDS tells; `now` is the ledger's Unix time."""
        paces = self._paces(now, (row for row in rows if row[_STORED] == b"0" and row[_FINISHED_AT] is None))
        return [self._status(row, now, paces) for row in rows]

    def _status(self, row: list[Any], now: float, paces: Mapping[str, tuple[int, float]]) -> JobStatus:
        header, _ = self._decode_header(row[0])
        rendering, stored, failed, retries, gpu_ms = (int(value) for value in row[1:6])
        cancelled_at, started_at, finished_at = (None if value is None else float(value) for value in row[6:9])
        dropped, reused = (int(value or 0) for value in row[10:12])
        unsettled = header.total - stored - failed - dropped
        is_cancelled = cancelled_at is not None
        counts = Counts(
            total=header.total,
            queued=0 if is_cancelled else unsettled - rendering,
            rendering=0 if is_cancelled else rendering,
            stored=stored,
            failed=failed,
            cancelled=dropped + (unsettled if is_cancelled else 0),
        )
        rate: float | None = None
        if started_at is not None and stored:
            rate = stored / max((finished_at or now) - started_at, 1e-3)
        eta_s: float | None = None
        if finished_at is not None:
            eta_s = 0.0
        elif rate is not None:
            eta_s = unsettled / rate
        elif header.model in paces:
            queued, pace = paces[header.model]
            eta_s = max(queued, unsettled) / pace  # its own images may all be in seats, and queued no more
        return JobStatus(
            header=header,
            counts=counts,
            cancelled=is_cancelled,
            started_at=started_at,
            finished_at=finished_at,
            gpu_s=gpu_ms / 1000,
            retries=retries,
            images_per_s=rate,
            eta_s=eta_s,
            paused=row[9] is not None,
            reused=reused,
            manifest_at=None if row[12] is None else float(row[12]),
        )

    def _paces(self, now: float, rows: Iterable[list[Any]]) -> dict[str, tuple[int, float]]:
        """Return what bounds the wait of jobs without a pace of their own: images queued by model, and its pace."""
        if not any(True for _ in rows):
            return {}
        queued, (window_s, bucket_s) = self.queued_by_model(), WINDOWS[0]
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for bucket in _buckets(now, window_s, bucket_s):
                pipe.hgetall(bucket)
            done = sum_buckets(pipe.execute())
        paces = {model: rate_of(window_s, done.get(("m", model), {})).images_per_s for model in queued}
        return {model: (count, paces[model]) for model, count in queued.items() if paces[model]}

    def image(self, job_id: str, index: int) -> ImageStatus:
        """Return one image's status; raises UnknownJob when the job has no such image either."""
        images = self.images(job_id, offset=index, limit=1) if index >= 0 else []
        if not images:
            raise UnknownJob(f"job {job_id!r} has no image {index}", field="index", value=index)
        return images[0]

    def images(self, job_id: str, *, offset: int = 0, limit: int = 100) -> list[ImageStatus]:
        """Return the status of images `offset` to `offset + limit - 1`; raises UnknownJob."""
        key = f"{PREFIX}job:{job_id}"
        with translate_outage():
            header_json, cancelled_at = self._redis.hmget(key, "header", "cancelled_at")
        if header_json is None:
            raise UnknownJob(f"there is no job {job_id!r}", field="id", value=job_id)
        header, base = decode_header(header_json)
        indices = range(offset, min(offset + limit, header.total))
        if not indices:
            return []
        first_entry, last_entry = (locate(header.runs, i)[0] for i in (indices[0], indices[-1]))
        width = STORED_TIMES_BYTES
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            pipe.lrange(f"{key}:entries", first_entry, last_entry)
            pipe.getrange(f"{key}:stored", indices[0] // 8, indices[-1] // 8)
            pipe.getrange(f"{key}:times", indices[0] * width, (indices[-1] + 1) * width - 1)
            pipe.hmget(f"{key}:failed", *indices)
            pipe.hmget(f"{key}:tries", *indices)
            pipe.hmget(f"{PREFIX}flight", *(f"{job_id}:{i}" for i in indices))
            pipe.getrange(f"{key}:dropped", indices[0] // 8, indices[-1] // 8)
            pipe.hgetall(f"{PREFIX}nodes")
            entry_texts, bits, times, failures, tries, flights, dropped, nodes = pipe.execute()
        node_names = {int(number): name.decode() for name, number in nodes.items()}
        entries = [decode_entry(text, base) for text in entry_texts]
        images = []
        for at, index in enumerate(indices):
            position, image = locate(header.runs, index)
            entry = entries[position - first_entry]
            tried = json.loads(tries[at]) if tries[at] else {}
            stored = _bit(bits, index - indices[0] // 8 * 8)
            leased = flights[at] is not None and b"|||" not in flights[at]  # no worker, no token: not claimed
            state = _unit_state(
                stored=stored,
                failed=failures[at] is not None,
                cancelled=cancelled_at is not None or _bit(dropped, index - indices[0] // 8 * 8),
                leased=leased,
            )
            stored_ds, render_ms, gpu_ms, node = (
                _times(times[at * width : (at + 1) * width]) if stored else (0, 0, 0, 0)
            )
            images.append(
                ImageStatus(
                    index=index,
                    prompt_index=position,
                    prompt=entry.prompt,
                    seed=entry.seed + image,
                    state=state,
                    attempts=_attempts(tried, state),
                    stored_at=header.created_at + stored_ds / 10 if stored else None,
                    render_s=render_ms / 1000 if stored else None,
                    gpu_s=gpu_ms / 1000 if stored else None,
                    worker=node_names.get(node),
                    error=failures[at].decode() if failures[at] else None,
                    history=tuple(tried.get("history", ())),
                )
            )
        return images

    def entries(self, job_id: str, first: int, last: int) -> list[Entry]:
        """Return prompts `first` to `last` of a job with all their parameters; raises UnknownJob."""
        key = f"{PREFIX}job:{job_id}"
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(key, "header")
            pipe.lrange(f"{key}:entries", first, last)
            header_json, texts = pipe.execute()
        if header_json is None:
            raise UnknownJob(f"there is no job {job_id!r}", field="id", value=job_id)
        _, base = decode_header(header_json)
        return [decode_entry(text, base) for text in texts]

    def images_by_model(self) -> dict[str, int]:
        """Return how many images of each model have been stored since the ledger began."""
        return self._counts_by_model("images")

    def queued_by_model(self) -> dict[str, int]:
        """Return how many images of each model wait for a worker."""
        queued = self._counts_by_model("queued")
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for model in queued:
                pipe.zcard(f"{PREFIX}handed:{model}")
            handed = pipe.execute()
        return {model: count + unclaimed for (model, count), unclaimed in zip(queued.items(), handed, strict=True)}

    def _counts_by_model(self, key: str) -> dict[str, int]:
        with translate_outage():
            return {model.decode(): int(count) for model, count in self._redis.hgetall(f"{PREFIX}{key}").items()}

    def throughput(self) -> Throughput:
        """Return what was done within the last minute, five minutes and hour."""
        now = self._connection.now()
        with translate_outage(), self._redis.pipeline(transaction=False) as pipe:
            for window_s, bucket_s in WINDOWS:
                for bucket in _buckets(now, window_s, bucket_s):
                    pipe.hgetall(bucket)
            pipe.zcard(f"{PREFIX}leases")
            *buckets, rendering = pipe.execute()
        sums = []
        for window_s, bucket_s in WINDOWS:
            num_buckets = window_s // bucket_s
            sums.append(sum_buckets(buckets[:num_buckets]))
            del buckets[:num_buckets]

        def rates(who: tuple[str, str]) -> tuple[Rate, ...]:
            windows = zip(WINDOWS, sums, strict=True)
            return tuple(rate_of(window_s, done.get(who, {})) for (window_s, _), done in windows)

        names = sorted(set().union(*sums))
        return Throughput(
            total=rates(("total", "")),
            by_model={name: rates((kind, name)) for kind, name in names if kind == "m"},
            by_worker={name: rates((kind, name)) for kind, name in names if kind == "w"},
            queued_images=sum(self.queued_by_model().values()),
            rendering_images=int(rendering),
        )


def _buckets(now: float, window_s: int, bucket_s: int) -> list[str]:
    """Return the keys of what was counted within a window that ends now."""
    last = int(now // bucket_s)
    return [f"{PREFIX}rate:{bucket_s}:{bucket}" for bucket in range(last - window_s // bucket_s + 1, last + 1)]


def _bit(bits: bytes, position: int) -> bool:
    byte = position // 8
    return byte < len(bits) and bool(bits[byte] >> (7 - position % 8) & 1)


def _times(record: bytes) -> tuple[int, int, int, int]:
    """Return (tenths of seconds since the job's creation, render ms, GPU ms, number of the node)."""
    return (
        struct.unpack(">I", record[:4])[0],
        int.from_bytes(record[4:7], "big"),
        int.from_bytes(record[7:10], "big"),
        int.from_bytes(record[10:12], "big"),
    )


def _unit_state(*, stored: bool, failed: bool, cancelled: bool, leased: bool) -> UnitState:
    if stored:
        return UnitState.STORED
    if failed:
        return UnitState.FAILED
    if cancelled:
        return UnitState.CANCELLED
    return UnitState.RENDERING if leased else UnitState.QUEUED


def _attempts(tried: dict[str, Any], state: UnitState) -> int:
    """Return how often a unit was handed out: its fencing number, less the hand-out it still waits for."""
    attempt = int(tried.get("attempt", 1))
    waits = state in (UnitState.QUEUED, UnitState.CANCELLED, UnitState.FAILED)
    return attempt - 1 if waits and (tried or state is not UnitState.FAILED) else attempt
