"""A mixed load on simulated cards, in simulated time: the real ledger decides who gets what, the real policy who loads.

What is not real are the cards, the messages (a list for each model), and the time. A card shares itself among its
seats evenly, as a saturated card does: an image costs the same whoever sits beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from farm.catalog import Catalog
from farm.expand import expand
from farm.jobs import Hint, new_job_id
from farm.ledger import Ledger, TenantLimits, WorkerReport
from farm.requests import JobSpec, Priority
from farm.turns import Round, Server
from simulation.cards import CARDS
from simulation.fewest import fewest_switches
from worker.serving import Serving

BEAT_S: Final = 2.5
LOADS_S: Final = {"sd15": 5.0, "sdxl": 12.0, "flux-dev": 40.0}
"""Loading from a warm page cache: guesses of the right order."""
IMAGES: Final = {"sd15": 1200, "sdxl": 580, "flux-dev": 220}
WEIGHTS: Final = {"a": 1, "b": 2, "c": 4}
_SPARE_CLAIMS: Final = 2


@dataclass(frozen=True)
class Scenario:
    """Who sends what. `bound`: each tenant waits for one model only; else all wait for all."""

    workers: int
    is_bound: bool = False
    seats: int = 4
    wait_s: float = 60.0
    images: Mapping[str, int] = field(default_factory=lambda: dict(IMAGES))

    @property
    def drain_s(self) -> float:
        """How long full seats of the slowest model take."""
        return self.seats * max(image_s(model) for model in self.images)


@dataclass
class Outcome:
    """What happened. Times are seconds since the start."""

    finished_at: float = 0.0
    waits: list[tuple[str, float, float]] = field(default_factory=list)  # model, from when, to when
    promises: list[tuple[float, float]] = field(default_factory=list)  # from when, seconds
    switches: int = 0  # beyond each worker's first load
    loading_s: float = 0.0
    gpu_s: dict[str, float] = field(default_factory=dict)  # by tenant, while all of them waited
    shared_until: float = 0.0
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)

    def fewest(self, scenario: Scenario) -> int:
        """Return the fewest switches of any schedule that keeps what was promised."""
        return fewest_switches(
            self.spans,
            scenario.workers,
            self.promises,
            work_s={model: count * image_s(model) for model, count in scenario.images.items()},
            finished_at=self.finished_at,
            drain_s=scenario.drain_s,
        )

    def promised(self, since: float, until: float) -> float:
        """Return the longest wait that was promised at some moment of this span of time."""
        before = [promise for at, promise in self.promises if at <= since][-1:]
        return max(before + [promise for at, promise in self.promises if since <= at <= until])

    def unfairness(self) -> float:
        """Return by what part of its due the tenant whose share is furthest from its weight is off."""
        total, weights = sum(self.gpu_s.values()), sum(WEIGHTS.values())
        return max(abs(used / total * weights / WEIGHTS[tenant] - 1) for tenant, used in self.gpu_s.items())


def image_s(model: str) -> float:
    """Return the GPU seconds of an image."""
    card = CARDS["4090", model]
    return card.steps * card.step_s(1)


@dataclass(eq=False)
class _Image:
    hint: Hint
    model: str
    left_s: float


class SimulatedWorker:
    """One card: its seats, what waits for them, and the model it has loaded. Answers `worker.serving.Device`."""

    def __init__(self, name: str, scenario: Scenario, ledger: Ledger, clock: Callable[[], float]) -> None:
        self.name = name
        self._scenario = scenario
        self._ledger = ledger
        self.load_s = LOADS_S
        self.loaded = ""
        self.loads = 0
        self.loading_s = 0.0
        self.seated: list[_Image] = []
        self.waiting: deque[_Image] = deque()
        self._ready_at = 0.0
        self._moved_at = 0.0
        self._clock = clock
        self.serving = Serving(
            name,
            tuple(scenario.images),
            ledger=ledger,
            device=self,
            fits=lambda models: len(models) <= 1,
            wait_s=scenario.wait_s,
            clock=clock,
        )

    @property
    def seats(self) -> int:
        """Its seats."""
        return self._scenario.seats

    @property
    def resident_models(self) -> tuple[str, ...]:
        """What is loaded."""
        return (self.loaded,) if self._clock() >= self._ready_at else ()

    def expect(self, model: str) -> None:
        """Do nothing: loads cost what they cost."""

    def give_back(self, models: Collection[str]) -> None:
        """Release what has no seat yet."""
        for image in [image for image in self.waiting if image.model in models]:
            self.waiting.remove(image)
            self._ledger.release(image.hint, self.name)

    @property
    def wants(self) -> int:
        """How many units it would claim now."""
        return self._scenario.seats + _SPARE_CLAIMS - len(self.seated) - len(self.waiting)

    @property
    def next_event_at(self) -> float:
        """When something will have happened: an image is finished, or a model loaded."""
        if self.seated:
            return self._moved_at + min(image.left_s for image in self.seated) * len(self.seated)
        return self._ready_at if self.waiting and self._ready_at > self._clock() else float("inf")

    def advance(self) -> list[_Image]:
        """Let the card work until now; return the images that are finished."""
        now = self._clock()
        if self.seated:
            each_s = (now - self._moved_at) / len(self.seated)
            for image in self.seated:
                image.left_s -= each_s
        self._moved_at = now
        finished = [image for image in self.seated if image.left_s <= 1e-6]  # noqa: PLR2004  rounding of sums
        self.seated = [image for image in self.seated if image not in finished]
        return finished

    def admit(self) -> None:
        """Give free seats to those who wait, loading their model when nobody sits any more."""
        now = self._clock()
        if self.waiting and not self.seated and self.waiting[0].model != self.loaded:
            self.loaded = self.waiting[0].model
            self.loads += 1
            self.loading_s += LOADS_S[self.loaded]
            self._ready_at = now + LOADS_S[self.loaded]
        while (
            self.waiting
            and now >= self._ready_at
            and self.waiting[0].model == self.loaded
            and len(self.seated) < self._scenario.seats
        ):
            self.seated.append(self.waiting.popleft())
        self._moved_at = now

    def claim(self, hint: Hint, model: str) -> bool:
        """Claim a unit and queue it for a seat; return whether it was there."""
        is_ours = self._ledger.claim(hint, self.name) is not None
        if is_ours:
            self.waiting.append(_Image(hint, model, image_s(model)))
        return is_ours


class Simulation:
    """The world's clock, the messages, and the notes that are taken."""

    def __init__(self, scenario: Scenario, connect: Callable[[Callable[[], float]], Ledger]) -> None:
        self.now = 0.0
        self._catalog = Catalog()
        self.outcome = Outcome(gpu_s=dict.fromkeys(WEIGHTS, 0.0))
        self._scenario = scenario
        self._ledger = connect(lambda: 1_800_000_000.0 + self.now)
        clock = lambda: self.now  # noqa: E731
        self._workers = [
            SimulatedWorker(f"card{n}:gpu0#1", scenario, self._ledger, clock) for n in range(scenario.workers)
        ]
        self._messages: dict[str, deque[Hint]] = {model: deque() for model in scenario.images}
        self._tenants: dict[str, str] = {}  # by job
        self._left: dict[tuple[str, str], int] = {}  # (model, tenant) -> images
        self._unrendered: dict[str, float] = {}
        self._is_shared = True

    def run(self) -> Outcome:
        """Open the jobs, render all of them, and return what happened."""
        for worker in self._workers:
            self._report(worker)
        self._render_one_of_each()
        self._open_jobs()
        beats = {worker: n * BEAT_S / len(self._workers) for n, worker in enumerate(self._workers)}
        while any(self._left.values()):
            events = {worker: min(beats[worker], worker.next_event_at) for worker in self._workers}
            worker = min(events, key=events.__getitem__)
            self.now = max(self.now, events[worker])
            for image in worker.advance():
                self._finish(worker, image)
            is_beat = self.now >= beats[worker]
            if is_beat:
                beats[worker] = self.now + BEAT_S
            self._find_work(worker, is_beat=is_beat)
            worker.admit()
            self._note_waits()
        self.outcome.finished_at = self.now
        self.outcome.switches = sum(max(0, worker.loads - 1) for worker in self._workers)
        self.outcome.loading_s = sum(worker.loading_s for worker in self._workers)
        return self.outcome

    def _render_one_of_each(self) -> None:
        """Render an image of each model before the clock starts: the farm knows what they cost."""
        worker = self._workers[0].name
        self._ledger.serve(
            worker, tuple(LOADS_S), models=tuple(LOADS_S), seats=1, version=self._ledger.demand().version
        )
        for model in self._scenario.images:
            self._open(model, "warm-up", 1, Priority.NORMAL)
            (hint,) = self._ledger.feed(model)
            assert self._ledger.claim(hint, worker) is not None
            assert self._ledger.stored(hint, worker, gpu_s=image_s(model), render_s=image_s(model))
        self._ledger.forget(worker)
        self._report(self._workers[0])

    def _open(self, model: str, tenant: str, count: int, priority: Priority) -> str:
        spec = JobSpec(prompts=["a lighthouse"], model=model, num_images_per_prompt=count, priority=priority)
        job = expand(
            spec,
            self._catalog.row(model),
            job_id=new_job_id(),
            tenant=tenant,
            created_at=self.now,
            drawn_seed=0,
            max_prompts=1,
            max_images=count,
        )
        return self._ledger.open(job).id

    def _open_jobs(self) -> None:
        total = sum(WEIGHTS.values())
        for tenant, weight in WEIGHTS.items():
            self._ledger.set_tenant(tenant, TenantLimits(weight=weight))
        for number, (model, images) in enumerate(self._scenario.images.items()):
            parts = {tenant: round(images * weight / total) for tenant, weight in WEIGHTS.items()}
            parts["c"] += images - sum(parts.values())
            if self._scenario.is_bound:
                parts = {list(WEIGHTS)[number]: images}
            for tenant, count in parts.items():
                self._left[model, tenant] = count
                for priority, part in ((Priority.NORMAL, count // 2), (Priority.BULK, count - count // 2)):
                    self._tenants[self._open(model, tenant, part, priority)] = tenant
            self.outcome.spans[model] = (0.0, 0.0)

    def _report(self, worker: SimulatedWorker) -> None:
        self._ledger.report(
            WorkerReport(
                name=worker.name,
                node=worker.name.partition("#")[0],
                pid=1,
                device="simulated",
                models=tuple(self._scenario.images),
                serving=worker.serving.models,
                max_batch=self._scenario.seats,
                started_at=0,
            )
        )

    def _find_work(self, worker: SimulatedWorker, *, is_beat: bool) -> None:
        if is_beat:
            self._choose(worker)
        while worker.wants > 0:
            model = next(iter(worker.serving.models), None)
            if model is None:
                return
            if not self._messages[model]:
                self._messages[model].extend(self._ledger.feed(model))
            if self._messages[model]:
                if worker.claim(self._messages[model].popleft(), model):
                    self.outcome.spans[model] = (0.0, self.now)  # until its last image is claimed
            elif not self._choose(worker):
                return

    def _choose(self, worker: SimulatedWorker) -> bool:
        demand = self._ledger.demand()
        if demand.models:
            me = Server(tuple(demand.models), (), 0.0, LOADS_S.__getitem__, lambda models: len(models) <= 1)
            promised_s = Round.of(demand, me, self._scenario.wait_s).wait_s
            if not self.outcome.promises or self.outcome.promises[-1][1] != promised_s:
                self.outcome.promises.append((self.now, promised_s))
        return worker.serving.update()

    def _finish(self, worker: SimulatedWorker, image: _Image) -> None:
        cost_s = image_s(image.model)
        assert self._ledger.stored(image.hint, worker.name, gpu_s=cost_s, render_s=cost_s)
        tenant = self._tenants[image.hint.job]
        self._left[image.model, tenant] -= 1
        if self._is_shared:
            self.outcome.gpu_s[tenant] += cost_s
            self.outcome.shared_until = self.now
        # Shares are of the time in which all have more waiting than is in their seats.
        for each in WEIGHTS:
            left = sum(count for (_, whose), count in self._left.items() if whose == each)
            self._is_shared = self._is_shared and left > self._scenario.workers * (self._scenario.seats + _SPARE_CLAIMS)

    def _note_waits(self) -> None:
        for model in self._scenario.images:
            in_seats = sum(image.model == model for worker in self._workers for image in worker.seated)
            left = sum(count for (name, _), count in self._left.items() if name == model)
            if in_seats == 0 and left > 0:
                self._unrendered.setdefault(model, self.now)
            elif model in self._unrendered:
                self.outcome.waits.append((model, self._unrendered.pop(model), self.now))


def settings_for(redis_url: str) -> dict[str, object]:
    """Return the settings of a ledger whose workers need not renew anything: nobody dies here."""
    return {"redis_url": redis_url, "lease_s": 1e9}


def smaller(scenario: Scenario, part: float) -> Scenario:
    """Return the scenario with so much of its images."""
    return replace(scenario, images={model: round(count * part) for model, count in scenario.images.items()})
