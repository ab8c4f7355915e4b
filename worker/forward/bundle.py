"""The keyword arguments of a forward, taken apart: its tensors in order, and a key for all but their numbers.

Two calls of one key differ in numbers, and in rows if at all; so one recording, or one compilation, serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence


class Leaf(NamedTuple):
    """One tensor of a bundle; `is_batched` when its first dimension is the rows'."""

    tensor: torch.Tensor
    is_batched: bool


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Keyword arguments: tensors, and dicts, lists and tuples of them; None, numbers and texts are part of the key."""

    inputs: Mapping[str, Any]
    leaves: tuple[Leaf, ...]
    key: Hashable  # what is there and what is None; types and shapes, but for the number of rows
    num_rows: int

    @classmethod
    def of(cls, inputs: Mapping[str, Any], unbatched: Collection[str] = ()) -> Self:
        """Take `inputs` apart, all of whose tensors have as many rows, but for those named in `unbatched`.

        Raises ValueError when they have not, or when there is no tensor with rows.
        """
        leaves: list[Leaf] = []
        key: list[Hashable] = []
        for path, value in _walk(inputs, ()):
            if not isinstance(value, torch.Tensor):
                key.append((path, value))
                continue
            is_batched = path[0] not in unbatched
            leaves.append(Leaf(value, is_batched))
            key.append((path, value.dtype, is_batched, tuple(value.shape[1:] if is_batched else value.shape)))
        return cls(inputs, tuple(leaves), tuple(key), _num_rows(leaves))

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return sum(leaf.tensor.nbytes for leaf in self.leaves)

    def moved_to(self, tensors: Sequence[torch.Tensor]) -> Self:
        """Return the bundle with other tensors in its leaves' places, in their order."""
        rest = iter(tensors)
        leaves = tuple(Leaf(tensor, leaf.is_batched) for tensor, leaf in zip(tensors, self.leaves, strict=True))
        inputs = {name: _rebuilt(value, rest) for name, value in self.inputs.items()}
        return type(self)(inputs, leaves, self.key, _num_rows(leaves))

    def buffers(self, num_rows: int) -> list[torch.Tensor]:
        """Return new tensors for the leaves, with `num_rows` rows, laid out in memory as they are."""
        return [_buffer(leaf, num_rows) for leaf in self.leaves]

    def fill(self, buffers: Sequence[torch.Tensor]) -> None:
        """Copy the leaves into `buffers`; rows that are too many there get what the first row has."""
        for leaf, buffer in zip(self.leaves, buffers, strict=True):
            if leaf.is_batched and len(buffer) > self.num_rows:
                buffer[: self.num_rows].copy_(leaf.tensor)
                buffer[self.num_rows :].copy_(leaf.tensor[:1].expand(len(buffer) - self.num_rows, *buffer.shape[1:]))
            else:
                buffer.copy_(leaf.tensor)


def _num_rows(leaves: Sequence[Leaf]) -> int:
    counts = {len(leaf.tensor) for leaf in leaves if leaf.is_batched}
    if len(counts) != 1:
        raise ValueError(f"the tensors of a forward have the same number of rows, not {sorted(counts)}")
    return counts.pop()


def _walk(value: Any, path: tuple[Hashable, ...]) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    """Yield what is no container, with the way there. Empty containers are told apart from None by their type."""
    items: list[tuple[Hashable, Any]]
    match value:
        case Mapping():
            items = list(value.items())
        case list() | tuple():
            items = list(enumerate(value))
        case _:
            yield path, value
            return
    if not items:
        yield path, type(value).__name__
    for name, item in items:
        yield from _walk(item, (*path, name))


def _rebuilt(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    match value:
        case torch.Tensor():
            return next(tensors)
        case Mapping():
            return {name: _rebuilt(item, tensors) for name, item in value.items()}
        case list():
            return [_rebuilt(item, tensors) for item in value]
        case tuple():
            return tuple(_rebuilt(item, tensors) for item in value)
        case _:
            return value


def _buffer(leaf: Leaf, num_rows: int) -> torch.Tensor:
    tensor = leaf.tensor
    shape = (num_rows, *tensor.shape[1:]) if leaf.is_batched else tensor.shape
    is_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)  # noqa: PLR2004  of images
    layout = torch.channels_last if is_last and not tensor.is_contiguous() else torch.contiguous_format
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=layout)
