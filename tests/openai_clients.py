"""An API that asks for keys, a played worker, and unmodified `openai` clients of tenants of their own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai

from api_client import api_settings
from api_process import serving
from farm.jobs import Hint
from farm.ledger import JobStatus
from played_worker import PlayedWorker, playing
from servers import Seaweed, Valkey

_OPERATOR_KEY = "farm-tests-operator-key-of-40-characters"

_tenants = (f"tenant-{number}" for number in itertools.count())


class Client(openai.OpenAI):
    """OpenAI's client, that knows whose key it has."""

    tenant: str


class OpenAIFarm:
    """What the tests of OpenAI's API stand on."""

    def __init__(self, url: str, worker: PlayedWorker) -> None:
        self.url = url
        self.worker = worker
        self.stack = ExitStack()

    def client(self, **options) -> Client:
        """Return a client of a new tenant; unless told otherwise it never asks again by itself."""
        tenant = next(_tenants)
        body = {"name": tenant, "tenant": tenant, "scopes": ["submit"]}
        key = self.operate("POST", "/v1/keys", json=body)["key"]
        client = self.stack.enter_context(
            Client(base_url=f"{self.url}/v1", **{"api_key": key, "max_retries": 0, "timeout": 100, **options})
        )
        client.tenant = tenant
        return client

    def operate(self, method: str, path: str, **request) -> dict:
        """Send a request as the operator."""
        headers = {"Authorization": f"Bearer {_OPERATOR_KEY}"}
        return httpx.request(method, self.url + path, headers=headers, timeout=100, **request).raise_for_status().json()

    def jobs(self, client: Client) -> list[JobStatus]:
        """Return a tenant's jobs, the newest first."""
        return [job for job in self.worker.ledger.jobs(500) if job.header.tenant == client.tenant]

    def held(self, client: Client) -> list[Hint]:
        """Return a tenant's units that stay in their seats."""
        ids = {job.header.id for job in self.jobs(client)}
        return [hint for hint in self.worker.seated() if hint.job in ids]


def until(what: Callable, timeout_s: float = 100.0):
    """Wait until `what()` is true; return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@contextmanager
def openai_farm(valkey: Valkey, seaweed: Seaweed, folder: Path, **variables: str) -> Iterator[OpenAIFarm]:
    """Run it for the length of a `with` block; `variables` are FARM_* of the API."""
    valkey.flush()
    settings = api_settings(valkey.url, **seaweed.credentials, s3_public_endpoint=None, s3_bucket="farm-openai")
    with (
        serving(
            settings.redis_url,
            folder / "log",
            FARM_AUTH="keys",
            FARM_OPERATOR_KEY=_OPERATOR_KEY,
            FARM_S3_ENDPOINT=settings.s3_endpoint,
            FARM_S3_ACCESS_KEY=settings.s3_access_key,
            FARM_S3_SECRET_KEY=settings.s3_secret_key,
            FARM_S3_BUCKET=settings.s3_bucket,
            **variables,
        ) as server,
        playing(settings) as worker,
    ):
        farm = OpenAIFarm(f"http://127.0.0.1:{server.port}", worker)
        with farm.stack:
            yield farm
