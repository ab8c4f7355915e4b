"""CLIP on a prompt: chunks, clip skip, weights; the states that a denoiser attends to.

What diffusers' `encode_prompt` computes, bit for bit, where the prompt is plain and fits one chunk of 77 tokens;
AUTOMATIC1111's rules beyond that. Which encoders a family has, and what becomes of their states, is its own business.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from farm.errors import RenderFailed
from worker.text.chunks import Chunk, Token, Vocabulary, cut, truncate
from worker.text.reading import Part, Reading, read

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from worker.text.cache import EmbeddingCache
    from worker.text.inversion import Inversions

Layer = Literal["last", "penultimate"]
"""What a family takes: SD 1.x and 2.x the last layer's states, normalised; SDXL and SD3 those before, as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipEncoding:
    """What a text has become.

    `states` [1, 77 * num_chunks, width]; `pooled` [1, dim] of the first chunk, projected if the model has a projection.
    A warning is a phrase that follows the name of the text: 'prompt' + ' is too long …'.
    """

    states: torch.Tensor
    pooled: torch.Tensor
    num_chunks: int
    warnings: tuple[str, ...] = ()
    inversion_hashes: Mapping[str, str] = field(default_factory=dict)  # sha256 of textual inversions, by name

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return self.states.nbytes + self.pooled.nbytes


class EncodedTexts(NamedTuple):
    """A prompt, and the negative one if there is any, by each encoder of a model; all of one number of chunks."""

    prompt: tuple[ClipEncoding, ...]
    negative: tuple[ClipEncoding, ...] | None
    warnings: tuple[str, ...]  # for the user, each beginning with the name of a field
    inversion_hashes: Mapping[str, str]  # sha256 of the textual inversions in either text, by name

    @property
    def num_chunks(self) -> int:
        """What rows must have in common to share a forward."""
        return self.prompt[0].num_chunks


