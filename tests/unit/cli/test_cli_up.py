"""What `farm up` refuses before it starts anything."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cli.exits import CliError, Exit
from cli.lock import is_running, lock
from cli.up import UpOptions, check_host, find_refusal, models_dir, run_up


def options(tmp_path, port):
    """Return options of a farm on this machine."""
    return UpOptions(host="127.0.0.1", port=port, data=tmp_path / "data", workers=1)


def test_a_taken_port_is_told_and_nothing_started(tmp_path):
    """The message names the port and a way out; the code tells scripts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CliError, match=f"port {port} on 127.0.0.1 is taken; choose another") as caught:
            run_up(options(tmp_path, port))
    assert caught.value.code is Exit.IN_USE
    assert not (tmp_path / "data" / "valkey").exists()


def test_data_serves_one_farm(tmp_path):
    """A second farm on the same folder is refused, naming the process that has it."""
    (tmp_path / "data").mkdir()
    with (
        lock(tmp_path / "data"),
        pytest.raises(CliError, match=rf"in use by another `farm up` \(process {os.getpid()}\)"),
    ):
        run_up(options(tmp_path, 1))


def test_data_is_free_again_after_its_farm(tmp_path):
    """The lock goes with its holder, whatever the file says."""
    for _ in range(2):
        with lock(tmp_path):
            assert (tmp_path / "farm.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104  not bound
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("farm.local", "http://farm.local:80"),
    ],
)
def test_the_url_is_one_that_a_client_here_can_use(host, url):
    """An address to listen on is not always one to connect to."""
    assert UpOptions(host=host, port=80, data=Path(), workers=None).url == url


def test_a_dead_process_does_not_run():
    """A number from a lock file may belong to nobody."""
    assert is_running(str(os.getpid()))
    assert not is_running("999999999")


def test_models_are_those_of_the_environment_or_the_checkout(monkeypatch, tmp_path):
    """FARM_MODELS_DIR wins; otherwise the weights that ship."""
    assert models_dir().name == "models"
    monkeypatch.setenv("FARM_MODELS_DIR", str(tmp_path))
    assert models_dir() == tmp_path


def test_a_workers_refusal_is_found_in_its_log(tmp_path):
    """What an earlier start wrote does not count; the last reason does."""
    log = tmp_path / "workers.log"
    assert find_refusal(log, since=0) == ""
    log.write_text("CRITICAL worker.app: this worker cannot start: no GPU\n")
    start = log.stat().st_size
    assert find_refusal(log, since=start) == ""
    line = "CRITICAL worker.app: this worker cannot start: it is owned action=worker_refused"
    with log.open("a") as file:
        file.write(f"INFO started\n{line}\nINFO again\n")
    assert find_refusal(log, since=start) == "it is owned"


def test_a_farm_that_others_reach_says_whether_it_asks_for_keys(monkeypatch, tmp_path):
    """Nobody becomes everybody's operator by an address alone; nothing is started, and the two ways are told."""
    everywhere = replace(options(tmp_path, 1), host="0.0.0.0")  # noqa: S104  not bound
    with pytest.raises(CliError, match="FARM_AUTH=keys to ask for API keys, or FARM_AUTH=open") as caught:
        run_up(everywhere)
    assert caught.value.code is Exit.USAGE
    assert not (tmp_path / "data").exists()
    monkeypatch.setenv("FARM_AUTH", "open")
    check_host(everywhere)
    monkeypatch.delenv("FARM_AUTH")
    for host in ("127.0.0.1", "localhost", "::1"):
        check_host(replace(everywhere, host=host))
