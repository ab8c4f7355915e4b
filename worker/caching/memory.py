"""What one run's forwards leave for its next one.

A forward may fail and be made again with fewer rows, so what it notes counts only when the step has succeeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Memory:
    """Features of one run by side and name, [1, …] each; a side is `toward` the prompt or `without` it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._noted: dict[tuple[str, str], torch.Tensor] = {}

    def recall(self, side: str, name: str) -> torch.Tensor | None:
        """Return what an earlier step kept, if any did."""
        return self._kept.get((side, name))

    def note(self, side: str, name: str, feature: torch.Tensor) -> None:
        """Note a feature for the steps to come, copied: it may be a part of a larger tensor."""
        self._noted[side, name] = feature.clone()

    def start_over(self) -> None:
        """Forget what was noted, perhaps by a step that failed, since the last `keep`."""
        self._noted = {}

    def keep(self) -> None:
        """Keep what was noted: the step has succeeded."""
        self._kept |= self._noted
        self._noted = {}

    def clear(self) -> None:
        """Free everything: the run has ended, or begins anew."""
        self._kept = {}
        self._noted = {}
