"""The farm in Prometheus' words, read from the ledger at every scrape; nothing is kept here.

Every label has few values: models of the catalog, priorities, worker nodes, states, kinds of chores, the busiest
tenants. All API processes tell the same of the farm, so a query over several takes the `max`, never the sum. What this
process does itself is in api/metrics.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.parts import Parts
from farm.errors import LedgerDown
from farm.jobs import JobState
from farm.ledger import ChoreBacklog, Gpu, Ledger, ModelBacklog, TenantStatus, Throughput, WorkerReport
from farm.requests import Priority

_VERSION: Final = (version("diffusion-farm"),)
_EVER: Final = "since the ledger began"
_NUM_RECENT_JOBS: Final = 50
_MAX_TENANTS: Final = 100  # whoever is authenticated becomes one: their number has no bound
_BACK: Final = "back:"
_CAUSES: Final = ("expired", "died", "error", "released")

_Family = type[GaugeMetricFamily] | type[CounterMetricFamily]
_Row = tuple[tuple[str, ...], float]


class FarmCollector(Collector):
    """Yields all of the farm's metrics; `chores` are the kinds of chores that there are."""

    def __init__(self, farm: Parts, chores: Collection[str]) -> None:
        self._farm = farm
        self._chores = tuple(chores)

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not ask the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; while Redis is away only that it is."""
        yield _table(GaugeMetricFamily, "farm_info", "The version of this API.", ("version",), [(_VERSION, 1)])
        if (price := self._farm.settings.gpu_hour_price) is not None:
            yield _gauge("farm_gpu_hour_price", "Price of an hour of one GPU, as the operator says.", price)
        try:
            metrics = list(self._read(self._farm.ledger))
        except LedgerDown:
            yield _gauge("farm_ledger_up", "Whether Redis answers.", 0)
            return
        yield _gauge("farm_ledger_up", "Whether Redis answers.", 1)
        yield from metrics

    def _read(self, ledger: Ledger) -> Iterator[Metric]:
        nodes, throughput = _nodes(ledger.workers()), ledger.throughput()
        queued, stored, gpu_s = ledger.queued_by_model(), ledger.images_by_model(), ledger.gpu_s_by_model()
        # Every model of the catalog has its lines from the start, so that rates begin at 0 and not at a gap.
        models = tuple(dict.fromkeys((*self._farm.catalog.names, *queued, *stored)))
        yield from _jobs(ledger)
        yield _by_model(GaugeMetricFamily, "farm_images_queued", "Images that wait for a worker.", models, queued)
        yield _gauge("farm_images_rendering", "Images that a worker holds a lease on.", throughput.rendering_images)
        yield _by_model(CounterMetricFamily, "farm_images_stored", f"Images stored {_EVER}.", models, stored)
        yield _by_model(
            CounterMetricFamily, "farm_gpu_seconds", f"Device time of stored images {_EVER}.", models, gpu_s
        )
        yield from _backlog(models, ledger.backlog(models))
        yield from _events(models, ledger.events())
        yield from _rates(throughput)
        yield from _tenants(ledger.tenants())
        yield from _models(models, nodes.values())
        yield from _workers(nodes)
        yield from _chores(ledger.chores(self._chores))
        memory = ledger.redis_memory()
        yield _gauge("farm_redis_memory_used_bytes", "Memory that the ledger's server uses.", memory.used_bytes)
        text = "Memory that the ledger's server may use; 0: all there is."
        yield _gauge("farm_redis_memory_max_bytes", text, memory.max_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _table(family: _Family, name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    metric = family(name, text, labels=labels)
    for values, value in rows:
        metric.add_metric(values, value)
    return metric


def _by_model(family: _Family, name: str, text: str, models: Iterable[str], values: Mapping[str, float]) -> Metric:
    return _table(family, name, text, ("model",), [((model,), values.get(model, 0)) for model in models])


def _jobs(ledger: Ledger) -> Iterator[Metric]:
    yield _gauge("farm_jobs", "Jobs that the ledger knows.", ledger.num_jobs())
    states = Counter(status.state for status in ledger.jobs(_NUM_RECENT_JOBS))
    text = f"States of the newest {_NUM_RECENT_JOBS} jobs."
    rows = [((state.value,), states[state]) for state in JobState]
    yield _table(GaugeMetricFamily, "farm_recent_jobs", text, ("state",), rows)


def _backlog(models: Iterable[str], lanes: Iterable[ModelBacklog]) -> Iterator[Metric]:
    """Yield what waits by priority; of a lane with hundreds of jobs, at least as much as is told."""
    found = {(lane.model, lane.priority): lane for lane in lanes}
    keys = [(model, priority) for model in models for priority in Priority]
    labels = ("model", "priority")
    images = [((m, p.value), found[m, p].images if (m, p) in found else 0) for m, p in keys]
    oldest = [((m, p.value), found[m, p].oldest_s if (m, p) in found else 0.0) for m, p in keys]
    text = "Images that wait to be handed out, by priority; the first 200 jobs of each tenant are counted."
    yield _table(GaugeMetricFamily, "farm_images_waiting", text, labels, images)
    text = "Age of the oldest job that has images waiting; 0 when there is none."
    yield _table(GaugeMetricFamily, "farm_oldest_wait_seconds", text, labels, oldest)


def _events(models: Iterable[str], events: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    failed = {model: count for (model, what), count in events.items() if what == "failed"}
    yield _by_model(CounterMetricFamily, "farm_images_failed", f"Images given up for good {_EVER}.", models, failed)
    yield _table(
        CounterMetricFamily,
        "farm_images_taken_back",
        f"Images taken back from a worker {_EVER}: its lease expired, it died, the image failed, the worker had to go.",
        ("model", "cause"),
        [((model, cause), events.get((model, _BACK + cause), 0)) for model in models for cause in _CAUSES],
    )


def _rates(throughput: Throughput) -> Iterator[Metric]:
    """Yield the last minute's figures; longer windows are Prometheus' own business."""
    minute = throughput.total[0]
    yield _gauge("farm_images_per_second", "Images stored per second, over the last minute.", minute.images_per_s)
    for name, text, value in (
        ("farm_seat_occupancy_mean", "Seats taken per denoising step.", minute.mean_seat_occupancy),
        ("farm_gpu_seconds_per_image", "Device time per image.", minute.gpu_s_per_image),
        ("farm_joules_per_image", "Energy per image of GPUs that tell theirs.", minute.joules_per_image),
    ):
        if value is not None:
            yield _gauge(name, f"{text} Over the last minute.", value)


def _tenants(tenants: Sequence[TenantStatus]) -> Iterator[Metric]:
    """Yield the lines of the tenants with the most work; of those without any, of the ones that had the most."""
    busiest = sorted(tenants, key=lambda each: (-each.queued - each.running, -each.gpu_s, each.name))[:_MAX_TENANTS]
    families: tuple[tuple[_Family, str, str, str], ...] = (
        (GaugeMetricFamily, "farm_tenant_images_queued", "Images of a tenant that wait.", "queued"),
        (
            GaugeMetricFamily,
            "farm_tenant_images_running",
            "Images of a tenant that are handed out or have a seat.",
            "running",
        ),
        (CounterMetricFamily, "farm_tenant_images_stored", f"Images of a tenant {_EVER}.", "images"),
        (CounterMetricFamily, "farm_tenant_gpu_seconds", "Device time of a tenant's images.", "gpu_s"),
    )
    for family, name, text, field in families:
        yield _table(family, name, text, ("tenant",), [((each.name,), getattr(each, field)) for each in busiest])


def _nodes(workers: Iterable[WorkerReport]) -> dict[str, WorkerReport]:
    """Return the report of each node: a restarted worker's predecessor may still count as alive for some seconds."""
    return {worker.node: worker for worker in sorted(workers, key=lambda worker: worker.started_at)}


