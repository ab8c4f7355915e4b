"""The commands against a farm that is played: what they ask, print, and exit with."""

import json

import pytest
from typer.testing import CliRunner

from cli import live
from cli import main as cli_main
from cli.live import LiveJob
from fake_http import answering

JOB = "job_00000000000000abcdef"


def job(state="done", *, stored=2, failed=0, total=2, **fields):
    """Return the API's words for a job."""
    counts = {"total": total, "queued": 0, "rendering": 0, "stored": stored, "failed": failed, "cancelled": 0}
    return {
        "id": JOB,
        "model": "scenes",
        "state": state,
        "total": total,
        "counts": counts,
        "labels": {"set": "demo"},
        "created_at": "2026-11-22T17:00:00Z",
        "started_at": "2026-11-22T17:00:01Z",
        "finished_at": "2026-11-22T17:00:03Z",
        "images_per_s": 1.0,
        "eta_s": 0,
        "gpu_s": 1.5,
        "retries": 0,
        **fields,
    }


@pytest.fixture
def farm(monkeypatch):
    """Run `farm` with these arguments against played answers; returns exit code, output and requests.

    There are no streams of events here: what they tell, and what becomes of it, is in test_cli_live.py.
    """
    monkeypatch.setattr(live, "_POLL_S", 0.01)

    def run(*arguments, answers=(), answer=None):
        left = list(answers)

        def play(request):
            if request.path.partition("?")[0].endswith("/events"):
                return 404, {"title": "Not found"}, {}
            if answer:
                return answer(request)
            return left.pop(0) if len(left) > 1 else left[0]

        with answering(play) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            result = CliRunner().invoke(cli_main.app, list(arguments))
        return result, [request for request in seen if "/events" not in request.path]

    return run


