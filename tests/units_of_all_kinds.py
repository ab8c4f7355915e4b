"""Units that differ in all that units may differ in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiny_models import tiny_unit
from worker.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from farm.jobs import Unit
    from worker.pipelines.base import Pipeline
    from worker.seat import Rendered

DIFFUSION = ("euler", "euler_ancestral", "dpmpp_2m_karras", "dpmpp_2m_sde", "unipc", "heun", "ddim", "lcm")
FLOW = ("flow_euler",) * 6  # the only one that diffusers' pipelines for flows can be given without help


def units_of_all_kinds(family: str, **fields: Any) -> list[Unit]:
    """Return one unit for each scheduler, all else different too."""
    own = {"guided": False, "guidance_scale": 3.5} if family == "flux" else {}
    return [
        tiny_unit(
            **{
                "index": i,
                "seed": i,
                "scheduler": name,
                "prompt": f"a thing of number {i}",
                "negative_prompt": "grey",
                "num_inference_steps": 3 + i % 4,
                **own,
                **fields,
            }
        )
        for i, name in enumerate(FLOW if family in ("flux", "sd3") else DIFFUSION)
    ]


def render(pipeline: Pipeline, units: Sequence[Unit], *, max_batch: int, **options: Any) -> list[Rendered]:
    """Render `units` on an engine of their own, all at once."""
    engine = Engine(lambda _: pipeline, max_batch=max_batch, **options)
    futures = [engine.submit(unit) for unit in units]
    engine.start()
    try:
        return [future.result(timeout=500) for future in futures]
    finally:
        engine.stop()
