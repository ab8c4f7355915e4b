"""Previews of pictures that are made on a card: copied while it computes, and of no account to it."""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from dataclasses import replace

import pytest
from PIL import Image

from farm.jobs import Watch
from farm.requests import Reproducibility
from parity import BROWNIAN_WARNING
from units_of_all_kinds import render, units_of_all_kinds
from worker.previews import Previews

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings(BROWNIAN_WARNING)]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "sd3"])
def test_no_byte_of_a_picture_depends_on_who_watches(models, family):
    """Watched at every step or not at all, invariant pictures are the same, and something of each is seen."""
    _, _, pipeline = models[family]
    units = units_of_all_kinds(family, reproducibility=Reproducibility.INVARIANT)
    alone = render(pipeline, units, max_batch=4)
    shown, has_all = defaultdict(list), threading.Event()

    def tell(hint, _step, _steps, jpeg):
        shown[hint.index] += [jpeg] if jpeg else []
        if len(shown) == len(units) and all(shown.values()):
            has_all.set()

    now_s = iter(range(10**9))
    previews = Previews(tell, clock=lambda: next(now_s))
    previews.start()
    watched = render(pipeline, [replace(unit, watch=Watch(1, 1e9)) for unit in units], max_batch=4, previews=previews)
    assert has_all.wait(30)
    previews.stop()
    for one, other in zip(alone, watched, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
    for unit, jpegs in zip(units, [shown[unit.index] for unit in units], strict=True):
        assert {Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs} == {(unit.width, unit.height)}
