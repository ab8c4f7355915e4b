"""Children are restarted, stopped in order, and never outlive us. Every process here is a real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.processes import ChildDied, Spec, Supervisor, child_env, describe_exit, group_is_alive, rotate, tail

PATIENCE_S = 100.0


def spec(tmp_path, name, code, *, grace_s=PATIENCE_S):
    """Return a child that runs this Python code."""
    argv = (sys.executable, "-c", code)
    return Spec(name, argv, child_env(HERE=str(tmp_path)), cwd=tmp_path, log=tmp_path / f"{name}.log", grace_s=grace_s)


def until(condition, tend=lambda: None):
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        tend()
        time.sleep(0.02)


STUBBORN = """
import signal, pathlib, os, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("up").touch()
time.sleep(300)
"""

WRITES_ITS_END = """
import signal, pathlib, sys, time
def end(*_):
    with open("ends", "a") as f: f.write("{name} ")
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path("{name}.up").touch()
time.sleep(300)
"""


def test_a_dead_child_is_started_again(tmp_path):
    """It dies by a signal, it is said, another process takes its place."""
    said = []
    with Supervisor(said.append) as supervisor:
        supervisor.start(spec(tmp_path, "sleeper", "import time; time.sleep(300)"))
        first = supervisor.pids["sleeper"]
        os.kill(first, signal.SIGKILL)
        until(lambda: supervisor.pids.get("sleeper") not in (None, first), supervisor.tend)
    assert said[0].startswith("sleeper ended with SIGKILL; starting it again")


def test_a_child_that_keeps_dying_is_started_ever_later(tmp_path, monkeypatch):
    """Crashing at once must not become a busy loop."""
    monkeypatch.setattr("cli.processes._STABLE_AFTER_S", PATIENCE_S)  # at once, on a machine of any speed
    said = []
    with Supervisor(said.append) as supervisor:
        supervisor.start(spec(tmp_path, "crasher", "raise SystemExit(3)"))
        until(lambda: len(said) == 3, supervisor.tend)
    waits = [float(line.split("again in ")[1].removesuffix(" s")) for line in said]
    assert waits == sorted(set(waits))
    assert "code 3" in said[0]


def test_a_death_while_starting_is_an_error(tmp_path):
    """A part that cannot start would only crash again: its log is worth more."""
    (tmp_path / "crasher.log").write_text("what an earlier start said\n")
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(spec(tmp_path, "crasher", "print('no such option'); raise SystemExit(2)"))
        with pytest.raises(ChildDied, match="crasher ended with code 2") as caught:
            until(lambda: False, lambda: supervisor.tend(starting=True))
    assert caught.value.last_words == "no such option"
    assert tail(tmp_path / "crasher.log", lines=2) == "what an earlier start said\nno such option"


def test_children_end_in_reverse_order(tmp_path):
    """What was started last ends first, and the next only after it."""
    with Supervisor(lambda _: None) as supervisor:
        for name in ("server", "api", "worker"):
            supervisor.start(spec(tmp_path, name, WRITES_ITS_END.replace("{name}", name)))
        until(lambda: all((tmp_path / f"{name}.up").exists() for name in ("server", "api", "worker")))
    assert (tmp_path / "ends").read_text().split() == ["worker", "api", "server"]


def test_a_child_that_will_not_end_is_killed(tmp_path):
    """After its grace it is killed, and that is said."""
    said = []
    with Supervisor(said.append) as supervisor:
        supervisor.start(spec(tmp_path, "stubborn", STUBBORN, grace_s=0.2))
        until((tmp_path / "up").exists)
        pid = supervisor.pids["stubborn"]
    assert said == ["stubborn did not end in time and was killed"]
    assert not group_is_alive(pid)


def test_hurry_ends_the_grace(tmp_path):
    """A second Ctrl-C does not wait."""
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(spec(tmp_path, "stubborn", STUBBORN, grace_s=3600.0))
        until((tmp_path / "up").exists)
        supervisor.stop(hurry=lambda: True)


def test_grandchildren_end_too(tmp_path):
    """What a child started and left behind in its group goes with it."""
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])"
    with Supervisor(lambda _: None) as supervisor:
        supervisor.start(spec(tmp_path, "parent", code + "; open('up', 'w').close(); time.sleep(300)"))
        until((tmp_path / "up").exists)
        pid = supervisor.pids["parent"]
        assert group_is_alive(pid)
    until(lambda: not group_is_alive(pid))


OWNER = """
import json, sys, time
from pathlib import Path
from cli.processes import Spec, Supervisor, child_env
here = Path(sys.argv[1])
supervisor = Supervisor(print).__enter__()
for name in ("server", "worker"):
    code = Path(here / "child.py").read_text().replace("{name}", name)
    log = here / f"{name}.log"
    supervisor.start(Spec(name, (sys.executable, "-c", code), child_env(), cwd=here, log=log, grace_s=100.0))
while not all((here / f"{name}.up").exists() for name in ("server", "worker")):
    time.sleep(0.02)
(here / "pids.part").write_text(json.dumps(supervisor.pids))
(here / "pids.part").rename(here / "pids")
time.sleep(300)
"""


def test_nothing_outlives_a_killed_owner(tmp_path):
    """Kill -9 of the supervising process: its tether ends the children, in order."""
    (tmp_path / "child.py").write_text(WRITES_ITS_END)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], env=child_env())
    try:
        until((tmp_path / "pids").exists)
    finally:
        owner.kill()
        owner.wait()
    pids = json.loads((tmp_path / "pids").read_text())
    until(lambda: not any(group_is_alive(pid) for pid in pids.values()))
    assert (tmp_path / "ends").read_text().split() == ["worker", "server"]


def test_a_killed_tether_is_replaced():
    """The protection itself is protected."""
    with Supervisor(lambda _: None) as supervisor:
        first = supervisor._tether
        first.kill()
        until(lambda: supervisor._tether is not first, supervisor.tend)
        first.stdin.close()
        assert supervisor._tether.poll() is None


def test_a_large_log_is_put_aside(tmp_path, monkeypatch):
    """A farm that runs for months keeps two logs of bounded size for each process."""
    monkeypatch.setattr("cli.processes.MAX_LOG_BYTES", 10)
    log = tmp_path / "api.log"
    rotate(log)
    log.write_text("x" * 11)
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "api.1.log").read_text() == "x" * 11


@pytest.mark.parametrize(("code", "words"), [(0, "code 0"), (3, "code 3"), (-9, "SIGKILL"), (-99, "signal 99")])
def test_an_exit_is_told_in_words(code, words):
    """A negative code is a signal."""
    assert describe_exit(code) == words


def test_modules_are_found_from_any_folder(tmp_path):
    """A child starts our modules wherever it runs, and a file of the same name there does not matter."""
    (tmp_path / "cli.py").write_text("raise SystemExit('wrong one')")
    command = [sys.executable, "-P", "-m", "cli.tether"]
    done = subprocess.run(command, cwd=tmp_path, env=child_env(), input=b"[]\n", check=False)
    assert done.returncode == 0
    assert Path(child_env()["PYTHONPATH"].split(os.pathsep)[0], "cli").is_dir()
