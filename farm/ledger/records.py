"""What the ledger answers with: frozen records, no Redis in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from farm.jobs import Counts, Header, JobState, UnitState, Watch, derive_state
from farm.requests import Priority


class Opened(NamedTuple):
    """The answer to `Ledger.open`: `created` is False when the Idempotency-Key had been used for the same body."""

    id: str
    created: bool


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job as it stands."""

    header: Header
    counts: Counts
    cancelled: bool
    started_at: float | None  # Unix time of the first claim
    finished_at: float | None  # Unix time of the last image, or of the cancel
    gpu_s: float  # device time of its stored images, summed
    retries: int  # hand-outs beyond the first, over all images
    images_per_s: float | None  # over the job's run so far; None before the first image
    eta_s: float | None  # seconds until its last image; None when unknown, 0 when settled
    paused: bool = False
    reused: int = 0  # of the stored images, those that were answered from storage
    manifest_at: float | None = None  # Unix time when the manifest of its end was in the store

    @property
    def state(self) -> JobState:
        """Derived from the counts, by the one function."""
        return derive_state(self.counts, cancelled=self.cancelled, paused=self.paused)


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """One image of a job as it stands; key and URL follow from job and index."""

    index: int
    prompt_index: int
    prompt: str
    seed: int
    state: UnitState
    attempts: int
    stored_at: float | None = None  # Unix time
    render_s: float | None = None  # from its seat's admission to its pixels
    gpu_s: float | None = None  # its share of device time
    worker: str | None = None  # the node that stored it
    error: str | None = None
    history: tuple[str, ...] = ()  # reasons of lost or failed attempts, oldest first


class Gpu(BaseModel):
    """Telemetry of one device; absent on a CPU."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    uuid: str
    name: str
    temperature_c: float | None = None
    power_w: float | None = None
    utilisation: float | None = Field(None, description="0 to 1")
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None


class WorkerReport(BaseModel):
    """What a worker says of itself with every heartbeat. Counters run since its start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(description="Node and boot: unique per process.")
    node: str = Field(description="Stable name of the GPU's seat in the farm, such as host:gpu0.")
    pid: int
    device: str
    models: tuple[str, ...] = Field(description="Models that it may serve.")
    serving: tuple[str, ...] | None = Field(None, description="Models whose queues it reads now; None: all of them.")
    resident: tuple[str, ...] = Field((), description="Models on the device now.")
    load_s: dict[str, float] = Field({}, description="Seconds that loading a model typically took here, by model.")
    loads: int = Field(0, description="Models loaded.")
    loading_s: float = Field(0.0, description="Seconds spent on that; no part of busy_s.")
    max_batch: int = Field(description="Seats of a lane, at most.")
    seats: int | None = Field(
        None, description="Units worth having at once: the seats of its largest lane, as measured on its device."
    )
    caps: dict[str, int] = Field({}, description="Seats that pay, or that fit, where that is known; by lane.")
    running: int = Field(0, description="Seats taken now.")
    waiting: int = Field(0, description="Units claimed and waiting for a seat.")
    undelivered: int = Field(0, description="Finished images waiting for storage.")
    steps: int = Field(0, description="Denoising steps of lanes.")
    seat_steps: int = Field(0, description="Occupied seats, summed over those steps.")
    busy_s: float = Field(0.0, description="Device time used.")
    images: int = 0
    failures: int = 0
    oom_count: int = 0
    energy_j: float | None = Field(None, description="Joules that its GPU has taken, idle or not; null on a CPU.")
    started_at: float
    seen_at: float = Field(0.0, description="Unix time by the ledger's clock; set by the ledger.")
    gpu: Gpu | None = None

    @property
    def useful_seats(self) -> int:
        """Units worth having at once, `max_batch` of a worker that measures nothing."""
        return self.max_batch if self.seats is None else self.seats


@dataclass(frozen=True, slots=True)
class Rate:
    """What was done within a window of time."""

    window_s: int
    images: int
    images_per_s: float
    gpu_s: float
    gpu_s_per_image: float | None
    mean_seat_occupancy: float | None  # seats taken per step; None without a step
    energy_j: float | None = None  # of the GPUs that tell, idle or not; None where none does
    joules_per_image: float | None = None  # on those GPUs


