"""`farm cancel`, `pause`, `resume`, `retry` and `tenants` against a farm that is played: what they ask and show."""

import json

import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from cli import watch
from cli.exits import CliError, Exit
from fake_http import serving

JOB = "job_00000000000000abcdef"
TENANT = {
    "object": "tenant",
    "name": "alice",
    "weight": 2.0,
    "max_queued_images": 500,
    "max_running": None,
    "queued_images": 380,
    "running_images": 8,
    "images_stored": 11_204,
    "gpu_s": 7843.2,
    "open_jobs": 3,
}


def job(state="rendering", **fields):
    """Return the API's words for a job of four images."""
    counts = {"total": 4, "queued": 2, "rendering": 1, "stored": 1, "failed": 0, "cancelled": 0}
    return {
        "id": JOB,
        "model": "scenes",
        "state": state,
        "paused": state == "paused",
        "priority": "bulk",
        "total": 4,
        "counts": counts,
        "created_at": "2026-11-22T17:00:00Z",
        **fields,
    }


@pytest.fixture
def farm(monkeypatch):
    """Run `farm` with these arguments against played answers; returns its result and what was asked."""

    def run(*arguments, answers=()):
        with serving(*(answers or [(200, {}, {})])) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            result = CliRunner().invoke(cli_main.app, list(arguments))
        return result, [(request.method, request.path) for request in seen], seen

    return run


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("resume", "rendering"), ("retry", "rendering")])
def test_a_verb_is_a_path_of_the_job(farm, verb, state):
    """One POST, then the job as it stands, priority and all."""
    result, asked, _ = farm(verb, JOB, answers=[(200, job(state), {})])
    assert result.exit_code == 0, result.output
    assert asked == [("POST", f"/v1/jobs/{JOB}/{verb}")]
    assert state in result.output
    assert "bulk" in result.output
    assert (f"farm resume {JOB}" in result.output) == (state == "paused")


def test_a_pausing_job_says_so_while_it_renders(farm):
    """Between the pause and the last image that had been started the state is rendering: the way out is told anyway."""
    result, _, _ = farm("pause", JOB, answers=[(200, job("rendering", paused=True), {})])
    assert f"paused; farm resume {JOB}" in result.output


def test_single_images_are_cancelled_and_nothing_else(farm):
    """A DELETE for each image named, none of the job."""
    result, asked, _ = farm("cancel", JOB, "--image", "3", "--image", "7", answers=[(200, job(), {})])
    assert result.exit_code == 0, result.output
    assert asked == [
        ("DELETE", f"/v1/jobs/{JOB}/images/3"),
        ("DELETE", f"/v1/jobs/{JOB}/images/7"),
        ("GET", f"/v1/jobs/{JOB}"),
    ]


def test_a_whole_tenant_is_cancelled(farm):
    """One POST, and how many jobs it was."""
    result, asked, _ = farm("cancel", "--tenant", "alice", answers=[(200, {"name": "alice", "cancelled_jobs": 3}, {})])
    assert result.exit_code == 0, result.output
    assert asked == [("POST", "/v1/tenants/alice/cancel")]
    assert "3 jobs of alice cancelled" in result.output


@pytest.mark.parametrize(
    "arguments", [(), (JOB, "--tenant", "alice"), ("--image", "3"), ("--tenant", "a", "--image", "1")]
)
def test_a_cancel_that_could_mean_two_things_is_refused(farm, arguments):
    """Nothing is asked of the farm before it is clear what goes."""
    result, asked, _ = farm("cancel", *arguments)
    assert isinstance(result.exception, CliError)
    assert result.exception.code is Exit.USAGE
    assert asked == []


def test_a_retry_that_the_farm_refuses_ends_with_its_words(farm):
    """A cancelled job is 409: told as it is, with the exit code of a refusal."""
    problem = {"title": "The job was cancelled", "detail": f"{JOB} was cancelled", "status": 409, "errors": []}
    result, _, _ = farm("retry", JOB, answers=[(409, problem, {})])
    assert isinstance(result.exception, CliError)
    assert (result.exception.code, str(result.exception)) == (Exit.REFUSED, f"{JOB} was cancelled")


def test_tenants_are_listed_with_limits_and_use(farm):
    """A limit that is not set is a dash."""
    result, asked, _ = farm("tenants", answers=[(200, {"data": [TENANT]}, {})])
    assert result.exit_code == 0, result.output
    assert asked == [("GET", "/v1/tenants")]
    assert result.output.splitlines()[-1].split() == ["alice", "2", "500", "-", "380", "8", "11204", "2h", "10m", "3"]


def test_limits_that_are_not_named_stay(farm):
    """The API sets all three at once: what is there is read first, and sent along."""
    result, asked, seen = farm("tenants", "set", "alice", "--max-queued", "none", "--max-running", "4",
                               answers=[(200, TENANT, {})])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked == [("GET", "/v1/tenants/alice"), ("PUT", "/v1/tenants/alice")]
    assert json.loads(seen[1].body) == {"weight": 2.0, "max_queued_images": None, "max_running": 4}


@pytest.mark.parametrize("arguments", [(), ("--max-queued", "many"), ("--max-running", "-1")])
def test_limits_that_make_no_sense_are_refused(farm, arguments):
    """Before anything is asked."""
    result, asked, _ = farm("tenants", "set", "alice", *arguments)
    assert isinstance(result.exception, CliError)
    assert asked == []


def test_watch_says_that_a_job_is_paused(farm):
    """The bar stands still for a reason, and the reason has a way out."""
    assert watch.told(job("paused", eta_s=None))["left"] == f"paused: farm resume {JOB}"
    assert "left" in watch.told(job("rendering", eta_s=75))["left"]
    done = job("done", paused=False, counts={"stored": 4, "failed": 0, "cancelled": 0, "queued": 0, "rendering": 0})
    result, _, _ = farm("watch", JOB, answers=[(200, job("paused"), {}), (200, done, {})])
    assert result.exit_code == 0, result.output
