"""Every error of the farm has its answer."""

import inspect
import json
import logging

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from api import problems
from farm import errors
from farm.logs import QUIETED, JsonFormatter, TextFormatter, configure_logging

STATUSES = {
    errors.FarmError: (500, "internal-error"),
    errors.Refused: (422, "invalid-request"),
    errors.UnknownJob: (404, "unknown-job"),
    errors.UnknownModel: (422, "unknown-model"),
    errors.JobCancelled: (409, "job-cancelled"),
    errors.IdempotencyConflict: (422, "idempotency-conflict"),
    errors.QueueFull: (429, "queue-full"),
    errors.Transient: (500, "internal-error"),
    errors.LedgerDown: (503, "ledger-down"),
    errors.StorageDown: (503, "storage-down"),
    errors.HubDown: (500, "internal-error"),  # for workers to meet, not for the API
    errors.Fatal: (500, "internal-error"),
    errors.ModelBroken: (500, "internal-error"),
    errors.RenderFailed: (500, "internal-error"),
}


def answer_to(error):
    """Return what an endpoint that raises `error` answers."""
    app = FastAPI()
    problems.install(app)

    @app.get("/fails")
    def fails():
        raise error

    with TestClient(app, raise_server_exceptions=False) as client:
        return client.get("/fails")


@pytest.mark.parametrize("kind", STATUSES)
def test_an_error_of_the_farm_has_its_status(kind):
    """The branch of the error tree decides the status."""
    error = kind("the secret reason", retry_after_s=7.2) if kind is errors.QueueFull else kind("the secret reason")
    answer = answer_to(error)
    status, slug = STATUSES[kind]
    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:diffusion-farm:problem:{slug}"
    assert answer.headers["content-type"] == "application/problem+json"
    # What went wrong inside is for the log: it may name hosts and paths.
    assert ("secret" in answer.text) == (status < 500)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_no_error_of_the_farm_is_forgotten():
    """A new error must be given its status here."""
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.FarmError)}
    assert kinds == set(STATUSES)


def test_a_full_queue_says_when_to_come_back():
    """Seconds are rounded up: coming back early would be refused again."""
    assert answer_to(errors.QueueFull("full", retry_after_s=7.2)).headers["retry-after"] == "8"


def test_a_bug_is_a_problem_document_without_its_reason():
    """What nobody foresaw is told as 500 in the same form, and keeps its details to the log."""
    answer = answer_to(ZeroDivisionError("secret"))
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_log_lines_carry_their_fields(formatter):
    """Both forms tell the sentence and every field; JSON can be read back."""
    record = logging.makeLogRecord({"msg": "Accepted %s", "args": ("job_1",), "levelname": "INFO", "name": "api.jobs"})
    record.action, record.images = "job_accepted", 3
    line = formatter.format(record)
    assert "\n" not in line
    if isinstance(formatter, JsonFormatter):
        told = json.loads(line)
        assert (told["message"], told["action"], told["images"]) == ("Accepted job_1", "job_accepted", 3)
    else:
        assert line.endswith("INFO api.jobs: Accepted job_1 action=job_accepted images=3")


def test_a_dialect_tells_the_errors_of_its_paths():
    """All of them, also those that the router finds, and of no other path: the longest prefix counts."""
    app = FastAPI()

    def spoken(name):
        def render(_request, problem):
            return JSONResponse({name: problem.detail}, status_code=problem.kind.status)

        return render

    problems.install(app, dialects={"/v1": spoken("one"), "/v1/images": spoken("two")})

    @app.get("/v1/images/fails")
    def fails():
        raise errors.QueueFull("full", retry_after_s=1)

    client = TestClient(app)
    assert client.get("/v1/images/fails").json() == {"two": "full"}
    assert client.post("/v1/images/fails").status_code == 405
    assert list(client.get("/v1/images").json()) == ["two"]
    assert list(client.get("/v1/jobs").json()) == ["one"]
    assert client.get("/v10").json()["type"].endswith("not-found")


def test_libraries_log_no_requests_at_any_level():
    """At DEBUG boto tells of each request with its signature, and who has that may fetch the object."""
    configure_logging(level="DEBUG", log_format="text")
    assert logging.getLogger("api.audit").isEnabledFor(logging.DEBUG)
    for name in QUIETED:
        assert not logging.getLogger(f"{name}.auth").isEnabledFor(logging.INFO)
