"""First-block cache for Flux: the blocks after the first run only for rows whose first block has something new to say.

The rule is that of diffusers' FirstBlockCacheConfig, for each row of a batch by itself. Where the first block's
residual differs from the one that the other blocks last ran for by no more than a threshold, relative to that one, what
the other blocks added then is added again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.caching.rows import CachedRow

_HEAD: Final = "first block's residual"
_TAIL: Final = "other blocks' residual"


class FirstBlockCache:
    """A FluxTransformer2DModel that skips what it can."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    def __call__(
        self,
        rows: Sequence[CachedRow | None],
        *,
        one_by_one: bool,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        guidance: torch.Tensor | None,
        txt_ids: torch.Tensor,
        img_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Return the transformer's output for every row, [rows, tokens, channels]; of `None` rows any numbers.

        The first block and the last layers run for all rows at once, the other blocks for those that need them: all of
        them together, or `one_by_one`, a shape that does not depend on how many they are.
        """
        model = self._transformer
        # As in the transformer's own forward, whose first block is told apart from the others here.
        hidden = model.x_embedder(hidden_states)
        numbers = [timestep] if guidance is None else [timestep, guidance]
        temb = model.time_text_embed(*[number.to(hidden.dtype) * 1000 for number in numbers], pooled_projections)
        context = model.context_embedder(encoder_hidden_states)
        rotary = model.pos_embed(torch.cat((txt_ids, img_ids)))
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        context, after_first = blocks[0](
            hidden_states=hidden, encoder_hidden_states=context, temb=temb, image_rotary_emb=rotary
        )
        residuals = (after_first - hidden).split(1)
        needs = _needs(rows, residuals)
        results = list(after_first.split(1))
        for place, row in enumerate(rows):
            if row is not None and place not in needs:
                results[place] = results[place] + row.recall(_TAIL)
        for group in _groups(needs, one_by_one=one_by_one):
            words, image, told = (_take(tensor, group) for tensor in (context, after_first, temb))
            for block in blocks[1:]:
                words, image = block(
                    hidden_states=image, encoder_hidden_states=words, temb=told, image_rotary_emb=rotary
                )
            for place, result in zip(group, image.split(1), strict=True):
                row = rows[place]
                assert row is not None  # noqa: S101  only rows that are somebody's are needed
                row.note(_HEAD, residuals[place])
                row.note(_TAIL, result - results[place])
                results[place] = result
        output: torch.Tensor = model.proj_out(model.norm_out(torch.cat(results), temb))
        return output


def _needs(rows: Sequence[CachedRow | None], residuals: Sequence[torch.Tensor]) -> list[int]:
    """Return the places of rows whose other blocks must run. The device is waited for, once."""
    places: list[int] = []
    changes: list[torch.Tensor] = []
    asked: list[tuple[int, float]] = []
    for place, (row, residual) in enumerate(zip(rows, residuals, strict=True)):
        if row is None:
            continue
        before = row.recall(_HEAD)
        if before is None:
            places.append(place)
            continue
        changes.append((residual - before).abs().mean() / before.abs().mean())
        asked.append((place, row.threshold))
    if changes:
        told = torch.stack(changes).tolist()
        # What is no number is no small change.
        places += [place for (place, threshold), change in zip(asked, told, strict=True) if not change <= threshold]
    return sorted(places)


def _take(rows: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Return these rows, without an index that the device would have to be sent."""
    each = rows.split(1)
    return rows if len(places) == len(each) else torch.cat([each[place] for place in places])


def _groups(places: list[int], *, one_by_one: bool) -> Iterator[list[int]]:
    """Yield the places that run together."""
    if one_by_one:
        yield from ([place] for place in places)
    elif places:
        yield places
