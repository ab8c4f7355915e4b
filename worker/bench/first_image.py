"""A worker's way from nothing to an image, once, in a process of its own: `python -m worker.bench.first_image MODEL`.

Prints when each part of the way was behind it, Unix seconds, as one line of JSON. Settings are the worker's (FARM_*).
"""

from __future__ import annotations

import json
import sys
import time

from worker.lasting import coming_to_stay


def main(arguments: list[str]) -> None:
    """Import, load and render as a worker does, and tell the times."""
    model, steps = arguments[0], int(arguments[1])
    # Imports are a part of the way.
    with coming_to_stay():
        from farm.catalog import load_catalog  # noqa: PLC0415
        from farm.settings import Settings  # noqa: PLC0415
        from worker.bench.driving import Driver  # noqa: PLC0415
        from worker.bench.units import native_unit  # noqa: PLC0415
        from worker.gpu import choose_device  # noqa: PLC0415
        from worker.models import WorkerModels  # noqa: PLC0415

    settings = Settings()
    at = {"imported": time.time()}
    device = choose_device(settings.device)
    catalog = load_catalog(settings.catalog_file)
    row = catalog.row(model).model_copy(update={"num_inference_steps": steps})
    pipeline = WorkerModels(settings, catalog, device).load(model)
    at["loaded"] = time.time()
    with Driver(pipeline, max_batch=1) as driver:
        driver.render([native_unit(row, 0)])
        at["first_image"] = time.time()
        driver.render([native_unit(row, 1)])
        at["second_image"] = time.time()
    print(json.dumps(at))  # noqa: T201  what this process is for


if __name__ == "__main__":
    main(sys.argv[1:])
