"""A soak from beginning to end: the undisturbed run, the mischief, the settling, the verdict."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import RedisError

from farm.jobs import JobState
from faulty import faulty_farm
from soak.clients import SECRET, Clients, Receiver
from soak.mischief import FAULTS, World
from soak.plan import DEADLY_AT, Plan, make_plan
from soak.verdict import Verdict, digests_of
from soak.world import Api, Watch, crews_of

MAX_ATTEMPTS = 6
"""Strikes until a unit is given up: more than the default. With a fault every few seconds some units are unlucky again
and again, and one that is given up as it should be could not be told from a mistake."""

_LEASE_S = 3.0
"""Short, so that much happens in little time; that a machine which looks away costs retries is no mistake here."""

_STUCK_S = 240.0
"""No image for so long, with no fault left, is a farm that stands still."""
_CHORES_S = 200.0
_START_S = 300.0
_RESUME_S = 120.0
_UNMEASURED_S = 20.0
_TWO_FAULTS = 0.15
"""How often two faults of different kinds overlap."""


@dataclass
class Mischief:
    """The faults that were made, and after how long the next image was stored."""

    resumed_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    made: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    now: str = ""
    _deck: list[str] = field(default_factory=list)

    def draw(self, rng: random.Random) -> list[str]:
        """Draw one fault, or two of different parts: each once, in random order, before any comes again."""
        names = [self._next(rng)]
        if rng.random() < _TWO_FAULTS:
            part = FAULTS[names[0]].part
            names.append(rng.choice([name for name, fault in FAULTS.items() if fault.part != part]))
        return names

    def _next(self, rng: random.Random) -> str:
        if not self._deck:
            self._deck = rng.sample(list(FAULTS), len(FAULTS))
        return self._deck.pop()

    def table(self) -> dict[str, Any]:
        """Return, by fault: how often, and seconds to the next image after those that came alone."""
        return {
            name: {
                "times": self.made[name],
                "resumed_s_median": _rounded(statistics.median(times)) if (times := self.resumed_s[name]) else None,
                "resumed_s_max": _rounded(max(times)) if times else None,
            }
            for name in sorted(self.made)
        }


def undisturbed(folder: Path, units: int, say) -> dict[str, list[str]]:
    """Render all that can be rendered of a plan on a farm that nobody disturbs; return the images' digests by job."""
    plan = make_plan(units, random.Random(0))  # noqa: S311  the jobs are the same for every seed
    folder.mkdir(parents=True)
    with faulty_farm(folder, max_undelivered=16, lease_s=_LEASE_S, s3_timeout_s=_LEASE_S) as farm:
        farm.launcher()
        ids = {job.name: farm.post(**job.undisturbed) for job in plan.jobs}
        total = sum(farm.ledger.job(job_id).counts.total for job_id in ids.values())
        while (stored := sum(farm.stored(job_id) for job_id in ids.values())) < total:
            say(f"undisturbed: {stored}/{total}")
            time.sleep(1)
            failed = [name for name, job_id in ids.items() if farm.ledger.job(job_id).counts.failed]
            if failed:
                raise RuntimeError(f"undisturbed, {failed} failed:\n{farm.tail()}")
        digests = {name: digests_of(farm, job_id, farm.stored(job_id)) for name, job_id in ids.items()}
        farm.stop_launcher()
    return digests


def soak(
    folder: Path, *, seed: int, units: int, minutes: float | None, reference: dict[str, list[str]], say
) -> dict[str, Any]:
    """Run one soak and return its result: what was done to the farm, what it took, and what is wrong in the end.

    For `minutes` faults are made, by default until all is settled; then the farm is left in peace until it is.
    """
    rng = random.Random(seed)  # noqa: S311  to be had again by its seed
    plan = make_plan(units, random.Random(rng.getrandbits(32)))  # noqa: S311
    mischief = Mischief()
    with _world(folder, plan, rng) as (world, clients, receiver, watch):
        began, farm = time.monotonic(), world.farm

        def is_settled():
            return clients.are_done and _open_jobs(farm) == 0

        def progress():
            alive = sum(len(crew.pids) for crew in world.crews)
            took = time.monotonic() - began
            say(f"{took:6.1f} s  {watch.stored}/{plan.units} stored  {alive}/3 workers  {mischief.now or 'peace'}")

        until = began + 60 * minutes if minutes is not None else None
        while not is_settled() and (until is None or time.monotonic() < until):
            _rest(rng.uniform(0.2, 2.0), progress)
            _make(world, mischief, watch, plan.units, progress)
            _check_clients(clients)
        mischief.now = ""
        mischief_s = time.monotonic() - began
        wrongs = _settle(world, watch, clients, is_settled, progress)
        settled_s = time.monotonic() - began
        verdict = Verdict(farm, plan, clients, receiver, reference)
        wrongs += verdict.wrongs()
        figures = verdict.figures()
        if wrongs:
            wrongs.append(f"the logs are in {folder}")
    times = [took for each in mischief.resumed_s.values() for took in each]
    return {
        "what": "tests/soak: units under faults drawn at random, compared with an undisturbed run",
        "seed": seed,
        "units": plan.units,
        "right": not wrongs,
        "wrong": wrongs,
        "mischief_s": _rounded(mischief_s),
        "settled_s": _rounded(settled_s),
        "faults": sum(mischief.made.values()),
        "resumed_s": {"median": _rounded(statistics.median(times)), "max": _rounded(max(times))} if times else None,
        **figures,
        "client_requests_asked_again": clients.asked_again,
        "settings": {
            "lease_s": farm.settings.lease_s,
            "max_attempts": MAX_ATTEMPTS,
            "max_batch": farm.settings.max_batch,
        },
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work",
        "faults_by_kind": mischief.table(),
    }


