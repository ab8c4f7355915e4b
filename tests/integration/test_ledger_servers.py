"""Who serves what, and what waits for whom: what workers decide by. On a real server, with a clock that is told."""

import pytest

from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.ledger import Ledger, News, TenantLimits, WorkerReport
from farm.requests import Priority
from farm.settings import Settings
from told_clock import Clock
from told_news import listen, told_by_now

ALICE, BOB = "alice:gpu0#1", "bob:gpu0#1"
MODELS = ("scenes", "sd15", "sdxl")


@pytest.fixture
def clock():
    """Return a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(redis_url, clock):
    """Return a ledger on an empty server."""
    ledger = Ledger.connect(Settings(redis_url=redis_url, lease_s=10), clock=clock)
    yield ledger
    ledger.close()


def report(name, serving, *, models=MODELS, max_batch=4):
    """Return a heartbeat of a worker that serves these."""
    return WorkerReport(
        name=name,
        node=name.partition("#")[0],
        pid=1,
        device="cpu",
        models=models,
        serving=serving,
        max_batch=max_batch,
        started_at=0,
    )


def open_job(ledger, model="scenes", tenant="default", **fields):
    """Open a job for a model of the catalog."""
    row = Catalog().row(model)
    size = {"width": row.width, "height": row.height}
    return ledger.open(expanded_job(row=row, tenant=tenant, **size, **fields)).id


def test_units_go_to_models_that_somebody_serves(ledger):
    """What a worker may serve is not what it serves."""
    open_job(ledger, "scenes", num_images_per_prompt=20)
    open_job(ledger, "sd15", num_images_per_prompt=20)
    ledger.report(report(ALICE, ("scenes",)))
    assert len(ledger.feed("scenes")) == 8
    assert ledger.feed("sd15") == []


def test_what_the_last_server_leaves_behind_goes_back(ledger):
    """Hand-outs that nobody claimed wait in the backlog again, in order; those with a worker are finished."""
    job = open_job(ledger, "scenes", num_images_per_prompt=20)
    ledger.report(report(ALICE, ("scenes",)))
    ledger.report(report(BOB, ("scenes",)))
    hints = ledger.feed("scenes")
    assert len(hints) == 16
    assert ledger.claim(hints[0], ALICE) is not None
    ledger.report(report(ALICE, ("sd15",)))
    assert ledger.claim(hints[1], BOB) is not None, "Bob still serves it"
    ledger.report(report(BOB, ("sd15",)))
    assert ledger.claim(hints[2], BOB) is None
    assert ledger.job(job).counts.rendering == 2
    assert ledger.demand().models["scenes"].queued == 18
    ledger.report(report(BOB, ("scenes",)))
    assert [hint.index for hint in ledger.feed("scenes")] == list(range(2, 10))
    assert ledger.claim(hints[2], BOB) is not None, "the old message will do: the unit goes out with the same attempt"


def test_a_silent_worker_counts_no_longer(ledger, clock):
    """Its seats are not counted on, and what was handed out for it goes back."""
    open_job(ledger, "scenes", num_images_per_prompt=20)
    ledger.report(report(ALICE, ("scenes",)))
    assert len(ledger.feed("scenes")) == 8
    clock.now += 11
    ledger.report(report(BOB, ("sd15",)))
    assert ledger.feed("scenes") == []
    demand = ledger.demand()
    assert (demand.workers, demand.models["scenes"].queued, demand.models["scenes"].served_by) == (1, 20, 0)


def test_demand_tells_shares_by_weight(ledger):
    """A tenant's weight is divided among the models it waits in."""
    ledger.set_tenant("b", TenantLimits(weight=3))
    open_job(ledger, "scenes", "a")
    open_job(ledger, "sd15", "a", priority=Priority.BULK)
    open_job(ledger, "sd15", "b", priority=Priority.INTERACTIVE)
    ledger.report(report(ALICE, ("sd15", "sdxl")))
    demand = ledger.demand()
    assert demand.workers == 1
    assert {name: model.share for name, model in demand.models.items()} == {"scenes": 0.125, "sd15": 0.875}
    assert demand.models["sd15"].top_priority is Priority.INTERACTIVE
    assert demand.models["sd15"].served_by == 0.5
    assert demand.models["sd15"].unserved_since is None
    assert demand.models["scenes"].unserved_since == demand.now


