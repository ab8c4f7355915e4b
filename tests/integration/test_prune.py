"""What `farm prune` deletes, and what it must not, on real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from api_client import WORKER, heartbeat
from cli.exits import CliError, Exit
from cli.main import app
from cli.prune import PruneOptions, parse_age, run_prune
from expanded_jobs import expanded_job
from farm.filing import content_key as content_key_of_file
from farm.filing import filed_prefix, lines_key, mark_of
from farm.jobs import ControlNet
from farm.ledger import Ledger
from farm.pruning import Pruning
from farm.settings import Settings
from farm.storage import Store, content_key, manifest_key, object_key, upload_key

EVERYTHING = 4_000_000_000.0  # older than this is all there is
USED, FORGOTTEN = upload_key("a" * 64, "png"), upload_key("b" * 64, "png")


@pytest.fixture
def settings(redis_url, s3) -> Settings:
    """Return settings of an empty farm."""
    return Settings(redis_url=redis_url, **s3)


@pytest.fixture
def store(settings) -> Store:
    """Return its store."""
    store = Store.connect(settings)
    store.ensure_bucket()
    return store


@pytest.fixture
def ledger(settings) -> Iterator[Ledger]:
    """Return its ledger."""
    ledger = Ledger.connect(settings)
    yield ledger
    ledger.close()


def fill(store, job, count=3):
    """Put a job's images and manifest; return the keys."""
    keys = [object_key(job, index, "png") for index in range(count)] + [manifest_key(job)]
    for key in keys:
        store.put(key, b"0123456789", "image/png")
    return keys


def ended(ledger, store, **fields) -> str:
    """Return a job that has ended, with its objects."""
    job = ledger.open(expanded_job(**fields)).id
    ledger.cancel(job)
    fill(store, job)
    return job


def going_on(ledger, **fields) -> str:
    """Return a job that has not ended."""
    return ledger.open(expanded_job(**fields)).id


def test_what_is_old_goes_and_what_is_needed_stays(ledger, store):
    """Ended, expired and unknown jobs go as a whole; open ones stay, with the pictures and the jobs that they name."""
    gone = [ended(ledger, store), "job_00000000000000000000"]
    fill(store, gone[1])
    source = ended(ledger, store)
    kept = going_on(ledger, prompts=["a", {"prompt": "b", "image": USED}])
    steered = expanded_job()
    control = ControlNet("canny", object_key(source, 1, "png"))
    ledger.open(replace(steered, entries=(replace(steered.entries[0], controlnets=(control,)),)))
    stay = [*fill(store, kept), *[key for key in store.list() if source in key], USED, "elsewhere/notes.txt"]
    for key in (USED, FORGOTTEN, "elsewhere/notes.txt", content_key("c" * 64)):
        store.put(key, b"0123456789", "image/png")

    pruning = Pruning(store, ledger, before=EVERYTHING)
    survey = pruning.survey(jobs=True, uploads=True)
    assert sorted(survey.jobs) == sorted(gone)
    assert (survey.entries.objects, survey.uploads.objects, survey.spared) == (1, 1, 3)
    assert (survey.total.objects, survey.total.num_bytes) == (10, 100)
    deleted = pruning.delete(survey)
    assert (deleted.objects, deleted.num_bytes) == (10, 100)
    assert sorted(store.list()) == sorted(stay)


@pytest.mark.parametrize("kind", ["jobs", "uploads"])
def test_one_kind_alone(ledger, store, kind):
    """Who asks for one kind loses nothing of the other."""
    job = ended(ledger, store)
    store.put(FORGOTTEN, b"", "image/png")
    pruning = Pruning(store, ledger, before=EVERYTHING)
    pruning.delete(pruning.survey(jobs=kind == "jobs", uploads=kind == "uploads"))
    assert {key.split("/")[0] for key in store.list()} == {"jobs", "uploads"} - {kind}
    assert bool([key for key in store.list() if job in key]) is (kind == "uploads")


def test_files_of_openai_clients_go_but_for_batches_that_go_on(ledger, store):
    """A batch keeps its record and its lines until its job has ended; its input has been read."""
    open_stamp, ended_stamp = (job.removeprefix("job_") for job in (going_on(ledger), ended(ledger, store)))
    keys = {
        stamp: {f"{filed_prefix('t', 'batches')}{mark_of(stamp)}.json", lines_key("t", stamp)}
        for stamp in (open_stamp, ended_stamp)
    }
    files = {f"{filed_prefix('t', 'files')}{mark_of(open_stamp)}.json", content_key_of_file("t", open_stamp)}
    for key in keys[open_stamp] | keys[ended_stamp] | files:
        store.put(key, b"", "application/json")
    pruning = Pruning(store, ledger, before=EVERYTHING)
    survey = pruning.survey(jobs=False, uploads=False, files=True)
    assert (survey.files.objects, survey.spared, survey.jobs) == (4, 2, {})
    pruning.delete(survey)
    assert set(store.list("openai/")) == keys[open_stamp]