class ClipText:
    """A CLIP tokenizer and its text model, with the `cache` that it shares with the other encoders of the pipeline.

    `part` is its name among them and in files of textual inversion: `clip_l` or `clip_g`. The model may live elsewhere
    and move about: it is called where it is within the context of `at_hand`, and only for what the cache does not have.
    Results are on `device`.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        *,
        device: torch.device,
        cache: EmbeddingCache,
        part: str = "clip_l",
        inversions: Inversions | None = None,
        at_hand: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._device = device
        self._cache = cache
        self._part = part
        self._inversions = inversions
        self._at_hand = at_hand
        self._has_mask = bool(getattr(model.config, "use_attention_mask", False))
        self._vocabulary = Vocabulary(
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            comma=tokenizer.get_vocab().get(",</w>"),
            length=min(tokenizer.model_max_length, model.config.max_position_embeddings),
        )

    def encode(
        self,
        text: str,
        *,
        layer: Layer,
        clip_skip: int = 0,
        num_chunks: int = 1,
        weighted: bool = True,
        adapters: Hashable = None,
    ) -> ClipEncoding:
        """Encode `text`, every chunk at batch 1: neither company nor the cache changes a bit.

        So many layers at the end are left out as `clip_skip` says (diffusers' number: A1111's less one). The states are
        followed by those of the empty text until there are `num_chunks`; a longer text keeps its length. Unless
        `weighted`, marks are text like any other and what does not fit one chunk is ignored with a warning, as in
        diffusers. `adapters` names what else the model's weights depend on, such as a LoRA. Raises RenderFailed when
        `clip_skip` leaves no layer.
        """
        reading = read(text, weighted=weighted, inversions=self._inversions)
        # Warnings belong to it too: a file that is of no use may come and go.
        key = (self._part, text, weighted, reading.versions, reading.warnings, layer, clip_skip, adapters)
        encoding = self._cache.get(key, lambda: self._encode(reading, layer, clip_skip, weighted=weighted))
        missing = num_chunks - encoding.num_chunks
        if missing <= 0:
            return encoding

        def lengthen() -> ClipEncoding:
            empty = self.encode("", layer=layer, clip_skip=clip_skip, adapters=adapters)
            states = torch.cat([encoding.states, *[empty.states] * missing], dim=1)
            return replace(encoding, states=states, num_chunks=num_chunks)

        return self._cache.get((*key, num_chunks), lengthen)

    def _encode(self, reading: Reading, layer: Layer, clip_skip: int, *, weighted: bool) -> ClipEncoding:
        sections = [[group for part in section for group in self._tokenize(part)] for section in reading.sections]
        warnings = reading.warnings
        if weighted:
            chunks = cut(sections, self._vocabulary)
        else:
            chunk, lost = truncate([token for group in sections[0] for token in group], self._vocabulary)
            chunks = [chunk]
            if lost:
                ignored = self._tokenizer.decode([token.id for token in lost if token.vector is None])
                warnings = (*warnings, f"is too long for the model, ignored: {ignored!r}")
        with self._at_hand():
            encoded = [self._run(chunk, layer, clip_skip) for chunk in chunks]
        return ClipEncoding(
            states=torch.cat([states for states, _ in encoded], dim=1),
            pooled=encoded[0][1],
            num_chunks=len(chunks),
            warnings=warnings,
            inversion_hashes=reading.inversion_hashes,
        )

    def _tokenize(self, part: Part) -> list[tuple[Token, ...]]:
        """Return the tokens of `part` in groups that must stay together."""
        if isinstance(part.content, str):
            ids = self._tokenizer(part.content, add_special_tokens=False, verbose=False).input_ids
            return [(Token(number, part.weight),) for number in ids]
        # The first token's id stands in: it is in every vocabulary, and no encoder looks for it to pool there.
        vectors = part.content.vectors[self._part]
        return [tuple(Token(self._vocabulary.bos, part.weight, vector) for vector in vectors)]

    def _run(self, chunk: Chunk, layer: Layer, clip_skip: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted states [1, 77, width] of `chunk` and its pooled state [1, dim]."""
        num_layers = self._model.config.num_hidden_layers
        left_out = clip_skip + (layer == "penultimate")
        if left_out > num_layers:
            raise RenderFailed(f"clip_skip {clip_skip} leaves none of the {num_layers} layers of the text encoder")
        device = self._model.device
        with self._vectors_in_place(chunk):
            output = self._model(
                torch.tensor([chunk.ids], device=device),
                attention_mask=torch.tensor([chunk.mask], device=device) if self._has_mask else None,
                output_hidden_states=left_out > 0,
            )
        states = output.last_hidden_state
        if left_out:
            states = output.hidden_states[-1 - left_out]
            if layer == "last":
                # A model with a projection keeps the text model inside.
                states = getattr(self._model, "text_model", self._model).final_layer_norm(states)
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        return emphasise(states, chunk.weights).to(self._device), pooled.to(self._device)

    @contextmanager
    def _vectors_in_place(self, chunk: Chunk) -> Iterator[None]:
        """Let the vectors of `chunk` take the place of their tokens' embeddings; the model itself does not change."""
        if not chunk.vectors:
            yield
            return

        def replace(_module: object, _inputs: object, embeddings: torch.Tensor) -> torch.Tensor:
            embeddings = embeddings.clone()
            embeddings[0, list(chunk.vectors)] = torch.stack(list(chunk.vectors.values())).to(embeddings)
            return embeddings

        handle = self._model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def emphasise(states: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Return the states of one chunk [1, tokens, width], each token's times its weight, at the mean that they had.

    A1111's rule ('Original' emphasis), with one mean over all numbers of the chunk. Weights of 1 change nothing.
    """
    if all(weight == 1.0 for weight in weights):
        return states
    plain = states.float()
    factors = torch.tensor(weights, device=states.device)
    weighted = plain * factors.view(1, -1, 1)
    scale = plain.mean() / weighted.mean()
    return (weighted * torch.where(scale.isfinite(), scale, 1.0)).to(states.dtype)


def encode_texts(
    clips: Sequence[ClipText],
    prompt: str,
    negative_prompt: str | None,
    *,
    layer: Layer,
    clip_skip: int = 0,
    adapters: Hashable = None,
) -> EncodedTexts:
    """Encode both texts with every one of `clips`, the shorter made as long as the longest with empty chunks.

    `clip_skip` holds for the prompt alone: the negative prompt is never skipped in diffusers.
    """
    texts = {"prompt": (prompt, clip_skip)}
    if negative_prompt is not None:
        texts["negative_prompt"] = (negative_prompt, 0)

    def encode(num_chunks: int = 1) -> dict[str, tuple[ClipEncoding, ...]]:
        # Both texts by one encoder, then by the next: each may have to come to the device.
        by_clip = [
            {
                field: clip.encode(text, layer=layer, clip_skip=skip, num_chunks=num_chunks, adapters=adapters)
                for field, (text, skip) in texts.items()
            }
            for clip in clips
        ]
        return {field: tuple(encodings[field] for encodings in by_clip) for field in texts}

    encoded = encode()
    longest = max(encoding.num_chunks for encodings in encoded.values() for encoding in encodings)
    if longest > 1:
        encoded = encode(longest)
    warnings = {  # in order, and once where two encoders say the same
        f"{field} {warning}": None
        for field, encodings in encoded.items()
        for encoding in encodings
        for warning in encoding.warnings
    }
    hashes = {
        name: digest
        for encodings in encoded.values()
        for encoding in encodings
        for name, digest in encoding.inversion_hashes.items()
    }
    return EncodedTexts(encoded["prompt"], encoded.get("negative_prompt"), tuple(warnings), hashes)
