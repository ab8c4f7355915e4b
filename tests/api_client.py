"""A client of the API that also plays a worker's part by hand, on the real ledger."""

from __future__ import annotations

from starlette.testclient import TestClient

from api.app import create_app
from api.guard.keyring import keys_of
from api.parts import DEFAULT_TENANT, build_parts
from api.webhooks.sending import Sender
from farm.ledger import WorkerReport
from farm.settings import Settings

WORKER = "host:gpu0#1"


class Api(TestClient):
    """A client of the API, with the parts that the API itself works with."""

    @property
    def parts(self):
        """Return ledger, store and the rest."""
        return self.app.state.parts

    def post_job(self, *, expect: int = 202, headers: dict[str, str] | None = None, **body) -> dict:
        """POST a job of the model that ships; return the answer's document."""
        document = {"model": "scenes", "prompts": ["a red circle"], "seed": 7, **body}
        answer = self.post("/v1/jobs", json=document, headers=headers)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def work(self, model: str = "scenes", *, limit: int = 64, max_batch: int = 32) -> list:
        """Play a worker: report, take units, claim them; return their hints."""
        ledger = self.parts.ledger
        ledger.report(heartbeat(model, max_batch=max_batch))
        hints = ledger.feed(model, limit=limit)
        assert all(ledger.claim(hint, WORKER) for hint in hints)
        return hints

    def render(self, model: str = "scenes", *, limit: int = 64) -> int:
        """Play a worker that stores everything it is given; return the number of images."""
        hints = self.work(model, limit=limit)
        for hint in hints:
            assert self.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1.25)
        return len(hints)


def heartbeat(model: str = "scenes", **fields) -> WorkerReport:
    """Return a worker's report."""
    return WorkerReport(
        **{
            "name": WORKER,
            "node": WORKER.partition("#")[0],
            "pid": 1,
            "device": "cpu",
            "models": (model,),
            "max_batch": 4,
            "started_at": 1_795_000_000.0,
            **fields,
        }
    )


def api_settings(redis_url: str, **fields) -> Settings:
    """Return settings on this Redis and an S3 that nobody has started: signing needs none."""
    return Settings(
        **{
            "redis_url": redis_url,
            "s3_endpoint": "http://127.0.0.1:9",
            "s3_public_endpoint": "http://images.example:8333",
            "s3_access_key": "key",
            "s3_secret_key": "secret",
            "lease_s": 600,  # nobody renews what the test has claimed, however long the machine takes
            **fields,
        }
    )


def offline_api(**fields) -> TestClient:
    """Return a client of an API that was never started: it has its parts, and no server behind them."""
    settings = api_settings("redis://127.0.0.1:9/0", **fields)
    app = create_app(settings)
    keys = keys_of(settings, tenant=DEFAULT_TENANT)
    app.state.parts = build_parts(settings, Sender.of(settings), keys, started_at=0.0)
    return TestClient(app, raise_server_exceptions=False)
