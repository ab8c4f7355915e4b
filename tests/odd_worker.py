"""A worker process with something wrong, or a launcher of such workers: `python tests/odd_worker.py [launcher ...]`.

`ODD_CLOCK_S` in its environment sets its clock wrong by so many seconds; a prompt with POISON in it kills it the moment
its run begins, as a driver's fault would: no handler, no goodbye.
"""

from __future__ import annotations

import os
import signal
import sys
import time

POISON = "poison"


def _set_clock_wrong(by_s: float) -> None:
    """Before anything else is imported: modules that take `time.time` by its name get this one."""
    right = time.time
    time.time = lambda: right() + by_s


def _die_of_poison() -> None:
    from worker.runs import Runs  # noqa: PLC0415  after the clock is set

    begin = Runs.begin

    def begin_or_die(self, pipeline, seat):
        if POISON in seat.unit.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, pipeline, seat)

    Runs.begin = begin_or_die


def main() -> int:
    """Be what the first argument says."""
    if sys.argv[1:2] == ["launcher"]:
        from worker import launcher  # noqa: PLC0415  a launcher knows no torch

        launcher._worker_command = lambda: (sys.executable, __file__, "--tethered")
        return launcher.main(sys.argv[2:])
    _set_clock_wrong(float(os.environ.get("ODD_CLOCK_S", "0")))
    from worker.tether import end_with_parent  # noqa: PLC0415  likewise

    end_with_parent()
    _die_of_poison()
    from worker.app import main as work  # noqa: PLC0415  likewise

    return work()


if __name__ == "__main__":
    sys.exit(main())
