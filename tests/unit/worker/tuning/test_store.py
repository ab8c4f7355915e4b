"""The store of measurements: whole whoever writes, and never the reason that an image is late or missing."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.gpu import Device
from worker.tuning import store
from worker.tuning.store import FORMAT, Measured, Origin, key_of

ORIGIN = Origin(card="NVIDIA GeForce RTX 4090, 24 GiB", torch="2.13.0", diffusers="0.42.1", driver="570.1")
KEY = key_of("batch", model="00" * 32, height=64)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def the_file(folder: Path) -> Path:
    """Return the one JSON file in `folder`."""
    (path,) = folder.glob("*.json")
    return path


def write_many(folder: Path, name: str) -> None:
    """Put thirty entries, as one of several processes."""
    measured = Measured(folder, ORIGIN)
    for number in range(30):
        measured.put(f"{name} {number}", {"by": name})


@settings(max_examples=settings.default.max_examples // 4)
@given(value=st.dictionaries(st.text(), JSON))
def test_what_is_put_is_what_is_got(value, tmp_path_factory):
    """A value comes back as it was, from memory and from the file alike, and changing it changes neither."""
    folder = tmp_path_factory.mktemp("tuning")
    here = Measured(folder, ORIGIN)
    here.put(KEY, value)
    got = here.get(KEY)
    assert got == value == Measured(folder, ORIGIN).get(KEY)
    got["more"] = 1
    assert here.get(KEY) == value


def test_the_order_of_facts_is_of_no_account():
    """Two callers that say the same in another order mean the same entry."""
    assert key_of("batch", a=1, b="x") == key_of("batch", b="x", a=1) != key_of("batch", a=1, b="y")


def test_every_entry_says_where_it_comes_from(tmp_path):
    """Card, driver, versions, date and rounds stand beside each value."""
    Measured(tmp_path, ORIGIN, now=lambda: 1_800_000_000).put(KEY, {"cap": 4}, rounds=3)
    content = json.loads(the_file(tmp_path).read_text())
    assert content["format"] == FORMAT
    (entry,) = content["entries"].values()
    assert entry == {
        "value": {"cap": 4},
        "origin": {
            "card": ORIGIN.card,
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "driver": "570.1",
            "measured_at": "2027-01-15T08:00:00+00:00",
            "rounds": 3,
        },
    }


@pytest.mark.parametrize("other", [{"torch": "2.14.0"}, {"diffusers": "0.43.0"}, {"card": "NVIDIA H100, 80 GiB"}])
def test_another_card_or_version_measures_for_itself(tmp_path, other):
    """What other libraries or other cards measured is not taken for ours, and not lost to them either."""
    changed = Origin(**{"card": ORIGIN.card, "torch": "2.13.0", "diffusers": "0.42.1", "driver": "570.1", **other})
    Measured(tmp_path, ORIGIN).put(KEY, {"cap": 4})
    assert Measured(tmp_path, changed).get(KEY) is None
    Measured(tmp_path, changed).put(KEY, {"cap": 8})
    assert Measured(tmp_path, ORIGIN).get(KEY) == {"cap": 4}


def test_a_new_driver_changes_nothing(tmp_path):
    """The driver is told and not asked for: measurements outlive its updates."""
    Measured(tmp_path, ORIGIN).put(KEY, {"cap": 4})
    assert Measured(tmp_path, Origin(ORIGIN.card, "2.13.0", "0.42.1", driver="999")).get(KEY) == {"cap": 4}


def test_a_neighbour_measures_for_both(tmp_path):
    """What one process puts another finds, without being started anew."""
    one, other = Measured(tmp_path, ORIGIN), Measured(tmp_path, ORIGIN)
    assert other.get(KEY) is None
    one.put(KEY, {"cap": 4})
    assert other.get(KEY) == {"cap": 4}


def test_many_writers_lose_nothing(tmp_path, monkeypatch):
    """Processes that write at the same moment keep each other's entries."""
    monkeypatch.setattr(store, "_LOCK_WAIT_S", 100.0)  # one that stands still holds the others up
    names = ["one", "two", "three"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    measured = Measured(tmp_path, ORIGIN)
    assert all(measured.get(f"{name} {number}") == {"by": name} for name in names for number in range(30))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".lock"}


