"""`farm webhooks` against a farm that is played."""

import json

import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from fake_http import serving


@pytest.fixture
def farm(monkeypatch):
    """Run `farm` with these arguments against one played answer; returns the result and the requests."""

    def run(*arguments, answer):
        with serving(answer) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            return CliRunner().invoke(cli_main.app, list(arguments)), seen

    return run


def test_a_test_is_sent_by_the_farm_and_its_outcome_told(farm):
    """The farm, not this machine, is what must reach the receiver."""
    told = {"id": "msg_ping_1", "delivered": True, "status": 204, "error": None, "duration_s": 0.012}
    result, seen = farm("webhooks", "test", "https://a.example/hook", answer=(200, told, {}))
    assert result.exit_code == 0, result.output
    assert "answered 204 after 0.01 s; it was sent as msg_ping_1" in result.output
    assert (seen[0].method, seen[0].path) == ("POST", "/v1/webhooks/test")
    assert json.loads(seen[0].body) == {"url": "https://a.example/hook"}


def test_a_receiver_that_does_not_take_it_fails_the_command(farm):
    """Scripts see it by the exit code, people by the reason."""
    told = {"id": "msg_ping_1", "delivered": False, "status": 401, "error": "answered 401", "duration_s": 0.012}
    result, _ = farm("webhooks", "test", "https://a.example/hook", answer=(200, told, {}))
    assert result.exit_code == 1
    assert "https://a.example/hook: answered 401" in str(result.exception)


def test_a_jobs_webhooks_are_listed_with_the_reason(farm):
    """Whoever waits for a message sees what stopped it."""
    delivery = {
        "event": "job.done",
        "id": "msg_a_done_1",
        "state": "retrying",
        "tries": 3,
        "status": 500,
        "error": "answered 500",
        "tried_at": "2026-11-22T17:00:00Z",
        "next_try_at": "2026-11-22T17:30:00Z",
    }
    result, seen = farm("webhooks", "list", "job_a", answer=(200, {"object": "list", "data": [delivery]}, {}))
    assert result.exit_code == 0, result.output
    assert seen[0].path == "/v1/jobs/job_a/webhooks"
    for told in ("job.done", "retrying", "3", "answered 500"):
        assert told in result.output


def test_a_job_without_a_webhook_says_so(farm):
    """Not an empty table."""
    result, _ = farm("webhooks", "list", "job_a", answer=(200, {"object": "list", "data": []}, {}))
    assert "the job has no webhook" in result.output
