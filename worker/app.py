"""Builds a worker and runs it under Celery until it is told to go. The only file in worker/ that knows Celery.

Everything is built before Celery starts, in plain order, in `run`; nothing forks. Celery's part is small: it reads
messages, hands each to a thread, and tells us when it stops, for whatever reason. Signals ask it to (SIGTERM; SIGINT,
SIGHUP and SIGQUIT mean the same here), and so do we when the engine has lost its device, to make room for a new
process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from celery import bootsteps, signals

from farm.catalog import load_catalog
from farm.errors import FarmError, LedgerDown, StorageDown
from farm.jobs import Hint
from farm.ledger import Ledger
from farm.logs import configure_logging
from farm.queue import RENDER_TASK, hold_at_most, make_celery, queues, read_on, read_only
from farm.settings import Settings
from farm.storage import Store
from farm.tracing import make_traces
from worker.description import Description
from worker.engine import Engine
from worker.finishing import Finishing
from worker.forward import Toolbox
from worker.gpu import Device, DeviceLock, choose_device
from worker.identity import Identities
from worker.inputs import Pictures
from worker.models import WorkerModels
from worker.previews import Previews
from worker.render import Renderer
from worker.reuse import Reuse
from worker.serving import Serving
from worker.tuning.caps import Caps
from worker.tuning.store import TUNING_FOLDER, Measured, Origin
from worker.upkeep import Appetite, Upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery import Celery

    from farm.catalog import Catalog

log: Final = logging.getLogger(__name__)

_SPARE_THREADS: Final = 2
"""Threads beyond the seats: they claim, encode and put while others render. Measured: more bring nothing."""
_WATCH_ENGINE_S: Final = 0.5
_DRAIN_LIMIT_S: Final = 15.0
"""Longest drain. Leases that it leaves behind go back when the next worker takes this place."""


def main() -> int:
    """Read the settings and run one worker; return its exit code."""
    settings = Settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    logging.captureWarnings(capture=True)
    for noisy in ("celery.worker.strategy", "celery.app.trace"):  # a line for each message; ours tell more
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return run(settings)
    except FarmError as error:
        log.critical("this worker cannot start: %s", error, extra={"action": "worker_refused"})
        return 2


def run(settings: Settings) -> int:
    """Build everything, from the device up, and work until drained."""
    device = choose_device(settings.device)
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    node = settings.worker_name or default_node(device)
    with sole_use(node, device, settings):
        catalog = load_catalog(settings.catalog_file).in_precision(settings.precision)
        models = served_models(settings.worker_models, catalog)
        name = f"{node}#{secrets.token_hex(4)}"
        traces = make_traces(settings, "worker", environment=os.environ, instance=name)
        ledger = Ledger.connect(settings)
        store = Store.connect(settings)
        prepare_bucket(store)
        tuning_dir = settings.tuning_dir or settings.models_dir / TUNING_FOLDER
        measured = Measured(tuning_dir, Origin.of(device))
        toolbox = Toolbox.of(
            settings.optimise, device, store=measured, cache_dir=tuning_dir / "compile", max_batch=settings.max_batch
        )
        weights = WorkerModels(settings, catalog, device, toolbox=toolbox)
        nudge = threading.Event()

        def fill_seats() -> None:
            nudge.set()
            read_on()

        def tell(hint: Hint, step: int, steps: int, jpeg: bytes | None) -> None:
            ledger.put_preview(hint, name, step=step, steps=steps, jpeg=jpeg)

        previews = Previews(tell) if settings.previews else None
        engine = Engine(
            weights.load,
            max_batch=settings.max_batch,
            fits=weights.fits,
            read_ahead=weights.read_ahead,
            caps=Caps(measured) if measures_batches(settings.measure_batch, device) else None,
            on_more_seats=fill_seats,
            finishing=Finishing(settings.models_dir, device.torch),
            previews=previews,
        )
        serving = Serving(
            name,
            models,
            ledger=ledger,
            device=engine,
            fits=weights.fits,
            wait_s=settings.model_wait_s,
        )
        appetite = Appetite(lambda: engine.seats, nudge)
        renderer = Renderer(
            name,
            ledger=ledger,
            engine=engine,
            store=store,
            pictures=Pictures.of(store, settings),
            max_undelivered=settings.max_undelivered,
            reuse=Reuse(store, engine, Identities(catalog, settings.models_dir, device)),
            serves=lambda model: model in serving.models,
            on_claim=appetite.claimed,
            longest_pause_s=settings.lease_s / 4,
            traces=traces,
        )
        app = make_celery(settings)
        read_only(app, lambda: serving.models)
        hold_at_most(app, lambda: engine.seats + _SPARE_THREADS)
        upkeep = Upkeep(
            node,
            ledger=ledger,
            leases=Ledger.connect(settings, socket_timeout_s=settings.lease_s / 4, retries=1),
            renderer=renderer,
            app=app,
            serving=serving,
            able=models,
            appetite=appetite,
            describe=Description(name, node, device, models, serving, engine, renderer).report,
            lease_s=settings.lease_s,
            nudge=nudge,
            on_watched=None if previews is None else previews.watch,
        )
        drain = Drain(renderer, engine, recycle_bytes=round(settings.recycle_rss_gib * 2**30))
        weights.start()
        engine.start()
        drain.start()
        if previews is not None:
            previews.start()
        upkeep.start()
        log.info("worker %s is ready", name, extra={"action": "worker_ready", "device": device.kind})
        code = consume(app, node, models, renderer, drain, num_threads=settings.max_batch + _SPARE_THREADS)
        drain.finish()
        weights.stop()
        if previews is not None:
            previews.stop()
        upkeep.stop()
        say_goodbye(ledger, name)
        drain.over()
        traces.close()
        return 1 if drain.lost_device else code


def measures_batches(choice: Literal["auto", "on", "off"], device: Device) -> bool:
    """Return whether it is measured how many seats pay; else lanes have FARM_MAX_BATCH. A CPU gains little by it."""
    return choice == "on" or (choice == "auto" and device.torch.type == "cuda")


def default_node(device: Device) -> str:
    """Return a name for this device that outlives its workers: host and GPU, or host and `cpu0`."""
    return f"{socket.gethostname()}:{device.id[: len('GPU-12345678')].lower() if device.uuid else 'cpu0'}"


@contextmanager
def sole_use(node: str, device: Device, settings: Settings) -> Iterator[None]:
    """Hold the locks that prove us alone: on this GPU in any farm, and under this name in this farm.

    Raises Fatal when another worker holds one.
    """
    folder = Path(tempfile.gettempdir()) / f"diffusion-farm-{os.getuid()}"
    farm_and_node = hashlib.sha256(f"{settings.redis_url} {node}".encode()).hexdigest()
    with ExitStack() as locks:
        if device.uuid:
            locks.enter_context(DeviceLock(folder, device.uuid))
        locks.enter_context(DeviceLock(folder, f"node-{farm_and_node[:16]}"))
        yield


def served_models(names: str, catalog: Catalog) -> tuple[str, ...]:
    """Return the models to serve, of a comma-separated list or all; raises UnknownModel for one that is not there."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    return tuple(catalog.row(name).name for name in chosen) if chosen else tuple(catalog.names)


