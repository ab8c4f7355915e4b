"""Fixtures shared by all tests: real servers, started once and handed out clean."""

from __future__ import annotations

import itertools
import logging
import os

import pytest
from hypothesis import HealthCheck, settings

from servers import Seaweed, Valkey, seaweed, valkey
from worker.lasting import coming_to_stay, leave_it_to_the_system

_bucket_numbers = itertools.count()

_ONE_FARM = ("tests/e2e", "tests/faults", "tests/browser")
"""Folders whose tests share a farm."""

# Models of tests are tiny and processes many: threads that wait for each other on two cores make it ten times slower.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# transformers says at import which optional libraries are missing.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

# Times are never asserted, of examples neither: a busy machine would fail them. What `make test` says of a change, it
# says again: its examples follow from the tests themselves. `make fuzz` draws new ones.
settings.register_profile("farm", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("fuzz", parent=settings.get_profile("farm"), derandomize=False, max_examples=400)
settings.load_profile("farm")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave what the imports of all tests make out of every garbage collection: a million objects that stay."""
    with coming_to_stay():
        return (yield)


def pytest_unconfigure():
    """Leave out what the tests made as well, or the end of Python takes seconds."""
    leave_it_to_the_system()


def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile` give one process all files that share a farm: each process would start one of its own."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415  only where tests are distributed

    class ByFarm(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, file = super()._split_scope(nodeid).rpartition("/")
            return folder if folder in _ONE_FARM and file != "test_up.py" else f"{folder}/{file}"

    return ByFarm(config, log)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """Keep the developer's own FARM_* variables and AWS credentials out of tests."""
    for name in list(os.environ):
        if name.startswith(("FARM_", "AWS_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """Take back what a program that was run in this process made of logging: its stream ends with the test."""
    loggers = [logging.getLogger(name) for name in (None, "api", "cli", "farm", "worker")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for handler in logger.handlers[:]:
            if handler not in handlers and type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def valkey_server() -> Valkey:
    """One Valkey for the whole run; use `redis_url`, which empties it first."""
    with valkey() as server:
        yield server


@pytest.fixture
def redis_url(valkey_server) -> str:
    """Return the URL of an empty Redis."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture(scope="session")
def seaweed_server() -> Seaweed:
    """One S3 server for the whole run; use `s3`, whose bucket is new."""
    with seaweed() as server:
        yield server


@pytest.fixture
def s3(seaweed_server) -> dict[str, str]:
    """Return settings, by name, of an S3 endpoint and a bucket that does not exist yet."""
    return {**seaweed_server.credentials, "s3_bucket": f"farm-test-{next(_bucket_numbers)}"}
