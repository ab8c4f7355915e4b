"""`GET /metrics`, and what this process notes of its own requests. What the farm tells is in api/collector.py."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

router = APIRouter(tags=["health"])

_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """Durations of this API's own requests."""

    def __init__(self) -> None:
        # In this format it would be a third series for each, of no use to Prometheus.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "farm_http_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=_BUCKETS_S,
        )

    def observe(self, *, method: str, route: str, status: int, duration_s: float) -> None:
        """Note one request; `route` is a template, never a path."""
        self._durations.labels(method, route, str(status)).observe(duration_s)


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> PlainTextResponse:
    """Everything that can be measured, as Prometheus text. Answers 200 while Redis is away, with `farm_ledger_up 0`."""
    metrics: HttpMetrics = request.app.state.metrics
    return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