def prepare_bucket(store: Store) -> None:
    """Create the bucket if it is missing. Storage that is away may come later; refused credentials are Fatal."""
    try:
        store.ensure_bucket()
    except StorageDown as error:
        log.warning("starting without storage: %s", error, extra={"action": "storage_down"})


class Drain:
    """Gives everything back and stops the engine, on a thread of its own, while Celery waits for its threads.

    Asks the process to end when the engine has lost its device, and when more than `recycle_bytes` (0: any number) are
    left in RAM after a model went: only a new process gives back what a library keeps.
    """

    def __init__(self, renderer: Renderer, engine: Engine, *, recycle_bytes: int = 0) -> None:
        self._renderer = renderer
        self._engine = engine
        self._recycle_bytes = recycle_bytes
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)
        self._watchdog = threading.Timer(_DRAIN_LIMIT_S, _give_up)
        self._watchdog.daemon = True
        self.lost_device = False

    def start(self) -> None:
        """Wait for `ask` in the background, and for the engine to lose its device."""
        self._thread.start()

    def ask(self) -> None:
        """Begin to drain, unless that has begun."""
        self._asked.set()

    def finish(self) -> None:
        """Drain and return when the engine has stopped."""
        self.ask()
        self._thread.join()

    def over(self) -> None:
        """Say that all has ended in time."""
        self._watchdog.cancel()

    def _run(self) -> None:
        is_leaving = False
        while not self._asked.wait(_WATCH_ENGINE_S):
            self.lost_device = self.lost_device or not self._engine.is_alive
            if not is_leaving and (self.lost_device or self._has_outgrown()):
                is_leaving = True
                os.kill(os.getpid(), signal.SIGTERM)
        log.info("draining: giving back what is not finished", extra={"action": "worker_draining"})
        self._watchdog.start()
        self._renderer.drain()
        self._engine.stop()

    def _has_outgrown(self) -> bool:
        floor_bytes = self._engine.stats().floor_bytes if self._recycle_bytes else 0
        if floor_bytes <= self._recycle_bytes:
            return False
        words = "after unloading, %.1f GiB of RAM are still held: a new process takes over"
        log.warning(words, floor_bytes / 2**30, extra={"action": "worker_recycled"})
        return True


