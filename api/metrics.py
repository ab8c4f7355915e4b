"""The farm in Prometheus' words. Every label has few values: models, nodes, states, routes, the busiest tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from api.parts import Parts
from farm.errors import LedgerDown
from farm.jobs import JobState
from farm.ledger import Gpu, TenantStatus, Throughput, WorkerReport

router = APIRouter(tags=["health"])

_NUM_RECENT_JOBS: Final = 50
_MAX_TENANTS: Final = 100  # whoever is authenticated becomes one: their number has no bound
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


class FarmCollector(Collector):
    """Reads the ledger at every scrape; keeps nothing."""

    def __init__(self, farm: Parts) -> None:
        self._farm = farm

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not ask the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the farm's metrics; while Redis is away only that it is."""
        ledger = self._farm.ledger
        try:
            throughput, workers = ledger.throughput(), ledger.workers()
            queued, stored = ledger.queued_by_model(), ledger.images_by_model()
            states = Counter(status.state for status in ledger.jobs(_NUM_RECENT_JOBS))
            num_jobs, tenants = ledger.num_jobs(), ledger.tenants()
        except LedgerDown:
            yield _gauge("farm_ledger_up", "Whether Redis answers.", 0)
            return
        yield _gauge("farm_ledger_up", "Whether Redis answers.", 1)
        yield _gauge("farm_jobs", "Jobs that the ledger knows.", num_jobs)
        yield _labelled(
            GaugeMetricFamily("farm_recent_jobs", f"States of the newest {_NUM_RECENT_JOBS} jobs.", labels=("state",)),
            {state.value: states[state] for state in JobState},
        )
        # Every model of the catalog has its line from the start, so that rates begin at 0 and not at a gap.
        models = dict.fromkeys((*self._farm.catalog.names, *queued, *stored), 0)
        yield _labelled(
            GaugeMetricFamily("farm_images_queued", "Images that wait for a worker.", labels=("model",)),
            models | queued,
        )
        yield _gauge("farm_images_rendering", "Images that a worker holds a lease on.", throughput.rendering_images)
        yield _labelled(
            CounterMetricFamily("farm_images_stored", "Images stored since the ledger began.", labels=("model",)),
            models | stored,
        )
        yield from _rates(throughput)
        yield from _tenants(tenants)
        yield from _workers(workers)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _rates(throughput: Throughput) -> Iterator[Metric]:
    """Yield the last minute's figures; longer windows are Prometheus' own business."""
    minute = throughput.total[0]
    yield _gauge("farm_images_per_second", "Images stored per second, over the last minute.", minute.images_per_s)
    if minute.mean_seat_occupancy is not None:
        text = "Seats taken per denoising step, over the last minute."
        yield _gauge("farm_seat_occupancy_mean", text, minute.mean_seat_occupancy)
    if minute.gpu_s_per_image is not None:
        text = "Device time per image, over the last minute."
        yield _gauge("farm_gpu_seconds_per_image", text, minute.gpu_s_per_image)


def _tenants(tenants: Sequence[TenantStatus]) -> Iterator[Metric]:
    """Yield the lines of the tenants with the most work; of those without any, of the ones that had the most."""
    busiest = sorted(tenants, key=lambda each: (-each.queued - each.running, -each.gpu_s, each.name))[:_MAX_TENANTS]
    families = (
        (GaugeMetricFamily, "farm_tenant_images_queued", "Images of a tenant that wait.", "queued"),
        (
            GaugeMetricFamily,
            "farm_tenant_images_running",
            "Images of a tenant that are handed out or have a seat.",
            "running",
        ),
        (CounterMetricFamily, "farm_tenant_images_stored", "Images of a tenant since the ledger began.", "images"),
        (CounterMetricFamily, "farm_tenant_gpu_seconds", "Device time of a tenant's images.", "gpu_s"),
    )
    for family, name, text, field in families:
        yield _labelled(family(name, text, labels=("tenant",)), {each.name: getattr(each, field) for each in busiest})


_WORKER_GAUGES: Final = (
    ("farm_worker_seats", "Seats of a lane, at most.", "max_batch"),
    ("farm_worker_seats_useful", "Seats of its largest lane, as many as pay.", "useful_seats"),
    ("farm_worker_seats_taken", "Seats taken now.", "running"),
    ("farm_worker_images_waiting", "Units claimed and waiting for a seat.", "waiting"),
    ("farm_worker_images_undelivered", "Finished images waiting for storage.", "undelivered"),
    ("farm_worker_started_timestamp_seconds", "When the process started.", "started_at"),
)
_WORKER_COUNTERS: Final = (
    ("farm_worker_steps", "Denoising steps of lanes.", "steps"),
    ("farm_worker_seat_steps", "Occupied seats, summed over steps.", "seat_steps"),
    ("farm_worker_busy_seconds", "Device time used.", "busy_s"),
    ("farm_worker_images", "Images delivered.", "images"),
    ("farm_worker_failures", "Images that failed.", "failures"),
    ("farm_worker_out_of_memory", "Steps that ran out of device memory.", "oom_count"),
    ("farm_worker_model_loads", "Models loaded.", "loads"),
    ("farm_worker_loading_seconds", "Time spent on loading models.", "loading_s"),
)
_GPU_GAUGES: Final = (
    ("farm_gpu_temperature_celsius", "Temperature.", "temperature_c"),
    ("farm_gpu_power_watts", "Power draw.", "power_w"),
    ("farm_gpu_utilisation_ratio", "Utilisation, 0 to 1.", "utilisation"),
    ("farm_gpu_memory_used_bytes", "Memory in use.", "memory_used_bytes"),
    ("farm_gpu_memory_total_bytes", "Memory in all.", "memory_total_bytes"),
)


def _workers(workers: Sequence[WorkerReport]) -> Iterator[Metric]:
    """Yield one line per node: a restarted worker's predecessor may still count as alive for some seconds."""
    nodes: dict[str, WorkerReport] = {}
    for worker in sorted(workers, key=lambda worker: worker.started_at):
        nodes[worker.node] = worker
    yield _gauge("farm_workers_alive", "Workers whose heartbeat is fresh.", len(nodes))
    for name, text, field in _WORKER_GAUGES:
        family = GaugeMetricFamily(name, text, labels=("node",))
        yield _labelled(family, {node: float(getattr(worker, field)) for node, worker in nodes.items()})
    for name, text, field in _WORKER_COUNTERS:
        counters = CounterMetricFamily(name, f"{text} Since the process started.", labels=("node",))
        yield _labelled(counters, {node: float(getattr(worker, field)) for node, worker in nodes.items()})
    gpus: dict[str, Gpu] = {node: worker.gpu for node, worker in nodes.items() if worker.gpu is not None}
    for name, text, field in _GPU_GAUGES:
        known = {node: getattr(gpu, field) for node, gpu in gpus.items() if getattr(gpu, field) is not None}
        if known:
            yield _labelled(GaugeMetricFamily(name, text, labels=("node",)), known)


@router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> PlainTextResponse:
    """Everything above as Prometheus text. Answers 200 while Redis is away, with `farm_ledger_up 0`."""
    metrics: HttpMetrics = request.app.state.metrics
    return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
