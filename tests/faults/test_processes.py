"""Workers, launcher and API are killed, frozen, told to go, or have wrong clocks: what they held is taken over."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from farm.jobs import JobState, UnitState
from farm.storage import manifest_key
from faulty import NUM_THREADS, is_running, job_body, stopped
from lines import line_to

pytestmark = pytest.mark.slow

STAGED_S = 600
"""So long Redis keeps what had arrived of a job whose API died."""


def taken_over(farm, job, held):
    """Return what asks whether one of these units is claimed by somebody else, or stored."""

    def is_taken_over(image):
        return image.state is UnitState.STORED or (image.state is UnitState.RENDERING and image.attempts > 1)

    return lambda: any(is_taken_over(farm.ledger.image(job, index)) for index in held)


def strikes(farm, job):
    """Return how many strikes a job's images have, all together."""
    return sum(len(image.history) for image in farm.images(job))


def stored_by(farm, node, job):
    """Return how many images of a job a worker has stored."""
    return sum(image.worker == node for image in farm.images(job))


def test_a_killed_worker_is_replaced_and_its_units_are_taken_over(farm, undisturbed):
    """Kill -9 in mid-job: another worker takes its units as soon as their leases have run out; each has a strike."""
    job = farm.post_endless()
    worker = farm.holder(job)
    with stopped(worker.pid):  # so that what it holds stays the same until it dies
        held = farm.held_by(worker.name, job)
        with farm.disturbed("a worker is killed", job, resumed=taken_over(farm, job, held)):
            os.kill(worker.pid, signal.SIGKILL)
    farm.finish_begun(job, like=undisturbed)
    assert 0 < farm.ledger.job(job).retries == strikes(farm, job) <= NUM_THREADS
    farm.launcher()  # waits for as many workers as before
    assert worker.name not in {report.name for report in farm.workers()}


def test_a_worker_told_to_go_gives_everything_back_at_once(farm, undisturbed):
    """SIGTERM, twice: its units are free without a strike, well before their leases end, and it is off the list."""
    job = farm.post_endless()
    worker = farm.holder(job)
    with farm.disturbed("a worker is told to go", job, resumed=lambda: not farm.held_by(worker.name, job)):
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGTERM)
    farm.finish_begun(job, like=undisturbed)
    assert strikes(farm, job) == 0
    farm.wait(lambda: not is_running(worker.pid))
    assert worker.name not in {report.name for report in farm.ledger.workers()}


def test_a_worker_that_wakes_up_too_late_is_refused(farm, undisturbed):
    """Frozen past its lease it loses its units, a strike each; when it goes on, it drops them and takes others."""
    job = farm.post_endless()
    worker = farm.holder(job)
    see_it_come_back(farm, undisturbed, worker, job, what="a worker is frozen", away=stopped(worker.pid))


@pytest.mark.long
def test_a_worker_cut_off_alone_is_a_dead_one(farm, undisturbed):
    """The others reach Redis and take its units, a strike each; when it is back, it drops them and takes others."""
    with ExitStack() as stack:
        line = stack.enter_context(line_to(farm.redis.port))
        # Of one model, which it serves whether it is needed or not.
        env = {"FARM_REDIS_URL": f"redis://127.0.0.1:{line.port}/0", "FARM_WORKER_MODELS": "tiny"}
        stack.callback(end, farm.worker("test:far", **env))
        (worker,) = farm.workers("test:far")
        job = farm.post_endless()
        farm.wait(lambda: len(farm.held_by(worker.name, job)) == NUM_THREADS)
        see_it_come_back(farm, undisturbed, worker, job, what="a worker is cut off from Redis", away=cut(line))


@contextmanager
def cut(line):
    """Cut a line for the length of a `with` block."""
    line.cut()
    yield
    line.mend()


