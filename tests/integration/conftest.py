"""Fixtures of the integration tests: the API on real servers."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest

from api import parts
from api.app import create_app
from api.chores import Chores
from api_client import Api, api_settings
from farm.ledger import Ledger
from servers import valkey


def pytest_collection_modifyitems(items):
    """Give the test of each operation of the contract an id of its own: of tests that share one, xdist runs one.

    pytest 9.2 leaves out of the id what schemathesis has put into the name.
    """
    for item in items:
        operation = getattr(item, "operation_label", None)
        if operation is not None and operation not in item.nodeid:
            item._id = item.id.with_params(operation)


class _PatientLedger(Ledger):
    """Waits for a Redis that a busy machine holds up: how soon an outage is told is asked in test_api_outage.py."""

    @classmethod
    def connect(cls, settings, **_options):
        return super().connect(settings, socket_timeout_s=100)


@pytest.fixture(scope="session")
def valkey_server(valkey_server):
    """Return the run's Valkey, which waits for no disk: tests that kill one have their own."""
    assert valkey_server._ask(b"CONFIG SET appendfsync no").startswith(b"+OK")
    return valkey_server


@pytest.fixture(scope="module")
def fast_server():
    """Run a server that forgets when it ends, for tests with very many changes: durability is asked elsewhere."""
    with valkey() as server:
        assert server._ask(b"CONFIG SET appendonly no").startswith(b"+OK")
        yield server


@contextmanager
def _running(redis_url, *, does_chores, **fields):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "Ledger", _PatientLedger)
        if not does_chores:
            patch.setattr(Chores, "_keep_taking", lambda _self: None)
        client = Api(create_app(api_settings(redis_url, **fields)))
        client.__enter__()
    try:
        yield client
    finally:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def _running_api(valkey_server):
    # It lives as long as the run and shares its Redis with the APIs of other tests: their chores are not its own.
    with _running(valkey_server.url, does_chores=False) as api:
        yield api


@pytest.fixture
def api(_running_api, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of a running API whose ledger is empty."""
    return _running_api


@pytest.fixture(scope="module")
def share_api(valkey_server):
    """Return a function that starts an API for all tests of a module, with these settings; it does no chores."""
    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(_running(valkey_server.url, does_chores=False, **fields))


@pytest.fixture(scope="module")
def shared_s3(seaweed_server, request):
    """Return settings, by name, of an S3 endpoint and a bucket for all tests of a module."""
    return {**seaweed_server.credentials, "s3_bucket": f"farm-{request.path.stem.replace('_', '-')}"}


@pytest.fixture
def make_api(redis_url):
    """Return a function that starts an API of its own, with these settings."""
    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(_running(redis_url, does_chores=True, **fields))
