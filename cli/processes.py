"""Child processes of `farm up`: start, restart, stop in order, and never leave one behind.

Each child leads a session of its own, so that Ctrl-C in a terminal reaches `farm up` alone and the order of stopping
is ours. `cli.tether` ends them when `farm up` is killed. Knows nothing of what the children do; standard library only,
because the tether imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MAX_LOG_BYTES: Final = 16 * 1024 * 1024
_STABLE_AFTER_S: Final = 30.0
_MAX_BACKOFF_S: Final = 10.0


@dataclass(frozen=True)
class Spec:
    """How to run one child. `grace_s` is how long it may take to end after SIGTERM."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    grace_s: float = 30.0


@dataclass
class Child:
    """One child: its spec, and the process that runs it now (None between a death and the restart)."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    next_start_at: float = 0.0
    quick_deaths: int = 0
    log_start: int = 0  # where this process' part of the log begins, bytes


class ChildDied(Exception):
    """A child ended while the farm was starting."""

    def __init__(self, child: Child, code: int) -> None:
        super().__init__(f"{child.spec.name} ended with {describe_exit(code)}")
        self.spec = child.spec
        self.last_words = tail(child.spec.log, since=child.log_start)


class Supervisor:
    """Keeps children running until `stop`. One thread owns it and calls `tend` several times a second."""

    def __init__(self, announce: Callable[[str], None], *, lock_fd: int | None = None) -> None:
        """`announce` gets one line per event; `lock_fd` is kept open by the tether as long as it has work."""
        self._announce = announce
        self._children: list[Child] = []
        self._lock_fd = lock_fd
        self._tether: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._start_tether()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The running children."""
        return {c.spec.name: c.process.pid for c in self._children if c.process is not None}

    def start(self, spec: Spec) -> None:
        """Start a child and keep it running from now on."""
        child = Child(spec)
        self._children.append(child)
        self._launch(child)

    def tend(self, *, starting: bool = False) -> None:
        """Notice the dead and restart them when their time has come; raises ChildDied instead while `starting`."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.next_start_at:
                    self._launch(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            end_group(child.process.pid)
            child.process = None
            self._tell_tether()
            if starting:
                raise ChildDied(child, code)
            child.quick_deaths = 0 if now - child.started_at > _STABLE_AFTER_S else child.quick_deaths + 1
            wait_s = min(_MAX_BACKOFF_S, 0.25 * 2**child.quick_deaths) if child.quick_deaths else 0.0
            child.next_start_at = now + wait_s
            when = f"in {wait_s:.1f} s" if wait_s else "now"
            self._announce(f"{child.spec.name} ended with {describe_exit(code)}; starting it again {when}")
        if self._tether is not None and self._tether.poll() is not None:
            self._start_tether()

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """End all children, the last started first, each within its grace; `hurry` turning true ends the grace."""
        while self._children:
            child = self._children[-1]
            if child.process is not None:
                if not end_child(child.process, grace_s=child.spec.grace_s, hurry=hurry):
                    self._announce(f"{child.spec.name} did not end in time and was killed")
                child.process = None
            self._children.pop()
            self._tell_tether()
        if self._tether is not None and self._tether.stdin is not None:
            with contextlib.suppress(OSError):
                self._tether.stdin.close()
            self._tether.wait()
            self._tether = None

    def _launch(self, child: Child) -> None:
        spec = child.spec
        rotate(spec.log)
        with spec.log.open("ab") as log:
            child.log_start = log.tell()
            child.process = subprocess.Popen(  # the supervisor ends it in stop()
                spec.argv,
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.started_at = time.monotonic()
        self._tell_tether()

    def _start_tether(self) -> None:
        self._tether = subprocess.Popen(
            python_module("cli.tether"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=() if self._lock_fd is None else (self._lock_fd,),
            env=child_env(),
        )
        self._tell_tether()

    def _tell_tether(self) -> None:
        """Tell the tether whom to end, in order, should this process vanish."""
        if self._tether is None or self._tether.stdin is None:
            return
        groups = [(c.process.pid, c.spec.grace_s) for c in reversed(self._children) if c.process is not None]
        with contextlib.suppress(OSError):  # a dead tether is started anew by tend()
            self._tether.stdin.write(json.dumps(groups).encode() + b"\n")
            self._tether.stdin.flush()


def python_module(name: str, *args: str) -> tuple[str, ...]:
    """Return the command that runs a module of this checkout; -P keeps files of the current folder out of it."""
    return (sys.executable, "-P", "-m", name, *args)


def child_env(**extra: str) -> dict[str, str]:
    """Return our environment plus `extra`, with this checkout importable from any working folder."""
    here = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here, **extra}


def end_child(process: subprocess.Popen[bytes], *, grace_s: float, hurry: Callable[[], bool] = lambda: False) -> bool:
    """SIGTERM a child, wait, SIGKILL what is left of its group; returns whether it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    deadline = time.monotonic() + grace_s
    while process.poll() is None and time.monotonic() < deadline and not hurry():
        time.sleep(0.02)
    on_time = process.poll() is not None
    end_group(process.pid)
    process.wait()
    return on_time


def end_group(leader: int) -> None:
    """SIGKILL whatever is left in the group that `leader` led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def group_is_alive(leader: int) -> bool:
    """Whether any process of the group still runs; zombies that nobody has reaped do not count."""
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    proc = Path("/proc")
    if not proc.is_dir():
        return True
    for stat in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(group) == leader and state not in "ZX":
                return True
    return False


def describe_exit(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def rotate(log: Path) -> None:
    """Keep one older log beside a log that has grown large."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".1.log"))


def tail(log: Path, *, since: int = 0, lines: int = 12) -> str:
    """Return the last lines of a log, none from before byte `since`; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - 16_384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
