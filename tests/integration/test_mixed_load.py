"""A mixed load over the real ledger, in simulated time: what is promised of waits, changes of models and shares."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from expanded_jobs import expanded_job
from farm.ledger import Ledger, WorkerReport
from farm.requests import Priority
from farm.settings import Settings
from simulation.fewest import fewest_switches
from simulation.mixed import BEAT_S, Scenario, Simulation, settings_for


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 3, *(pytest.param(each, marks=pytest.mark.long) for each in (2, 4))])
def test_a_mixed_load_keeps_its_promises(fast_server, workers):
    """Three models, three tenants, two priorities, 2,000 images: waits, switches and shares are within their bounds."""
    fast_server.flush()
    settings = Settings(**settings_for(fast_server.url))
    scenario = Scenario(workers)
    outcome = Simulation(scenario, lambda clock: Ledger.connect(settings, clock=clock)).run()
    for model, begin, end in outcome.waits:
        promised_s = 1.1 * outcome.promised(begin, end)
        assert end - begin <= promised_s + scenario.drain_s + 2 * BEAT_S, (model, begin)
    assert outcome.switches <= 1.2 * outcome.fewest(scenario)
    assert outcome.unfairness() < 0.05


def test_an_interactive_image_is_next_whatever_waits(fast_server):
    """Behind 100,000 images of a bulk job it is handed out in the very next feed."""
    fast_server.flush()
    ledger = Ledger.connect(Settings(**settings_for(fast_server.url)))
    ledger.report(
        WorkerReport(
            name="a:gpu0#1", node="a:gpu0", pid=1, device="none", models=("scenes",), max_batch=4, started_at=0
        )
    )
    ledger.open(expanded_job(num_images_per_prompt=100_000, priority=Priority.BULK))
    for hint in ledger.feed("scenes")[:4]:
        ledger.claim(hint, "a:gpu0#1")
    urgent = ledger.open(expanded_job(priority=Priority.INTERACTIVE)).id
    assert ledger.feed("scenes")[0].job == urgent
    ledger.close()


@pytest.mark.parametrize(
    ("workers", "work", "bound"),
    [(1, (3, 3), 2), (1, (2, 2, 3), 3), (2, (2, 3, 3), 1), (2, (5, 3), 1), (3, (1, 3, 4), 1), (2, (1, 2, 5), 1)],
)
def test_the_fewest_switches_are_a_lower_bound(workers, work, bound):
    """Of all schedules of a tiny farm that keep the bound none has fewer changes, and some have no more than that."""
    slack = []
    steps = -(-sum(work) // workers)
    for schedule in product(product(range(len(work)), repeat=workers), repeat=steps):
        spans = spans_of(schedule, work, bound)
        if spans is not None:
            switches = sum(a != b for before, after in pairwise(schedule) for a, b in zip(before, after, strict=True))
            work_s = {str(model): float(units) for model, units in enumerate(work)}
            fewest = fewest_switches(
                spans, workers, [(0.0, float(bound))], work_s=work_s, finished_at=float(len(schedule))
            )
            slack.append(switches - fewest)
    assert min(slack) >= 0
    assert min(slack) <= 1


def spans_of(schedule, work, bound):
    """Return when each model has work, None for a schedule that idles, or leaves a model alone for too long."""
    left, unserved, spans = list(work), [0] * len(work), {}
    for step, models in enumerate(schedule):
        if any(left[model] <= 0 for model in models) and any(left):
            return None
        for model in range(len(work)):
            unserved[model] = 0 if model in models or left[model] <= 0 else unserved[model] + 1
            if unserved[model] > bound:
                return None
        for model in models:
            left[model] -= 1
            if left[model] <= 0:
                spans.setdefault(str(model), (0.0, step + 1.0))
    return spans if max(left) <= 0 else None
