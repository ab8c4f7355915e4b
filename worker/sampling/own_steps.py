"""One run by its scheduler's own `step`: for models whose config has samplers clip or threshold (`clip_sample`).

Costs one scheduler call per seat and step, where a table costs a row of a product; hence only where there is no table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worker.sampling.noise import BrownianTree

if TYPE_CHECKING:
    from worker.sampling.schedules import Schedule


class OwnSteps:
    """The scheduler of one run, called in order. A step that failed, or its successor, may be repeated."""

    def __init__(self, schedule: Schedule, shape: tuple[int, ...], *, seed: int) -> None:
        """Prepare a scheduler for one run of `schedule` on latents [1, *shape].

        `seed` grows the Brownian tree of samplers that have one; all others draw from the generator they are given.
        """
        self._prepared = schedule.spec.prepare()
        self._call = -1
        self._after: torch.Tensor | None = None
        if schedule.brownian is not None:
            self._tree = BrownianTree(schedule.brownian, shape, seed)
            self._prepared.scheduler.noise_sampler = self._brownian_noise

    def step(
        self, call: int, prediction: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the latents after `call`, [1, *shape], as diffusers' loop has them.

        `latents` and `prediction` are float32 [1, *shape]. What is drawn comes from `generator`, on the CPU. Repeating
        the latest call returns what it returned; if it failed, it is made again, with the same noise.
        """
        if call == self._call and self._after is not None:
            return self._after
        if call != self._call + 1:
            raise ValueError(f"call {call} does not follow call {self._call}")
        self._device = latents.device
        scheduler, drawn = self._prepared.scheduler, generator.get_state()
        # Schedulers replace the tensors they keep, but change their lists in place.
        state = {name: list(value) if isinstance(value, list) else value for name, value in vars(scheduler).items()}
        try:
            self._prepared.scale(call, latents)  # some count their steps here
            after = self._prepared.step(call, prediction, latents, generator)
        except BaseException:
            vars(scheduler).clear()
            vars(scheduler).update(state)
            generator.set_state(drawn)
            raise
        self._call, self._after = call, after
        return after

    def _brownian_noise(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        """Answer for the scheduler's own tree, which would be another one on each device."""
        return self._tree.draw(float(sigma), float(sigma_next)).to(self._device)