def consume(
    app: Celery, node: str, models: Sequence[str], renderer: Renderer, drain: Drain, *, num_threads: int
) -> int:
    """Read the queues of `models` until a signal ends it and every thread has returned; return Celery's exit code."""

    @app.task(name=RENDER_TASK)  # type: ignore[untyped-decorator]  # celery ships no types
    def render(*arguments: object, **_: object) -> None:
        hint = read_hint(arguments)
        if hint is None:
            log.error("dropped an unreadable message", extra={"action": "message_unreadable"})
        else:
            renderer.render(hint)

    class DrainStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Drains when Celery begins to stop, before it waits for its threads."""

        def close(self, _worker: object) -> None:
            drain.ask()

    app.conf.task_queues = queues(models)
    app.steps["worker"].add(DrainStep)
    signals.setup_logging.connect(_keep_our_logging)
    signals.worker_ready.connect(_all_signals_drain)
    worker: Any = app.Worker(
        hostname=f"farm@{node}",
        pool="threads",
        concurrency=num_threads,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,  # of events that nobody reads: ours goes to the ledger
        quiet=True,
    )
    worker.start()
    return worker.exitcode or 0


def read_hint(arguments: Sequence[object]) -> Hint | None:
    """Return the hint that a message's arguments say, None when they say none."""
    match arguments:
        case [str(job), int(index), int(attempt)] if index >= 0 and attempt >= 1:
            return Hint(job, index, attempt)
        case _:
            return None


def say_goodbye(ledger: Ledger, name: str) -> None:
    """Take this worker off the list of the living, if Redis is there to hear it."""
    try:
        ledger.forget(name)
    except LedgerDown as error:
        log.warning("left without a word: %s", error, extra={"action": "ledger_down"})
    log.info("worker %s has gone", name, extra={"action": "worker_gone"})


def _keep_our_logging(**_: object) -> None:
    """Keep Celery from configuring logging: it does not when somebody listens to this signal."""


def _all_signals_drain(**_: object) -> None:
    """Give every polite signal the meaning of SIGTERM; Celery's own meanings restart, or end without a drain."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.getsignal(signal.SIGTERM))


def _give_up() -> None:
    log.critical("the drain hangs; ending at once", extra={"action": "drain_hung"})
    os._exit(1)
