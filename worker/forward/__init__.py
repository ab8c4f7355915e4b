"""The denoiser's forward made fast: the same tensors in and out, by the fastest way that this card has for them.

`Forward` stands between a family's `predict` and its module. What may be used is the worker's choice (options.py) and
the memory plan's (selection.py); each way falls back to the plain one, with one line in the log that says why.
"""

from __future__ import annotations

from worker.forward.forward import Forward
from worker.forward.options import Optimisation, chosen_of
from worker.forward.toolbox import Toolbox

__all__ = ["Forward", "Optimisation", "Toolbox", "chosen_of"]
