"""Weights are read ahead, in the background, within free RAM, and nobody else is bothered by what goes wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time

import pytest

from farm.errors import ModelBroken
from tiny_models import tiny_unit
from worker.engine import Engine
from worker.prefetch import Prefetch, read_or_hash, read_through

GIB = 2**30
WAIT_S = 60
"""Nothing takes so long; who waits in vain fails after it."""


@pytest.fixture
def files(tmp_path):
    """Return files of weights by model: `small` has two, `large` has one."""
    made = {"small": ["a", "b"], "large": ["c"]}
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 10_000_000)
    return {model: [tmp_path / name for name in names] for model, names in made.items()}


class CountingReader:
    """Reads, and remembers what."""

    def __init__(self):
        self.read = []
        self.told = []

    def __call__(self, path, tell):
        self.read.append(path.name)

        def both(done, total):
            self.told.append((path.name, done, total))
            tell(done, total)

        read_through(path, both)


@pytest.fixture
def started():
    """Return a function that starts a prefetch; whatever was started is stopped."""
    running = []

    def start(find, read, **options):
        prefetch = Prefetch(find, read, **{"available": lambda: 100 * GIB, **options})
        prefetch.start()
        running.append(prefetch)
        return prefetch

    yield start
    for prefetch in running:
        prefetch.stop()
        prefetch._thread.join()


def wait_until(is_so):
    """Wait a while for something to become so."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


def is_idle(prefetch):
    """Whether all that was expected has been dealt with."""
    with prefetch._changed:
        return prefetch._current is None and not prefetch._expected


def test_expected_models_are_read_to_the_end(files, started):
    """Every byte of every file passes, in the order in which models were expected, each once."""
    reader = CountingReader()
    prefetch = started(files.__getitem__, reader, clock=lambda: 0.0)
    for model in ("small", "large", "small", "small"):
        prefetch.expect(model)
    wait_until(lambda: len(reader.read) == 3 and is_idle(prefetch))
    assert reader.read == ["a", "b", "c"]
    assert [told for told in reader.told if told[1] == told[2]] == [(name, 10**7, 10**7) for name in "abc"]
    assert len(reader.told) > 3  # in pieces, so that it can be stopped


def test_a_model_read_a_moment_ago_is_not_read_again(files, started):
    """Every unit that comes asks; after a minute, or once it was loaded and may have gone, it is read anew."""
    now = [0.0]
    reader = CountingReader()
    prefetch = started(files.__getitem__, reader, clock=lambda: now[0])
    prefetch.expect("large")
    wait_until(lambda: reader.read == ["c"] and is_idle(prefetch))
    prefetch.expect("large")
    assert is_idle(prefetch)
    now[0] = 61.0
    prefetch.expect("large")
    wait_until(lambda: reader.read == ["c", "c"] and is_idle(prefetch))
    prefetch.give_over("large")
    prefetch.expect("large")
    wait_until(lambda: reader.read == ["c", "c", "c"])


def test_a_load_ends_the_reading(files, started):
    """What is being loaded, or waits to be read, is left to the loader at once; the next model is gone on with."""
    reached, may_go_on = threading.Event(), threading.Event()
    reader = CountingReader()

    def available():
        if reader.read == ["a"]:
            reached.set()
            may_go_on.wait(2 * WAIT_S)
        return 100 * GIB

    prefetch = started({**files, "other": files["large"]}.__getitem__, reader, available=available)
    for model in ("small", "large", "other"):
        prefetch.expect(model)
    assert reached.wait(WAIT_S)
    prefetch.give_over("small")
    prefetch.give_over("large")
    may_go_on.set()
    wait_until(lambda: is_idle(prefetch) and len(reader.read) > 1)
    assert reader.read == ["a", "c"]
    assert max(done for name, done, _ in reader.told if name == "a") < 10**7


