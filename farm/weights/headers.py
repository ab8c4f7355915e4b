"""What a safetensors file holds, read from its header alone: names, shapes and types, not one weight.

The format: eight bytes with the length of the header, little-endian; the header, a JSON object of tensors; the data.
A header is somebody else's file: nothing in it is believed before it was checked.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from farm.errors import Fatal

if TYPE_CHECKING:
    from pathlib import Path

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
_MAX_DIMENSIONS: Final = 16
_BITS: Final = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


class BadHeader(Fatal):
    """The file is no intact safetensors file."""


class TensorInfo(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file by name.

    Raises BadHeader, naming file and fault, when it is cut short, no safetensors, or contradicts itself.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES):
                raise BadHeader(f"{path} is no safetensors file, or it is cut short: its header does not fit into it")
            document = json.loads(file.read(length))
    except OSError as error:
        raise BadHeader(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"{path} is no safetensors file: its header is no JSON") from error
    if not isinstance(document, dict):
        raise BadHeader(f"{path} is no safetensors file: its header is no JSON object")
    data_bytes = file_bytes - _LENGTH_BYTES - length
    return {
        name: _read_tensor(path, name, entry, data_bytes) for name, entry in document.items() if name != "__metadata__"
    }


def _read_tensor(path: Path, name: str, entry: object, data_bytes: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise BadHeader(f"{path} is corrupt: tensor {name!r} lacks dtype, shape or data_offsets")
    if len(shape) > _MAX_DIMENSIONS or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise BadHeader(f"{path} is corrupt: tensor {name!r} has the shape {str(shape)[:80]}")
    if not 0 <= start <= end <= data_bytes:
        raise BadHeader(f"{path} is cut short or corrupt: tensor {name!r} lies beyond its end")
    info = TensorInfo(dtype, tuple(shape), end - start)
    # Types that came later than this table are taken at their word.
    if dtype in _BITS and info.num_values * _BITS[dtype] != info.num_bytes * 8:
        raise BadHeader(f"{path} is corrupt: tensor {name!r} has {info.num_bytes} bytes for {info.num_values} {dtype}")
    return info
