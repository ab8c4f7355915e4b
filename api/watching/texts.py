"""Jobs as JSON, each written once for all who are told of it at one time."""

from __future__ import annotations

from typing import Final

from api.schemas import Job
from farm.ledger import JobStatus

_MAX_KEPT: Final = 1000


class JobTexts:
    """Writes jobs as JSON. Belongs to the event loop."""

    def __init__(self, gpu_hour_price: float | None) -> None:
        self._gpu_hour_price = gpu_hour_price
        self._last: dict[str, tuple[JobStatus, bytes]] = {}

    def of(self, status: JobStatus) -> bytes:
        """Return a job's status as a `Job`; the very object that was given last is not written again."""
        job_id = status.header.id
        last = self._last.get(job_id)
        if last is not None and last[0] is status:
            return last[1]
        if len(self._last) >= _MAX_KEPT:
            self._last.clear()
        text = Job.of(status, self._gpu_hour_price).model_dump_json().encode()
        self._last[job_id] = status, text
        return text
