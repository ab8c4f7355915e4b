"""What is left of a job when the ledger has forgotten it: `jobs/<id>/manifest.jsonl`, one JSON object a line.

The first line tells of the job, each of the others of one image, in order: what was asked for, under the names that a
recipe has, and what became of it. Written when a job has ended; a job whose failed images were rendered again gets a
new one. When that is, and when the ledger forgets, is for others to say (api/retention.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from farm.jobs import UnitState
from farm.recipes import told_of
from farm.storage import manifest_key, object_key, thumbnail_key, upscaled_key

if TYPE_CHECKING:
    from farm.jobs import Entry, Header
    from farm.ledger import ImageStatus, JobStatus, Ledger
    from farm.storage import Store

MANIFEST_VERSION: Final = 1
CONTENT_TYPE: Final = "application/x-ndjson"

_PAGE: Final = 1000  # images; with their prompts, what a manifest holds in memory beside the store's parts


def write_manifest(ledger: Ledger, store: Store, job_id: str) -> bool:
    """Write the manifest of a job that has ended; return False when it goes on.

    Writing it again replaces it. Raises UnknownJob, LedgerDown and StorageDown.
    """
    while (status := ledger.job(job_id)).state.is_final:
        store.put_stream(manifest_key(job_id), manifest_lines(ledger, status), CONTENT_TYPE)
        # Meanwhile failed images may have been rendered again, and somebody else may have written of those already:
        # what lies there in the end must be of the last end.
        if ledger.job(job_id).finished_at == status.finished_at:
            return True
    return False


def manifest_lines(ledger: Ledger, status: JobStatus) -> Iterator[bytes]:
    """Yield the lines of a job's manifest, asking the ledger for a page at a time."""
    header = status.header
    yield _line(_job(status))
    for offset in range(0, header.total, _PAGE):
        images = ledger.images(header.id, offset=offset, limit=_PAGE)
        first = images[0].prompt_index
        # Images of one prompt have its parameters in common, all but the seed.
        asked = [_asked(entry) for entry in ledger.entries(header.id, first, images[-1].prompt_index)]
        for image in images:
            yield _line(_image(header, image, asked[image.prompt_index - first]))


def _job(status: JobStatus) -> dict[str, Any]:
    header, counts = status.header, status.counts
    return {
        "object": "job",
        "version": MANIFEST_VERSION,
        "id": header.id,
        "tenant": header.tenant,
        "labels": header.labels,
        "state": status.state,
        "counts": {
            "total": counts.total,
            "stored": counts.stored,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
        },
        "model": header.model,
        "num_prompts": header.num_entries,
        "priority": header.priority,
        "reproducibility": header.reproducibility,
        "reuse": header.reuse,
        "output": header.output.model_dump(mode="json"),
        "created_at": _when(header.created_at),
        "started_at": _when(status.started_at),
        "finished_at": _when(status.finished_at),
        "gpu_s": status.gpu_s,
        "gpu_s_per_image": status.gpu_s / counts.stored if counts.stored else None,
        "images_per_s": status.images_per_s,
        "retries": status.retries,
        "reused": status.reused,
    }


def _asked(entry: Entry) -> dict[str, Any]:
    told = told_of(entry)
    del told["num_images"], told["seed"]
    return told


def _image(header: Header, image: ImageStatus, asked: dict[str, Any]) -> dict[str, Any]:
    line = {
        "object": "image",
        "index": image.index,
        "state": image.state,
        "prompt_index": image.prompt_index,
        **asked,
        "seed": image.seed,
        "attempts": image.attempts,
    }
    if image.state is UnitState.STORED:
        line |= _keys(header, image.index)
        line |= {
            "stored_at": _when(image.stored_at),
            "render_s": image.render_s,
            "gpu_s": image.gpu_s,
            "worker": image.worker,
        }
    if image.error is not None:
        line["error"] = image.error
    if image.history:
        line["history"] = image.history
    return line


def _keys(header: Header, index: int) -> dict[str, str]:
    """Return where the files of a stored image lie."""
    job, output = header.id, header.output
    keys = {"key": object_key(job, index, output.format)}
    if output.thumbnail_px is not None:
        keys["thumbnail_key"] = thumbnail_key(job, index)
    if output.upscale is not None:
        keys["upscaled_key"] = upscaled_key(job, index, output.format, output.upscale)
    return keys


def _when(unix_s: float | None) -> str | None:
    """Return a moment as the API writes it, RFC 3339 in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
