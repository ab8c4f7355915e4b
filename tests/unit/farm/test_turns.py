"""Which models workers serve next: single decisions, and whole farms of them in simulated time, without a ledger."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.ledger.records import Demand, ModelDemand
from farm.requests import Priority
from farm.turns import Round, Server, choose

WAIT_S = 60.0
LOADS_S = {"a": 5.0, "b": 12.0, "c": 40.0}
FREE_LOADS_S = dict.fromkeys("abc", 0.0)


def model(queued=100, **fields):
    """Return a model that waits; shares and the like as given."""
    given = {
        "handed": 0,
        "share": 0.5,
        "served_by": 0.0,
        "lag_s": 0.0,
        "top_priority": Priority.NORMAL,
        "unserved_since": None if fields.get("served_by") else 1000.0,
        "image_s": 1.0,
    }
    return ModelDemand(queued=queued, **{**given, **fields})


def demand(workers=1, now=1000.0, **models):
    """Return a snapshot."""
    return Demand(now=now, version=1, workers=workers, models=models)


def server(*serving, served_s=1000.0, able=("a", "b", "c"), room=1, loads=None):
    """Return a worker that keeps `room` models on its device."""
    return Server(able, serving, served_s, (loads or LOADS_S).__getitem__, lambda models: len(models) <= room)


def next_of(snapshot, me):
    """Return what the worker serves next."""
    return choose(snapshot, me, wait_s=WAIT_S)


def test_an_idle_worker_takes_what_nobody_serves():
    """The most urgent first, then the one that has waited longest; one image is enough."""
    snapshot = demand(a=model(served_by=1), b=model(queued=1), c=model(queued=1, unserved_since=990.0))
    assert next_of(snapshot, server()) == ("c",)
    snapshot.models["b"] = model(queued=1, top_priority=Priority.INTERACTIVE)
    assert next_of(snapshot, server()) == ("b",)


def test_an_idle_worker_stays_warm():
    """With nothing to do, or nothing that it may do, it goes on reading the queues of what it has on its device."""
    assert next_of(demand(), server("a")) == ("a",)
    assert next_of(demand(b=model()), server("a", able=("a",))) == ("a",)


def test_help_must_pay_for_its_load():
    """An idle worker joins others when their backlog takes twice as long as its load; a longer one attracts more."""
    short = demand(2, b=model(queued=24, served_by=1))
    assert next_of(short, server("a")) == ("a",)
    assert next_of(demand(2, b=model(queued=25, served_by=1)), server("a")) == ("b",)
    assert next_of(demand(3, b=model(queued=25, served_by=2)), server("a")) == ("a",)
    longer = demand(4, b=model(queued=300, served_by=1), c=model(queued=400, served_by=1))
    assert next_of(longer, server("a")) == ("c",)
    longer.models["c"] = replace(longer.models["c"], served_by=2)
    assert next_of(longer, server("a")) == ("b",)


def test_a_warm_model_is_kept_while_work_for_it_waits():
    """Also when all that is left of it is handed out, and whatever waits elsewhere, as long as that has time."""
    last = model(queued=0, handed=3, share=0.0, served_by=1, top_priority=None)
    for mine in (model(served_by=1), last):
        assert next_of(demand(a=mine, b=model(queued=100_000)), server("a")) == ("a",)


def test_several_models_are_served_together_where_they_fit():
    """Taken beside what is there at no cost, after a moment for idle workers to come first; help must pay, too."""
    snapshot = demand(a=model(served_by=1), b=model(unserved_since=999.5))
    assert next_of(snapshot, server("a", room=2)) == ("a",)
    assert set(next_of(replace(snapshot, now=1001.0), server("a", room=2))) == {"a", "b"}
    assert next_of(demand(2, a=model(served_by=1), b=model(20, served_by=1)), server("a", room=2)) == ("a",)


def test_what_does_not_wait_makes_way():
    """Of three models that do not fit together the one without work goes, though it was served first."""
    snapshot = demand(b=model(served_by=0.5), c=model())
    assert set(next_of(replace(snapshot, now=1002.0), server("a", "b", room=2))) == {"b", "c"}


def test_interactive_work_does_not_wait_for_a_turn_to_end():
    """But for four loads of what is left; and not for what is as urgent."""
    snapshot = demand(a=model(served_by=1), b=model(1, top_priority=Priority.INTERACTIVE))
    assert next_of(snapshot, server("a", served_s=19.0)) == ("a",)
    assert next_of(snapshot, server("a", served_s=20.0)) == ("b",)
    snapshot.models["a"] = replace(snapshot.models["a"], top_priority=Priority.INTERACTIVE)
    assert next_of(snapshot, server("a", served_s=20.0)) == ("a",)


def test_a_worker_leaves_as_late_as_the_promise_allows():
    """The model is loaded when it has waited for `wait_s`: not before, so that turns are long."""
    snapshot = demand(a=model(served_by=1), b=model(unserved_since=1000.0))
    promised_s = Round.of(snapshot, server("a"), WAIT_S).wait_s
    assert promised_s == WAIT_S
    due_s = 1000.0 + promised_s - LOADS_S["b"]
    assert next_of(replace(snapshot, now=due_s - 0.1), server("a")) == ("a",)
    assert next_of(replace(snapshot, now=due_s + 0.1), server("a")) == ("b",)


def test_one_waits_for_the_turns_of_those_before_it():
    """Two have waited equally long: the first is called early, so that the second is in time."""
    snapshot = demand(a=model(served_by=1, share=1 / 3), b=model(share=1 / 3), c=model(share=1 / 3))
    me = server("a", loads=FREE_LOADS_S)
    assert next_of(replace(snapshot, now=1029.0), me) == ("a",)
    assert next_of(replace(snapshot, now=1031.0), me) == ("b",)


def test_whose_turn_is_over_goes_first():
    """Of two workers a late model calls the one that has had its turn, and anybody only when nobody has come."""
    third = {"share": 1 / 3}
    snapshot = demand(2, 1060.5, a=model(**third), b=model(served_by=1, **third), c=model(served_by=1, **third))
    loads = FREE_LOADS_S
    assert next_of(snapshot, server("b", served_s=60.0, loads=loads)) == ("b",)
    assert next_of(snapshot, server("c", served_s=120.0, loads=loads)) == ("a",)
    assert next_of(replace(snapshot, now=1067.0), server("b", served_s=60.0, loads=loads)) == ("a",)


def test_a_model_that_is_due_whole_workers_keeps_them():
    """Called is a worker beyond those, however far ahead the tenants of others are."""
    snapshot = demand(
        4,
        1061.0,
        a=model(share=1 / 8),
        b=model(share=1 / 4, served_by=1, lag_s=-50.0),
        c=model(share=5 / 8, served_by=3),
    )
    assert next_of(snapshot, server("b", loads=FREE_LOADS_S)) == ("b",)
    assert next_of(snapshot, server("c", loads=FREE_LOADS_S)) == ("a",)


def test_shares_never_count_against_priority():
    """Tenants far behind do not take a worker from more urgent work."""
    lags = {"a": -500.0, "b": 500.0}
    snapshot = demand(2, **{name: model(lag_s=lag, served_by=1, share=0.4) for name, lag in lags.items()})
    snapshot.models["b"] = replace(snapshot.models["b"], served_by=0.0, unserved_since=1000.0)
    assert next_of(snapshot, server("a")) == ("b",)
    snapshot.models["a"] = replace(snapshot.models["a"], top_priority=Priority.INTERACTIVE)
    assert next_of(snapshot, server("a")) == ("a",)


def test_what_comes_back_from_the_queue_is_not_held_against_a_model():
    """A tenant pays for what is handed out; of two that are even, the one being served is not the one ahead."""
    serving = model(served_by=1, handed=16, image_s=8.0, lag_s=-64.0)
    assert next_of(demand(a=serving, b=model(lag_s=64.0)), server("a")) == ("a",)


# -- whole farms


def test_the_last_images_of_a_model_are_not_left_for_later():
    """Less than two loads of it are finished first, as long as nobody is later than a tenth of the promise for that."""
    for served_at, last, others in ((48.1, 10, "a"), (48.1, 11, "b"), (60.0, 10, "b")):
        mine = model(queued=last, served_by=1, top_priority=Priority.NORMAL)
        waits = model(unserved_since=1000.0 - served_at)
        assert next_of(demand(a=mine, b=waits), server("a")) == (others,)
    # And it counts as much when shares call.
    swing_s = Round.of(demand(a=model(), b=model()), server("a"), WAIT_S).swing_s(0.5) * 2
    for last, others in ((10, "a"), (11, "b")):
        ahead = model(queued=last, served_by=1, lag_s=0.0)
        behind = model(unserved_since=999.0, lag_s=swing_s + 1)
        assert next_of(demand(a=ahead, b=behind), server("a")) == (others,)


def test_nobody_is_called_away_while_another_worker_is_about_to_be_free():
    """Two seconds are left of what the other one serves; were it more, this one's turn would be over."""
    for other, choice in ((2, "a"), (200, "b")):
        late = model(unserved_since=1000.0 - 49, share=1 / 3)
        mine, theirs = (model(queued=left, served_by=1, share=1 / 3) for left in (200, other))
        assert next_of(demand(2, a=mine, b=late, c=theirs), server("a", loads=LOADS_S | {"c": 5.0})) == (choice,)