def test_submit_follows_the_job_to_its_end(farm):
    """The job is opened, asked for until it is done, and the code is 0."""
    answers = [(202, job("queued", stored=0), {}), (200, job("rendering", stored=1), {}), (200, job(), {})]
    result, seen = farm("submit", "-p", "a star", "-n", "2", "--steps", "5", answers=answers)
    assert result.exit_code == 0, result.output
    assert JOB in result.output
    assert "2/2" in result.output
    assert json.loads(seen[0].body) == {
        "model": "scenes",
        "prompts": ["a star"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 5,
    }


def test_every_option_becomes_its_field(farm):
    """The command line's short words are the API's long ones."""
    arguments = (
        "submit -p x --model sd15 --steps 5 --guidance 0 --scheduler ddim --seed 0 -n 3 --width 64 --height 72 "
        "--negative blur --priority bulk --reproducibility invariant --label a=b --label c=d --output webp "
        "--thumbnail 96 --upscale 2 --upscaler lanczos --safety-checker --reuse --webhook https://x.example/h --no-wait"
    )
    result, seen = farm(*arguments.split(), answers=[(202, job("queued"), {})])
    assert result.exit_code == 0, result.output
    assert json.loads(seen[0].body) == {
        "model": "sd15",
        "prompts": ["x"],
        "num_inference_steps": 5,
        "guidance_scale": 0,
        "scheduler": "ddim",
        "seed": 0,
        "num_images_per_prompt": 3,
        "width": 64,
        "height": 72,
        "negative_prompt": "blur",
        "priority": "bulk",
        "reproducibility": "invariant",
        "labels": {"a": "b", "c": "d"},
        "output": {
            "format": "webp",
            "thumbnail_px": 96,
            "upscale": 2,
            "upscaler": "lanczos",
            "safety_checker": True,
        },
        "reuse": True,
        "webhook": {"url": "https://x.example/h"},
    }
    assert len(seen) == 1


def test_failed_images_are_listed_with_their_reasons(farm):
    """Exit code 1, and each failed image with its prompt and why."""

    def answer(request):
        if request.path.startswith(f"/v1/jobs/{JOB}/images"):
            images = [
                {"index": 0, "prompt": "a star", "state": "stored", "error": None},
                {"index": 1, "prompt": "a boat", "state": "failed", "error": "out of memory"},
            ]
            return 200, {"data": images, "next": None}, {}
        return 200, job("failed", stored=1, failed=1), {}

    result, _ = farm("watch", JOB, answer=answer)
    assert result.exit_code == 1
    assert "1 of 2 images failed" in result.output
    assert "a boat" in result.output
    assert "out of memory" in result.output


def test_a_cancelled_job_fails_the_watch(farm):
    """A script that waits for images must see that they will not come."""
    result, _ = farm("watch", JOB, answers=[(200, job("cancelled", stored=1), {})])
    assert result.exit_code == 1
    assert "was cancelled" in result.output


def test_ctrl_c_leaves_the_job_and_says_how_to_return(farm, monkeypatch):
    """The job goes on; watch and cancel are spelled out; exit code 130."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveJob, "next", interrupt)
    result, seen = farm("submit", "-p", "a star", answers=[(202, job("rendering", stored=0), {})])
    assert result.exit_code == 130
    assert f"farm watch --api http://127.0.0.1:{seen[0].headers['Host'].split(':')[1]} {JOB}" in result.output
    assert "farm cancel" in result.output
    assert [request.method for request in seen] == ["POST"]


def test_a_farm_that_goes_away_is_waited_for(farm):
    """A restart of the API in mid-job is no end of the watch."""
    away = (503, {"title": "Ledger down", "detail": "Redis does not answer"}, {})
    result, seen = farm("watch", JOB, answers=[(200, job("rendering"), {}), away, (200, job(), {})])
    assert result.exit_code == 0, result.output
    assert len(seen) == 3


def test_status_shows_jobs_workers_and_rates(farm):
    """One look at the farm: each of the three is there."""

    def answer(request):
        if request.path.startswith("/v1/jobs"):
            return 200, {"data": [job("rendering", stored=1, eta_s=75)]}, {}
        if request.path == "/v1/workers":
            worker = {
                "node": "box:gpu0",
                "device": "cuda",
                "gpu": {"name": "RTX 4090"},
                "resident": ["scenes"],
                "running": 3,
                "max_batch": 8,
                "seen_at": "2026-11-22T17:00:00Z",
            }
            return 200, {"data": [worker]}, {}
        rate = {"images": 84, "images_per_s": 1.4, "gpu_s_per_image": 0.7, "mean_seat_occupancy": 5.4}
        return 200, {"total": {"1m": rate}, "queued_images": 12, "rendering_images": 3}, {}

    result, _ = farm("status", answer=answer)
    assert result.exit_code == 0, result.output
    for words in (JOB, "1/2", "1m 15s", "set=demo", "box:gpu0", "RTX 4090", "3/8", "1.40/s", "5.4", "12 images queued"):
        assert words in result.output


def test_status_tells_joules_and_a_price_where_the_farm_does(farm):
    """On a CPU, or without a price of an hour, there is no column of dashes."""
    for told in ({}, {"joules_per_image": 281.4, "price_per_1000_images": 0.068}):
        rate = {"images": 84, "images_per_s": 1.4, "gpu_s_per_image": 0.7, "mean_seat_occupancy": None, **told}
        throughput = {"total": {"1m": rate, "5m": {**rate, "joules_per_image": None}}}
        result, _ = farm("status", answers=[(200, {"data": [], **throughput}, {})])
        assert result.exit_code == 0, result.output
        for words in ("J/image", "281", "price/1,000", "0.068"):
            assert (words in result.output) is bool(told)


def test_status_of_a_job_tells_what_it_costs(farm):
    """Where the farm has a price of a GPU's hour; else nothing about it."""
    for price, line in ((0.012345, "0.01235"), (None, None)):
        result, _ = farm("status", JOB, answers=[(200, job("done", stored=2, price=price), {})])
        assert result.exit_code == 0, result.output
        assert ("price" in result.output) is (line is not None)
        assert line is None or line in result.output


def test_status_of_an_empty_farm(farm):
    """Nothing there is said, not shown as an empty table."""
    result, _ = farm("status", answers=[(200, {"data": [], "total": {}}, {})])
    assert result.exit_code == 0, result.output
    assert "no jobs yet" in result.output
    assert "no worker reports" in result.output


def test_cancel_shows_what_became_of_the_job(farm):
    """DELETE, then the job as it stands."""
    result, seen = farm("cancel", JOB, answers=[(200, job("cancelled", stored=1), {})])
    assert result.exit_code == 0, result.output
    assert seen[0].method == "DELETE"
    assert "cancelled" in result.output


def test_models_lists_the_catalog(farm):
    """Name, size and defaults."""
    model = {"id": "scenes", "family": "sd15", "width": 128, "height": 128, "available": True}
    model["defaults"] = {"num_inference_steps": 20, "guidance_scale": 5.0, "scheduler": "dpmpp_2m"}
    result, _ = farm("models", answers=[(200, {"data": [model]}, {})])
    assert result.exit_code == 0, result.output
    for words in ("scenes", "128x128", "20", "dpmpp_2m", "yes"):
        assert words in result.output


def test_no_farm_ends_with_a_message_and_its_code(monkeypatch, capsys):
    """main() turns errors into one line on stderr and an exit code."""
    monkeypatch.setattr("sys.argv", ["farm", "status", "--api", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit) as caught:
        cli_main.main()
    assert caught.value.code == 3
    assert "no farm at http://127.0.0.1:9: start one with `farm up`" in capsys.readouterr().err


def test_a_folder_without_waiting_is_refused(monkeypatch, capsys):
    """-o with --no-wait would bring nothing."""
    monkeypatch.setattr("sys.argv", ["farm", "submit", "-p", "x", "--no-wait", "-o", "out"])
    with pytest.raises(SystemExit) as caught:
        cli_main.main()
    assert caught.value.code == 2
    assert "leave out --no-wait" in capsys.readouterr().err
