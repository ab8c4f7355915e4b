"""A prompt as it is read: plain text and vectors of textual inversion, each with a weight, in sections.

Puts together what worker/text/weights.py and worker/text/inversion.py find. No tokens yet, so it costs next to nothing,
and says all that the result of encoding depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from worker.text.inversion import Inversion, Inversions, Version
from worker.text.weights import Piece, parse_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Part(NamedTuple):
    """What stands in one place of a prompt, and its weight."""

    content: str | Inversion
    weight: float


class Reading(NamedTuple):
    """A prompt by its marks. Warnings are phrases that follow the name of the text: 'prompt' + ' has …'."""

    sections: tuple[tuple[Part, ...], ...]
    warnings: tuple[str, ...]

    @property
    def versions(self) -> tuple[Version, ...]:
        """The files that it depends on."""
        return tuple(inversion.version for inversion in self._inversions)

    @property
    def inversion_hashes(self) -> Mapping[str, str]:
        """The sha256 of those files, hex, by the words that name them."""
        return {inversion.version.path.stem: inversion.sha256 for inversion in self._inversions}

    @property
    def _inversions(self) -> Iterator[Inversion]:
        parts = (part.content for section in self.sections for part in section)
        return (content for content in parts if isinstance(content, Inversion))


def read(text: str, *, weighted: bool, inversions: Inversions | None) -> Reading:
    """Read `text`, taking marks for marks if `weighted`, and words for the embeddings that they name."""
    warnings: dict[str, None] = {}
    sections = parse_weights(text) if weighted else ((Piece(text),),)
    parts = tuple(
        tuple(
            Part(content, piece.weight)
            for piece in pieces
            for content in (_resolve(piece.text, inversions, warnings) if inversions else [piece.text])
        )
        for pieces in sections
    )
    return Reading(parts, tuple(warnings))


def _resolve(text: str, inversions: Inversions, warnings: dict[str, None]) -> Iterator[str | Inversion]:
    """Yield `text` with its mentions replaced; one whose file is of no use stays text, and is warned of."""
    plain = ""
    for piece in inversions.split(text):
        if isinstance(piece, str):
            plain += piece
        elif isinstance(piece.found, str):
            warnings[f"has {piece.text!r} read as text: {piece.found}"] = None
            plain += piece.text
        else:
            if plain:
                yield plain
                plain = ""
            yield piece.found
    if plain:
        yield plain
