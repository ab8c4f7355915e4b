"""T5 on a prompt: the text as it is written, for Flux and SD3, as their pipelines in diffusers encode it.

T5 reads sentences, and neither weights nor BREAK nor textual inversion mean anything to it: brackets are text.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from contextlib import AbstractContextManager

    from worker.text.cache import EmbeddingCache


@dataclass(frozen=True, slots=True, eq=False)
class T5Encoding:
    """What a text has become: `states` [1, max_sequence_length, width]; warnings as in ClipEncoding."""

    states: torch.Tensor
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.states.nbytes


class T5Text:
    """A T5 tokenizer and its encoder, with the `cache` that it shares with the other encoders of the pipeline.

    The model may live elsewhere and move about: it is called where it is within the context of `at_hand`, and only for
    what the cache does not have. Results are on `device`.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        *,
        device: torch.device,
        cache: EmbeddingCache,
        at_hand: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._device = device
        self._cache = cache
        self._at_hand = at_hand

    def encode(self, text: str, *, max_sequence_length: int = 512, adapters: Hashable = None) -> T5Encoding:
        """Encode `text` at batch 1, padded to `max_sequence_length` tokens; no mask hides the padding.

        What goes beyond that is ignored with a warning. `adapters` is as in ClipText.encode.
        """
        key = ("t5", text, max_sequence_length, adapters)
        return self._cache.get(key, lambda: self._encode(text, max_sequence_length))

    def _encode(self, text: str, limit: int) -> T5Encoding:
        ids = self._tokenizer(
            text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        ).input_ids
        whole = self._tokenizer(text, verbose=False).input_ids
        warnings: tuple[str, ...] = ()
        if len(whole) > limit:  # both end with T5's last token
            warnings = (f"is too long for the model, ignored: {self._tokenizer.decode(whole[limit - 1 : -1])!r}",)
        with self._at_hand():
            states = self._model(ids.to(self._model.device))[0].to(self._device, self._model.dtype)
        return T5Encoding(states, warnings)
