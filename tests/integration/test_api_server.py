"""`python -m api` as a process: what only a real server and a real socket show."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.__main__ import main, objection
from api_process import serving
from farm.settings import Settings
from waiting import PATIENCE_S, wait_for


@pytest.fixture(scope="module")
def served(valkey_server, tmp_path_factory):
    """Return the API as a process, for tests that leave it as it is."""
    with serving(valkey_server.url, tmp_path_factory.mktemp("api") / "log") as server:
        yield server


def test_a_chunked_body_is_refused_before_it_has_been_sent(served):
    """Of 50 MB without a declared length the server takes little more than its limit, and hangs up."""
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (100_000, b" " * 100_000)
    num_sent, answer = served.talk(head, *[chunk] * 500)
    assert num_sent < 200
    assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""  # a reset can overtake the answer
    with_length = head.replace(b"Transfer-Encoding: chunked", b"Content-Length: 50000000")
    _, answer = served.talk(with_length)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/jobs?before=%ff%fe%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/jobs/%ff%00%0d%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%ed%a0%80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_bytes_that_no_client_should_send_are_the_clients_fault(served, head):
    """Broken UTF-8 in paths, queries and headers gives a 2xx or 4xx, and the server lives on."""
    _, answer = served.talk(head)
    assert re.match(rb"HTTP/1\.1 [24]\d\d ", answer), answer[:300]
    assert served.process.poll() is None


def test_requests_are_logged_with_their_fields(served):
    """Each request is one JSON line with an action; a path can not forge another line."""
    served.talk(b"GET /v1/jobs/x%0a%7B%22action%22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    def logged_of_it():
        whole, _, _ = served.log_file.read_text().rpartition("\n")
        lines = map(json.loads, whole.splitlines())
        return [line for line in lines if line.get("action") == "http_request" and "jobs/x" in line["path"]]

    (logged,) = wait_for(logged_of_it, "the line of the log, which comes after the answer")
    assert (logged["method"], logged["status"], logged["route"]) == ("GET", 404, "/v1/jobs/{job_id}")
    assert logged["path"] == "/v1/jobs/x%0A%7B%22action%22"
    assert logged["duration_ms"] >= 0


def test_it_stops_on_sigterm(redis_url, tmp_path):
    """SIGTERM ends the process in good order and soon."""
    with serving(redis_url, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
        assert "Application shutdown complete" in server.log_file.read_text()


def test_the_same_key_at_the_same_moment_makes_one_job(served):
    """Of many equal POSTs in flight together, one makes the job and the others are told of it."""
    body = b'{"model": "scenes", "prompts": ["a"]}'

    def post(_):
        headers = {"Content-Type": "application/json", "Idempotency-Key": "at-once"}
        request = urllib.request.Request(f"http://127.0.0.1:{served.port}/v1/jobs", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310  our own server
            return json.load(answer)["id"], answer.headers.get("Idempotent-Replayed")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert [replayed for _, replayed in answers].count(None) == 1


def run(*arguments, **variables):
    """Run `python -m api` to its end."""
    command = [sys.executable, "-m", "api", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FARM_MAX_PROMPTS", "many", "max_prompts"),
        ("FARM_CATALOG_FILE", "/nowhere/catalog.toml", "/nowhere/catalog.toml"),
        ("FARM_WEBHOOK_SECRET", "secret", "FARM_WEBHOOK_SECRET: secret 1 does not begin with whsec_"),
        ("FARM_OPERATOR_KEY", "short", "FARM_OPERATOR_KEY must have 32 characters"),
        ("FARM_CORS_ORIGINS", "*", "FARM_CORS_ORIGINS: '*' is no origin"),
        ("FARM_WEBHOOK_ALLOW_PRIVATE", "10.0.0.0/33", "FARM_WEBHOOK_ALLOW_PRIVATE: '10.0.0.0/33'"),
    ],
)
def test_a_wrong_setting_is_told(monkeypatch, capsys, variable, value, told):
    """The program ends at once with status 2 and names what is wrong."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["api"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_process_with_a_wrong_setting_ends_without_a_traceback():
    """Nothing that is imported before reads settings, or fails in its own way."""
    done = run(FARM_MAX_PROMPTS="many")
    assert done.returncode == 2
    assert "max_prompts" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_api_that_asks_nobody_stays_on_this_machine(monkeypatch, capsys):
    """It ends before it listens where nobody said that it may be open to others, and tells the two ways."""
    host = "0.0.0.0"  # noqa: S104  not bound
    monkeypatch.setattr(sys, "argv", ["api", "--host", host])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"whoever reaches {host} is the farm's operator" in told
    assert "FARM_AUTH=keys" in told


def test_who_may_listen_where():
    """With keys anywhere, without them on loopback."""
    for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"):
        assert objection(Settings(), host) == ""
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.attacker.example"):  # noqa: S104  not bound
        assert objection(Settings(), host)
        assert objection(Settings(auth="open"), host), "said and meant: it is warned of"
        assert objection(Settings(auth="keys"), host) == ""


def test_a_port_that_is_taken_is_told(served):
    """A second server on the same port gives up with the reason."""
    done = run("--port", str(served.port))
    assert done.returncode != 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_settings(monkeypatch, capsys):
    """`--help` explains the arguments."""
    monkeypatch.setattr(sys, "argv", ["api", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "--port" in capsys.readouterr().out