def test_a_model_lags_as_its_tenants_do(ledger):
    """What a tenant had elsewhere counts: behind is only who waits where nobody serves, by its share of the time."""
    ledger.set_tenant("c", TenantLimits(weight=2))
    for model, tenant in (("scenes", "a"), ("scenes", "b"), ("sd15", "b"), ("sdxl", "c")):
        open_job(ledger, model, tenant, num_images_per_prompt=30)
    ledger.report(report(ALICE, ("scenes",)))
    assert {model.lag_s for model in ledger.demand().models.values()} == {0.0}
    for hint in ledger.feed("scenes"):  # eight, four of each tenant
        ledger.claim(hint, ALICE)
        ledger.stored(hint, ALICE, gpu_s=2.0, render_s=2.0)
    lags = {name: model.lag_s for name, model in ledger.demand().models.items()}
    # Of 16 s a and b had 8 each, where 4 were their share, and c none of its 8.
    assert lags == {"scenes": pytest.approx(-4), "sd15": pytest.approx(-4), "sdxl": pytest.approx(8)}


def test_what_is_handed_out_waits_too(ledger):
    """The last images of a model are out, and unclaimed: nobody who serves it may think that nothing waits."""
    open_job(ledger, "scenes", num_images_per_prompt=2)
    ledger.report(report(ALICE, ("scenes",)))
    hints = ledger.feed("scenes")
    demand = ledger.demand().models["scenes"]
    assert (demand.queued, demand.handed, demand.top_priority) == (0, 2, None)
    for hint in hints:
        ledger.claim(hint, ALICE)
    assert ledger.demand().models == {}


def test_one_worker_answers_a_demand(ledger):
    """Who chooses after another has chosen looks again; a repeat of the same call is no other."""
    open_job(ledger, "sd15")
    for name in (ALICE, BOB):
        ledger.report(report(name, ("scenes",)))
    version = ledger.demand().version
    choice = {"models": MODELS, "seats": 4, "version": version}
    assert ledger.serve(ALICE, ("sd15",), **choice)
    assert ledger.serve(ALICE, ("sd15",), **choice)
    assert not ledger.serve(BOB, ("sd15",), **choice)
    assert ledger.demand().models["sd15"].served_by == 1
    assert ledger.demand().version > version


def test_workers_that_can_serve_nothing_that_waits_are_not_counted(ledger):
    """A share is of those that could help."""
    open_job(ledger, "sdxl")
    ledger.report(report(ALICE, ("scenes",), models=("scenes", "sd15")))
    assert ledger.demand().workers == 0
    ledger.report(report(BOB, ("sdxl",), models=("sdxl",)))
    assert ledger.demand().workers == 1
    ledger.forget(BOB)
    assert ledger.demand().workers == 0


def test_news_of_work_wakes_whoever_listens(ledger):
    """A job that comes, one that is resumed, a unit given back."""
    listen(ledger)
    job = open_job(ledger, "scenes")
    assert told_by_now(ledger) == [News(model="scenes")]
    ledger.pause(job)
    ledger.resume(job)
    assert told_by_now(ledger) == [News(model="scenes")]
    ledger.report(report(ALICE, ("scenes",)))
    (hint,) = ledger.feed("scenes")
    ledger.claim(hint, ALICE)
    ledger.release(hint, ALICE)
    assert told_by_now(ledger) == [News(model="scenes")]


def test_an_empty_farm_demands_nothing(ledger):
    """And says so."""
    assert ledger.demand().models == {}