def test_who_helps_moves_on_in_time():
    """With one worker more the other model ends no sooner than this one with one less: then, and not before."""
    for left, choice in ((51, "a"), (50, "b")):
        snapshot = demand(3, a=model(queued=left, served_by=2), b=model(queued=100, served_by=1))
        assert next_of(snapshot, server("a")) == (choice,)
    # Never the last one, never against priority or shares, nor for less than two loads.
    alone = demand(2, a=model(queued=1, served_by=1), b=model(queued=1000, served_by=1))
    lower = demand(3, a=model(queued=50, served_by=2), b=model(served_by=1, top_priority=Priority.BULK))
    ahead = demand(3, a=model(queued=50, served_by=2, lag_s=3.0), b=model(served_by=1, lag_s=0.0))
    brief = demand(3, a=model(queued=12, served_by=2), b=model(queued=48, served_by=1))
    for snapshot in (alone, lower, ahead, brief):
        assert next_of(snapshot, server("a")) == ("a",)


@dataclass
class Farm:
    """Workers with seats enough and images without end of size: work is a fluid, measured in GPU seconds."""

    work: dict[str, dict[str, float]]  # model -> tenant -> GPU seconds
    weights: dict[str, float]
    loads: dict[str, float]
    workers: int
    able: list[tuple[str, ...]] | None = None
    now: float = 0.0
    serving: list[tuple[str, ...]] = field(default_factory=list)
    moves: list[tuple[float, int, str]] = field(default_factory=list)
    waits: list[tuple[str, float, float]] = field(default_factory=list)  # model, how long unserved, what was promised
    used: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.serving = [()] * self.workers
        self.used = dict.fromkeys(self.weights, 0.0)
        self._since = [0.0] * self.workers
        self._ready = [0.0] * self.workers
        self._unserved = {}
        self._promised = {}

    def run(self, until=1e9):
        """Let time pass, a second at a time, until nothing waits; every worker looks every two seconds."""
        while self.now < until and any(left > 0 for tenants in self.work.values() for left in tenants.values()):
            for worker in range(self.workers):
                if (self.now + worker) % 2 < 1:
                    self._decide(worker)
            for worker in range(self.workers):
                self._work(worker)
            self.now += 1.0
        return self

    def _snapshot(self):
        waiting = {name: [t for t, left in work.items() if left > 0] for name, work in self.work.items()}
        waiting = {name: tenants for name, tenants in waiting.items() if tenants}
        count = {t: sum(t in tenants for tenants in waiting.values()) for t in self.weights}
        total = sum(self.weights[t] for t in self.weights if count[t])
        mean = sum(self.used[t] for t in self.weights if count[t]) / total
        models = {}
        for name, tenants in waiting.items():
            served = sum(1 / len(serving) for serving in self.serving if name in serving)
            if served:
                self._unserved.pop(name, None)
            models[name] = ModelDemand(
                queued=int(sum(self.work[name].values())) + 1,
                handed=0,
                share=sum(self.weights[t] / count[t] for t in tenants) / total,
                served_by=served,
                lag_s=max(self.weights[t] * mean - self.used[t] for t in tenants),
                top_priority=Priority.NORMAL,
                unserved_since=None if served else self._unserved.setdefault(name, self.now),
                image_s=1.0,
            )
        return Demand(now=self.now, version=0, workers=self.workers, models=models)

    def _decide(self, worker):
        snapshot = self._snapshot()
        able = self.able[worker] if self.able else tuple(self.work)
        me = server(*self.serving[worker], served_s=self.now - self._since[worker], able=able, loads=self.loads)
        choice = next_of(snapshot, me)
        if self._unserved:  # what is promised changes with what waits; the longest while one waited counts
            promised_s = Round.of(snapshot, me, WAIT_S).wait_s
            self._promised = {name: max(promised_s, self._promised.get(name, 0.0)) for name in self._unserved}
        if choice != self.serving[worker]:
            (name,) = choice
            if name in self._unserved:
                waited_s = self.now - self._unserved[name] + self.loads[name]
                self.waits.append((name, waited_s, self._promised[name]))
            self.moves.append((self.now, worker, name))
            self.serving[worker], self._since[worker] = choice, self.now
            self._ready[worker] = self.now + self.loads[name]

    def _work(self, worker):
        if self.now < self._ready[worker]:
            return
        for name in self.serving[worker]:
            tenants = [t for t, left in self.work[name].items() if left > 0]
            if tenants:
                tenant = min(tenants, key=lambda t: self.used[t] / self.weights[t])
                self.work[name][tenant] -= 1.0
                self.used[tenant] += 1.0

    @property
    def lateness(self):
        """Return the worst wait, in parts of what was promised."""
        return max(waited / promised for _, waited, promised in self.waits)


