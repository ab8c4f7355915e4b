"""Where a tenant's files and batches lie in S3: records, newest first, and what they tell of beside them.

    openai/<tenant>/files/<mark>.json        what a file is called, and how large it is
    openai/<tenant>/contents/<mark>          its bytes, written before the record and deleted after it
    openai/<tenant>/batches/<mark>.json      what was asked for, and in the end what became of it
    openai/<tenant>/lines/<mark>.jsonl       custom_id and response_format of its lines, in order

S3 lists keys in ascending order and ids ascend with time, so a mark is an id with every letter turned into its
opposite: a listing begins with the newest, wherever it is to begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Generic, Literal, TypeVar

from pydantic import BaseModel

from farm.jobs import new_job_id
from farm.storage import NoSuchObject, Store

_LETTERS: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # those of ids, in their order
_OPPOSITES: Final = str.maketrans(_LETTERS, _LETTERS[::-1])
_STAMP: Final = re.compile(f"[{_LETTERS}]{{20}}")
_JSON: Final = "application/json"

Record = TypeVar("Record", bound=BaseModel)


def new_stamp(now_s: float | None = None) -> str:
    """Return what an id has after its prefix: 20 letters that ascend with time."""
    return new_job_id(now_s).partition("_")[2]


def stamp_in(text: str, prefix: str) -> str | None:
    """Return the stamp of an id with this prefix; None for what is none."""
    stamp = text.removeprefix(prefix)
    return stamp if text.startswith(prefix) and _STAMP.fullmatch(stamp) else None


def mark_of(stamp: str) -> str:
    """Return what a stamp is called in keys; marks of later stamps come earlier."""
    return stamp.translate(_OPPOSITES)


def _prefix(tenant: str, kind: str) -> str:
    return f"openai/tenant-{tenant}/{kind}/"  # a tenant may be called `..`


def content_key(tenant: str, stamp: str) -> str:
    """Return the key of a file's bytes."""
    return f"{_prefix(tenant, 'contents')}{mark_of(stamp)}"


def lines_key(tenant: str, stamp: str) -> str:
    """Return the key of what is kept of a batch's lines."""
    return f"{_prefix(tenant, 'lines')}{mark_of(stamp)}.jsonl"


class Shelf(Generic[Record]):
    """Records of one kind and one tenant. Methods raise StorageDown, and NoSuchObject where there is none."""

    def __init__(self, store: Store, tenant: str, kind: Literal["files", "batches"], model: type[Record]) -> None:
        self._store = store
        self._prefix = _prefix(tenant, kind)
        self._model = model

    def get(self, stamp: str) -> Record:
        """Return the record of this stamp."""
        return self._read(self._key(stamp))

    def put(self, stamp: str, record: Record) -> None:
        """Write a record, in place of an earlier one."""
        self._store.put(self._key(stamp), record.model_dump_json().encode(), _JSON)

    def delete(self, stamp: str) -> None:
        """Delete a record, if there is one."""
        self._store.delete_many([self._key(stamp)])

    def newest(self, *, after: str | None = None) -> Iterator[Record]:
        """Yield records from the newest on, or those older than the stamp `after`."""
        found = self._store.objects(self._prefix, after="" if after is None else self._key(after))
        return self._read_all(each.key for each in found)

    def oldest(self, *, after: str | None = None) -> Iterator[Record]:
        """Yield records from the oldest on, or those newer than the stamp `after`."""
        keys = list(self._store.list(self._prefix))
        return self._read_all(key for key in reversed(keys) if after is None or key < self._key(after))

    def _key(self, stamp: str) -> str:
        return f"{self._prefix}{mark_of(stamp)}.json"

    def _read(self, key: str) -> Record:
        return self._model.model_validate_json(b"".join(self._store.pieces(key)))

    def _read_all(self, keys: Iterable[str]) -> Iterator[Record]:
        for key in keys:
            try:
                yield self._read(key)
            except NoSuchObject:
                continue  # deleted meanwhile
