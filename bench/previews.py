"""What previews cost, and how much they look like the picture.

    python bench/previews.py            CPU of a picture, on the engine's thread and on that of previews: seconds
    python bench/previews.py --scenes   the model that ships, watched from the start: likeness by step, and the sheet
                                        docs/images/previews.png: a minute or two

Writes bench/results/previews.json. Engine and previews are the real ones; for the cost the model computes nothing.
Likeness is the correlation of a preview's pixels, as large as the picture, with the picture's own.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from farm.catalog import load_catalog
from farm.jobs import Hint, Watch
from farm.settings import Settings
from overhead.noop import NoopPipeline, unit
from worker.bench.units import native_unit
from worker.engine import Engine
from worker.gpu import choose_device
from worker.models import WorkerModels
from worker.previews import Previews
from worker.previews.previews import MAX_SIDE_PX, jpeg_of
from worker.previews.sketch import SCALE, Sketch, shrunk

ROOT: Final = Path(__file__).resolve().parents[1]
RESULT: Final = ROOT / "bench/results/previews.json"
SHEET: Final = ROOT / "docs/images/previews.png"
SEATS: Final = 16
LATENTS: Final = {"SD 1.5, 512 px": (4, 64), "SDXL, 1024 px": (4, 128), "Flux, 1024 px": (16, 128)}
SHOWN_STEPS: Final = (2, 4, 6, 10, 15, 19)
NUM_STEPS: Final = 20
ROWS_SHOWN: Final = 4
LATER: Final = 12
"""Pictures that the worker has made when the second half of the sheet begins."""


def best_ms(work: Callable[[], object], rounds: int = 20) -> float:
    """Return the least CPU milliseconds of this thread that `work` took."""
    spent = []
    for _ in range(rounds):
        began_s = time.thread_time()
        work()
        spent.append((time.thread_time() - began_s) * 1000)
    return min(spent)


def cost() -> dict[str, Any]:
    """Return CPU milliseconds per picture and per step without one."""
    picture = torch.full((64, 64, 3), 9, dtype=torch.uint8)
    pipeline = NoopPipeline(size_px=512, max_batch=SEATS, pictures=[picture])
    now_s = 0.0
    previews: Any = Previews(lambda *_: None, clock=lambda: now_s)
    engine: Any = Engine(lambda _: pipeline, max_batch=SEATS, previews=previews)
    for index in range(SEATS):
        engine.submit(unit(index, size_px=512))
    with torch.inference_mode():
        for _ in range(3):
            engine._pass(engine._next_lane())  # noqa: SLF001
        (lane,) = engine._roster  # noqa: SLF001
        seats = lane.seated

        def show(every_steps: int) -> None:
            nonlocal now_s
            now_s += 1
            for seat in seats:
                seat.shown_step = 0
            previews.watch("bench", Watch(every_steps, 1e9))
            previews.show(engine._runs, pipeline, seats)  # noqa: SLF001
            previews._news.clear()  # noqa: SLF001

        engine_ms = {
            name: best_ms(lambda n=every: show(n)) / SEATS for name, every in {"picture": 1, "step": 99}.items()
        }
    drawn = {}
    for name, (channels, side) in LATENTS.items():
        latents = np.random.default_rng(0).standard_normal((channels, side, side)).astype(np.float32)
        pixels = np.zeros((8 * side, 8 * side, 3), np.uint8)
        sketch = Sketch(channels)
        learn_ms = best_ms(lambda s=sketch, n=latents, p=pixels: s.learn(n, p), 3)

        def draw(sketch: Sketch = sketch, latents: Any = latents) -> None:
            small = sketch.draw(shrunk(latents, MAX_SIDE_PX // SCALE))
            if small is not None:  # it has learned
                jpeg_of(small, MAX_SIDE_PX)

        drawn[name] = {"draw_ms": best_ms(draw, 5), "learn_ms": learn_ms}
    return {"engine_thread_ms": engine_ms, "previews_thread_ms": drawn}


def scenes() -> dict[str, Any]:
    """Return the likeness of previews by step, when nothing was learned yet and later; draw the sheet."""
    settings, catalog = Settings(device="cpu", models_dir=ROOT / "models"), load_catalog(None)
    pipeline = WorkerModels(settings, catalog, choose_device("cpu")).load("scenes")
    row = catalog.row("scenes").model_copy(update={"num_inference_steps": NUM_STEPS})
    lines = (ROOT / "prompts/scenes/demo.jsonl").read_text().splitlines()
    prompts = [json.loads(line) for line in lines][: LATER + ROWS_SHOWN]
    seen: dict[int, dict[int, Image.Image]] = defaultdict(dict)
    now_s = 0.0

    def tell(hint: Hint, step: int, _steps: int, jpeg: bytes | None) -> None:
        if jpeg is not None:
            seen[hint.index][step] = Image.open(io.BytesIO(jpeg)).convert("RGB")

    def tick() -> float:
        nonlocal now_s
        now_s += 1
        return now_s

    previews = Previews(tell, clock=tick)
    engine: Any = Engine(lambda _: pipeline, max_batch=4, previews=previews)
    futures = [
        engine.submit(
            native_unit(row, i, prompt=each["prompt"], negative_prompt="", seed=each["seed"], watch=Watch(1, 1e9))
        )
        for i, each in enumerate(prompts)
    ]
    with torch.inference_mode():
        while not engine._roster.is_empty:  # noqa: SLF001
            engine._pass(engine._next_lane())  # noqa: SLF001
            previews.catch_up()
    pictures = {i: Image.fromarray(future.result().pixels) for i, future in enumerate(futures)}
    first, later = range(ROWS_SHOWN), range(LATER, LATER + ROWS_SHOWN)
    draw_sheet(seen, pictures, [*first, *later])
    return {name: likeness(seen, pictures, which) for name, which in {"first images": first, "later": later}.items()}


def likeness(
    seen: Mapping[int, Mapping[int, Image.Image]], pictures: Mapping[int, Image.Image], indices: range
) -> dict[str, float]:
    """Return the mean correlation of previews with their pictures, by step."""
    return {str(step): float(np.mean([_alike(seen[i][step], pictures[i]) for i in indices])) for step in SHOWN_STEPS}


def _alike(preview: Image.Image, picture: Image.Image) -> float:
    enlarged = preview.resize(picture.size, Image.Resampling.BICUBIC)
    return float(np.corrcoef(np.asarray(enlarged).ravel(), np.asarray(picture).ravel())[0, 1])


def draw_sheet(
    seen: Mapping[int, Mapping[int, Image.Image]], pictures: Mapping[int, Image.Image], indices: list[int]
) -> None:
    """Write previews by step, and the picture, one image in a row."""
    cell, side = 100, 96
    sheet = Image.new("RGB", (cell * (len(SHOWN_STEPS) + 1), cell * len(indices)), "white")
    for row, index in enumerate(indices):
        for column, image in enumerate([*(seen[index][step] for step in SHOWN_STEPS), pictures[index]]):
            small = image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * cell + 2, row * cell + 2))
    sheet.quantize(256).save(SHEET, optimize=True)


def rounded(value: Any) -> Any:
    """Return numbers to three digits behind the point, wherever they stand."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["torch"] = torch.__version__
    result["likeness" if arguments.scenes else "cost"] = rounded(scenes() if arguments.scenes else cost())
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