EVEN = {"x": 1.0, "y": 1.0, "z": 1.0}
WEIGHTS = {"x": 1.0, "y": 2.0, "z": 4.0}


def everywhere(weights, gpu_s=1500.0):
    """Return work of every tenant in every model."""
    return {name: {t: gpu_s * w / sum(weights.values()) for t, w in weights.items()} for name in "abc"}


def bound(weights, gpu_s=4500.0):
    """Return work of one tenant in each model."""
    total = sum(weights.values())
    return {name: {t: gpu_s * w / total} for name, (t, w) in zip("abc", weights.items(), strict=True)}


def test_one_worker_goes_round():
    """Three models on one worker: equal turns, every wait as long as was promised, and no turn more than that takes."""
    farm = Farm(everywhere(EVEN, 600.0), EVEN, FREE_LOADS_S, 1).run()
    assert farm.lateness < 1.1
    turns = [after - before for (before, *_), (after, *_) in pairwise(farm.moves[:40])]
    assert all(25 <= turn <= 35 for turn in turns)
    assert {name for _, _, name in farm.moves[:3]} == {"a", "b", "c"}


def test_loads_take_a_quarter_of_the_time_at_most():
    """Loads of 57 s in all do not fit into waits of 60 s: the promise is longer, and it is kept."""
    farm = Farm(everywhere(EVEN), EVEN, LOADS_S, 1).run(2500)
    assert sum(LOADS_S[name] for _, _, name in farm.moves) < 0.26 * farm.now
    assert farm.lateness < 1.1
    assert max(waited for _, waited, _ in farm.waits) < 210


