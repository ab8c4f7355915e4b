"""Memory plans: how a model is laid out on a card of a given size, decided with numbers before anything is loaded.

Sizes come from the headers of the weight files or from the table of published checkpoints; working memory from stated
formulas (working.py). Applying a plan to loaded weights is the worker's business; nothing here knows torch.
"""

from __future__ import annotations

from farm.plans.choose import NoPlan, plan_for, plan_for_row
from farm.plans.plan import DYNAMIC, ComponentPlan, Phase, Plan, Precision, Where
from farm.plans.published import ComponentSize
from farm.plans.sizes import ModelSizes, sizes_of

__all__ = [
    "DYNAMIC",
    "ComponentPlan",
    "ComponentSize",
    "ModelSizes",
    "NoPlan",
    "Phase",
    "Plan",
    "Precision",
    "Where",
    "plan_for",
    "plan_for_row",
    "sizes_of",
]
