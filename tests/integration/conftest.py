"""Fixtures of the integration tests: the API on real servers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from api.app import create_app
from api.chores import Chores
from api_client import Api, api_settings


@pytest.fixture(scope="session")
def _running_api(valkey_server):
    with pytest.MonkeyPatch.context() as patch:
        # It lives as long as the run and shares its Redis with the APIs of other tests: their chores are not its own.
        patch.setattr(Chores, "_keep_taking", lambda _self: None)
        client = Api(create_app(api_settings(valkey_server.url)))
        client.__enter__()
    yield client
    client.__exit__(None, None, None)


@pytest.fixture
def api(_running_api, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of a running API whose ledger is empty."""
    return _running_api


@pytest.fixture
def make_api(redis_url):
    """Return a function that starts an API of its own, with these settings."""
    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(Api(create_app(api_settings(redis_url, **fields))))
