"""A memory of encoded prompts: negative prompts repeat all the time, and a text encoder may be far away.

Knows nothing of texts or models: whoever asks puts everything that the result depends on into the key.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Encoding(Protocol):
    """What is kept: anything that says how large it is."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""


EncodingT = TypeVar("EncodingT", bound=Encoding)


class EmbeddingCache:
    """The encodings used last, as many as `max_bytes` hold, on whatever device they were made; for one thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self.served_bytes = 0  # of all that was returned, each time
        self._encodings: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._encodings)

    def get(self, key: Hashable, encode: Callable[[], EncodingT]) -> EncodingT:
        """Return what is kept under `key`, or else call `encode` and keep what it returns.

        What was not used for longest makes room; an encoding larger than the whole memory is returned and not kept.
        """
        if key in self._encodings:
            self.hits += 1
            self._encodings.move_to_end(key)
            kept = cast("EncodingT", self._encodings[key])
            self.served_bytes += kept.num_bytes
            return kept
        self.misses += 1
        encoding = encode()
        self.served_bytes += encoding.num_bytes
        if encoding.num_bytes <= self.max_bytes:
            self._encodings[key] = encoding
            self.num_bytes += encoding.num_bytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._encodings.popitem(last=False)
                self.num_bytes -= oldest.num_bytes
        return encoding
