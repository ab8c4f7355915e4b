"""How headers and entries are written in Redis: compact JSON, an entry as its difference from its job's first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from farm.jobs import EXACT, Acceleration, Axis, ControlNet, Entry, Header, Hires, Run
from farm.prompts import Lora
from farm.requests import Output, Priority, Reproducibility, WebhookSpec

_FIELDS: Final = tuple(field.name for field in fields(Entry))
STORED_TIMES_BYTES: Final = 12
"""Bytes of a stored image: u32 tenths of seconds since creation, u24 render ms, u24 GPU ms, u16 node; big endian."""


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def encode_header(header: Header, base: Entry) -> str:
    """Return the header as JSON, with the entry that the job's other entries are written against."""
    document = {
        "id": header.id,
        "tenant": header.tenant,
        "model": header.model,
        "priority": header.priority,
        "reproducibility": header.reproducibility,
        "output": header.output.model_dump(),
        "labels": header.labels,
        "total": header.total,
        "num_entries": header.num_entries,
        "created_at": header.created_at,
        "runs": header.runs,
        "reuse": header.reuse,
        "webhook": None if header.webhook is None else header.webhook.model_dump(),
        "afterwards": header.afterwards,
        "grid": header.grid,
        "base": asdict(base),
    }
    return _compact(document)


def decode_header(text: bytes | str) -> tuple[Header, Entry]:
    """Return the header and the entry that the others are written against."""
    document: dict[str, Any] = json.loads(text)
    base = _entry(document.pop("base"))
    document["priority"] = Priority(document["priority"])
    document["reproducibility"] = Reproducibility(document["reproducibility"])
    document["output"] = Output.model_validate(document["output"])
    if document["webhook"] is not None:
        document["webhook"] = WebhookSpec.model_validate(document["webhook"])
    document["afterwards"] = tuple(document.get("afterwards", ()))  # jobs of an older farm have none
    axes = document.get("grid")
    document["grid"] = None if axes is None else tuple(Axis(name, tuple(labels)) for name, labels in axes)
    document["runs"] = tuple(Run(*run) for run in document["runs"])
    return Header(**document), base


def encode_entries(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield each entry as JSON of the fields that differ from the first entry's."""
    base = entries[0]
    for entry in entries:
        differing = {name: getattr(entry, name) for name in _FIELDS if getattr(entry, name) != getattr(base, name)}
        yield _compact(differing)


def decode_entry(text: bytes | str, base: Entry) -> Entry:
    """Return the entry that `encode_entries` wrote."""
    differing = json.loads(text)
    return _entry({**asdict(base), **differing}) if differing else base


def _entry(document: dict[str, Any]) -> Entry:
    """Give what JSON made lists their types back."""
    document["loras"] = tuple(Lora(*lora) for lora in document["loras"])
    document["controlnets"] = tuple(ControlNet(*net) for net in document["controlnets"])
    document["hires"] = None if document["hires"] is None else Hires(*document["hires"])
    document["acceleration"] = Acceleration(*document.get("acceleration", EXACT))  # jobs of an older farm have none
    return Entry(**document)