def test_workers_enough_for_all_stay_where_they_are():
    """Tenants that wait everywhere have their shares anywhere: nobody moves before something has run out."""
    for workers in (3, 4, 7):
        farm = Farm(everywhere(WEIGHTS, 3000.0), WEIGHTS, LOADS_S, workers).run(500)
        assert len(farm.moves) == workers
        assert len({name for _, _, name in farm.moves}) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_shares_hold_where_each_tenant_has_its_model(workers):
    """One model each, weights 1, 2 and 4: GPU time is shared by weight, and waits are as promised."""
    farm = Farm(bound(WEIGHTS, 7000.0), WEIGHTS, LOADS_S, workers).run(5000 / workers)
    assert min(sum(work.values()) for work in farm.work.values()) > 0
    for tenant, weight in WEIGHTS.items():
        assert farm.used[tenant] / sum(farm.used.values()) == pytest.approx(weight / 7, rel=0.07)
    assert farm.lateness < 1.2


def test_whole_workers_are_not_moved_about():
    """Eight workers and shares of 1 to 7: one for the one, seven for the other, and there they stay."""
    weights = {"x": 1.0, "y": 7.0}
    work = {"a": {"x": 2000.0}, "b": {"y": 14_000.0}}
    farm = Farm(work, weights, LOADS_S, 8).run(1500)
    assert sorted(farm.serving) == [("a",), *[("b",)] * 7]
    assert len(farm.moves) <= 8


