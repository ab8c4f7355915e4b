"""`farm manifest`: printed or saved, from where the API leads to; or why there is none."""

import pytest
from typer.testing import CliRunner

from cli.client import FarmClient
from cli.exits import CliError, Exit
from cli.main import app
from cli.manifest import bring_manifest
from fake_http import serving

LINES = {"object": "job"}


def test_a_manifest_is_printed():
    """Standard output has its bytes and nothing else, so that other programs can read it."""
    with serving((200, LINES, {})) as (store, _), serving((307, {}, {"Location": f"{store}/m.jsonl"})) as (api, seen):
        result = CliRunner().invoke(app, ["manifest", "job_1", "--api", api])
    assert (result.exit_code, result.stdout) == (0, '{"object": "job"}')
    assert [(request.method, request.path) for request in seen] == [("GET", "/v1/jobs/job_1/manifest")]


def test_a_manifest_is_saved_when_it_is_whole(tmp_path):
    """The file has its name in the end only; a store that refuses leaves nothing."""
    out = tmp_path / "job.jsonl"
    with (
        serving((403, {}, {}), (200, LINES, {})) as (store, _),
        serving((307, {}, {"Location": f"{store}/m.jsonl"})) as (api, _),
        FarmClient(api) as client,
    ):
        with pytest.raises(CliError, match="cannot be fetched"):
            bring_manifest(client, "job_1", out)
        assert list(tmp_path.iterdir()) == []
        bring_manifest(client, "job_1", out)
    assert out.read_text() == '{"object": "job"}'
    assert list(tmp_path.iterdir()) == [out]


def test_why_there_is_none_is_told():
    """While the job runs, the API's own words are the message."""
    problem = {"title": "The manifest is not written yet", "detail": "job_1 is rendering", "status": 409, "errors": []}
    with (
        serving((409, problem, {"Content-Type": "application/problem+json"})) as (api, _),
        FarmClient(api) as client,
        pytest.raises(CliError, match="job_1 is rendering") as told,
    ):
        bring_manifest(client, "job_1", None)
    assert told.value.code is Exit.REFUSED


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    """A folder that is not there is one line."""
    with (
        serving((200, LINES, {})) as (store, _),
        serving((307, {}, {"Location": f"{store}/m.jsonl"})) as (api, _),
        FarmClient(api) as client,
        pytest.raises(CliError, match="No such file"),
    ):
        bring_manifest(client, "job_1", tmp_path / "none" / "job.jsonl")
