"""The latents of all runs of a lane, kept on the device and advanced in one product, whatever their samplers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from worker.sampling.schedules import DEPTH, NOISE, NUM_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.sampling.schedules import Schedule

_PREDICTIONS: Final = DEPTH
"""The first column of predictions, behind those of the latents."""


class Histories:
    """The last latents and predictions of all seats of a lane: one float32 tensor [9, slots, numbers] on the device.

    Columns 0 to 3 are a ring of latents, 4 to 7 one of predictions, 8 is the noise; nothing is ever moved. The rings of
    runs that began at different steps are turned so that all write to the same column at the same step, which then is
    one contiguous copy. Latents stay float32 whatever the model computes in.
    """

    def __init__(self, num_slots: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self._columns = torch.zeros((NUM_WEIGHTS, num_slots, math.prod(shape)), dtype=torch.float32, device=device)
        self._rows = self._columns.flatten(0, 1)  # [9 * slots, numbers]
        self._products = torch.empty((num_slots, 1, math.prod(shape)), dtype=torch.float32, device=device)
        self._weights = np.zeros((num_slots, 1, NUM_WEIGHTS), dtype=np.float32)
        self._num_slots = num_slots
        self._turns = [0] * num_slots  # where in the ring the run of a slot began
        self._tick = 0

    def begin(self, slot: int, latents: torch.Tensor) -> None:
        """Start a run in `slot` with initial `latents` [1, *shape]."""
        # What an earlier run left there could be NaN, which a weight of zero would not silence.
        self._columns[:, slot].zero_()
        self._turns[slot] = 0
        self.put([slot], [0], latents)

    def current(self, slots: Sequence[int], calls: Sequence[int]) -> torch.Tensor:
        """Return the latents before calls `calls` of `slots`, [seats, *shape], as a copy."""
        rows = self._index(0, slots, self._positions(slots, calls))
        return self._rows.index_select(0, rows).view(-1, *self.shape)

    def put(self, slots: Sequence[int], calls: Sequence[int], latents: torch.Tensor) -> None:
        """Set the latents before calls `calls` of `slots` to `latents` [seats, *shape]."""
        rows = self._index(0, slots, self._positions(slots, calls))
        self._rows.index_copy_(0, rows, latents.to(self._rows).flatten(1))

    def advance(
        self,
        slots: Sequence[int],
        calls: Sequence[int],
        schedules: Sequence[Schedule],
        predictions: torch.Tensor,
        noise: Sequence[torch.Tensor | None],
    ) -> None:
        """Advance `slots` past their calls `calls`, each by its own schedule, which must have a table, in one product.

        `predictions` [seats, *shape]; `noise` [1, *shape] where the schedule draws. Other slots stay as they are.
        If this raises, calling it again with the same arguments is safe.
        """
        positions = self._positions(slots, calls)
        self._weights.fill(0.0)
        for slot, call, position, schedule, drawn in zip(slots, calls, positions, schedules, noise, strict=True):
            self._weights[slot, 0] = schedule.ring_weights[position, call]
            if drawn is not None:
                self._columns[NOISE, slot] = drawn.to(self._columns.device).flatten()
        predictions = predictions.to(torch.float32).flatten(1)
        # Where every slot takes part and all rings stand alike, columns are written whole.
        is_whole = len(set(positions)) == 1 and list(slots) == list(range(self._num_slots))
        if is_whole:
            self._columns[_PREDICTIONS + positions[0]].copy_(predictions)
        else:
            self._rows.index_copy_(0, self._index(_PREDICTIONS, slots, positions), predictions)
        # All slots, empty ones too: the product has one shape for ever, hence the same bits in any company.
        weights = torch.from_numpy(self._weights).to(self._columns.device)
        torch.bmm(weights, self._columns.transpose(0, 1), out=self._products)
        following = [(position + 1) % DEPTH for position in positions]
        if is_whole:
            self._columns[following[0]].copy_(self._products[:, 0])
        else:
            seated = self._products[:, 0].index_select(0, self._to_device(slots))
            self._rows.index_copy_(0, self._index(0, slots, following), seated)
        self._tick += 1

    def _positions(self, slots: Sequence[int], calls: Sequence[int]) -> list[int]:
        """Return where the rings of `slots` hold the latents before `calls`."""
        return [(self._turns[slot] + call) % DEPTH for slot, call in zip(slots, calls, strict=True)]

    def _index(self, first_column: int, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Return which rows of `_rows` are columns `first_column` + `positions` of `slots`."""
        pairs = zip(slots, positions, strict=True)
        return self._to_device([(first_column + position) * self._num_slots + slot for slot, position in pairs])

    def _to_device(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self._columns.device)