def test_one_image_beside_very_many():
    """It waits for its turn, is made, and the worker goes back at once."""
    farm = Farm({"a": {"x": 1e5}, "b": {"y": 1.0}}, {"x": 1.0, "y": 1.0}, LOADS_S, 1).run(400)
    assert [name for _, _, name in farm.moves] == ["a", "b", "a"]
    left_s, back_s = farm.moves[1][0], farm.moves[2][0]
    assert left_s <= WAIT_S
    assert back_s - left_s <= LOADS_S["b"] + 4


def test_workers_that_can_do_only_some_models():
    """A model waits for the worker that can serve it, and nobody else moves for its sake."""
    able = [("a", "b"), ("c",)]
    farm = Farm(everywhere(EVEN), EVEN, FREE_LOADS_S, 2, able=able).run(900)
    assert {name for _, worker, name in farm.moves if worker == 1} == {"c"}
    assert len([1 for _, worker, _ in farm.moves if worker == 1]) == 1
    assert farm.lateness < 1.2


@settings(max_examples=20)
@given(
    workers=st.integers(1, 4),
    loads=st.fixed_dictionaries({name: st.sampled_from([0.0, 2.0, 10.0, 40.0]) for name in "abc"}),
    weights=st.fixed_dictionaries({tenant: st.sampled_from([1.0, 2.0, 4.0]) for tenant in "xyz"}),
    work=st.fixed_dictionaries(
        {n: st.fixed_dictionaries({}, optional={t: st.floats(1.0, 250.0) for t in "xyz"}) for n in "abc"}
    ),
)
def test_everything_is_done_and_nobody_thrashes(workers, loads, weights, work):
    """Whatever waits where: all of it gets done, no turn is left before it has paid for its load."""
    farm = Farm({name: dict(tenants) for name, tenants in work.items()}, weights, loads, workers).run(20_000)
    assert not any(left > 0 for tenants in farm.work.values() for left in tenants.values())
    for worker in range(workers):
        mine = [(at, name) for at, who, name in farm.moves if who == worker]
        assert all(before[1] != after[1] for before, after in pairwise(mine))
    for name, waited_s, promised_s in farm.waits:
        assert waited_s <= 1.1 * promised_s + 2 * max(loads.values()) + 10, name
