"""`python -m api` as a process of its own, for what only a real server and a real socket show."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import free_ports


class Served:
    """A running `python -m api`."""

    def __init__(self, port: int, process: subprocess.Popen, log_file: Path) -> None:
        self.port = port
        self.process = process
        self.log_file = log_file

    def talk(self, *pieces: bytes, timeout_s: float = 60.0) -> tuple[int, bytes]:
        """Send pieces until the server answers; return how many were sent, and the answer."""
        num_sent, answer = 0, b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    num_sent += 1
            except (BrokenPipeError, ConnectionResetError):
                pass  # it answered and hung up
            try:
                while received := connection.recv(65536):
                    answer += received
            except ConnectionResetError:
                pass
        return num_sent, answer


@contextmanager
def serving(redis_url: str, log_file: Path, **settings: str) -> Iterator[Served]:
    """Run the API as a process, logging JSON, for the length of a `with` block; `settings` are FARM_* variables."""
    (port,) = free_ports(1)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "AWS_"))},
        "FARM_REDIS_URL": redis_url,
        "FARM_S3_ENDPOINT": "http://127.0.0.1:9",
        "FARM_S3_ACCESS_KEY": "key",
        "FARM_S3_SECRET_KEY": "secret",
        "FARM_LOG_FORMAT": "json",
        "FARM_MAX_BODY_BYTES": "1000000",
        "FARM_LEASE_S": "600",
        **settings,
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api", "--port", str(port)], env=env, stderr=log)
    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10):
                    break
            except OSError:
                assert process.poll() is None, log_file.read_text()
                assert time.monotonic() < deadline, "the API did not start"
                time.sleep(0.05)
        yield Served(port, process, log_file)
    finally:
        process.kill()
        process.wait(60)
