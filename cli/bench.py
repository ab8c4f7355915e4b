"""`farm bench`: start the benchmark as a process of its own, draw what it says, and start servers if it needs a farm.

What is measured, and how, is worker/bench's business; this process knows no torch. Its options are passed on as they
are: `python -m worker.bench` understands them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.table import Table

from cli import embedded, show
from cli.exits import CliError, Exit
from cli.processes import ChildDied, Supervisor, child_env, python_module, tail
from cli.up import models_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SERVERS_READY_S: Final = 60.0
_PROBE_EVERY_S: Final = 0.1
_PLAIN: Final = ("--table", "--help", "-h")
"""What only prints: nothing to draw."""


def run_bench(arguments: Sequence[str]) -> int:
    """Run the benchmark with these options and return its exit code. Raises CliError when servers do not start."""
    env = {**child_env(), "FARM_MODELS_DIR": str(models_dir())}
    if any(argument in _PLAIN for argument in arguments):
        return subprocess.run(python_module("worker.bench", *arguments), env=env, check=False).returncode
    needs_farm = "--end-to-end" in arguments and "FARM_REDIS_URL" not in os.environ
    with contextlib.ExitStack() as servers:
        if needs_farm:
            env |= servers.enter_context(_servers())
        return _watch(python_module("worker.bench", "--events", *arguments), env)


def _watch(command: Sequence[str], env: dict[str, str]) -> int:
    """Run the benchmark, draw its events, and return its exit code."""
    # It leads no session of its own: Ctrl-C reaches it, and it ends by itself with what it has.
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101  it is a pipe
        try:
            draw(process.stdout)
        except KeyboardInterrupt:
            process.wait()
            return Exit.INTERRUPTED
    return process.returncode


def draw(lines: IO[str] | Sequence[str]) -> None:
    """Draw events as they come; a line that is none is shown as it is."""
    with contextlib.ExitStack() as spinning:
        for line in lines:
            try:
                event = json.loads(line)
                kind, words = event["event"], str(event["words"])
            except (ValueError, TypeError, KeyError):
                show.console.print(line.rstrip("\n"), markup=False)
                continue
            spinning.close()
            match kind:
                case "begin":
                    spinning.enter_context(show.console.status(escape(words)))
                case "done":
                    show.console.print(f"[green]✓[/] {escape(words)} [dim]{event['seconds']} s[/]")
                case "note":
                    show.console.print(f"  {escape(words)}")
                case "fail":
                    show.console.print(f"[red]✗[/] {escape(words)}")
                case "table":
                    show.console.print(_table(event))
                case "result":
                    show.console.print_json(json.dumps(event["document"]))


def _table(event: Mapping[str, Any]) -> Table:
    table = Table(title=escape(event["words"]), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column, name in enumerate(event["head"]):
        table.add_column(escape(name), justify="left" if column == 0 else "right")
    for row in event["rows"]:
        table.add_row(*(escape(cell) for cell in row))
    return table


@contextlib.contextmanager
def _servers() -> Iterator[dict[str, str]]:
    """Run a queue and a store for the length of a `with` block; yields the settings that say where they are."""
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as name, Supervisor(show.note) as supervisor:
        data = Path(name)
        (data / "logs").mkdir()
        secret, ports = embedded.load_secrets(data), embedded.load_ports(data)
        specs = [embedded.valkey_spec(data, secret, ports), embedded.seaweedfs_spec(data, secret, ports)]
        try:
            for spec in specs:
                supervisor.start(spec)
            deadline = time.monotonic() + _SERVERS_READY_S
            while not (embedded.valkey_answers(secret, ports) and embedded.s3_answers(ports)):
                supervisor.tend(starting=True)
                if time.monotonic() > deadline:
                    raise CliError("the servers are not ready; " + "\n".join(tail(spec.log) for spec in specs))
                time.sleep(_PROBE_EVERY_S)
            yield embedded.farm_env(secret, ports)
        except ChildDied as death:
            raise CliError(f"{death}; its log ends with:\n{death.last_words}") from death
        finally:
            supervisor.stop()
            embedded.sweep_sockets(ports)
