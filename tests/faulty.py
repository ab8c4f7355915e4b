"""A farm of real processes that tests break on purpose, and one check of what must be true when it is whole again.

with faulty_farm(folder) as farm:
    farm.launcher()
    job = farm.post_held()
    with farm.disturbed("S3 is killed", job):
        farm.s3.kill()
        farm.open_gate()
        farm.s3.start()
    farm.finish(job, like=undisturbed)

What is broken must be broken in the midst of a job, however long the machine looks away: either the job is held at a
gate (tests/odd_worker.py), or it has no end, `post_endless`, and what is left of it is cancelled.

Workers reach Redis and S3, and the API reaches Redis, by lines that can be cut (tests/lines.py). The test itself goes
straight to the servers and stands in for the API, unless it starts a real one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
from redis import Redis

from expanded_jobs import expanded_job
from farm.catalog import load_catalog
from farm.feeding import feed
from farm.jobs import JobState, UnitState
from farm.ledger import Ledger
from farm.queue import make_celery
from farm.settings import Settings
from farm.storage import Store, object_key
from lines import line_to
from odd_worker import GATED
from servers import free_ports, seaweed, valkey
from tiny_models import SIZE_PX, save_tiny_sd15

_HERE = Path(__file__).parent

LEASE_S = 6.0
"""Renewed every quarter of it: a worker may stand still for four seconds and lose nothing."""
MAX_BATCH = 4
MAX_ATTEMPTS = 3
NUM_THREADS = MAX_BATCH + 2
"""As many units a worker holds at most."""
NUM_HELD = 30
"""Images of a job that is held at the gate: a third before it, and more behind it than two workers hold."""
ALLOWANCE_S = 15.0
"""What a busy machine of two cores may add to two leases: processes that share it start, and wait for it."""
SETTLE_S = 200.0
"""Longest wait for anything at all; speed is not what these tests are about."""

MODELS = {"tiny": "tiny", "other": "other", "broken": "nowhere", "corrupt": "corrupt"}
"""Names and sources of the catalog. A test may break `corrupt`; nothing lies at `nowhere`."""

_ROW = """
[[model]]
name = "{name}"
family = "sd15"
source = "{source}"
width = {size}
height = {size}
min_size = 8
scheduler = "euler"
"""

_IN_FLIGHT = re.compile(
    r"render\..*|unacked.*|farm:(leases|flight|handed:.*|held:.*|lane:.*|later|job:.*:again|tenant:.*:jobs|.*previews)"
)
"""Keys that exist only while a unit waits or is on its way, and of messages."""

resumptions: list[tuple[str, float]] = []
"""What was broken, and the seconds from its end to the next image; all farms of this run."""


class Farm:
    """Redis, S3, lines to them, and processes started at will."""

    def __init__(self, folder, *, redis, s3, redis_line, s3_line, api_line, **settings) -> None:
        self.redis, self.s3 = redis, s3
        self.redis_line, self.s3_line, self.api_line = redis_line, s3_line, api_line
        self.folder = folder
        self.log = folder / "farm.log"
        (folder / "catalog.toml").write_text(
            "".join(_ROW.format(name=name, source=source, size=SIZE_PX) for name, source in MODELS.items())
        )
        self._values = {
            **s3.credentials,
            "catalog_file": folder / "catalog.toml",
            "models_dir": folder,
            "worker_models": ",".join(MODELS),
            "worker_name": "test",
            "device": "cpu",
            "torch_threads": 1,
            "max_batch": MAX_BATCH,
            "max_undelivered": 6,
            "max_attempts": MAX_ATTEMPTS,
            "lease_s": LEASE_S,
            "s3_timeout_s": LEASE_S,
            **settings,
        }
        self.settings = Settings(**self._values, redis_url=redis.url)
        self.ledger = Ledger.connect(self.settings)
        self.store = Store.connect(self.settings)
        self.app = make_celery(self.settings)
        self.raw = Redis.from_url(redis.url)
        self._gate = folder / "gate"
        self._launcher = None
        self._processes = []

    # -- processes

    def start(self, *command, **env):
        """Start a Python process of ours with these variables and settings, by their names."""
        values = {
            "redis_url": f"redis://127.0.0.1:{self.redis_line.port}/0",
            "s3_endpoint": f"http://127.0.0.1:{self.s3_line.port}",
        }
        settings = {f"FARM_{name.upper()}": str(value) for name, value in {**self._values, **values}.items()}
        ours = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        ours["PYTHONPATH"] = str(_HERE.parent)  # the code beside these tests, wherever another one is installed
        ours["ODD_GATE"] = str(self._gate)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**ours, **settings, **env},
                stdout=log,
                stderr=log,
                stdin=subprocess.PIPE,  # its end, should this process die, ends a tethered worker
            )
        self._processes.append(process)
        return process

    def launcher(self, workers=2):
        """Return a launcher all of whose workers report, started if there is none."""
        if self._launcher is None or self._launcher.poll() is not None:
            self._launcher = self.start(str(_HERE / "odd_worker.py"), "launcher", "--cpu-workers", str(workers))
        self.wait(lambda: len(self.workers("test:cpu")) == workers)
        return self._launcher

    def stop_launcher(self):
        """End it the polite way, workers and all."""
        if self._launcher is not None:
            self._launcher.terminate()
            assert self._launcher.wait(100) == 0, self.tail()

    def worker(self, name="test:solo", **env):
        """Start one worker with no launcher around it and return its process when it reports."""
        process = self.start(str(_HERE / "odd_worker.py"), "--tethered", **env, FARM_WORKER_NAME=name)
        self.wait(lambda: process.poll() is not None or process.pid in [each.pid for each in self.workers(name)])
        assert process.poll() is None, self.tail()
        return process

    @contextmanager
    def api(self):
        """Run an API for the length of a `with` block: its process, which the test may end, and a client."""
        (port,) = free_ports(1)
        process = self.start(
            *("-m", "api", "--port", str(port)),
            FARM_REDIS_URL=f"redis://127.0.0.1:{self.api_line.port}/0",
            FARM_S3_ENDPOINT=self.s3.endpoint,
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SETTLE_S) as client:

            def is_ready():
                with suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200

            self.wait(is_ready)
            yield process, client
        process.terminate()
        process.wait(100)

    def workers(self, name=""):
        """Return the reports of living workers whose node's name starts like this."""
        return [report for report in self.ledger.workers() if report.node.startswith(name) and is_running(report.pid)]

    def holder(self, job):
        """Wait until a worker holds units of the job and has stored some; return its report."""
        found = []

        def is_found():
            found[:] = [each for each in self.workers() if self.held_by(each.name, job)]
            return found

        self.wait(is_found)
        return found[0]

    def held_by(self, worker, job):
        """Return the indices of the job's units that a worker holds."""
        members = [member.decode().rpartition(":") for member in self.raw.smembers(f"farm:held:{worker}")]
        return {int(index) for held, _, index in members if held == job}

    def end(self):
        """End what tests left, the hard way: a killed launcher's workers end by themselves."""
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdin.close()

    # -- jobs

    def post(self, images=30, *, steps=12, model="tiny", **fields):
        """Do what the API does with a job; return its id."""
        row = load_catalog(self.settings.catalog_file).row(model)
        job = expanded_job(row=row, **{**job_body(images, steps=steps), **fields})
        self.ledger.open(job)
        feed(self.ledger, self.app, [model])
        return job.header.id

    def post_held(self, post=None):
        """Post a job and return its id once a third is stored and workers hold as much of the rest as they can.

        There it stays, until `open_gate`. `post` does it some other way.
        """
        self._gather()
        self.shut_gate()
        free, *rest = job_body()["prompts"]
        job = (post or self.post)(NUM_HELD, prompts=[free, *(f"{prompt} {GATED}" for prompt in rest)])
        num_held = NUM_THREADS * len(self.workers("test:cpu"))
        self.wait(lambda: self.stored(job) == NUM_HELD // 3 and self.ledger.job(job).counts.rendering == num_held)
        return job

    def _gather(self):
        """Have all workers serve `tiny`, which they do when there is more than one can do, and go on doing."""

        def do_all_serve():
            return all(report.serving is None or "tiny" in report.serving for report in self.workers("test:cpu"))

        if not do_all_serve():
            job = self.post_endless()
            self.wait(do_all_serve)
            self.finish_begun(job)

    def post_endless(self):
        """Post a job that lasts until `finish_begun`; return its id once some of its images are stored."""
        job = self.post(100_000)
        self.wait_for_images(job, MAX_BATCH)
        return job

    def shut_gate(self):
        """Let workers hold units whose prompt has GATED in it, and not begin them."""
        self._gate.touch()

    def open_gate(self):
        """Let them begin."""
        self._gate.unlink(missing_ok=True)

    def images(self, job):
        """Return the images of a job, of an endless one those that may have been begun."""
        return self.ledger.images(job, limit=self.stored(job) + 100)

    def files(self, job):
        """Return the files that are stored of a job, by prompt and seed."""
        return {
            (image.prompt, image.seed): self.store.get(object_key(job, image.index, "png"))
            for image in self.images(job)
            if image.state is UnitState.STORED
        }

    def stored(self, job):
        """Return how many images of the job are stored."""
        return self.ledger.job(job).counts.stored

    def wait_for_images(self, job, count):
        """Wait until so many images of the job are stored."""
        self.wait(lambda: self.stored(job) >= count)

    @contextmanager
    def disturbed(self, what, job, *, resumed=None):
        """Break something and mend it within the block: its end is where the fault ends, and where the gate opens.

        From there the job's next image, or what `resumed` asks for, must be there within two lease lengths. A job at
        the gate has none meanwhile: its first one counts, for the rest may be done before anybody has looked.
        """
        before = self.stored(job) if self._gate.exists() else None
        yield
        ended_at = time.monotonic()
        if before is None:
            before = self.stored(job)
        self.open_gate()
        self.wait(resumed or (lambda: self.stored(job) > before))
        took_s = time.monotonic() - ended_at
        resumptions.append((what, took_s))
        assert took_s <= 2 * self.settings.lease_s + ALLOWANCE_S, self.tail()

    def finish(self, job, *, like=None, timeout_s=SETTLE_S):
        """Wait for the job's end and return its objects by index, after checking everything that must hold.

        Each image is stored once and counted once, with the bytes of the undisturbed run `like`; and nothing is left
        behind.
        """
        self.open_gate()
        self.wait(lambda: self.ledger.job(job).state.is_final, timeout_s)
        status = self.ledger.job(job)
        assert status.state is JobState.DONE, self.ledger.images(job)
        assert status.counts.stored == status.counts.total
        return self._check(job, like)

    def finish_begun(self, job, *, like=None):
        """Wait until all is stored of an endless job that was begun by now; cancel the rest, and check as `finish`."""
        begun = [image.index for image in self.images(job) if image.attempts > 0]
        num_wanted = max(NUM_HELD, *begun) + 1

        def is_stored():
            images = self.images(job)[:num_wanted]
            return len(images) == num_wanted and all(image.state is UnitState.STORED for image in images)

        self.wait(is_stored)
        self.ledger.cancel(job)
        return self._check(job, like)

    def _check(self, job, like):
        """Check what must be true of a settled job, and of the farm after it; return its objects."""
        self.check_quiet()
        status, images = self.ledger.job(job), self.images(job)
        assert sum(image.attempts for image in images) == status.counts.stored + status.retries
        stored = [image for image in images if image.state is UnitState.STORED]
        assert len(stored) == status.counts.stored
        assert status.gpu_s > 0
        assert all(len(image.history) < image.attempts for image in stored)
        keys = [object_key(job, image.index, "png") for image in stored]
        found = [key for key in self.store.list(f"jobs/{job}/") if key.endswith(".png")]
        if status.state is JobState.DONE:
            assert found == keys
        else:  # some were on their way when it was cancelled
            assert set(keys) <= set(found)
        objects = [self.store.get(key) for key in keys]
        if like is not None:
            seen = {(image.prompt, image.seed): data for image, data in zip(stored, objects, strict=True)}
            known = seen.keys() & like.keys()
            assert len(known) >= NUM_HELD // 3
            assert all(seen[picture] == like[picture] for picture in known)
        return objects

    def check_quiet(self):
        """Check that a farm without work holds no trace of any: units in flight, messages, wrong sums."""
        with suppress(TimeoutError):  # the last message's thread may be on its way back
            self.wait(lambda: not self.left_behind(), 100, or_raise=TimeoutError)
        left = self.left_behind()
        assert left == {}, f"{left} is left behind\n{self.tail()}"
        for model, counted in self.raw.hgetall("farm:images").items():
            jobs = [job for job in self.ledger.jobs(limit=10_000) if job.header.model == model.decode()]
            assert int(counted) == sum(job.counts.stored for job in jobs)

    def left_behind(self):
        """Return what a quiet farm must not have, by key."""
        found = {}
        for key in self.raw.scan_iter(count=1000):
            name = key.decode()
            if _IN_FLIGHT.fullmatch(name):
                found[name] = self.raw.type(key)
            elif name.endswith(":entries") and self.raw.ttl(key) < 0 and not self.raw.exists(name[: -len(":entries")]):
                found[name] = "entries of no job, for ever"
            elif name == "farm:queued" and any(map(int, self.raw.hvals(key))):
                found[name] = self.raw.hgetall(key)
            elif name.startswith("farm:tenant:"):
                waiting = self.raw.hmget(key, "queued", "held", "in_flight")
                if any(int(count or 0) for count in waiting):
                    found[name] = waiting
        return found

    # -- waiting

    def wait(self, is_so, timeout_s=SETTLE_S, *, or_raise=AssertionError):
        """Wait for a condition; on failure show the end of the log."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline:
                raise or_raise(self.tail())
            time.sleep(0.05)

    def tail(self):
        """Return the end of what all processes logged."""
        return self.log.read_text()[-6000:]


def job_body(images=30, *, steps=12):
    """Return a job of three prompts whose bytes are the same wherever and beside whatever it is rendered."""
    return {
        "prompts": [f"picture {number}" for number in range(3)],
        "num_images_per_prompt": images // 3,
        "num_inference_steps": steps,
        "seed": 100,
        "reproducibility": "invariant",
    }


def is_running(pid):
    """Tell whether a process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def stopped(pid):
    """Freeze a process for the length of a `with` block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have been killed meanwhile
            os.kill(pid, signal.SIGCONT)


@contextmanager
def faulty_farm(folder, **settings):
    """Run servers and lines to them for the length of a `with` block; all other processes are the test's to start."""
    for number, source in enumerate(("tiny", "other", "corrupt")):
        save_tiny_sd15(folder / source, seed=number)
    with ExitStack() as stack:
        redis, s3 = stack.enter_context(valkey()), stack.enter_context(seaweed())
        lines = [stack.enter_context(line_to(port)) for port in (redis.port, s3.port, redis.port)]
        farm = Farm(folder, redis=redis, s3=s3, redis_line=lines[0], s3_line=lines[1], api_line=lines[2], **settings)
        for close in (farm.raw.close, farm.ledger.close, farm.app.close, farm.end):
            stack.callback(close)
        yield farm
