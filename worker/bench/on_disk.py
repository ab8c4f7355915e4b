"""A model as files, for what begins with files: its own, or random weights that are written for as long."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.errors import Fatal
from worker.bench.disk import DiskModel
from worker.bench.random_weights import RandomModel
from worker.residents import free_cached_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Subject = RandomModel | DiskModel
"""What is measured."""

_GIB: Final = 1 << 30
_ROOM: Final = 1.1


@contextmanager
def on_disk(
    subject: Subject, dtype: torch.dtype, *, models_dir: Path, scratch: Path | None
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a models folder with this model, and its weights.

    Random ones are written in `dtype` to a folder in `scratch`, the system's own if None. Raises Fatal when they do not
    fit there.
    """
    if isinstance(subject, DiskModel):
        yield models_dir.resolve(), list(subject.files.weights.values())
        return
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        needed = _ROOM * subject.num_values * dtype.itemsize
        if (free := shutil.disk_usage(folder).free) < needed:
            raise Fatal(f"its weights take {needed / _GIB:.0f} GiB and {folder} has {free / _GIB:.0f}: --scratch")
        subject.write(folder, dtype)
        free_cached_memory()
        yield folder, list(DiskModel(subject.row, folder, subject.device).files.weights.values())
