"""Where a row of tokens is cut: chunks of 75, each with a beginning and an end of its own, as AUTOMATIC1111 cuts.

Pure but for the vectors of textual inversion, which pass through untouched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

COMMA_BACKTRACK: Final = 20
"""A chunk that is full is cut after its last comma instead, if that lies no further back than this."""


class Token(NamedTuple):
    """A token's id, its weight, and the vector that takes the place of its embedding, if it has one."""

    id: int
    weight: float = 1.0
    vector: torch.Tensor | None = None


class Vocabulary(NamedTuple):
    """What a tokenizer's special tokens are, and how many tokens a chunk has, first and last included."""

    bos: int
    eos: int
    pad: int
    comma: int | None
    length: int

    @property
    def room(self) -> int:
        """Tokens of text that a chunk holds."""
        return self.length - 2


@dataclass(slots=True)
class Chunk:
    """What the encoder reads at once: `ids`, `mask` and `weights`, `length` of each, and vectors by position."""

    ids: list[int]
    mask: list[int]
    weights: list[float]
    vectors: dict[int, torch.Tensor] = field(default_factory=dict)


def cut(sections: Sequence[Sequence[tuple[Token, ...]]], vocabulary: Vocabulary) -> list[Chunk]:
    """Return the chunks of `sections`, one or more; each section but the last ends its chunk.

    A section is a row of groups of tokens, and no group is torn apart: a token of text is a group by itself, the
    vectors of one textual inversion are another, never more than a chunk has room for.
    """
    chunks: list[Chunk] = []
    tokens: list[Token] = []
    last_comma = -1

    for number, section in enumerate(sections):
        for group in section:
            if group[0].id == vocabulary.comma:
                last_comma = len(tokens)
            elif len(tokens) == vocabulary.room and last_comma >= max(0, vocabulary.room - COMMA_BACKTRACK):
                chunks.append(_close(tokens[: last_comma + 1], vocabulary))
                tokens = tokens[last_comma + 1 :]
                last_comma = -1
            if len(tokens) + len(group) > vocabulary.room:
                chunks.append(_close(tokens, vocabulary))
                tokens = []
                last_comma = -1
            tokens += group
        if number < len(sections) - 1 or tokens or not chunks:
            chunks.append(_close(tokens, vocabulary))
            tokens = []
            last_comma = -1
    return chunks


def truncate(tokens: Sequence[Token], vocabulary: Vocabulary) -> tuple[Chunk, Sequence[Token]]:
    """Return one chunk with as many of `tokens` as it has room for, and the others."""
    return _close(tokens[: vocabulary.room], vocabulary), tokens[vocabulary.room :]


def _close(tokens: Sequence[Token], vocabulary: Vocabulary) -> Chunk:
    num_pads = vocabulary.room - len(tokens)
    return Chunk(
        ids=[vocabulary.bos, *(token.id for token in tokens), vocabulary.eos, *[vocabulary.pad] * num_pads],
        mask=[1] * (len(tokens) + 2) + [0] * num_pads,
        weights=[1.0, *(token.weight for token in tokens), 1.0, *[1.0] * num_pads],
        vectors={place: token.vector for place, token in enumerate(tokens, 1) if token.vector is not None},
    )