def test_a_job_is_as_old_as_its_newest_object(ledger, store):
    """A job whose last images are young keeps its first ones; what is older than the limit goes."""
    half, whole = ended(ledger, store), ended(ledger, store)
    store.put(FORGOTTEN, b"", "image/png")
    store.put(USED, b"", "image/png")
    old = max(each.modified_at for each in store.objects())
    probe = "elsewhere/what-time-is-it"
    while True:  # by the server's clock; some tell times in whole seconds
        store.put(probe, b"", "text/plain")
        if next(store.objects(probe)).modified_at >= old + 2:
            break
        time.sleep(0.2)
    before = old + 1
    store.put(manifest_key(half), b"", "image/png")
    store.put(USED, b"", "image/png")  # uploaded again, hence young again
    pruning = Pruning(store, ledger, before=before)
    survey = pruning.survey(jobs=True, uploads=True)
    assert list(survey.jobs) == [whole]
    pruning.delete(survey)
    assert {key for key in store.list() if key.startswith("uploads/")} == {USED}
    assert len(list(store.list(f"jobs/{half}/"))) == 4
    assert not list(store.list(f"jobs/{whole}/"))


def test_what_is_needed_by_the_time_of_deleting_stays(ledger, store):
    """Between question and answer minutes may pass: failed images are tried again, a job names an old picture."""
    failed = ledger.open(expanded_job()).id
    ledger.report(heartbeat())
    (hint,) = ledger.feed("scenes")
    ledger.claim(hint, WORKER)
    ledger.failed(hint, WORKER, "no luck", final=True)
    source, gone = ended(ledger, store), ended(ledger, store)
    fill(store, failed)
    store.put(USED, b"", "image/png")
    pruning = Pruning(store, ledger, before=EVERYTHING)
    survey = pruning.survey(jobs=True, uploads=True)
    assert len(survey.jobs) == 3
    ledger.retry_failed(failed)
    going_on(ledger, image=USED, mask_image=object_key(source, 0, "png"))
    pruning.delete(survey)
    left = list(store.list())
    assert {key.split("/")[1] for key in left if key.startswith("jobs/")} == {failed, source}
    assert USED in left
    assert not any(gone in key for key in left)


def test_progress_is_told_in_objects_and_bytes(ledger, store):
    """The bars end where the counts end."""
    ended(ledger, store)
    pruning = Pruning(store, ledger, before=EVERYTHING)
    seen, deleted = [], []
    survey = pruning.survey(jobs=True, uploads=True, on_progress=lambda *step: seen.append(step))
    pruning.delete(survey, on_progress=lambda *step: deleted.append(step))
    assert [sum(column) for column in zip(*seen, strict=True)] == [4, 40]
    assert [sum(column) for column in zip(*deleted, strict=True)] == [4, 40]


def test_the_command_shows_asks_and_deletes(settings, ledger, store, monkeypatch):
    """A dry run and a No delete nothing; --yes deletes what was shown."""
    ended(ledger, store)
    fields = {"redis_url", "s3_endpoint", "s3_bucket", "s3_access_key", "s3_secret_key"}
    for name, value in settings.model_dump(include=fields).items():
        monkeypatch.setenv(f"FARM_{name.upper()}", value)
    for arguments, answer, code in ((["--dry-run"], None, 0), ([], "n\n", 1)):
        result = CliRunner().invoke(app, ["prune", "--older-than", "0s", *arguments], input=answer)
        assert (result.exit_code, len(list(store.list()))) == (code, 4), result.output
        assert "1 jobs" in result.output
    result = CliRunner().invoke(app, ["prune", "--older-than", "0s", "--yes"])
    assert (result.exit_code, list(store.list())) == (0, [])
    assert "deleted 4 objects, 40 bytes" in result.output


def test_without_redis_nothing_is_deleted_unless_forced(settings, store):
    """Nobody can tell what is needed then; --force is for a farm that is gone for good."""
    fill(store, "job_00000000000000000000")
    cut_off = settings.model_copy(update={"redis_url": "redis://:secret@127.0.0.1:1/0"})
    with pytest.raises(CliError, match=r"Redis at 127\.0\.0\.1:1/0 does not answer") as told:
        run_prune(PruneOptions("0s", yes=True), cut_off)
    assert "secret" not in str(told.value)
    assert len(list(store.list())) == 4
    run_prune(PruneOptions("0s", yes=True, force=True), cut_off)
    assert list(store.list()) == []


def test_a_storage_that_is_away_is_told(settings):
    """One line, no traceback."""
    cut_off = settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:1"})
    with pytest.raises(CliError, match="stopped: the storage does not answer"):
        run_prune(PruneOptions("0s", yes=True), cut_off)


def test_ages_are_said_in_words():
    """Days, hours, minutes, weeks; anything else is refused before anything is asked."""
    assert [parse_age(text) for text in ("30d", "1.5h", "90m", "2w", "0s")] == [2_592_000, 5400, 5400, 1_209_600, 0]
    for text in ("30", "d", "-1d", "1 month"):
        with pytest.raises(CliError, match="30d") as told:
            parse_age(text)
        assert told.value.code is Exit.USAGE
