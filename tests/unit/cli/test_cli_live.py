"""`farm watch` by the stream of a job's events, and without one, against a farm that is played."""

import asyncio
import json
import os
import signal
import threading

import pytest
from typer.testing import CliRunner

from cli import live, watch
from cli import main as cli_main
from cli.client import FarmClient, NoFarm
from cli.live import News
from cli.watch import JobBar, told
from fake_http import answering

JOB = "job_00000000000000abcdef"
STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
OPENING = b"retry: 10\n\n"


def job(state="rendering", *, stored=0, failed=0, total=2, **fields):
    """Return the API's words for a job."""
    counts = {"total": total, "queued": 0, "rendering": 0, "stored": stored, "failed": failed, "cancelled": 0}
    return {"id": JOB, "model": "scenes", "state": state, "total": total, "counts": counts, **fields}


def event(name, data, event_id=""):
    """Return an event as the API sends it."""
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


DONE = event("job", job("done", stored=2), "2") + event("end", {"object": "end", "state": "done"}, "2-over")


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    """Wait shorter than people do."""
    monkeypatch.setattr(live, "_POLL_S", 0.01)
    monkeypatch.setattr(live, "_REFRESH_S", 0.05)
    monkeypatch.setattr(live, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def farm(monkeypatch):
    """Watch a job on a farm that answers streams and questions one after the other, the last for ever.

    Returns the result, the requests for streams, and those for the job.
    """

    def run(*, streams, jobs=()):
        streams, jobs = list(streams), list(jobs) or [job()]

        def answer(request):
            left = streams if "/events" in request.path else jobs
            told = left.pop(0) if len(left) > 1 else left[0]
            return told(request) if callable(told) else told if isinstance(told, tuple) else (200, told, {})

        with answering(answer) as (url, seen):
            monkeypatch.setenv("FARM_API", url)
            result = CliRunner().invoke(cli_main.app, ["watch", JOB])
        asked = [request for request in seen if "/events" in request.path]
        return result, asked, [request for request in seen if request not in asked]

    return run


def stream(*pieces, after=None):
    """Return an answer that tells these pieces, then does `after`."""

    def tell():
        yield OPENING
        yield from pieces
        if after is not None:
            after()

    return lambda _: (200, tell(), STREAM)


def cut_off():
    """Break the connection."""
    raise ConnectionResetError


def test_a_job_is_followed_by_its_events(farm):
    """The end is told by the stream alone: questions would for ever hear that the job goes on."""
    rendering = event("job", job(stored=1), "1")
    result, asked, _ = farm(streams=[stream(rendering, DONE[:40], DONE[40:])])
    assert result.exit_code == 0, result.output
    assert "2/2" in result.output
    assert asked[0].path == f"/v1/jobs/{JOB}/events?previews=1000"
    assert asked[0].headers["Accept"] == "text/event-stream"
    assert "Last-Event-ID" not in asked[0].headers


def test_the_steps_of_a_large_job_are_not_asked_for(farm):
    """Its images tell how far it is, and nobody needs to say a few times a second how far each of them is."""
    result, asked, _ = farm(streams=[stream(event("job", job("done", total=17)))], jobs=[job(total=17)])
    assert result.exit_code == 0, result.output
    assert asked[0].path == f"/v1/jobs/{JOB}/events"


@pytest.mark.parametrize("after", [None, cut_off], ids=["ended", "broken"])
def test_a_stream_that_ends_goes_on_where_it_was(farm, after):
    """After an hour, a restart, an outage: with the last id that was received."""
    result, asked, _ = farm(streams=[stream(event("job", job(stored=1), "1"), after=after), stream(DONE)])
    assert result.exit_code == 0, result.output
    assert [request.headers.get("Last-Event-ID") for request in asked] == [None, "1"]


def test_a_stream_that_falls_silent_is_opened_again(farm, monkeypatch):
    """The farm says every few seconds that it is there; one that does not has gone without a word."""
    monkeypatch.setattr(live, "_SILENCE_S", 0.3)
    released = threading.Event()
    silent = stream(event("job", job(stored=1), "1"), after=lambda: released.wait(300))
    result, asked, _ = farm(streams=[silent, stream(DONE)])
    released.set()
    assert result.exit_code == 0, result.output
    assert len(asked) >= 2


@pytest.mark.parametrize("has_headers", [True, False])
def test_a_stream_that_is_held_back_is_no_reason_to_wait(farm, has_headers):
    """A proxy that keeps what it should pass on: the job is asked for as before there were streams."""
    released = threading.Event()

    def held_back(_):
        if has_headers:
            return 200, (released.wait(30) and b"" for _ in range(1)), STREAM
        released.wait(30)
        return 404, {}, {}

    result, _, jobs = farm(streams=[held_back], jobs=[job("queued"), job(stored=1), job("done", stored=2)])
    released.set()
    assert result.exit_code == 0, result.output
    assert len(jobs) == 3


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"title": "Not found"}, {}),
        (405, {}, {}),
        (200, {"id": JOB}, {}),
        (422, {"title": "No"}, {}),
        (204, b"", {}),
    ],
)
def test_where_there_are_no_streams_the_job_is_asked_for(farm, answer):
    """Such as on a farm of last year; nobody goes on knocking."""
    result, asked, _ = farm(streams=[answer], jobs=[job()] * 8 + [job("done", stored=2)])
    assert result.exit_code == 0, result.output
    assert len(asked) == 1


