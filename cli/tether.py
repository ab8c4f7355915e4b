"""Ends the children of a `farm up` that vanished without stopping them (kill -9, out of memory).

It reads who they are from a pipe that only `farm up` writes: one JSON line, `[[group leader, grace in s], …]` in the
order of stopping, whenever they change. The pipe's end is the signal. Run as `python -m cli.tether`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from cli.processes import end_group, group_is_alive


def main() -> None:
    """Wait for the pipe to end, then end the groups of its last line, one after the other."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the pipe's end may end this process
    groups: list[tuple[int, float]] = []
    for line in sys.stdin:
        with contextlib.suppress(ValueError):  # half a line, cut off by the death itself
            groups = json.loads(line)
    for leader, grace_s in groups:
        end_orphans(leader, grace_s)


def end_orphans(leader: int, grace_s: float) -> None:
    """SIGTERM the leader of a group, wait up to `grace_s`, SIGKILL the rest."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while group_is_alive(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_group(leader)


if __name__ == "__main__":
    main()
