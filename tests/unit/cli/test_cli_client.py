"""The HTTP client, against a real server on this machine that says what the test wants."""

import json
import socket

import pytest

from cli.client import FarmClient, NoFarm, NotNow, trusts_proxies
from cli.exits import CliError, Exit
from fake_http import serving


def problem(status, errors=(), **fields):
    """Return a problem+json answer."""
    return status, {"status": status, **fields, "errors": list(errors)}, {"Content-Type": "application/problem+json"}


def test_submit_sends_the_body_with_an_idempotency_key():
    """What is POSTed is the body, under a key of its own for each job."""
    with serving((202, {"id": "job_1"}, {})) as (url, seen), FarmClient(url) as client:
        assert client.submit({"prompts": ["a star"]}) == {"id": "job_1"}
        client.submit({"prompts": ["a star"]})
    first, second = seen
    assert (first.method, first.path, json.loads(first.body)) == ("POST", "/v1/jobs", {"prompts": ["a star"]})
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


def test_a_repeat_after_an_outage_keeps_its_key():
    """A submit that met a 503 is sent again under the same key, so there is one job."""
    busy = problem(503, title="Ledger down", detail="Redis does not answer")
    with serving(busy, (202, {"id": "job_1"}, {})) as (url, seen), FarmClient(url) as client:
        assert client.submit({})["id"] == "job_1"
    assert len({request.headers["Idempotency-Key"] for request in seen}) == 1
    assert len(seen) == 2


def test_an_outage_that_lasts_is_told():
    """When patience ends, the problem's own words are the message."""
    busy = problem(503, title="Ledger down", detail="Redis does not answer")
    with (
        serving(busy) as (url, _),
        FarmClient(url, patience_s=0) as client,
        pytest.raises(NotNow, match="Redis does not answer") as caught,
    ):
        client.jobs(limit=1)
    assert caught.value.code is Exit.FAILED


def test_a_problem_names_field_value_and_choices():
    """What the API refused reads like an answer to a person."""
    answer = problem(
        422,
        title="Invalid request",
        detail="scheduler: no scheduler is called 'x' (and 1 more)",
        errors=[
            {"field": "scheduler", "message": "no scheduler is called 'x'", "value": "x", "choices": ["ddim", "euler"]},
            {"field": "width", "message": "must be a multiple of 8", "value": 13, "choices": None},
        ],
    )
    with serving(answer) as (url, _), FarmClient(url) as client, pytest.raises(CliError) as caught:
        client.submit({})
    assert str(caught.value).splitlines() == [
        "scheduler: no scheduler is called 'x' (given: 'x')",
        "  choices: ddim, euler",
        "width: must be a multiple of 8 (given: 13)",
    ]
    assert caught.value.code is Exit.REFUSED


def test_long_values_and_many_choices_are_cut():
    """A refused prompt of 8,000 letters does not fill the screen."""
    error = {"field": "prompts.0", "message": "too long", "value": "a" * 9000, "choices": [str(i) for i in range(99)]}
    with (
        serving(problem(422, title="Invalid", detail="too long", errors=[error])) as (url, _),
        FarmClient(url) as client,
        pytest.raises(CliError) as caught,
    ):
        client.submit({})
    assert len(str(caught.value)) < 400
    assert "and 75 more" in str(caught.value)


def test_an_answer_that_is_no_problem_is_told_by_its_status():
    """A proxy's HTML page is not printed."""
    with (
        serving((404, b"<html>nope</html>", {})) as (url, _),
        FarmClient(url) as client,
        pytest.raises(CliError, match="the API answered 404 Not Found"),
    ):
        client.job("job_1")


def test_a_server_that_is_no_farm_is_told():
    """Something else may sit on the port."""
    with (
        serving((200, b"hello", {})) as (url, _),
        FarmClient(url) as client,
        pytest.raises(CliError, match="not like a farm"),
    ):
        client.job("job_1")


def test_no_farm_says_how_to_start_one():
    """Connection refused is the most common mistake, and has the simplest answer."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # nor can anybody else listen there
        port = nobody.getsockname()[1]
        with FarmClient(f"http://127.0.0.1:{port}") as client, pytest.raises(NoFarm) as caught:
            client.jobs(limit=1)
    assert str(caught.value) == f"no farm at http://127.0.0.1:{port}: start one with `farm up`"
    assert caught.value.code is Exit.NO_FARM


def test_a_url_without_a_scheme_is_refused():
    """--api localhost:8080 is told what a URL looks like."""
    with pytest.raises(CliError, match="no URL of an API"):
        FarmClient("localhost:8080")


def test_all_images_follows_the_pages():
    """Pages are asked for one after the other, until `next` is null."""
    pages = [
        (200, {"data": [{"index": 0}, {"index": 1}], "next": "/v1/jobs/j/images?offset=2&limit=200"}, {}),
        (200, {"data": [{"index": 2}], "next": None}, {}),
    ]
    with serving(*pages) as (url, seen), FarmClient(url) as client:
        assert [image["index"] for image in client.all_images("j")] == [0, 1, 2]
    assert [request.path for request in seen] == [
        "/v1/jobs/j/images?offset=0&limit=200",
        "/v1/jobs/j/images?offset=2&limit=200",
    ]


def test_proxies_are_never_asked_for_this_machine():
    """An HTTP_PROXY in the environment must not swallow the local farm."""
    assert not trusts_proxies("http://127.0.0.1:8080")
    assert not trusts_proxies("http://localhost:8080")
    assert trusts_proxies("https://farm.example.com")
