"""Real worker processes with a real Valkey and a real S3 server, and everything that may end in the middle of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from expanded_jobs import expanded_job
from farm.catalog import load_catalog
from farm.feeding import feed
from farm.jobs import JobState
from farm.ledger import Ledger
from farm.queue import RENDER_TASK, make_celery, publish, queues
from farm.recipes import read_recipe
from farm.settings import Settings
from farm.storage import Store, object_key
from servers import seaweed, valkey
from tiny_models import SIZE_PX, save_tiny_sd15

pytestmark = pytest.mark.slow

LEASE_S = 3.0
MAX_BATCH = 4

CATALOG = f"""
[[model]]
name = "tiny"
family = "sd15"
source = "tiny"
width = {SIZE_PX}
height = {SIZE_PX}
min_size = 8
scheduler = "euler"

[[model]]
name = "broken"
family = "sd15"
source = "nowhere"
width = {SIZE_PX}
height = {SIZE_PX}
min_size = 8
"""


class Farm:
    """Redis, S3 and worker processes; the test stands in for the API."""

    def __init__(self, redis, s3, folder) -> None:
        self.redis = redis
        self.s3 = s3
        self.folder = folder
        (folder / "catalog.toml").write_text(CATALOG)
        self._values = {
            **s3.credentials,
            "redis_url": redis.url,
            "catalog_file": folder / "catalog.toml",
            "models_dir": folder,
            "worker_models": "tiny,broken",
            "worker_name": "test:cpu0",
            "device": "cpu",
            "torch_threads": 1,
            "max_batch": MAX_BATCH,
            "max_undelivered": 6,
            "lease_s": LEASE_S,
        }
        self.settings = Settings(**self._values)
        self.ledger = Ledger.connect(self.settings)
        self.store = Store.connect(self.settings)
        self.app = make_celery(self.settings)
        self.log = folder / "worker.log"
        self._worker = None
        self._launcher = None
        self._processes = []

    # -- processes

    def start(self, module, *arguments):
        """Start a process of ours."""
        env = {f"FARM_{name.upper()}": str(value) for name, value in self._values.items()}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_HUB_OFFLINE": "1", **env},
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,  # its end, should this process die, ends a tethered worker
            )
        self._processes.append(process)
        return process

    def worker(self):
        """Return a worker process that reports, started if there is none."""
        if self._worker is None or self._worker.poll() is not None:
            self._worker = self.start("worker", "--tethered")
            self.wait(lambda: self._worker.poll() is not None or self._worker.pid in self.worker_pids(), 60)
            assert self._worker.poll() is None, self.log.read_text()[-6000:]
        return self._worker

    def launcher(self):
        """Return a launcher whose worker reports, started, in place of a worker of our own, if there is none."""
        if self._launcher is None:
            if self._worker is not None:
                self._worker.terminate()
                self._worker.wait(15)
            self._launcher = self.start("worker.launcher", "--cpu-workers", "1")
            self.wait(self.worker_pids, 60)
        return self._launcher

    def worker_pids(self):
        """Return the pids of workers that the ledger takes for alive."""
        return {report.pid for report in self.ledger.workers()}

    def end(self):
        """End what tests left: a killed launcher's worker ends by itself."""
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdin.close()

    # -- jobs

    def post(self, images, *, steps=5, model="tiny", **fields):
        """Do what the API does with a job; return its id."""
        body = {
            "prompts": [f"picture {number}" for number in range(3)],
            "num_images_per_prompt": images // 3,
            "num_inference_steps": steps,
            "seed": 100,
            "reproducibility": "invariant",
            **fields,
        }
        job = expanded_job(row=load_catalog(self.settings.catalog_file).row(model), **body)
        self.ledger.open(job)
        feed(self.ledger, self.app, [model])
        return job.header.id

    def wait_for_images(self, job, count):
        """Wait until so many images of the job are stored."""
        self.wait(lambda: self.ledger.job(job).counts.stored >= count)

    def finish(self, job, timeout_s=40):
        """Wait for the job's end and return its objects by index; each image is there, once, and counted once."""
        self.wait(lambda: self.ledger.job(job).state.is_final, timeout_s)
        status = self.ledger.job(job)
        assert status.state is JobState.DONE, self.ledger.images(job)
        assert status.counts.stored == status.counts.total
        keys = [object_key(job, index, "png") for index in range(status.counts.total)]
        assert list(self.store.list(f"jobs/{job}/")) == keys
        return [self.store.get(key) for key in keys]

    def wait(self, is_so, timeout_s=30.0):
        """Wait for a condition; on failure show the workers' log."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, self.log.read_text()[-6000:]
            time.sleep(0.05)


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Run Redis and S3 for all tests here; workers start when asked for."""
    folder = tmp_path_factory.mktemp("farm")
    save_tiny_sd15(folder / "tiny")
    with ExitStack() as stack:
        farm = Farm(stack.enter_context(valkey()), stack.enter_context(seaweed()), folder)
        stack.callback(farm.ledger.close)
        stack.callback(farm.app.close)
        stack.callback(farm.end)
        yield farm


@pytest.fixture(scope="module")
def undisturbed(farm):
    """Return the images of an undisturbed run of 30 images of 40 steps."""
    farm.worker()
    return farm.finish(farm.post(30, steps=40))