@pytest.mark.parametrize(
    ("free_bytes", "read"), [(2 * GIB + 20_000_000, ["a", "b"]), (2 * GIB + 19_999_999, []), (None, [])]
)
def test_only_free_ram_is_read_into(files, started, caplog, free_bytes, read):
    """A model that would push others' pages out, two gigabytes of reserve included, is not begun, and it is said."""
    reader = CountingReader()
    with caplog.at_level(logging.INFO):
        prefetch = started(files.__getitem__, reader, available=lambda: free_bytes)
        prefetch.expect("small")
        wait_until(lambda: caplog.records and is_idle(prefetch))
    assert reader.read == read
    assert [record.action for record in caplog.records] == ["model_prefetched" if read else "prefetch_skipped"]


def test_ram_that_runs_short_meanwhile_ends_it(files, started):
    """Free RAM is asked for with every piece: others may take it."""
    reader = CountingReader()
    prefetch = started(files.__getitem__, reader, available=lambda: GIB if reader.told else 100 * GIB)
    prefetch.expect("small")
    wait_until(lambda: reader.read and is_idle(prefetch))
    assert reader.read == ["a"]
    assert len(reader.told) == 1


def test_failures_are_told_and_survived(files, started, caplog):
    """A broken model, a file that has gone and a bug each cost a line; the thread lives on."""

    def find(model):
        match model:
            case "broken":
                raise ModelBroken("no such folder")
            case "gone":
                return [files["small"][0].with_name("gone")]
            case "bug":
                raise ZeroDivisionError
        return files[model]

    reader = CountingReader()
    prefetch = started(find, reader)
    for model in ("broken", "gone", "bug", "small"):
        prefetch.expect(model)
    wait_until(lambda: len(reader.read) == 2)
    assert [record.levelname for record in caplog.records if record.action == "prefetch_failed"] == [
        "WARNING",
        "WARNING",
        "ERROR",
    ]


def test_what_has_no_digest_yet_is_hashed_instead_of_read(files, tmp_path):
    """That reads it as well, and spares the load the hashing; the second time it is only read."""
    (path,) = files["large"]
    cache = tmp_path / "digests.json"
    pieces = []
    read_or_hash(cache)(path, lambda done, _: pieces.append(done))
    written = json.loads(cache.read_text())
    assert [entry[2] for entry in written.values()] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    read_or_hash(cache)(path, lambda done, _: pieces.append(done))
    assert pieces.count(10**7) == 2


# -- with the engine


def test_units_of_models_that_are_not_here_are_expected(tiny_pipeline):
    """Submitting such a unit, or expecting some, tells the reader; one of a resident model does not."""
    expected = []
    engine = Engine(lambda _: tiny_pipeline, max_batch=1, read_ahead=expected.append)
    first = engine.submit(tiny_unit(model="one"))
    assert expected == ["one"]
    engine.start()
    assert first.result(timeout=WAIT_S)
    assert engine.submit(tiny_unit(index=1, model="one")).result(timeout=WAIT_S)
    engine.expect("one")
    assert expected == ["one"]
    engine.expect("two")
    engine.stop()
    assert expected == ["one", "two"]


def test_a_disk_that_hangs_holds_nobody_up(started, tiny_pipeline):
    """While the reader is stuck, units are taken and rendered, and the model that it is stuck with is loaded."""
    is_stuck, released = threading.Event(), threading.Event()

    def find(_model):
        is_stuck.set()
        released.wait(2 * WAIT_S)
        return []

    prefetch = started(find, read_through)

    def load(model):
        prefetch.give_over(model)
        return tiny_pipeline

    engine = Engine(load, max_batch=1, read_ahead=prefetch.expect)
    engine.start()
    try:
        prefetch.expect("two")
        assert is_stuck.wait(WAIT_S)
        for index, model in enumerate(("one", "two", "one")):
            assert engine.submit(tiny_unit(index=index, model=model)).result(timeout=WAIT_S)
        assert prefetch._current == "two"
    finally:
        released.set()
        engine.stop()
