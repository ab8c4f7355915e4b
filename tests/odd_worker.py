"""A worker process with something wrong, or a launcher of such workers: `python tests/odd_worker.py [launcher ...]`.

`ODD_CLOCK_S` in its environment sets its clock wrong by so many seconds; a prompt with POISON in it kills it the moment
its run begins, as a driver's fault would: no handler, no goodbye. While there is a file at `ODD_GATE`, units with GATED
in their prompt are claimed and not begun: what a test does meanwhile comes in the midst of the work, however long it
takes. A launcher of such workers imports torch once for all of them: they are forked, not started.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

POISON = "poison"
GATED = "behind the gate"


def _set_clock_wrong(by_s: float) -> None:
    """Before anything else is imported: modules that take `time.time` by its name get this one."""
    right = time.time
    time.time = lambda: right() + by_s


def _mind_prompts() -> None:
    from worker.engine import Engine  # noqa: PLC0415  after the clock is set
    from worker.runs import Runs  # noqa: PLC0415  likewise

    begin, submit = Runs.begin, Engine.submit
    gate = Path(os.environ.get("ODD_GATE", os.devnull)).absolute()

    def begin_or_die(self, pipeline, seat):
        if POISON in seat.unit.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, pipeline, seat)

    def submit_in_time(self, unit, *inputs):
        while GATED in unit.prompt and gate.is_file() and self.is_alive:
            time.sleep(0.02)
        return submit(self, unit, *inputs)

    Runs.begin, Engine.submit = begin_or_die, submit_in_time


class _Forked:
    """What a launcher knows of a worker: as much of `subprocess.Popen` as it uses."""

    def __init__(self, _command: tuple[str, ...], *, env: dict[str, str], stdin: int) -> None:
        assert stdin == subprocess.PIPE
        near, far = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_forked(env, near)
        os.close(near)
        self.stdin = os.fdopen(far, "wb")  # closed by the launcher
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout_s: float | None = None) -> int:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired("a worker", timeout_s)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _be_forked(env: dict[str, str], stdin: int) -> NoReturn:
    """Become what a worker is that was started with this environment and standard input, and nothing else."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(stdin, 0)
        os.closerange(3, 1024)  # the ends of its siblings' pipes above all
        os.environ.clear()
        os.environ.update(env)
        code = _work()
    except BaseException:  # noqa: BLE001  the launcher's own code must not go on here
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(arguments: list[str]) -> int:
    """Run a launcher whose workers are odd."""
    from worker import launcher  # noqa: PLC0415  a launcher knows no torch

    if "ODD_CLOCK_S" in os.environ:  # modules have to be imported after it is set
        launcher._worker_command = lambda: (sys.executable, __file__, "--tethered")
    else:
        from worker import app  # noqa: F401, PLC0415  what takes so long

        launcher.subprocess = SimpleNamespace(
            Popen=_Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
        )
    return launcher.main(arguments)


def _work() -> int:
    """Be a worker."""
    _set_clock_wrong(float(os.environ.get("ODD_CLOCK_S", "0")))
    from worker.tether import end_with_parent  # noqa: PLC0415  after the clock is set

    end_with_parent()
    _mind_prompts()
    from worker.app import main as work  # noqa: PLC0415  likewise

    return work()


def main() -> int:
    """Be what the first argument says."""
    return _launch(sys.argv[2:]) if sys.argv[1:2] == ["launcher"] else _work()


if __name__ == "__main__":
    sys.exit(main())
