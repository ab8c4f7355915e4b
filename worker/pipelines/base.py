"""What the engine asks of a model: encode, predict, decode. A family is one class that answers.

A pipeline holds weights and computes; it keeps no unit's state and knows no lanes. All tensors it takes and gives
are on its own device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from farm.jobs import Unit


class Encoded(NamedTuple):
    """What a prompt has become: a conditioning that the engine only carries, and remarks for the user."""

    conditioning: object
    warnings: tuple[str, ...] = ()


class Pipeline(Protocol):
    """One loaded model on one device."""

    @property
    def name(self) -> str:
        """Its name in the catalog."""

    @property
    def model_hash(self) -> str:
        """The sha256 of its weights, hex."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    def device_name(self) -> str:
        """The kind of device, as a recipe names it."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def max_batch(self) -> int | None:
        """A cap on seats of a lane from the catalog."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The config that came with the model: its betas and what it predicts."""

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one image's latents, without a batch dimension; sizes in pixels."""

    def encode(self, unit: Unit) -> Encoded:
        """Encode the unit's prompts, one unit at a time: the result never depends on company."""

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditionings: Sequence[object],
        guidance_scales: torch.Tensor | None,
        batch_shape: int | None,
    ) -> torch.Tensor:
        """Return the guided prediction of every seat, float32 [seats, *latent_shape].

        `latents` float32 [seats, *latent_shape], scaled for the model; `timesteps` float32 [seats], each its own;
        `guidance_scales` float32 [seats], None when no seat is guided. With `batch_shape` the forward runs as if for
        that many seats.
        """

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one image's latents [1, *latent_shape] to pixels, uint8 [h, w, 3]."""


def pad_rows(rows: torch.Tensor, num_rows: int | None) -> torch.Tensor:
    """Return `rows` [n, …] with its first row repeated at the end until there are `num_rows` (None: as they are)."""
    if num_rows is None or len(rows) == num_rows:
        return rows
    return torch.cat([rows, rows[:1].expand(num_rows - len(rows), *rows.shape[1:])])
