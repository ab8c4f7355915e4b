"""DeepCache for UNets: between whole calls only the outermost blocks run, over a deep feature that was kept.

The deep feature is what enters the last up block. It changes slowly from step to step, and nearly all of the work goes
into it; the first down block, whose output enters beside it, is computed afresh every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from worker.caching.rows import DEEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.caching.rows import CachedRow


class DeepCache:
    """A UNet2DConditionModel in its two kinds of calls. Both take what the UNet's own forward takes, by its names."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def whole(self, rows: Sequence[CachedRow | None], *, sample: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the UNet, and note the deep features of `rows`; the output is the same as without."""
        features: list[torch.Tensor] = []

        def listen(_block: object, _args: object, kwargs: dict[str, Any]) -> None:
            features.append(kwargs["hidden_states"])

        listener = self._unet.up_blocks[-1].register_forward_pre_hook(listen, with_kwargs=True)
        try:
            output: torch.Tensor = self._unet(sample, **inputs, return_dict=False)[0]
        finally:
            listener.remove()
        for row, feature in zip(rows, features[0].split(1), strict=True):
            if row is not None:
                row.note(DEEP, feature)
        return output

    def shallow(
        self,
        rows: Sequence[CachedRow | None],
        *,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,  # noqa: ARG002  is in the kept feature
    ) -> torch.Tensor:
        """Run the first down block and the last up block over the features that `rows` have kept."""
        unet = self._unet
        texts = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        embedded = self._embed(sample, timestep, encoder_hidden_states, timestep_cond, added_cond_kwargs)
        outer = unet.conv_in(2 * sample - 1.0 if unet.config.center_input_sample else sample)
        _, residuals = unet.down_blocks[0](hidden_states=outer, temb=embedded, **_texts(unet.down_blocks[0], texts))
        last = unet.up_blocks[-1]
        skips = (outer, *residuals)[: len(last.resnets)]
        if down_block_additional_residuals is not None:
            # More of them than skips: those of deeper blocks are in the kept feature.
            pairs = zip(skips, down_block_additional_residuals, strict=False)
            skips = tuple(skip + steering for skip, steering in pairs)
        hidden = last(
            hidden_states=_recalled(rows),
            temb=embedded,
            res_hidden_states_tuple=skips,
            **_texts(last, texts),
        )
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        output: torch.Tensor = unet.conv_out(hidden)
        return output

    def _embed(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None,
        added_cond_kwargs: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Return what all blocks are told of the step and, in SDXL, of sizes and the pooled text."""
        unet = self._unet
        embedded: torch.Tensor = unet.time_embedding(
            unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond
        )
        added = unet.get_aug_embed(
            emb=embedded, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        embedded = embedded if added is None else embedded + added
        return embedded if unet.time_embed_act is None else unet.time_embed_act(embedded)


def _texts(block: Any, texts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what only blocks that attend to texts take."""
    return {"encoder_hidden_states": texts} if getattr(block, "has_cross_attention", False) else {}


def _recalled(rows: Sequence[CachedRow | None]) -> torch.Tensor:
    """Return the deep features of all rows; those that only fill up the shape get anybody's."""
    features = [None if row is None else row.recall(DEEP) for row in rows]
    anybody = next(feature for feature in features if feature is not None)
    return torch.cat([anybody if feature is None else feature for feature in features])