@dataclass(frozen=True, slots=True)
class Throughput:
    """Rates over 1 minute, 5 minutes and 1 hour: of the farm, by model, by worker node."""

    total: tuple[Rate, ...]
    by_model: dict[str, tuple[Rate, ...]] = field(default_factory=dict)
    by_worker: dict[str, tuple[Rate, ...]] = field(default_factory=dict)
    queued_images: int = 0
    rendering_images: int = 0


@dataclass(frozen=True, slots=True)
class ModelBacklog:
    """What waits to be handed out for one model at one priority."""

    model: str
    priority: Priority
    images: int
    oldest_s: float  # since the oldest of its jobs was accepted


@dataclass(frozen=True, slots=True)
class ChoreBacklog:
    """What is left to do of one kind of chore."""

    kind: str
    planned: int  # all of them; some are for later
    due: int
    overdue_s: float  # how long ago the first of them was due; 0 when none is


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """How full the ledger's server is."""

    used_bytes: int
    max_bytes: int  # 0: as much as the machine has


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What part of the farm a tenant gets."""

    weight: float = 1.0  # of GPU time, beside the others that want some
    max_queued_images: int | None = None
    max_running: int | None = None  # images in flight: handed out or in a seat


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """A tenant as it stands."""

    name: str
    limits: TenantLimits
    queued: int  # images that wait, in paused jobs too
    running: int  # images handed out or in a seat
    images: int  # stored, since it was first heard of
    gpu_s: float  # of these
    open_jobs: int  # not settled


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """The work that waits for one model."""

    queued: int  # images in the backlog
    handed: int  # handed out, not claimed
    share: float  # of the workers, by the weights of the tenants that wait; all models' sum to 1
    served_by: float  # workers that serve it; one that serves three models is a third
    lag_s: float  # GPU seconds by which the tenant whose turn is next is behind its share; negative: ahead of it
    top_priority: Priority | None  # the highest that waits in the backlog; None when all is handed out
    unserved_since: float | None  # when its work began to wait without a worker; None while it has one
    image_s: float  # GPU seconds of an image, on average so far; 1 before the first


@dataclass(frozen=True, slots=True)
class Demand:
    """All that waits, at one moment. `version` changes with every worker that changes what it serves."""

    now: float  # by the ledger's clock
    version: int
    workers: int  # alive, that may serve at least one of the models
    models: dict[str, ModelDemand]


@dataclass(frozen=True, slots=True)
class News:
    """Either work for a model, or a job or one of its images was cancelled, or with `watch` a job is looked at."""

    model: str | None = None
    job: str | None = None
    index: int | None = None  # None: all of the job
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """How far an image in a seat is, and what it looks like by now."""

    step: int  # model calls made, over all passes; where something went wrong they begin anew
    steps: int  # to make in all; samplers of second order make two per step that was asked for
    jpeg: bytes | None  # the latest picture, a small one; None before the first
    at: float  # Unix time by the ledger's clock, of `step`
    jpeg_step: int | None = None  # that `jpeg` shows


@dataclass(frozen=True, slots=True)
class ImageChange:
    """An image of a job has ended: it is stored, failed, or was cancelled by itself."""

    index: int
    state: UnitState
    position: int  # among its job's ends, from 0, in the order of these


@dataclass(frozen=True, slots=True)
class Look:
    """A job as it stands, and what has ended of it since somebody looked."""

    status: JobStatus
    num_ended: int  # ends so far; an image that failed and was tried again has several
    ended: tuple[ImageChange, ...]  # in order, from the position asked for; maybe not all of them


@dataclass(frozen=True, slots=True)
class PreviewTold:
    """An image in a seat got on."""

    index: int
    step: int
    steps: int
    has_picture: bool  # whether there is a new one


@dataclass(frozen=True, slots=True)
class Heard:
    """What was told of jobs since somebody listened."""

    jobs: frozenset[str]  # that are not as they were
    previews: dict[str, tuple[PreviewTold, ...]]  # by job, oldest first
    is_gap: bool  # nobody listened for a while: any job may have changed


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do for a job: write its manifest, tell its webhook, let it expire."""

    kind: str
    job: str
    event: str
    count: int  # how often the job has settled: after a retry of failed images it settles again
    due_at: float
    tries: int  # that failed

    @property
    def member(self) -> str:
        """Its name on the list of its kind, and the same whenever it comes again."""
        return f"{self.job}|{self.event}|{self.count}"
