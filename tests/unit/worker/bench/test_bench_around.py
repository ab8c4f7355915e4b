"""What surrounds a measurement: the machine's description, page caches, processes that fail, a farm that answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

from farm.errors import Fatal
from farm.jobs import Acceleration
from tiny_models import tiny_row
from worker.bench import machine, startup, whole_farm
from worker.bench.voice import Voice
from worker.gpu import Device

CPU = Device(torch.device("cpu"), "cpu", None)
CARD = Device(torch.device("cpu"), "NVIDIA GeForce RTX 4090", "GPU-1")


def test_a_result_names_its_machine():
    """Processor, threads, versions; and the commit, where there is one."""
    about = machine.describe(CPU)
    assert about["device"].startswith("CPU: ")
    assert about["torch"] == torch.__version__
    assert "driver" not in about
    assert about.get("commit") == (machine.find_commit() or None)


def test_results_of_a_checkout_go_where_results_are(monkeypatch, tmp_path):
    """In a checkout beside the others, elsewhere into the current folder; a card's name is a file's name."""
    assert machine.default_result(CARD) == machine.ROOT / "bench/results/farm-bench-nvidia-geforce-rtx-4090.json"
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert str(machine.default_result(CARD)) == "farm-bench-nvidia-geforce-rtx-4090.json"
    assert machine.find_commit() == ""


@pytest.mark.parametrize(("used_mib", "told"), [(600, ""), (9_000, "other processes hold 9000 MiB of the card")])
def test_somebody_elses_work_on_the_card_is_told(monkeypatch, used_mib, told):
    """A farm that renders beside a benchmark makes both wrong; the file says so."""
    monkeypatch.setattr(machine, "read_telemetry", lambda _: SimpleNamespace(memory_used_mib=used_mib))
    assert machine.neighbours(CARD) == told
    assert machine.describe(CARD).get("busy", "") == told


@pytest.mark.parametrize(("load", "told"), [(0.4, ""), (999.0, "a load average of 999.0")])
def test_a_busy_machine_is_told(monkeypatch, load, told):
    """So is what else takes the CPU."""
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.neighbours(CPU) == told


def test_start_up_is_measured_in_all_three_ways(monkeypatch, tmp_path):
    """First as it comes, then with the weights out of the page cache, then with them in it."""
    happened = []
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * 4096)
    monkeypatch.setattr(startup, "forget", lambda paths: happened.append(("forget", paths)))
    monkeypatch.setattr(startup, "start_once", lambda *_, **__: happened.append("start") or {"first_image_s": 1.0})
    found = startup.measure_startup("scenes", steps=2, weights=iter([weights]), env={})
    assert list(found) == ["first", "cold", "warm"]
    assert happened == ["start", ("forget", [weights]), "start", "start"]


def test_files_are_as_they_were_when_the_cache_forgets_them(tmp_path):
    """Forgetting is for the page cache, never for the file."""
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    startup.forget([path])
    assert path.read_bytes() == b"weights"


def test_a_worker_that_does_not_start_says_why(monkeypatch):
    """Its last words are in the error, and no time is told."""
    done = SimpleNamespace(returncode=2, stdout="", stderr="no such model")
    monkeypatch.setattr(startup.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(Fatal, match="ended with code 2: no such model"):
        startup.start_once("scenes", steps=2, env={})


class FarmApi(BaseHTTPRequestHandler):
    """An API whose jobs are done at the second look; what it is asked is in `asked`."""

    asked: list[tuple[str, str, object]]
    workers: list[int]
    outcome = "done"

    def answer(self, body):
        length = int(self.headers.get("content-length") or 0)
        type(self).asked.append((self.command, self.path, json.loads(self.rfile.read(length) or "null")))
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        if self.path == "/v1/workers":
            self.answer({"data": [{"pid": pid} for pid in self.workers]})
        else:
            times = {"started_at": "2026-01-01T00:00:01Z", "finished_at": "2026-01-01T00:00:05Z"}
            self.answer({"id": "job_1", "state": self.outcome, "counts": {"failed": 1}, **times})

    def do_POST(self):
        self.answer({"id": "job_1", "state": "queued"})

    def log_message(self, *_):
        pass


@pytest.fixture
def farm(monkeypatch, tmp_path):
    """Put an API of this process into the place of the farm's; returns its class and what measures on it."""
    api = type("Api", (FarmApi,), {"asked": [], "workers": [7]})
    server = HTTPServer(("127.0.0.1", 0), api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(whole_farm, "free_port", lambda: server.server_address[1])
    started = []

    class Process:
        pid = 7

        def __init__(self, command, env, **_):
            started.append((command[3:], env))

        def poll(self):
            return None

        def terminate(self):
            started.append("terminate")

        def wait(self, _limit_s=None):
            return 0

    monkeypatch.setattr(whole_farm.subprocess, "Popen", Process)
    row = tiny_row("tiny", num_inference_steps=5)

    def measure():
        fast = Acceleration(deep_cache_interval=3)
        more = {"warm_steps": 3, "acceleration": fast, "settings": {"FARM_X": "1"}, "logs": tmp_path}
        return whole_farm.measure_farm(row, batch=4, images=12, **more)

    yield SimpleNamespace(api=api, measure=measure, started=started)
    server.shutdown()
    server.server_close()


def test_a_farm_is_measured_by_the_times_of_its_job(farm):
    """The rate is that of the second job: the first one loads the model. API and worker run, and are stopped."""
    assert farm.measure() == 12 / 4
    bodies = [body for method, _, body in farm.api.asked if method == "POST"]
    assert [(len(body["prompts"]), body["num_inference_steps"]) for body in bodies] == [(4, 3), (12, 5)]
    assert len(set(bodies[1]["prompts"])) == 12
    assert {body["acceleration"]["deep_cache_interval"] for body in bodies} == {3}
    (api, api_env), (worker, env) = farm.started[:2]
    assert (api[0], worker) == ("api", ["worker"])
    assert (env["FARM_WORKER_MODELS"], env["FARM_MAX_BATCH"], env["FARM_X"]) == ("tiny", "4", "1")
    assert api_env == env
    assert farm.started[2:] == ["terminate", "terminate"]


def test_a_job_that_fails_has_no_rate(farm):
    """Images that are missing would make the farm fast."""
    farm.api.outcome = "failed"
    with pytest.raises(Fatal, match="the farm's job ended failed"):
        farm.measure()
    assert farm.started[-1] == "terminate"


def test_other_workers_make_the_number_worthless(farm):
    """On a farm that others serve, one card's rate cannot be told."""
    farm.api.workers = [7, 8]
    with pytest.raises(Fatal, match="other workers serve this farm"):
        farm.measure()


def test_people_and_programs_are_told_the_same(capsys):
    """Lines on standard error for people, objects on standard output for `farm bench`; results always on the latter."""
    for as_events in (False, True):
        voice = Voice(as_events=as_events)
        with voice.stage("a stage"):
            voice.note("a finding")
        voice.fail("a failure")
        voice.table("a title", ("a", "b"), [["1", "2"]])
        voice.result({"format": 1})
    said = capsys.readouterr()
    assert said.err == "a stage …\n  a finding\n  FAILED: a failure\n\na title\na  b\n1  2\n\n"
    plain, _, events = said.out.partition("}\n")
    assert json.loads(plain + "}") == {"format": 1}
    kinds = [json.loads(line)["event"] for line in events.splitlines()]
    assert kinds == ["begin", "note", "done", "fail", "table", "result"]
