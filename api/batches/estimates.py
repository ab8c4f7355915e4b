"""What a job will cost and when it will be done, guessed from what the ledger has measured. Writes nothing.

Work is counted in megapixel steps: pixels times steps, twice where a negative prompt is run beside the prompt. How many
GPU seconds one takes is told by the model's latest jobs, so that a job of other sizes or steps than usual is guessed by
its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from farm.requests import Priority

if TYPE_CHECKING:
    from farm.jobs import Entry, ExpandedJob, Picture
    from farm.ledger import Ledger

_JOBS_LOOKED_AT: Final = 100
_JOBS_MEASURED: Final = 8
_PROMPTS_LOOKED_AT: Final = 64  # of each
_PRIORITIES: Final = list(Priority)  # the first is served first


@dataclass(frozen=True, slots=True)
class Estimate:
    """A guess; None where nothing is known to guess from."""

    megapixel_steps: float
    gpu_s: float | None
    images_ahead: int  # of all models, that wait: handed out, or of this priority or a higher one
    workers: int  # alive, that may serve the model
    eta_s: float | None  # from now to its last image, were it sent now


def work_of(picture: Picture) -> float:
    """Return the megapixel steps of one image, over both passes."""
    rows = 2 if picture.guided else 1
    steps = max(1, round(picture.num_inference_steps * (picture.strength if picture.image else 1.0)))
    work = picture.width * picture.height * steps
    if (second := picture.hires) is not None:
        work += second.width * second.height * max(1, round(second.num_inference_steps * second.strength))
    return work * rows / 1e6


def work_of_all(entries: Iterable[Entry]) -> float:
    """Return the megapixel steps of all images of these prompts."""
    return sum(work_of(entry) * entry.num_images for entry in entries)


def estimate(ledger: Ledger, job: ExpandedJob) -> Estimate:
    """Guess what a job will take that is not in the ledger; raises LedgerDown."""
    model, work = job.header.model, work_of_all(job.entries)
    images, gpu_s = ledger.images_by_model(), ledger.gpu_s_by_model()
    image_s = {name: gpu_s.get(name, 0.0) / count for name, count in images.items() if count}
    per_work = _gpu_s_per_work(ledger, model)
    own_s = work * per_work if per_work is not None else None
    if own_s is None and model in image_s:
        own_s = image_s[model] * job.header.total
    ahead = _images_ahead(ledger, job)
    workers = sum(1 for worker in ledger.workers() if model in worker.models)
    eta_s = None
    if own_s is not None and workers:
        usual_s = own_s / job.header.total
        eta_s = (own_s + sum(count * image_s.get(name, usual_s) for name, count in ahead.items())) / workers
    return Estimate(megapixel_steps=work, gpu_s=own_s, images_ahead=sum(ahead.values()), workers=workers, eta_s=eta_s)


def _images_ahead(ledger: Ledger, job: ExpandedJob) -> dict[str, int]:
    """Return how many images of each model come first: handed out already, or of this priority or a higher one."""
    waiting = ledger.queued_by_model()
    backlog = ledger.backlog({job.header.model, *waiting})
    of_lower = Counter[str]()
    for each in backlog:
        if _PRIORITIES.index(each.priority) > _PRIORITIES.index(job.header.priority):
            of_lower[each.model] += each.images
    return {model: max(0, count - of_lower[model]) for model, count in waiting.items()}


def _gpu_s_per_work(ledger: Ledger, model: str) -> float | None:
    """Return the GPU seconds of a megapixel step in the latest jobs of a model; None where it has none.

    Of a job's images, those of its first prompts stand for all: what was stored of it may be any of them.
    """
    spent_s = done = 0.0
    found = 0
    for status in ledger.jobs(_JOBS_LOOKED_AT):
        rendered = status.counts.stored - status.reused
        if status.header.model != model or rendered <= 0 or status.gpu_s <= 0:
            continue
        entries = ledger.entries(status.header.id, 0, _PROMPTS_LOOKED_AT - 1)
        spent_s += status.gpu_s
        done += rendered * work_of_all(entries) / sum(entry.num_images for entry in entries)
        found += 1
        if found == _JOBS_MEASURED:
            break
    return spent_s / done if done else None
