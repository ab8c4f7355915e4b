"""What the system says of RAM, read from files that look like its own."""

from __future__ import annotations

import sys

import pytest

from worker import ram

GIB = 2**30


@pytest.fixture
def proc(tmp_path):
    """Return a /proc of a machine with 10 GiB to be had, in which we hold 3 MiB."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {10 * GIB // 1024} kB\n")
    (folder / "self" / "status").write_text("VmRSS:\t9999 kB\nRssAnon:\t1024 kB\nRssFile:\t7 kB\nRssShmem:\t2048 kB\n")
    return folder


def test_a_machine_tells_what_is_available(proc, tmp_path):
    """Without a container's limit the machine's number counts; without /proc nobody knows."""
    assert ram.available_bytes(proc=proc, cgroup=tmp_path) == 10 * GIB
    assert ram.available_bytes(proc=tmp_path, cgroup=tmp_path) is None


def test_a_container_has_what_its_limit_leaves(proc, tmp_path):
    """Files that it has cached can go, so they count as free."""
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    assert ram.available_bytes(proc=proc, cgroup=tmp_path) == GIB + GIB // 2
    assert ram.total_bytes(cgroup=tmp_path) == 4 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert ram.available_bytes(proc=proc, cgroup=tmp_path) == 10 * GIB
    assert ram.total_bytes(cgroup=tmp_path) > 0


def test_what_a_process_holds_is_its_own_pages(proc, tmp_path):
    """Pages of files can be dropped at any time and do not count."""
    assert ram.held_bytes(proc=proc) == 3 * 2**20
    assert ram.held_bytes(proc=tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells")
def test_freed_memory_is_given_back():
    """What lies in front of a piece still in use goes back to the system as well, which freeing alone does not do."""
    pieces = [bytearray(100_000) for _ in range(1000)]  # below the size that gets a mapping of its own
    full = ram.held_bytes()
    del pieces[:-1]
    ram.give_back()
    assert full - ram.held_bytes() > 50e6