def test_a_job_is_rendered_in_shared_batches(farm):
    """Images of several prompts ride together, lie under their keys and carry their recipes."""
    farm.worker()
    images = farm.finish(farm.post(12, steps=30))
    recipes = [read_recipe(image) for image in images]
    assert [recipe.prompt for recipe in recipes[::4]] == ["picture 0", "picture 1", "picture 2"]
    assert [recipe.seed for recipe in recipes[:4]] == [100, 101, 102, 103]
    (report,) = farm.ledger.workers()
    assert report.node == "test:cpu0"
    assert report.resident == ("tiny",)
    farm.wait(lambda: farm.ledger.workers()[0].images >= 12)
    report = farm.ledger.workers()[0]
    assert report.seat_steps > report.steps


def test_odd_messages_do_no_harm(farm):
    """Doubled, stale, unreadable and foreign messages are dropped; the job beside them is rendered once."""
    farm.worker()
    job = farm.post(6)
    hints = [(model, hint) for model in ["tiny"] for hint in farm.ledger.rehint(model, older_than_s=0)]
    publish(farm.app, hints * 3)
    queue = queues(["tiny"])[0]
    for arguments in ([], ["job_a"], ["job_a", "x", 1], [None, 0, 1], ["job_none", 0, 1], [job, -1, 1], [{}, [], 1]):
        farm.app.send_task(RENDER_TASK, args=arguments, queue=queue)
    farm.app.send_task(RENDER_TASK, kwargs={"job": job}, queue=queue)
    farm.app.send_task("somebody.elses", args=[1], queue=queue)
    with farm.app.producer_pool.acquire(block=True) as producer:
        producer.publish("not JSON{", routing_key=queue.name, content_type="application/json", serializer=None)
    farm.finish(job)
    assert farm.ledger.job(job).retries == 0
    farm.finish(farm.post(6))


def test_a_model_that_cannot_be_loaded_fails_its_jobs_alone(farm):
    """The reason is in the ledger; the worker goes on with other models."""
    worker = farm.worker()
    job = farm.post(3, model="broken")
    farm.wait(lambda: farm.ledger.job(job).state.is_final)
    assert farm.ledger.job(job).state is JobState.FAILED
    assert "nowhere" in farm.ledger.image(job, 0).error
    farm.finish(farm.post(6))
    assert worker.poll() is None


def test_cancelling_frees_the_seats_within_a_step(farm):
    """A job of many steps is gone at once, and what comes next does not wait for it."""
    farm.worker()
    job = farm.post(30, steps=1000)
    farm.wait(lambda: farm.ledger.job(job).counts.rendering >= MAX_BATCH)
    farm.ledger.cancel(job)
    farm.finish(farm.post(3))
    farm.wait(lambda: farm.ledger.workers()[0].images >= 3)  # the latest report
    assert farm.ledger.workers()[0].steps < 1000, "a seat was held to its run's end"
    assert farm.ledger.job(job).state is JobState.CANCELLED
    assert list(farm.store.list(f"jobs/{job}/")) == []


def test_storage_may_go_and_come(farm, undisturbed):
    """Finished images wait in memory; nothing is rendered twice, nothing is lost."""
    worker = farm.worker()
    job = farm.post(30, steps=40)
    farm.wait_for_images(job, 4)
    farm.s3.kill(signal.SIGTERM)
    farm.wait(lambda: farm.ledger.workers()[0].undelivered >= MAX_BATCH)
    stored = farm.ledger.job(job).counts.stored
    time.sleep(LEASE_S + 1)  # leases of what waits are renewed
    assert farm.ledger.job(job).counts.stored == stored
    farm.s3.start()
    assert farm.finish(job) == undisturbed
    assert farm.ledger.job(job).retries == 0
    assert worker.poll() is None


def test_redis_may_be_killed_and_come_back(farm, undisturbed):
    """The worker renders on, settles when Redis answers again, and reads its queue as before."""
    worker = farm.worker()
    job = farm.post(30, steps=40)
    farm.wait_for_images(job, 4)
    farm.redis.kill()
    time.sleep(LEASE_S + 1)
    farm.redis.start()
    assert farm.finish(job) == undisturbed
    assert farm.ledger.job(job).retries == 0
    assert worker.poll() is None


def test_sigterm_gives_everything_back_at_once(farm, undisturbed):
    """The process ends well within seconds; its units are free without a strike, and the next worker makes them."""
    worker = farm.worker()
    job = farm.post(30, steps=40)
    farm.wait_for_images(job, 4)
    started = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0, farm.log.read_text()[-6000:]
    assert time.monotonic() - started < 8
    status = farm.ledger.job(job)
    assert status.counts.rendering == 0
    assert status.counts.queued > 0
    assert farm.ledger.workers() == []
    farm.launcher()
    assert farm.finish(job) == undisturbed
    assert all(not image.history for image in farm.ledger.images(job))


def test_a_killed_worker_is_replaced_and_its_job_finished(farm, undisturbed):
    """Kill -9 in mid-job: the launcher starts another, which takes the units over; every image comes out the same."""
    farm.launcher()
    (first,) = farm.worker_pids()
    job = farm.post(30, steps=40)
    farm.wait_for_images(job, 6)
    os.kill(first, signal.SIGKILL)
    assert farm.finish(job) == undisturbed
    assert farm.ledger.job(job).retries > 0


def test_workers_of_a_killed_launcher_give_back_and_end(farm):
    """No orphan renders on: the worker drains as if told to, and takes itself off the list."""
    launcher = farm.launcher()
    newest = max(farm.ledger.workers(), key=lambda report: report.started_at)
    job = farm.post(30, steps=100)
    farm.wait_for_images(job, 1)
    launcher.kill()
    launcher.wait()
    farm.wait(lambda: not is_alive(newest.pid), 15)
    assert farm.ledger.job(job).counts.rendering == 0
    assert newest.name not in {report.name for report in farm.ledger.workers()}


def is_alive(pid):
    """Tell whether a process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
