"""The farm that a soak runs on: two launchers on lines of their own, an API that comes back on its port, and a watch.

Nothing here fails because a server is away: that is the normal state of things in a soak.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import RedisError

from faulty import Farm, is_running
from lines import line_to
from servers import free_ports

_WATCH_S = 0.5


class Crew:
    """A launcher and its workers, which reach Redis and S3 by lines of their own."""

    def __init__(self, farm: Farm, name: str, num_workers: int, redis_line, s3_line, **env) -> None:
        self.name = name
        self.num_workers = num_workers
        self.redis_line, self.s3_line = redis_line, s3_line
        self._farm = farm
        self._env = {
            **env,
            "FARM_WORKER_NAME": name,
            "FARM_REDIS_URL": f"redis://127.0.0.1:{redis_line.port}/0",
            "FARM_S3_ENDPOINT": f"http://127.0.0.1:{s3_line.port}",
        }
        self._launcher = None
        self.starts = 0

    def start(self) -> None:
        """Start the launcher unless it runs."""
        if self._launcher is None or self._launcher.poll() is not None:
            command = (Path(__file__).parents[1] / "odd_worker.py", "launcher", "--cpu-workers", self.num_workers)
            self._launcher = self._farm.start(*map(str, command), **self._env)
            self.starts += 1

    def kill(self) -> None:
        """Kill the launcher; its workers end by themselves."""
        if self._launcher is not None:
            self._launcher.kill()
            self._launcher.wait()

    def stop(self) -> int:
        """End it the polite way; return its exit code."""
        self._launcher.terminate()
        return self._launcher.wait(60)

    @property
    def pids(self) -> list[int]:
        """The workers that run now, asked of the kernel: no server is needed, and no stranger can be among them."""
        if self._launcher is None or self._launcher.poll() is not None:
            return []
        with suppress(OSError):
            children = Path(f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children").read_text()
            return [pid for pid in map(int, children.split()) if is_running(pid)]
        return []


class Api:
    """An API that comes back on the same port."""

    def __init__(self, farm: Farm, receiver_port: int) -> None:
        self._farm = farm
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.receiver_url = f"http://127.0.0.1:{receiver_port}/"
        self._process = None

    def start(self) -> None:
        """Start it; who asks it finds out when it is ready."""
        self._process = self._farm.start(
            *("-m", "api", "--port", str(self._port)),
            FARM_REDIS_URL=f"redis://127.0.0.1:{self._farm.api_line.port}/0",
            FARM_S3_ENDPOINT=self._farm.s3.endpoint,
        )

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it the polite way."""
        self._process.terminate()
        self._process.wait(30)


class Watch:
    """Counts what is stored, over and over; what it saw last is there even while Redis is away."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.stored = 0
        self.moved_at = time.monotonic()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def look(self) -> bool:
        """Count now; return whether Redis answered."""
        try:
            stored = sum(map(int, self._farm.raw.hvals("farm:images")))
        except RedisError:
            return False
        if stored != self.stored:
            self.moved_at = time.monotonic()
        self.stored = stored
        return True

    def _run(self) -> None:
        while not self._stopped.wait(_WATCH_S):
            self.look()


@contextmanager
def crews_of(farm: Farm):
    """Lay lines for two crews: two workers beside the servers, and one far away whose clock is an hour wrong."""
    with line_to(farm.redis.port) as redis_line, line_to(farm.s3.port) as s3_line:
        yield [
            Crew(farm, "near", 2, farm.redis_line, farm.s3_line),
            Crew(farm, "far", 1, redis_line, s3_line, ODD_CLOCK_S="3600"),
        ]
