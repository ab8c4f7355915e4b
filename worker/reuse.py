"""Images that need not be rendered: one with the same bytes lies in the store already, and is copied there.

For jobs that ask for it, under `invariant`: there an image follows from what `content_hash` covers. The index is in the
store as well, one small object `content/<hash>.json` for each such image, so it outlives the ledger; an entry whose
image has been deleted is as good as none. All of it is a courtesy: whatever goes wrong, the image is rendered.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from farm.errors import FarmError
from farm.jobs import Picture
from farm.recipes import told_of
from farm.storage import content_key, object_key, thumbnail_key, upscaled_key
from worker.identity import Unknown
from worker.seat import BatchKey, passes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.jobs import Unit
    from farm.storage import Store
    from worker.engine import Engine
    from worker.identity import Identities, Identity
    from worker.pipelines.base import Inputs
    from worker.seat import Rendered

log: Final = logging.getLogger(__name__)

HASH_VERSION: Final = 1
"""Counts up when the same hash would no longer mean the same bytes, for whatever reason is not hashed itself."""

_KINDS: Final = ("thumbnail", "upscaled", "image")


def content_hash(unit: Unit, inputs: Inputs, identity: Identity, batch_shapes: Sequence[int]) -> str:
    """Return a sha256, hex, over all that the files of an `invariant` unit depend on; its place in a job is not of it.

    `batch_shapes` are the seats that forwards of its passes are padded to.
    """
    picture = {name: getattr(unit, name) for name in Picture.__dataclass_fields__}
    facts = {
        "version": HASH_VERSION,
        "picture": told_of(Picture(**picture)),
        "inputs": [None if pixels is None else _digest_of(pixels) for pixels in (inputs.image, inputs.mask)],
        "controls": [_digest_of(pixels) for pixels in inputs.controls],
        "model": unit.model,
        "output": unit.output.model_dump(mode="json"),
        "batch_shapes": list(batch_shapes),
        "identity": {**asdict(identity), "row": identity.row.model_dump(mode="json")},
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def keys_of(unit: Unit) -> dict[str, str]:
    """Return where the files of a unit lie, by kind; the image comes last, as it is put last."""
    output = unit.output
    keys = {}
    if output.thumbnail_px is not None:
        keys["thumbnail"] = thumbnail_key(unit.job, unit.index)
    if output.upscale is not None:
        keys["upscaled"] = upscaled_key(unit.job, unit.index, output.format, output.upscale)
    keys["image"] = object_key(unit.job, unit.index, output.format)
    return keys


class Reuse:
    """Finds earlier images, and remembers new ones; does nothing for units whose job did not ask. Thread-safe."""

    def __init__(self, store: Store, engine: Engine, identities: Identities) -> None:
        self._store = store
        self._engine = engine
        self._identities = identities

    def answer(self, unit: Unit, inputs: Inputs) -> bool:
        """Put an earlier image's files where those of `unit` belong; False when there is none to be had."""
        if not unit.reuse:
            return False
        try:
            shapes = self._batch_shapes(unit)
            key = content_key(content_hash(unit, inputs, self._identities.of(unit), shapes))
            earlier = _entry(self._store.get(key))
            for kind, target in keys_of(unit).items():
                if earlier[kind] != target:  # a repeat may find itself
                    self._store.copy(earlier[kind], target)
        except (FarmError, LookupError, ValueError, TypeError) as error:
            log.debug("nothing to reuse: %s", error, extra={"action": "reuse_missed", **_names(unit)})
            return False
        extra = {"action": "image_reused", "key": earlier["image"], **_names(unit)}
        log.info("an earlier image was reused", extra=extra)
        return True

    def remember(self, unit: Unit, inputs: Inputs, rendered: Rendered) -> None:
        """Let later units find the files of `unit`, which lie in the store."""
        if not unit.reuse:
            return
        try:
            identity, shapes = self._identities.of(unit), self._batch_shapes(unit)
            _check_as_rendered(identity, shapes, rendered)
            key = content_key(content_hash(unit, inputs, identity, shapes))
            self._store.put(key, json.dumps(keys_of(unit)).encode(), "application/json")
        except FarmError as error:
            log.warning("an image cannot be reused: %s", error, extra={"action": "reuse_untold", **_names(unit)})

    def _batch_shapes(self, unit: Unit) -> list[int]:
        """Return what forwards are padded to, as far as the engine knows by now: memory may have limited it."""
        stats = self._engine.stats()
        first, second = passes_of(unit)
        runs = [first, *([] if second is None else [second.unit])]
        return [stats.caps.get(str(BatchKey.of(run)), stats.max_batch) for run in runs]


def _check_as_rendered(identity: Identity, shapes: Sequence[int], rendered: Rendered) -> None:
    """Raise Unknown when the image was made with something else than what lies here now: a file has been replaced."""
    told = {
        "weights": (rendered.model_hash, identity.model),
        "LoRAs": (dict(rendered.lora_hashes), dict(identity.loras)),
        "upscaler": (rendered.upscaler_hash, identity.upscaler),
        "batch shape": (rendered.timings.batch_shape, shapes[-1]),
    }
    for what, (made_with, here) in told.items():
        if made_with != here:
            raise Unknown(f"it was made with other {what} than there are now")
    if not rendered.inversion_hashes.items() <= identity.inversions.items():
        raise Unknown("it was made with other embeddings than there are now")


def _entry(data: bytes) -> dict[str, str]:
    """Return the keys that an entry of the index tells; raises ValueError or LookupError for anything else."""
    told: dict[str, Any] = json.loads(data)
    return {kind: str(told[kind]) for kind in _KINDS if kind == "image" or kind in told}


def _digest_of(pixels: Any) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _names(unit: Unit) -> dict[str, object]:
    return {"job": unit.job, "index": unit.index, "model": unit.model}
