"""`farm preview`, and the files that submit passes on, against a farm that is played."""

from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from cli import main as cli_main
from fake_http import serving

PROMPT = {
    "prompt": "a red [star]",
    "negative_prompt": "",
    "num_images": 4,
    "seed": 7,
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "scheduler": "dpmpp_2m",
    "width": 128,
    "height": 64,
    "loras": [],
}


def preview(**fields):
    """Return the API's words for a preview."""
    cost = {"megapixel_steps": 5.2, "gpu_s": 90.0, "gpu_s_per_image": 0.75, "price": 0.0125}
    return {
        "model": "scenes",
        "num_prompts": 30,
        "num_images": 120,
        "prompts": [PROMPT],
        "cost": cost,
        "images_ahead": 12,
        "workers": 1,
        "eta_s": 99.0,
        **fields,
    }


@pytest.fixture
def farm(monkeypatch):
    """Run `farm` with these arguments against one played answer; returns exit code, output and the request."""

    def run(*arguments, status=200, answer):
        with serving((status, answer, {})) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            result = CliRunner().invoke(cli_main.app, list(arguments))
        return result, seen[0] if seen else None

    return run


def test_preview_shows_prompts_cost_and_time(farm):
    """A table of the first prompts, then what it comes to; only the preview is asked for."""
    arguments = ["preview", "-p", "a {red|blue} [star]", "-n", "4", "--template", "combinatorial", "--set", "grid=true"]
    result, request = farm(*arguments, answer=preview())
    assert result.exit_code == 0, result.output
    for told in (
        "a red [star]",
        "128x64",
        "dpmpp_2m",
        "and 29 more",
        "120 of 30 prompts",
        "1m 30s",
        "0.0125",
        "1m 39s",
    ):
        assert told in result.output
    assert "12 images before it" in result.output
    assert request.path == "/v1/jobs:preview?grid=true"
    assert b'"mode":"combinatorial"' in request.body
    assert "Idempotency-Key" not in request.headers


def test_preview_tells_loras_where_there_are_some(farm):
    """A matrix of them is a table of prompts that differ in nothing else; without any there is no column."""
    loras = [{"name": "ink", "weight": 0.5}, {"name": "styles/grain", "weight": 1.0}]
    prompts = [PROMPT, {**PROMPT, "loras": loras}]
    result, request = farm("preview", "-p", "x", "--set", 'matrix.loras=[[],[{"name":"ink"}]]',
                           answer=preview(prompts=prompts))  # fmt: skip
    assert "ink:0.5 + styles/grain:1" in result.output
    assert parse_qs(urlsplit(request.path).query) == {"matrix.loras": ['[[],[{"name":"ink"}]]']}
    result, _ = farm("preview", "-p", "x", answer=preview())
    assert "loras" not in result.output


def test_preview_says_why_it_cannot_guess(farm):
    """Without a measurement or a worker there is a reason instead of a number."""
    cost = {"megapixel_steps": 5.2, "gpu_s": None, "gpu_s_per_image": None, "price": None}
    result, _ = farm("preview", "-p", "x", answer=preview(cost=cost, eta_s=None, workers=0, images_ahead=0))
    assert "unknown: nobody serves the model" in result.output
    assert "price" not in result.output
    result, _ = farm("preview", "-p", "x", answer=preview(cost=cost, eta_s=None))
    assert "nothing like it has been rendered yet" in result.output


def test_a_table_goes_to_the_api_as_it_is(farm, tmp_path):
    """Its bytes, its type, and options in the query; what is wrong comes back with row and column, once."""
    path = tmp_path / "batch.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt;steps\r\na;x\r\n")
    error = {"field": "prompts.0.num_inference_steps", "message": "must be a whole number", "value": "x"}
    error |= {"row": 2, "column": "steps"}
    detail = 'prompts.0.num_inference_steps (row 2, column "steps"): must be a whole number'
    answer = {"title": "The request is not valid", "detail": detail, "status": 422, "errors": [error]}
    arguments = ["submit", str(path), "--seed", "7", "--grid", "--output", "webp", "--set", "matrix.width=64,128"]
    result, request = farm(*arguments, status=422, answer=answer)
    assert result.exit_code != 0
    assert str(result.exception).count(detail) == 1
    assert str(result.exception).count("whole number") == 1
    assert request.body == path.read_bytes()
    assert request.headers["Content-Type"] == "text/csv"
    assert parse_qs(urlsplit(request.path).query) == {
        "model": ["scenes"],
        "seed": ["7"],
        "grid": ["true"],
        "output.format": ["webp"],
        "matrix.width": ["64,128"],
    }