def _models(models: Iterable[str], workers: Collection[WorkerReport]) -> Iterator[Metric]:
    able = Counter(model for worker in workers for model in worker.models)
    resident = Counter(model for worker in workers for model in worker.resident)
    yield _by_model(GaugeMetricFamily, "farm_model_workers", "Live workers that may serve a model.", models, able)
    text = "Live workers that hold a model on their device."
    yield _by_model(GaugeMetricFamily, "farm_model_workers_resident", text, models, resident)


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
    ("farm_worker_energy_joules", "Energy that its GPU has taken, idle or not.", "energy_j"),
)
_GPU_GAUGES: Final = (
    ("farm_gpu_temperature_celsius", "Temperature.", "temperature_c"),
    ("farm_gpu_power_watts", "Power draw.", "power_w"),
    ("farm_gpu_utilisation_ratio", "Utilisation, 0 to 1.", "utilisation"),
    ("farm_gpu_memory_used_bytes", "Memory in use.", "memory_used_bytes"),
    ("farm_gpu_memory_total_bytes", "Memory in all.", "memory_total_bytes"),
)


def _workers(nodes: Mapping[str, WorkerReport]) -> Iterator[Metric]:
    """Yield one line per node."""
    yield _gauge("farm_workers_alive", "Workers whose heartbeat is fresh.", len(nodes))
    kinds = [((node, worker.device), 1.0) for node, worker in nodes.items()]
    yield _table(GaugeMetricFamily, "farm_worker_info", "What a worker renders on.", ("node", "device"), kinds)
    for name, text, field in _WORKER_GAUGES:
        yield from _by_node(GaugeMetricFamily, name, text, field, nodes)
    for name, text, field in _WORKER_COUNTERS:
        yield from _by_node(CounterMetricFamily, name, f"{text} Since the process started.", field, nodes)
    gpus: dict[str, Gpu] = {node: worker.gpu for node, worker in nodes.items() if worker.gpu is not None}
    for name, text, field in _GPU_GAUGES:
        yield from _by_node(GaugeMetricFamily, name, f"{text} Of the worker's GPU.", field, gpus)


def _by_node(
    family: _Family, name: str, text: str, field: str, reports: Mapping[str, WorkerReport | Gpu]
) -> Iterator[Metric]:
    """Yield one figure of all nodes that tell it."""
    told = {node: getattr(report, field) for node, report in reports.items()}
    rows = [((node,), float(value)) for node, value in told.items() if value is not None]
    if rows:
        yield _table(family, name, text, ("node",), rows)


def _chores(backlogs: Sequence[ChoreBacklog]) -> Iterator[Metric]:
    rows: dict[str, list[_Row]] = defaultdict(list)
    for backlog in backlogs:
        rows["planned"].append(((backlog.kind,), backlog.planned))
        rows["due"].append(((backlog.kind,), backlog.due))
        rows["overdue"].append(((backlog.kind,), backlog.overdue_s))
    labels = ("kind",)
    text = "Things left to do about jobs, now or later, such as webhooks to tell."
    yield _table(GaugeMetricFamily, "farm_chores_planned", text, labels, rows["planned"])
    text = "Of these, what could be done now; with API processes at work it is near 0."
    yield _table(GaugeMetricFamily, "farm_chores_due", text, labels, rows["due"])
    text = "How long the first of these has been due."
    yield _table(GaugeMetricFamily, "farm_chores_overdue_seconds", text, labels, rows["overdue"])