@contextmanager
def _world(folder: Path, plan: Plan, rng: random.Random):
    """Start everything, one model's file broken, and end it again."""
    receiver = Receiver(random.Random(rng.getrandbits(32)))  # noqa: S311
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        settings = {
            "lease_s": _LEASE_S,
            "s3_timeout_s": _LEASE_S,
            "max_attempts": MAX_ATTEMPTS,
            "max_undelivered": 12,
            "webhook_secret": SECRET,
            "webhook_allow_private": "127.0.0.1",
            "trust_tenant_header": True,
        }
        farm = stack.enter_context(faulty_farm(folder, **settings))
        weights = folder / "corrupt" / "unet" / "diffusion_pytorch_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1000])
        url = stack.enter_context(receiver.listening())
        crews = stack.enter_context(crews_of(farm))
        api = Api(farm, urlsplit(url).port)
        world = World(farm, crews, api, rng)
        api.start()
        for crew in crews:
            crew.start()
        watch = stack.enter_context(Watch(farm))
        farm.wait(lambda: len(farm.workers()) == 3, _START_S)
        clients = Clients(
            plan,
            api.url,
            api.receiver_url,
            progress=lambda: watch.stored / plan.units,
            mend=lambda: weights.write_bytes(whole),
        )
        stack.enter_context(clients)
        yield world, clients, receiver, watch


def _make(world: World, mischief: Mischief, watch: Watch, num_units: int, progress) -> None:
    """Make one fault, or two, and measure when the next image comes."""
    rng = world.rng
    names = mischief.draw(rng)
    lasts_s = rng.uniform(0.0, 1.5 * world.farm.settings.lease_s)
    mischief.now = " + ".join(names)
    progress()
    with ExitStack() as stack:
        # Redis last: the others ask it.
        for name in sorted(names, key=lambda name: FAULTS[name].part == "Redis"):
            mischief.made[name] += 1
            stack.enter_context(FAULTS[name].make(world))
        _rest(lasts_s, progress)
    ended_at, mischief.now = time.monotonic(), f"mended: {mischief.now}"
    while not watch.look():
        _rest(0.1, progress)
    before = watch.stored
    # Near the end all that is left may have to wait for its time, and the killer that goes round is a fault itself.
    is_measured = len(names) == 1 and 0 < before < DEADLY_AT * num_units
    while watch.stored == before and time.monotonic() - ended_at < (_RESUME_S if is_measured else _UNMEASURED_S):
        _rest(0.1, progress)
        watch.look()
    if is_measured:
        mischief.resumed_s[names[0]].append(time.monotonic() - ended_at)


def _settle(world: World, watch: Watch, clients: Clients, is_settled, progress) -> list[str]:
    """Leave the farm in peace until all jobs and chores are done, then end its workers; return what did not go well."""
    farm = world.farm
    watch.moved_at = time.monotonic()
    while not is_settled():
        _check_clients(clients)
        if time.monotonic() - watch.moved_at > _STUCK_S:
            return [f"stands still: {_stuck(farm, clients)}"]
        _rest(1.0, progress)
    wrongs = []
    deadline = time.monotonic() + _CHORES_S
    while left := _chores_left(farm):
        if time.monotonic() > deadline:
            wrongs.append(f"chores are left: {left}")
            break
        _rest(1.0, progress)
    for crew in world.crews:
        crew.start()
    # All three are back, and the farm is as good as new.
    farm.wait(lambda: len(farm.workers()) == 3, _START_S)
    wrongs += [f"{crew.name} ended with {code}" for crew in world.crews if (code := crew.stop())]
    world.api.stop()
    time.sleep(farm.settings.lease_s + 1)
    farm.ledger.demand()  # whoever asks first after a lease strikes the dead off the list
    return wrongs


def _open_jobs(farm) -> int | None:
    """Return how many jobs are not settled; None while Redis does not answer."""
    try:
        return sum(farm.raw.scard(f"farm:tenant:{name.decode()}:jobs") for name in farm.raw.smembers("farm:tenants"))
    except RedisError:
        return None


def _chores_left(farm) -> list[str]:
    """Return the manifests that are not written and the webhooks that are not told."""
    left = farm.raw.zrange("farm:chores:manifest", 0, -1, withscores=True)
    left += farm.raw.zrange("farm:chores:webhook", 0, -1, withscores=True)
    return [f"{member.decode()} due at {due:.0f}" for member, due in left]


def _stuck(farm, clients) -> list[str]:
    jobs = [farm.ledger.job(job_id) for job_id in clients.ids.values()]
    return [
        f"{job.header.labels.get('name')}: {job.state} {job.counts} eta {job.eta_s}"
        for job in jobs
        if job.state not in (JobState.DONE, JobState.CANCELLED, JobState.FAILED)
    ]


def _check_clients(clients: Clients) -> None:
    if clients.error is not None:
        raise RuntimeError(clients.error)


def _rest(seconds: float, progress) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        progress()


def _rounded(seconds: float) -> float:
    return round(seconds, 2)
