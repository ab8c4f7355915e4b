"""CPU of writing a picture as a PNG with its recipe inside: `encode_image` whole, for both compressors.

python -m overhead.png          one round, as JSON
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from farm.jobs import Unit
from farm.requests import Reproducibility
from overhead.noop import unit
from overhead.pictures import picture
from worker.files import recipe_of
from worker.images import encode_image
from worker.seat import Rendered, Timings

SIZES_PX: Final = (512, 1024)
_REPEATS: Final = 32


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the CPU milliseconds of doing `work`, once warm: of those that other load disturbed little."""
    work()
    spent_s = []
    for _ in range(_REPEATS):
        began_s = time.thread_time()
        work()
        spent_s.append(time.thread_time() - began_s)
    return sorted(spent_s)[_REPEATS // 4] * 1000


def encoded(asked: Unit, rendered: Rendered) -> bytes:
    """Return the file, as the threads that deliver make it."""
    return encode_image(rendered.pixels, recipe_of(asked, rendered), asked.output)


def main() -> None:
    """Measure both compressors once and print JSON."""
    timings = Timings(0.1, 0.2, 1.0, 0.3, 0.5, 20, 2.0, None)
    rows = {}
    for size_px in SIZES_PX:
        pixels = picture(size_px)
        rendered = Rendered(pixels, timings, model_hash="00" * 32, device="none", dtype="float16", warnings=())
        for mode in Reproducibility:
            asked = replace(unit(0, size_px=size_px), reproducibility=mode)
            encode = partial(encoded, asked, rendered)
            rows[f"{size_px} px, {mode}"] = {"cpu_ms": cpu_ms(encode), "kilobytes": len(encode()) / 1000}
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
