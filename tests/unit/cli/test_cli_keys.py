"""`farm keys`, and the key that every command shows, against a farm that is played."""

import json

import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from cli.client import FarmClient
from cli.download import download
from cli.exits import CliError, Exit
from fake_http import answering, serving

KEY = {
    "object": "key",
    "id": "7f3k9q2m1x",
    "name": "the studio",
    "tenant": "alice",
    "scopes": ["submit"],
    "max_requests_per_minute": 60,
    "created_at": "2026-11-22T17:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
}


@pytest.fixture
def farm(monkeypatch):
    """Run `farm` with these arguments against one played answer; returns the result and the requests."""

    def run(*arguments, answer):
        with serving(answer) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            return CliRunner().invoke(cli_main.app, list(arguments)), seen

    return run


def test_a_key_is_made_and_stands_alone_on_standard_output(farm):
    """A script takes it from there; what people want to know is told beside it."""
    given = ["--tenant", "alice", "--scope", "read", "--scope", "submit", "--per-minute", "60"]
    answer = (201, {**KEY, "key": "farm_7f3k9q2m1x_secret"}, {})
    result, seen = farm("keys", "create", "the studio", *given, "--expires", "2100-01-01T00:00:00Z", answer=answer)
    assert result.exit_code == 0, result.output
    assert result.stdout == "farm_7f3k9q2m1x_secret\n"
    assert "not shown again" in result.stderr
    assert (seen[0].method, seen[0].path) == ("POST", "/v1/keys")
    assert json.loads(seen[0].body) == {
        "name": "the studio",
        "tenant": "alice",
        "scopes": ["read", "submit"],
        "expires_at": "2100-01-01T00:00:00Z",
        "max_requests_per_minute": 60,
    }


def test_what_is_not_given_is_left_to_the_farm(farm):
    """Its defaults are told in one place."""
    _, seen = farm("keys", "create", "a", answer=(201, {**KEY, "key": "k"}, {}))
    assert json.loads(seen[0].body) == {"name": "a"}


@pytest.mark.parametrize("arguments", [["keys"], ["keys", "list"]])
def test_keys_are_listed_with_how_they_stand(farm, arguments):
    """Those that open nothing any more are told from those that do."""
    keys = [
        KEY,
        {**KEY, "id": "aaaaaaaaaa", "revoked_at": "2026-11-22T18:00:00Z"},
        {**KEY, "id": "bbbbbbbbbb", "expires_at": "2020-01-01T00:00:00Z"},
        {**KEY, "id": "cccccccccc", "expires_at": "2100-01-01T00:00:00Z"},
    ]
    result, _ = farm(*arguments, answer=(200, {"object": "list", "data": keys}, {}))
    assert result.exit_code == 0, result.output
    states = dict(zip((key["id"] for key in keys), ("good", "revoked", "expired", "until 2100"), strict=True))
    for line in result.output.splitlines()[1:]:
        assert states[line.split()[0]] in line
        assert "the studio" in line


def test_a_key_is_revoked(farm):
    """And shown as it stands then."""
    answer = (200, {**KEY, "revoked_at": "2026-11-22T18:00:00Z"}, {})
    result, seen = farm("keys", "revoke", "7f3k9q2m1x", answer=answer)
    assert result.exit_code == 0, result.output
    assert (seen[0].method, seen[0].path) == ("DELETE", "/v1/keys/7f3k9q2m1x")
    assert "revoked" in result.output


def test_every_command_shows_the_key_of_the_environment(farm, monkeypatch):
    """Never one on the command line, where every user of the machine could read it."""
    monkeypatch.setenv("FARM_API_KEY", "farm_a_key")
    _, seen = farm("models", answer=(200, {"object": "list", "data": []}, {}))
    assert seen[0].headers["Authorization"] == "Bearer farm_a_key"


def test_without_a_key_none_is_shown(farm):
    """An open farm needs none."""
    _, seen = farm("models", answer=(200, {"object": "list", "data": []}, {}))
    assert "Authorization" not in seen[0].headers


def test_a_missing_key_is_told_with_the_way_to_name_it():
    """Not only that the farm wants one."""
    refused = (401, {"title": "An API key is needed", "detail": "send an API key", "errors": []}, {})
    with serving(refused) as (url, _), FarmClient(url) as client, pytest.raises(CliError) as caught:
        client.workers()
    assert str(caught.value) == "send an API key; FARM_API_KEY names the key to use"
    assert caught.value.code is Exit.REFUSED


def test_the_key_does_not_go_to_the_storage(monkeypatch, tmp_path):
    """Images come by signed URLs from another host, which has no business with it."""
    monkeypatch.setenv("FARM_API_KEY", "farm_a_key")
    with serving((200, b"picture", {"Content-Type": "image/png"})) as (store, fetched):

        def answer(request):
            image = {
                "index": 0,
                "state": "stored",
                "key": "jobs/j/0.png",
                "url": f"{store}/0.png",
                "seed": 1,
                "prompt": "a",
            }
            if request.path.endswith("/images?offset=0&limit=200"):
                return 200, {"object": "list", "data": [image], "next": None}, {}
            return 200, {"id": "j", "state": "done", "total": 1, "counts": {"total": 1, "stored": 1, "failed": 0}}, {}

        with answering(answer) as (api, asked), FarmClient(api) as client:
            download(client, "j", tmp_path)
    assert {request.headers["Authorization"] for request in asked} == {"Bearer farm_a_key"}
    assert fetched
    assert all("Authorization" not in request.headers for request in fetched)
