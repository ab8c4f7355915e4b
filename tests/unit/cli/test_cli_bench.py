"""`farm bench`: the benchmark's process, its words on the terminal, its exit code, and the servers it may need."""

import json
import sys

import pytest
from typer.testing import CliRunner

from cli import bench, show
from cli import main as cli_main
from cli.exits import CliError

EVENTS = [
    {"event": "begin", "words": "ceilings of [a] card"},
    {"event": "note", "words": "fp16: 165 TFLOP/s"},
    {"event": "done", "words": "ceilings of [a] card", "seconds": 4.2},
    {"event": "fail", "words": "diffusers failed: out of memory"},
    {"event": "table", "words": "sd15", "head": ["batch", "images/s"], "rows": [["8", "2.35"]]},
    {"event": "result", "words": "", "document": {"format": 1}},
]
CHILD = """
import json, os, sys
for event in {events}:
    print(json.dumps(event), flush=True)
print(json.dumps({{"event": "note", "words": " ".join(sys.argv[1:])}}))
print(json.dumps({{"event": "note", "words": os.environ.get("FARM_REDIS_URL", "no Redis")}}))
print("a library's own words")
sys.exit({code})
"""


@pytest.fixture
def benchmark(monkeypatch):
    """Put a script into the benchmark's place; returns what sets its exit code."""

    def use(code=0):
        script = CHILD.format(events=EVENTS, code=code)
        monkeypatch.setattr(bench, "python_module", lambda _, *arguments: (sys.executable, "-c", script, *arguments))

    return use


def farm(*arguments):
    """Run `farm` with these arguments."""
    return CliRunner().invoke(cli_main.app, list(arguments))


def test_events_are_drawn_and_the_rest_is_passed_on(benchmark):
    """Stages, findings, failures and tables appear; options go through untouched, strange lines as they are."""
    benchmark()
    result = farm("bench", "--models", "sd15", "--seconds", "2")
    assert result.exit_code == 0, result.output
    for words in (
        "✓ ceilings of [a] card 4.2 s",
        "fp16: 165 TFLOP/s",
        "✗ diffusers failed: out of memory",
        "images/s",
        "2.35",
        '"format": 1',
        "--events --models sd15 --seconds 2",
        "a library's own words",
    ):
        assert words in result.output


@pytest.mark.parametrize("code", [1, 2])
def test_the_exit_code_is_the_benchmarks(benchmark, code):
    """Scripts see whether anything failed or was refused."""
    benchmark(code)
    assert farm("bench").exit_code == code


@pytest.mark.parametrize("arguments", [["--table", "a.json"], ["--help"]])
def test_what_only_prints_is_not_drawn(benchmark, arguments, capfd):
    """A table goes to a pipe as it is."""
    benchmark()
    assert farm("bench", *arguments).exit_code == 0
    assert json.dumps(EVENTS[0]) in capfd.readouterr().out


def test_ctrl_c_waits_for_what_was_measured(benchmark, monkeypatch):
    """The benchmark gets the signal itself, and its file is whole when we end."""
    benchmark()
    monkeypatch.setattr(bench, "draw", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert farm("bench").exit_code == 130


def test_a_whole_farm_gets_servers_of_its_own(benchmark):
    """For --end-to-end a queue and a store are started, told to the benchmark, and gone afterwards."""
    benchmark()
    result = farm("bench", "--end-to-end")
    assert result.exit_code == 0, result.output
    assert "redis://:" in result.output


def test_servers_that_are_named_are_used(benchmark, monkeypatch):
    """Whoever has Redis and S3 measures with them."""
    monkeypatch.setenv("FARM_REDIS_URL", "redis://elsewhere:6379/0")
    monkeypatch.setattr(bench, "_servers", None)
    benchmark()
    assert "redis://elsewhere:6379/0" in farm("bench", "--end-to-end").output


def test_servers_that_do_not_start_are_an_error(benchmark, monkeypatch):
    """With the end of the log of whichever died."""
    benchmark()
    spec = bench.embedded.valkey_spec

    def broken(*arguments):
        made = spec(*arguments)
        return type(made)(made.name, (sys.executable, "-c", "raise SystemExit('no')"), made.env, made.cwd, made.log)

    monkeypatch.setattr(bench.embedded, "valkey_spec", broken)
    with pytest.raises(CliError, match="valkey ended with code 1"):
        bench.run_bench(["--end-to-end"])


def test_lines_that_are_no_events_do_not_break_the_drawing():
    """JSON of somebody else's is shown as it is."""
    with show.console.capture() as shown:
        bench.draw(["[1, 2]\n", '{"level": "warning"}\n', "plain\n"])
    assert shown.get() == '[1, 2]\n{"level": "warning"}\nplain\n'