def test_a_farm_that_has_too_much_to_do_is_asked_for_a_stream_again(farm):
    """503 and 429 pass; so does a stream of nonsense."""
    nonsense = stream(b"event: job\ndata: {\n\nevent: job\ndata: 7\n\n")
    busy = (503, {"title": "Busy"}, {})
    result, asked, _ = farm(streams=[busy, (429, {}, {}), nonsense, stream(DONE)])
    assert result.exit_code == 0, result.output
    assert len(asked) == 4


def test_a_job_that_is_gone_ends_the_watch(farm):
    """404 is no outage."""
    gone = (404, {"title": "Unknown job", "detail": "there is no such job"}, {})
    result, _, _ = farm(streams=[(404, {}, {})], jobs=[job(), gone])
    assert "there is no such job" in str(result.exception)


def test_a_farm_that_stays_away_ends_the_watch(farm, monkeypatch):
    """After a minute, with the reason."""
    monkeypatch.setattr(watch, "_PATIENCE_S", 0.05)
    away = (503, {"title": "Ledger down", "detail": "Redis does not answer"}, {})
    result, _, _ = farm(streams=[away], jobs=[job(), away])
    assert "Redis does not answer" in str(result.exception)


def test_ctrl_c_leaves_at_once(farm):
    """In the midst of a stream that has nothing to tell: the job goes on."""
    released = threading.Event()

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        released.wait(30)

    # Whoever was started in the background was started to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result, _, _ = farm(streams=[stream(event("job", job(stored=1)), after=interrupt)])
    finally:
        signal.signal(signal.SIGINT, before)
        released.set()
    assert result.exit_code == 130
    assert "goes on without you" in result.output


def test_nobody_there_is_told():
    """A farm that vanishes is another error than one that is busy."""

    async def ask():
        with FarmClient("http://127.0.0.1:9") as client:
            async with live.LiveJob(client, JOB, num_images=1) as job_there:
                await job_there.next()

    with pytest.raises(NoFarm):
        asyncio.run(ask())


def shown(bar):
    """Return what a bar shows: its length, and the words beside it."""
    (task,) = bar._bar.tasks
    return task.completed, task.fields["ended"], task.fields["left"].strip()


def test_the_bar_of_a_small_job_moves_with_its_steps():
    """Images in seats count by their steps, and are told as images only when they are there."""
    bar = JobBar(job(total=3))
    bar.tell(News("preview", {"index": 0, "step": 5, "steps": 20}))
    assert shown(bar) == (0.25, "0/3", "step 5/20")
    bar.tell(News("preview", {"index": 2, "step": 10, "steps": 20}))
    assert shown(bar) == (0.75, "0/3", "")
    bar.tell(News("image", {"index": 0, "state": "stored"}))
    bar.tell(News("job", job(total=3, stored=1)))
    assert shown(bar) == (1.5, "1/3", "step 10/20")
    bar.tell(News("job", job("done", total=3, stored=3)))
    assert shown(bar) == (3, "3/3", "")
    assert bar.is_over


def test_an_outage_is_told_until_it_is_over():
    """And so is a farm that is away."""
    bar = JobBar(job(eta_s=9))
    bar.tell(News("outage", {"detail": "the ledger does not answer"}))
    bar.tell(None)
    assert shown(bar)[2] == "the ledger does not answer"
    bar.say("the farm is away")
    assert shown(bar)[2] == "the farm is away"
    bar.tell(News("job", job(eta_s=9)))
    assert shown(bar)[2] == "9s left"


def test_what_is_left_counts_down_between_two_events():
    """A stream tells of changes, and an image may take minutes."""
    assert told(job(eta_s=100), age_s=30)["left"] == "1m 10s left"
    assert told(job(eta_s=100), age_s=300)["left"] == "0s left"