def test_threads_share_one_store(tmp_path, monkeypatch):
    """Threads of one process may put and get at once."""
    monkeypatch.setattr(store, "_LOCK_WAIT_S", 100.0)
    measured = Measured(tmp_path, ORIGIN)
    threads = [
        threading.Thread(target=lambda number=number: measured.put(f"k{number}", {"n": number})) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [measured.get(f"k{number}") for number in range(8)] == [{"n": number} for number in range(8)]


BROKEN = {
    "cut short": b'{"format": 1, "entr',
    "no JSON object": b"[]",
    "another format": b'{"format": 99, "entries": {}}',
    "no entries": b'{"format": 1}',
    "entries of a wrong kind": b'{"format": 1, "entries": {"a": 3}}',
    "no text": b"\xff\xfe\x00",
    "nested without end": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_put_aside_with_one_line(tmp_path, caplog, content):
    """A file that says nothing costs one line of the log; the next measurement begins a new one."""
    Measured(tmp_path, ORIGIN).put(KEY, {"cap": 4})
    path = the_file(tmp_path)
    path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        measured = Measured(tmp_path, ORIGIN)
        assert measured.get(KEY) is None
        assert measured.get(KEY) is None
        measured.put(KEY, {"cap": 5})
    assert [record.action for record in caplog.records] == ["measured_put_aside"]
    assert path.with_suffix(".aside").read_bytes() == content
    assert Measured(tmp_path, ORIGIN).get(KEY) == {"cap": 5}


def test_a_broken_file_costs_a_running_worker_nothing(tmp_path):
    """What a process knows already it keeps, and writes again with the next measurement."""
    measured = Measured(tmp_path, ORIGIN)
    measured.put(KEY, {"cap": 4})
    the_file(tmp_path).write_text("{")
    assert measured.get(KEY) == {"cap": 4}
    measured.put("more", {"cap": 1})
    assert Measured(tmp_path, ORIGIN).get(KEY) == {"cap": 4}


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, caplog):
    """Measurements are then kept for as long as the process lives."""
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    measured = Measured(blocked / "tuning", ORIGIN)
    with caplog.at_level(logging.INFO):
        measured.put(KEY, {"cap": 4})
        measured.put("more", {"cap": 1})
    assert measured.get(KEY) == {"cap": 4}
    assert [record.action for record in caplog.records] == ["measured_unsaved"]


def test_a_lock_that_is_never_given_back_holds_up_nobody_for_long(tmp_path, monkeypatch):
    """A frozen neighbour with the lock costs a bounded wait; the measurement is kept in memory."""
    monkeypatch.setattr(store, "_LOCK_WAIT_S", 0.05)
    measured = Measured(tmp_path, ORIGIN)
    measured.put(KEY, {"cap": 4})
    with the_file(tmp_path).with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        measured.put("more", {"cap": 1})
    assert measured.get("more") == {"cap": 1}
    assert Measured(tmp_path, ORIGIN).get("more") is None


def test_without_a_folder_measurements_live_as_long_as_the_process():
    """Tests and one-off runs need no disk."""
    measured = Measured(None, ORIGIN)
    measured.put(KEY, {"cap": 4})
    assert measured.get(KEY) == {"cap": 4}


def test_the_oldest_entries_go_first(tmp_path, monkeypatch):
    """A file does not grow for ever with the versions and models of the past."""
    monkeypatch.setattr(store, "MAX_ENTRIES", 2)
    for at, key in enumerate(("old", "newer", "newest")):
        Measured(tmp_path, ORIGIN, now=lambda at=at: at).put(key, {})
    fresh = Measured(tmp_path, ORIGIN)
    assert [fresh.get(key) for key in ("old", "newer", "newest")] == [None, {}, {}]


def test_what_json_cannot_say_is_refused(tmp_path):
    """A caller's mistake is told to the caller, and leaves the file alone."""
    measured = Measured(tmp_path, ORIGIN)
    with pytest.raises(TypeError):
        measured.put(KEY, {"tensor": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_the_origin_of_a_cpu_says_what_its_times_depend_on():
    """A CPU's times hold for its kind and for the number of threads."""
    origin = Origin.of(Device(torch.device("cpu"), "cpu", None))
    assert origin.card.startswith("cpu, ")
    assert f"{torch.get_num_threads()} threads" in origin.card
    assert origin.torch == torch.__version__