def see_it_come_back(farm, undisturbed, worker, job, *, what, away):
    """See that while a worker is `away`, as a context manager makes it, others do what it held; then it works on."""
    with away:
        held = farm.held_by(worker.name, job)
        with farm.disturbed(what, job, resumed=taken_over(farm, job, held)):
            pass
        farm.wait(lambda: all(farm.ledger.image(job, index).state is UnitState.STORED for index in held))
        num_stored = stored_by(farm, worker.node, job)
    farm.wait(lambda: stored_by(farm, worker.node, job) > num_stored)
    farm.finish_begun(job, like=undisturbed)
    assert 0 < farm.ledger.job(job).retries == strikes(farm, job) <= NUM_THREADS
    assert is_running(worker.pid), "it works on as if nothing had been"


@pytest.mark.long
def test_clocks_of_machines_do_not_matter(farm, undisturbed):
    """Two more workers, an hour ahead and an hour behind: the ledger goes by the server's clock alone."""
    names = {"test:ahead": "3600", "test:behind": "-3600"}
    with ExitStack() as stack:
        for name, odd in names.items():
            # Of one model, which a worker with nothing else to do serves whether it is needed or not.
            stack.callback(end, farm.worker(name, ODD_CLOCK_S=odd, FARM_WORKER_MODELS="tiny"))
        has_worked = set()
        while has_worked != names.keys():  # the two others may be quicker
            job = farm.post()
            farm.finish(job, like=undisturbed)
            status = farm.ledger.job(job)
            assert status.retries == 0
            assert abs(status.finished_at - time.time()) < 60
            has_worked |= {report.node for report in farm.workers() if report.images > 0} & names.keys()


def end(worker):
    """Tell a worker to go; it does so in good order."""
    worker.terminate()
    assert worker.wait(100) == 0


def test_workers_end_with_their_launcher_and_a_new_one_takes_over(farm):
    """Kill -9 of the launcher: no orphan renders on, each gives back and ends; the next launcher's finish the job."""
    job = farm.post_endless()
    pids = [report.pid for report in farm.workers()]
    launcher = farm.launcher()
    launcher.kill()
    launcher.wait()
    farm.wait(lambda: not any(map(is_running, pids)))
    assert farm.ledger.job(job).counts.rendering == 0
    assert farm.ledger.workers() == []
    with farm.disturbed("the launcher is killed and started", job):
        farm.launcher()
    farm.finish_begun(job)
    assert strikes(farm, job) == 0


def test_a_killed_api_loses_nothing_it_accepted_and_keeps_nothing_else(farm, undisturbed):
    """Kill -9 while a job runs and another one is being accepted: the first goes on, the second never was."""
    large = {"model": "tiny", "prompts": [f"{n} {'word ' * 40}" for n in range(9000)], "num_inference_steps": 1}
    key = {"Idempotency-Key": "once"}
    with farm.api() as (process, client):

        def post_there(images, **fields):
            body = {"model": "tiny", **job_body(images), **fields}
            return client.post("/v1/jobs", json=body).raise_for_status().json()["id"]

        job = farm.post_held(post_there)
        num_jobs = farm.ledger.num_jobs()

        def post():
            with suppress(httpx.TransportError):
                client.post("/v1/jobs", json=large, headers=key)

        farm.api_line.slow(0.4)
        request = threading.Thread(target=post)
        request.start()
        farm.wait(lambda: staged(farm))
        with farm.disturbed("the API is killed", job):
            process.kill()
            process.wait()
        request.join()
    farm.api_line.mend()
    assert farm.ledger.num_jobs() == num_jobs
    assert all(0 < farm.raw.ttl(key) <= STAGED_S for key in staged(farm))
    farm.finish(job, like=undisturbed)

    with farm.api() as (_, client):
        assert client.get(f"/v1/jobs/{job}").json()["state"] == "done"
        farm.wait(lambda: farm.store.exists(manifest_key(job)))
        answers = [client.post("/v1/jobs", json=large, headers=key).raise_for_status().json()["id"] for _ in range(2)]
        assert answers[0] == answers[1]
        client.delete(f"/v1/jobs/{answers[0]}").raise_for_status()
    assert farm.ledger.job(answers[0]).state is JobState.CANCELLED
    farm.check_quiet()


def staged(farm):
    """Return the keys of entries whose job is not there yet."""
    keys = list(farm.raw.scan_iter("farm:job:*:entries"))
    return [key for key in keys if not farm.raw.exists(key.removesuffix(b":entries"))]
