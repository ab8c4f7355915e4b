"""Owns the reader: a small classifier that says from pixels alone what a scene shows.

It is trained on drawings, never on the model's pictures, and measured on drawings of combinations it has not seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from training.scenes.data import draw_all, sample_scenes
from training.scenes.settings import Settings
from training.scenes.vae import save_state
from training.scenes.words import BACKGROUNDS, COLOURS, KINDS, PLACES, Scene

_NONE = -100
_RELATIONS = ("", "left", "above")
QUESTIONS: dict[str, int] = {
    "background": len(BACKGROUNDS), "relation": len(_RELATIONS), "place": len(PLACES),
    "kind 1": len(KINDS) + 1, "colour 1": len(COLOURS), "kind 2": len(KINDS) + 1, "colour 2": len(COLOURS),
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What the reader saw: things from left to right or from top to bottom; "" is nothing."""

    background: str
    relation: str
    place: str
    kinds: tuple[str, str]
    colours: tuple[str, str]


class Reader(nn.Module):
    """Four convolutions over a picture of 64x64, then one answer per question."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide_in, wide_out, stride in ((3, 32, 2), (32, 48, 2), (48, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(wide_in, wide_out, 3, stride, 1), nn.BatchNorm2d(wide_out), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * 64, 256), nn.ReLU())
        self.heads = nn.Linear(256, sum(QUESTIONS.values()))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Score every answer, [pictures, 3, 64, 64] to [pictures, answers]."""
        scores: torch.Tensor = self.heads(self.body(signal))
        return scores

    @torch.no_grad()
    def read(self, images: npt.NDArray[np.uint8]) -> list[Reading]:
        """Say what each picture shows, [pictures, 128, 128, 3]."""
        self.eval()
        scores = torch.cat([self(part) for part in _signal(images).split(256)])
        best = [part.argmax(dim=1).tolist() for part in scores.split(list(QUESTIONS.values()), dim=1)]
        kinds = (*KINDS, "")
        return [
            Reading(BACKGROUNDS[b], _RELATIONS[r], PLACES[p], (kinds[k1], kinds[k2]), (COLOURS[c1], COLOURS[c2]))
            for b, r, p, k1, c1, k2, c2 in zip(*best, strict=True)
        ]


def train_reader(settings: Settings) -> Reader:
    """Load the reader, or train it first where there is none."""
    torch.manual_seed(settings.seed)
    reader, path = Reader(), settings.work / "reader.pt"
    if path.exists():
        reader.load_state_dict(torch.load(path, weights_only=True))
        return reader
    scenes = sample_scenes(settings.reader_scenes, settings.seed + 2)
    parts = [_signal(draw_all(scenes[start : start + 4000])).half() for start in range(0, len(scenes), 4000)]
    pool, answers = torch.cat(parts), torch.tensor([_answers(scene) for scene in scenes])
    optimizer = torch.optim.AdamW(reader.parameters(), settings.reader_lr, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.reader_lr, total_steps=settings.reader_steps)
    rng = random.Random(settings.seed)
    for step in range(1, settings.reader_steps + 1):
        chosen = torch.randint(len(scenes), (settings.reader_batch,))
        scores = reader.train()(_worn(pool[chosen].float(), rng))
        parted = zip(scores.split(list(QUESTIONS.values()), dim=1), answers[chosen].unbind(dim=1), strict=True)
        asked = [
            functional.cross_entropy(part, answer, ignore_index=_NONE)
            for part, answer in parted
            if (answer != _NONE).any()
        ]
        loss = torch.stack(asked).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
        if step % 200 == 0:
            print(f"reader step {step} of {settings.reader_steps} loss {loss.item():.4f}", flush=True)
    save_state(path, dict(reader.state_dict()))
    return reader


def _signal(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    return functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0, 2)


def _worn(signal: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Shift, blur, tint and roughen drawings at random, as a model would."""
    shift = (rng.randint(-2, 2), rng.randint(-2, 2))
    signal = torch.roll(signal, shift, dims=(2, 3))
    if rng.random() < 0.5:
        signal = functional.avg_pool2d(functional.pad(signal, (1, 1, 1, 1), mode="replicate"), 3, 1)
    signal = signal + 0.06 * torch.randn(len(signal), 3, 1, 1)
    return signal + rng.uniform(0.0, 0.1) * torch.randn_like(signal)


def _answers(scene: Scene) -> list[int]:
    place = PLACES.index(scene.things[0].place) if len(scene.things) == 1 else _NONE
    found = [BACKGROUNDS.index(scene.background), _RELATIONS.index(scene.relation), place]
    for slot in (0, 1):
        if slot < len(scene.things):
            found += [KINDS.index(scene.things[slot].kind), COLOURS.index(scene.things[slot].colour)]
        else:
            found += [len(KINDS), _NONE]
    return found
