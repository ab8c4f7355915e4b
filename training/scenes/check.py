"""Owns the model's report: `python -m training.scenes.check` renders captions kept out of training and reads them.

The figures go to `eval.json` beside the weights; the card in `docs/model-card-scenes.md` quotes them.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from training.scenes.data import draw_all, sample_scenes, save_grid
from training.scenes.look import dominant_thing_colour
from training.scenes.reader import Reading, train_reader
from training.scenes.render import render
from training.scenes.settings import Settings
from training.scenes.vae import to_pixels, to_signal
from training.scenes.words import Scene, plain_caption

GOALS = {"background": 0.95, "colour": 0.90, "kind": 0.85}


def check(settings: Settings) -> dict[str, Any]:
    """Render the held-out captions, read the pictures, write `eval.json`, and return what it says."""
    reader = train_reader(settings)
    drawn = sample_scenes(2000, settings.seed + 3, held_out=True)
    trust = score(drawn, reader.read(draw_all(drawn)))
    print("reader on drawings of held-out combinations:", json.dumps(trust), flush=True)

    pipeline = StableDiffusionPipeline.from_pretrained(settings.model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        pixels = torch.from_numpy(draw_all(drawn[:200])).permute(0, 3, 1, 2)
        parts = [
            pipeline.vae.decode(pipeline.vae.encode(to_signal(part)).latent_dist.mode()).sample
            for part in pixels.split(20)
        ]
    again = to_pixels(torch.cat(parts)).permute(0, 2, 3, 1).numpy()
    through = score(drawn[:200], reader.read(again))

    scenes = sample_scenes(settings.check_captions, settings.seed + 4, held_out=True)
    rng = random.Random(settings.seed)
    captions = [plain_caption(rng, scene, whole=True).text for scene in scenes]
    images = render(pipeline, captions, steps=settings.check_steps, guidance=settings.check_guidance)
    readings = reader.read(np.stack(images))
    marks = score(scenes, readings)
    save_grid(images[:64], settings.work / "grids" / "check.png")
    for number, (caption, scene, reading) in enumerate(zip(captions, scenes, readings, strict=True)):
        missed = [
            name
            for name, share in score([scene], [reading]).items()
            if share < 1.0 and name in ("background", "colour", "kind")
        ]
        if missed:
            print(f"missed {number}: {caption!r}: {', '.join(missed)}; saw {reading}", flush=True)

    single = [number for number, scene in enumerate(scenes) if len(scene.things) == 1]
    named = [dominant_thing_colour(Image.fromarray(images[number])) for number in single]
    looked = [colour == scenes[number].things[0].colour for colour, number in zip(named, single, strict=True)]
    seconds = _time_one(pipeline, settings)
    report: dict[str, Any] = {
        "captions": len(captions),
        "captions_of_two_things": sum(len(scene.things) == 2 for scene in scenes),
        "held_out": "a tenth of all (kind, colour, relation or place, kind, colour, background), never trained on",
        "model_right": marks,
        "goals": GOALS,
        "goals_met": {name: marks[name] >= goal for name, goal in GOALS.items()},
        "reader_right_on_2000_unseen_drawings": trust,
        "reader_right_on_200_of_them_through_the_vae": through,
        "look_right_on_pictures_of_one_thing": round(float(np.mean(looked)), 4),
        "sampler": "DPM++ 2M", "steps": settings.check_steps, "guidance": settings.check_guidance,
        "seeds": f"0 to {len(captions) - 1}", "dtype": "float32", "threads": torch.get_num_threads(),
        "seconds_per_image_batch_1": round(seconds, 3),
        "hardware": f"{_cpu()}, {torch.get_num_threads()} threads", "torch": torch.__version__,
    }  # fmt: skip
    (settings.model / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2), flush=True)
    return report


def score(scenes: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, float]:
    """Compare scenes with readings: the share of right answers, per thing for kinds and colours, else per scene.

    A thing must be right where the caption puts it: two things with their colours swapped are two wrong colours.
    """
    right: dict[str, list[bool]] = {
        name: [] for name in ("background", "colour", "kind", "relation", "place", "everything")
    }
    for scene, reading in zip(scenes, readings, strict=True):
        background = scene.background == reading.background
        kinds = [thing.kind == kind for thing, kind in zip(scene.things, reading.kinds, strict=False)]
        colours = [thing.colour == colour for thing, colour in zip(scene.things, reading.colours, strict=False)]
        right["background"].append(background)
        right["kind"] += kinds
        right["colour"] += colours
        number = sum(bool(kind) for kind in reading.kinds) == len(scene.things)
        if len(scene.things) == 2:
            right["relation"].append(scene.relation == reading.relation)
        elif scene.things:
            right["place"].append(scene.things[0].place == reading.place)
        right["everything"].append(background and all(kinds) and all(colours) and number)
    return {name: round(float(np.mean(marks)), 4) for name, marks in right.items() if marks}


def _time_one(pipeline: Any, settings: Settings) -> float:
    """Give the median seconds of one guided picture."""
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        render(
            pipeline,
            ["a red heart left of a green house at night"],
            steps=settings.check_steps,
            guidance=settings.check_guidance,
        )
        spent.append(time.perf_counter() - began)
    return sorted(spent)[2]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    """Check the model in a folder."""
    parser = argparse.ArgumentParser(description="Check a trained scenes model on captions kept out of its training.")
    parser.add_argument("--model", type=Path, default=Settings.model)
    parser.add_argument("--work", type=Path, default=Settings.work, help="where the reader is kept")
    parser.add_argument("--captions", type=int, default=Settings.check_captions)
    given = parser.parse_args(arguments)
    torch.set_num_threads(Settings.threads)
    check(Settings(model=given.model, work=given.work, check_captions=given.captions))


if __name__ == "__main__":
    main()
