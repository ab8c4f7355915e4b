"""Where the files and batches of OpenAI clients lie in S3 (api/openai): what the API writes, and `farm prune` deletes.

    openai/tenant-<name>/files/<mark>.json       what a file is called, and how large it is
    openai/tenant-<name>/contents/<mark>         its bytes, written before the record and deleted after it
    openai/tenant-<name>/batches/<mark>.json     what was asked for, and in the end what became of it
    openai/tenant-<name>/lines/<mark>.jsonl      custom_id and response_format of its lines, in order

S3 lists keys in ascending order and ids ascend with time, so a mark is the end of an id with every letter turned into
its opposite: a listing begins with the newest, wherever it is to begin. A batch and its job have the same end.
"""

from __future__ import annotations

import re
from typing import Final

from farm.jobs import new_job_id

FILED: Final = "openai/"
"""What all of these keys begin with."""

JOB_PREFIX: Final = "job_"

_LETTERS: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # those of ids, in their order
_OPPOSITES: Final = str.maketrans(_LETTERS, _LETTERS[::-1])
_STAMP: Final = re.compile(f"[{_LETTERS}]{{20}}")
_OF_BATCH: Final = re.compile(rf"{FILED}tenant-[^/]+/(?:batches|lines)/([{_LETTERS}]{{20}})\.jsonl?")


def new_stamp(now_s: float | None = None) -> str:
    """Return what an id has after its prefix: 20 letters that ascend with time, the first ten being the time."""
    return new_job_id(now_s).removeprefix(JOB_PREFIX)


def stamp_of(name: bytes, at_s: float) -> str:
    """Return a stamp of this time, the rest of which follows from a hash."""
    return new_stamp(at_s)[:10] + "".join(_LETTERS[byte % 32] for byte in name[:10])


def stamp_in(text: str, prefix: str) -> str | None:
    """Return the stamp of an id with this prefix; None for what is none."""
    stamp = text.removeprefix(prefix)
    return stamp if text.startswith(prefix) and _STAMP.fullmatch(stamp) else None


def mark_of(stamp: str) -> str:
    """Return what a stamp is called in keys; marks of later stamps come earlier. The mark of a mark is its stamp."""
    return stamp.translate(_OPPOSITES)


def filed_prefix(tenant: str, kind: str) -> str:
    """Return what the keys of one kind and tenant begin with."""
    return f"{FILED}tenant-{tenant}/{kind}/"  # a tenant may be called `..`


def content_key(tenant: str, stamp: str) -> str:
    """Return the key of a file's bytes."""
    return f"{filed_prefix(tenant, 'contents')}{mark_of(stamp)}"


def lines_key(tenant: str, stamp: str) -> str:
    """Return the key of what is kept of a batch's lines."""
    return f"{filed_prefix(tenant, 'lines')}{mark_of(stamp)}.jsonl"


def job_of_key(key: str) -> str | None:
    """Return the job that a batch's record and lines belong to; None for other keys."""
    found = _OF_BATCH.fullmatch(key)
    return None if found is None else JOB_PREFIX + mark_of(found[1])
