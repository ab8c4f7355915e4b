"""Records of a tenant's files and batches in S3, newest first. How their keys look is farm/filing.py's business."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Generic, Literal, TypeVar

from pydantic import BaseModel

from farm.filing import filed_prefix, mark_of
from farm.storage import NoSuchObject, Store

_JSON: Final = "application/json"

Record = TypeVar("Record", bound=BaseModel)


class Shelf(Generic[Record]):
    """Records of one kind and one tenant. Methods raise StorageDown, and NoSuchObject where there is none."""

    def __init__(self, store: Store, tenant: str, kind: Literal["files", "batches"], model: type[Record]) -> None:
        self._store = store
        self._prefix = filed_prefix(tenant, kind)
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
