"""The latents of all runs of a lane, kept on the device and advanced in one product, whatever their samplers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from worker.sampling.schedules import LATENT_COLUMNS, NOISE_COLUMN, NUM_COLUMNS, NUM_SHALLOW_COLUMNS
from worker.uploads import upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.sampling.schedules import Schedule


class Histories:
    """The last latents and predictions of all seats of a lane: one float32 tensor [slots, 9, *shape] on the device.

    A run keeps them in a ring, so that nothing is ever moved: a shallow one, which looks back on one call, in the first
    five columns, noise included; only the others use the rest. Latents stay float32 whatever the model computes in.
    """

    def __init__(self, num_slots: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        size = math.prod(shape)
        self._columns = torch.zeros((num_slots, NUM_COLUMNS, size), dtype=torch.float32, device=device)
        self._products = torch.empty((num_slots, 1, size), dtype=torch.float32, device=device)
        self._weights = np.zeros((num_slots, 1, NUM_COLUMNS), dtype=np.float32)
        self._rings = [1] * num_slots  # how many latents the run of a slot keeps
        self._made = [0] * num_slots  # calls that `advance` has made of it
        # A view per row, made once: finding rows by index takes longer than copying them.
        self._rows = [list(columns.unbind(0)) for columns in self._columns.unbind(0)]
        self._product_rows = list(self._products.view(num_slots, size).unbind(0))

    def begin(self, slot: int, latents: torch.Tensor, schedule: Schedule) -> None:
        """Start a run of `schedule` in `slot` with initial `latents` [1, *shape]."""
        # What an earlier run left there could be NaN, which a weight of zero would not silence.
        self._columns[slot].zero_()
        self._rings[slot] = schedule.ring
        self._made[slot] = 0
        self.put([slot], [0], latents)

    def current(self, slots: Sequence[int], calls: Sequence[int]) -> torch.Tensor:
        """Return the latents before calls `calls` of `slots`, [seats, *shape], as a copy."""
        pairs = zip(slots, calls, strict=True)
        return torch.stack([self._rows[slot][self._column(slot, call)] for slot, call in pairs]).view(-1, *self.shape)

    def predictions(self, slots: Sequence[int], calls: Sequence[int]) -> torch.Tensor:
        """Return the predictions that calls `calls` of `slots` brought, [seats, *shape], as a copy; if still here."""
        pairs = zip(slots, calls, strict=True)
        rows = [self._rows[slot][self._column(slot, call) + 1] for slot, call in pairs]
        return torch.stack(rows).view(-1, *self.shape)

    def put(self, slots: Sequence[int], calls: Sequence[int], latents: torch.Tensor) -> None:
        """Set the latents before calls `calls` of `slots` to `latents` [seats, *shape]."""
        columns = [self._column(slot, call) for slot, call in zip(slots, calls, strict=True)]
        values = upload(latents.to(torch.float32), self._columns.device)
        self._write(slots, columns, values.flatten(1).unbind(0))

    def advance(
        self,
        slots: Sequence[int],
        calls: Sequence[int],
        schedules: Sequence[Schedule],
        predictions: torch.Tensor,
        noise: Sequence[torch.Tensor | None],
    ) -> None:
        """Advance `slots` past their calls `calls`, each by its own schedule, which must have a table.

        `predictions` [seats, *shape]; `noise` [1, *shape] where the schedule draws. Other slots stay as they are.
        Calling it again with the same arguments is safe: calls that were made are not made again.
        """
        # The next latents stand where the oldest stood, so that a call cannot be made twice.
        places = [place for place, slot in enumerate(slots) if self._made[slot] <= calls[place]]
        if len(places) < len(slots):
            schedules, noise = [schedules[place] for place in places], [noise[place] for place in places]
            slots, calls = [slots[place] for place in places], [calls[place] for place in places]
            predictions = predictions[places]
        if not slots:
            return
        self._weights.fill(0.0)
        for slot, call, schedule in zip(slots, calls, schedules, strict=True):
            self._weights[slot, 0] = schedule.column_weights[call]
        pairs = list(zip(slots, calls, strict=True))
        noisy = [slot for slot, drawn in zip(slots, noise, strict=True) if drawn is not None]
        self._write(
            [*slots, *noisy],
            [*(self._column(slot, call) + 1 for slot, call in pairs), *[NOISE_COLUMN] * len(noisy)],
            [*predictions.to(torch.float32).flatten(1).unbind(0), *self._uploaded(noise)],
        )

        # All slots, empty ones too: the product has one shape for ever, hence the same bits in any company. The second
        # one adds exact zeros to shallow runs, so that it may be left out when there are no others.
        weights = upload(torch.from_numpy(self._weights), self._columns.device)
        near, far = slice(NUM_SHALLOW_COLUMNS), slice(NUM_SHALLOW_COLUMNS, None)
        torch.bmm(weights[:, :, near], self._columns[:, near], out=self._products)
        if not all(schedule.is_shallow for schedule in schedules):
            self._products.baddbmm_(weights[:, :, far], self._columns[:, far])
        following = [self._column(slot, call + 1) for slot, call in pairs]
        self._write(slots, following, [self._product_rows[slot] for slot in slots])
        for slot, call in pairs:
            self._made[slot] = call + 1

    def _uploaded(self, noise: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """Return what was drawn as rows on the device, all in one copy."""
        drawn = [each.flatten() for each in noise if each is not None]
        if not drawn or self._columns.device.type == "cpu":
            return drawn
        return upload(torch.stack(drawn), self._columns.device).unbind(0)

    def _column(self, slot: int, call: int) -> int:
        """Return which column holds the latents before `call`; the prediction's stands beside it."""
        return LATENT_COLUMNS[call % self._rings[slot]]

    def _write(self, slots: Sequence[int], columns: Sequence[int], values: Sequence[torch.Tensor]) -> None:
        """Set rows to `values`, a tensor [numbers] each, at once."""
        rows = [self._rows[slot][column] for slot, column in zip(slots, columns, strict=True)]
        torch._foreach_copy_(rows, list(values))  # one kernel on CUDA; torch has no public name for it
