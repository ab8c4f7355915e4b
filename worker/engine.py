"""The one thread that owns the device: admit, step, retire, and nothing else.

Units come in through `submit` and leave through their futures. Who sits where and steps next is the roster's business
(worker/scheduler.py), what happens to tensors is in worker/runs.py, which models are loaded in worker/residents.py.
Decided here is what a failure costs: one unit where one unit is to blame, never its neighbours.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from farm.errors import Fatal, ModelBroken, RenderFailed, Transient
from worker.account import Account, EngineStats, charge
from worker.budget import one_at_a_time
from worker.failures import as_ours, failure_of, is_out_of_memory
from worker.finishing import Finishing
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.residents import Residents
from worker.runs import Runs, schedule_of
from worker.scheduler import DEFAULT_PATIENCE, Lane, Roster
from worker.seat import BatchKey, EngineStopped, Rendered, Seat, UnitCancelled, passes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from farm.jobs import Hint, Unit
    from worker.pipelines.base import Pipeline
    from worker.previews import Previews
    from worker.tuning.caps import Caps

log: Final = logging.getLogger(__name__)


class Engine:
    """Renders units on one device, many at a time, each as if it were alone."""

    def __init__(
        self,
        load: Callable[[str], Pipeline],
        *,
        max_batch: int,
        fits: Callable[[Collection[str]], bool] = one_at_a_time,
        read_ahead: Callable[[str], None] = lambda _model: None,
        patience: int = DEFAULT_PATIENCE,
        caps: Caps | None = None,
        on_more_seats: Callable[[], None] = lambda: None,
        finishing: Finishing | None = None,
        previews: Previews | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to `load` models by name, and to keep those together that `fits` allows.

        `read_ahead` is told of models that will be loaded; it must return at once. With `caps` a lane has as many
        seats as pay, up to `max_batch`, which is found out when a second unit wants one. Lanes under `invariant` have
        `max_batch` all the same. `on_more_seats` is called, on any thread, when `seats` has risen. `previews` shows the
        units of jobs that somebody watches.
        """
        self._max_batch = max_batch
        self._caps = caps
        self._on_more_seats = on_more_seats
        self._finishing = finishing or Finishing()
        self._previews = previews
        self._clock = clock
        # The lock guards the roster and the counters. Device, runs and residents belong to the engine's thread alone,
        # which never holds the lock while the device works.
        self._lock = threading.Condition()
        self._making_tables = threading.Lock()
        self._roster: Roster[BatchKey, Seat] = Roster(
            max_batch, patience=patience, is_measured=None if caps is None else lambda key: not key.is_invariant
        )
        self._fits = fits
        self._read_ahead = read_ahead
        self._residents = Residents(load, fits=fits, clock=clock)
        self._runs = Runs(max_batch)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._closed: str | None = None  # why no more units are taken
        self._deadline: float | None = None
        self._given_up: list[Hint] = []
        self._account = Account(clock)

    # -- for other threads -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that owns the device."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether units are still taken: False after `stop`, and when the device was lost and the worker must go."""
        return self._closed is None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Begin with none of the units that are submitted within before all of them are there."""
        with self._lock:
            yield

    def submit(self, unit: Unit, inputs: Inputs = NO_INPUTS) -> Future[Rendered]:
        """Queue `unit` with the pictures it names.

        Its future ends with the image, RenderFailed, ModelBroken, UnitCancelled or EngineStopped.
        Raises EngineStopped when the engine takes no more units, RenderFailed or ModelBroken when an upscaler or the
        safety checker is missing; a checker that has to be downloaded is waited for.
        """
        if unit.watch is not None and self._previews is not None:
            self._previews.watch(unit.job, unit.watch)
        self._finishing.prepare(unit)
        self.expect(unit.model)
        first, second = passes_of(unit)
        if (pipeline := self._residents.peek(unit.model)) is not None:
            # A table's first making takes up to half a second: better here than between two steps of everybody, and
            # once, for the units of a job come all together.
            with self._making_tables:
                failure_of(lambda: schedule_of(pipeline, first, inputs))
        seat = Seat(first, Future(), BatchKey.of(first), self._clock(), inputs=inputs, next_pass=second)
        with self._lock:
            if self._closed is not None:
                raise EngineStopped(self._closed)
            before = self._roster.seats
            self._roster.join(seat.key, seat)
            self._lock.notify_all()
        if self._roster.seats > before:
            self._on_more_seats()
        return seat.future

    def expect(self, model: str) -> None:
        """Prepare for units of `model` while others render: if it is not here, its weights are read ahead."""
        if self._residents.peek(model) is None:
            self._fits([model])  # measures it, here rather than between two steps of everybody
            self._read_ahead(model)

    def cancel(self, job: str, index: int | None = None) -> int:
        """Cancel one unit of `job`, or all of them; return how many there were.

        Waiting units are gone when this returns, running ones leave at the next step.
        """
        with self._lock:
            affected = [
                seat
                for lane in self._roster
                for seat in (*lane.waiting, *lane.seated)
                if seat.unit.job == job and index in (None, seat.unit.index) and not seat.cancelled
            ]
            waiting = [seat for seat in affected if seat.slot < 0]
            for seat in affected:
                seat.cancelled = True
            for seat in waiting:
                self._roster.leave(seat.key, seat)
        for seat in waiting:
            seat.settle(UnitCancelled("cancelled while it waited"))
        return len(affected)

    def give_back(self, models: Collection[str]) -> None:
        """Give up the units of `models` that have had no seat yet; those that have one are finished."""
        with self._lock:
            waiting = [
                seat
                for lane in self._roster
                for seat in lane.waiting
                if lane.key.model in models and not seat.earlier_calls
            ]
            for seat in waiting:
                self._roster.leave(seat.key, seat)
        for seat in waiting:
            seat.settle(EngineStopped("its model is not served here any more"))

    def progress(self) -> Mapping[Hint, tuple[int, int]]:
        """Return model calls made and to make, for every unit that has a seat."""
        with self._lock:
            return {seat.unit.hint: (seat.call, seat.calls) for lane in self._roster for seat in lane.seated}

    @property
    def load_s(self) -> Mapping[str, float]:
        """What loading each model took, typically; of those that were loaded."""
        return self._residents.load_s

    @property
    def seats(self) -> int:
        """Units worth having at once: the seats of the largest lane, or of the latest when nobody is here."""
        return self._roster.seats

    @property
    def resident_models(self) -> Collection[str]:
        """The models on the device now."""
        return self._residents.names

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters."""
        with self._lock:
            return EngineStats(
                steps=self._roster.steps,
                seat_steps=self._account.seat_steps,
                busy_s=self._account.busy_s,
                images=self._account.images,
                failed=self._account.failed,
                oom_count=self._account.oom_count,
                max_batch=self._max_batch,
                seats=self._roster.seats,
                waiting=sum(len(lane.waiting) for lane in self._roster),
                running=sum(len(lane.seated) for lane in self._roster),
                caps={str(key): cap for key, cap in self._roster.caps.items()},
                resident_models=self._residents.names,
                load_s=self._residents.load_s,
                loads=self._residents.loads,
                unloads=self._residents.unloads,
                loading_s=self._residents.loading_s,
                floor_bytes=self._residents.floor_bytes,
            )

    def stop(self, *, drain_s: float = 0) -> list[Hint]:
        """Stop: give up waiting units at once and running ones after `drain_s`; return all that were given up.

        Their futures end with EngineStopped. Returns when the thread has ended, at most one pass after the deadline.
        """
        with self._lock:
            self._closed = self._closed or "the engine is stopping"
            self._deadline = self._clock() + drain_s
            waiting = [seat for lane in self._roster for seat in lane.waiting]
            for seat in waiting:
                self._roster.leave(seat.key, seat)
            self._lock.notify_all()
        self._give_up(waiting, self._closed)
        if self._thread.is_alive():
            self._thread.join()
        return list(self._given_up)

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Make passes until it is time to stop; whatever ends this thread, no future is left hanging."""
        try:
            with torch.inference_mode():
                while (lane := self._next_lane()) is not None:
                    self._pass(lane)
        except torch.AcceleratorError as error:
            # A kernel faulted: every later call on this CUDA context fails too, through no fault of the units.
            self._closed = f"the device is lost: {error}"
            log.critical(self._closed, extra={"action": "device_lost"})
        finally:
            with self._lock:
                self._closed = self._closed or "the engine's thread has died"
                rest = [seat for lane in self._roster for seat in (*lane.waiting, *lane.seated)]
                for seat in rest:
                    self._roster.leave(seat.key, seat)
            self._give_up(rest, self._closed)

    def _next_lane(self) -> Lane[BatchKey, Seat] | None:
        """Wait for work and return the lane that steps next; None when it is time to stop."""
        while True:
            self._drop_cancelled()
            with self._lock:
                if self._deadline is not None and (self._roster.is_empty or self._clock() >= self._deadline):
                    return None
                lane = self._roster.next_lane(self._residents.has_room_for)
                if lane is not None:
                    return lane
                self._lock.wait()

    def _pass(self, lane: Lane[BatchKey, Seat]) -> None:
        """Give free seats of `lane` to those who wait, make one step, hand out what is finished."""
        pipeline = self._resident(lane)
        if pipeline is not None and self._adapt(lane, pipeline):
            self._admit(lane, pipeline)
            if not lane.is_settled and lane.waiting:
                self._settle(lane, pipeline)
                self._admit(lane, pipeline)
            self._step(lane, pipeline)
            self._retire(lane, pipeline)
        with self._lock:
            self._runs.keep_only([lane.key for lane in self._roster])

    def _adapt(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline) -> bool:
        """Put the lane's LoRAs into the weights; when that cannot be, its units fail, and nobody else's."""
        with self._lock:
            seats = [*lane.seated, *lane.waiting]
        with self._account.busy(pipeline.device) as elapsed:
            failure = failure_of(lambda: pipeline.adapt(lane.key.loras))
            if is_out_of_memory(failure) and self._residents.keep_only(lane.key.model):
                failure = failure_of(lambda: pipeline.adapt(lane.key.loras))
        if failure is not None:
            self._fail(seats, failure)
            return False
        charge(seats[: lane.cap], elapsed())
        return True

    def _admit(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline) -> None:
        with self._lock:
            newcomers = lane.take_seats()
            expected = [seat.unit for seat in (*newcomers, *lane.waiting)]
        if newcomers:
            with self._account.busy(pipeline.device) as elapsed:
                failure_of(lambda: pipeline.encode_ahead(expected))  # whoever is to blame will fail on its own
            charge(newcomers, elapsed())
        for seat in newcomers:
            seat.queued_s += self._clock() - seat.submitted_at_s
            # From here on the future's owner cannot cancel it behind our back.
            if not seat.future.running() and not seat.future.set_running_or_notify_cancel():
                seat.cancelled = True
                continue
            with self._account.busy(pipeline.device) as elapsed:
                self._attempt(lane, [seat], lambda seats: self._runs.begin(pipeline, seats[0]))
            seat.encode_s += elapsed()
            seat.gpu_s += elapsed()
        self._drop_cancelled()

    def _settle(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline) -> None:
        """Find out how many seats of `lane` pay, from the one that is taken; what time it takes nobody is charged."""
        riders = lane.aboard
        if not riders or (caps := self._caps) is None:
            return
        most = min(self._max_batch, pipeline.max_batch or self._max_batch)
        found: list[int] = []

        def measure() -> None:
            is_alone = len(self._residents.names) == 1
            found.append(
                caps.seats(pipeline, riders[0], most=most, is_alone=is_alone, go_on=lambda: self._closed is None)
            )

        with self._account.busy(pipeline.device):
            failure = failure_of(measure)
        if failure is not None:
            extra = {"action": "batch_unmeasured", "model": lane.key.model}
            log.warning("the best batch of %s was not found: %s", lane.key, failure, extra=extra)
        with self._lock:
            before = self._roster.seats
            self._roster.settle(lane, found[0] if found else most)
        if self._roster.seats > before:
            self._on_more_seats()

    def _step(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline) -> None:
        riders = lane.aboard
        if not riders:
            return

        def advance(seats: list[Seat]) -> None:
            self._runs.advance(pipeline, lane.key, seats, lane.cap if lane.key.is_invariant else None)

        with self._account.busy(pipeline.device) as elapsed:
            self._attempt(lane, riders, advance, is_batch=True)
        charge(riders, elapsed())
        for seat in riders:
            seat.denoise_s += elapsed()
            seat.calls_made += 1
            seat.company += len(riders)
        self._account.count(seat_steps=len(riders))
        with self._lock:
            self._roster.stepped(lane)
        if (previews := self._previews) is not None and previews.watched:
            self._look_on(previews, partial(previews.show, self._runs, pipeline, riders))

    def _retire(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline) -> None:
        self._drop_cancelled()
        for seat in lane.seated:
            if seat.is_done:
                self._attempt(lane, [seat], partial(self._finish, lane, pipeline))

    def _finish(self, lane: Lane[BatchKey, Seat], pipeline: Pipeline, seats: list[Seat]) -> None:
        """Decode one finished seat and hand out its image; a ruined one is rendered once more."""
        seat = seats[0]
        following = seat.next_pass
        with self._account.busy(pipeline.device) as elapsed:
            if following is None:
                pixels, flaw = self._runs.decode(pipeline, seat)
            else:
                inputs, flaw = self._runs.hand_over(pipeline, seat, following)
        seat.decode_s += elapsed()
        seat.gpu_s += elapsed()
        if flaw is not None:
            self._render_again(pipeline, seat, flaw)
            return
        if following is not None:
            self._change_lanes(seat, following.unit, inputs)
            return
        if (previews := self._previews) is not None:
            self._look_on(previews, partial(previews.learn, self._runs, pipeline, seat, pixels))
        with self._account.busy(pipeline.device) as elapsed:
            finished = self._finishing.finish(seat.unit, pixels)
        seat.decode_s += elapsed()
        seat.gpu_s += elapsed()
        rendered = Rendered(
            pixels=finished.pixels,
            timings=seat.timings(batch_shape=lane.cap if lane.key.is_invariant else None),
            model_hash=pipeline.model_hash,
            device=pipeline.device_name,
            dtype=str(pipeline.dtype).removeprefix("torch."),
            warnings=(*seat.warnings, *finished.warnings),
            lora_hashes=dict(pipeline.lora_hashes),
            inversion_hashes=seat.inversion_hashes,
            approximations=(
                *pipeline.approximations,
                *(() if lane.key.is_invariant else pipeline.fast_approximations),
                *seat.unit.acceleration.approximations,
            ),
            upscaled=finished.upscaled,
            upscaler_hash=finished.upscaler_hash,
            nsfw=finished.nsfw,
        )
        self._account.count(images=1)
        with self._lock:
            self._roster.leave(seat.key, seat)
        seat.settle(rendered)

    def _look_on(self, previews: Previews, work: Callable[[], None]) -> None:
        if (failure := failure_of(work)) is not None:
            previews.failed(failure)

    def _render_again(self, pipeline: Pipeline, seat: Seat, flaw: str) -> None:
        """Set a ruined pass to its start. Raises RenderFailed when that was done before.

        Memory without ECC flips bits, so once is chance; twice is the model's or the request's doing.
        """
        if seat.reruns:
            raise RenderFailed(f"the image came out {flaw}, twice")
        log.warning("an image came out %s", flaw, extra={"action": "image_flawed", **seat.names})
        seat.reruns += 1
        seat.warnings.append(f"the image came out {flaw} and was rendered once more")
        self._runs.restart(pipeline, seat)

    def _change_lanes(self, seat: Seat, unit: Unit, inputs: Inputs) -> None:
        """Let a seat that has finished its first pass wait in the second one's lane, as old as it is."""
        with self._lock:
            if not self._roster.leave(seat.key, seat):
                return  # cancelled meanwhile
            seat.unit, seat.inputs, seat.next_pass = unit, inputs, None
            seat.key = BatchKey.of(unit)
            seat.earlier_calls += seat.calls
            seat.call = seat.calls = seat.reruns = 0
            seat.submitted_at_s = self._clock()
            self._roster.join(seat.key, seat, is_transfer=True)

    def _resident(self, lane: Lane[BatchKey, Seat]) -> Pipeline | None:
        """Return the lane's model, loading it if need be; None when it cannot be, and all its units have failed."""
        model = lane.key.model
        pipelines: list[Pipeline] = []
        failure = failure_of(lambda: pipelines.append(self._residents.get(model)))
        if is_out_of_memory(failure) and self._residents.keep_only(model):
            failure = failure_of(lambda: pipelines.append(self._residents.get(model)))
        if failure is not None:
            is_ours = isinstance(failure, (Fatal, Transient))
            error = failure if is_ours else ModelBroken(f"model {model}: {failure}")
            self._residents.remember_broken(model, error)
            with self._lock:
                lanes = [x for x in self._roster if x.key.model == model]
                seats = [seat for x in lanes for seat in (*x.waiting, *x.seated)]
            self._fail(seats, error)
            return None
        if (max_batch := pipelines[0].max_batch) is not None and max_batch < lane.cap:
            with self._lock:
                self._roster.limit(lane, max_batch)
        return pipelines[0]

    # -- what failures cost ------------------------------------------------------------------------------------------

    def _attempt(
        self,
        lane: Lane[BatchKey, Seat],
        seats: list[Seat],
        work: Callable[[list[Seat]], None],
        *,
        is_batch: bool = False,
    ) -> None:
        """Do `work` on `seats`; if it fails, on ever smaller halves, until whoever is to blame stands alone and fails.

        A work that fails leaves the runs as they were, so the innocent half just does it again.
        """
        failure = failure_of(partial(work, seats))
        if failure is None:
            return
        if is_out_of_memory(failure):
            num_rows = lane.cap if is_batch and lane.key.is_invariant else len(seats)
            if self._make_room(lane, seats[0], num_rows):
                self._attempt(lane, seats, work, is_batch=is_batch)
                return
            if num_rows > 1 and lane.key.is_invariant:
                # Every image must be made at one shape throughout, hence from its beginning.
                self._restart_all(lane)
                return
        if len(seats) == 1:
            self._fail(seats, failure)
            return
        middle = len(seats) // 2
        self._attempt(lane, seats[:middle], work, is_batch=is_batch)
        self._attempt(lane, seats[middle:], work, is_batch=is_batch)

    def _make_room(self, lane: Lane[BatchKey, Seat], seat: Seat, num_rows: int) -> bool:
        """Answer running out of memory with `num_rows` seats like `seat`; return whether there is more memory now.

        Models of other lanes go first. If there are none, steps of this lane carry half as many seats from now on.
        """
        log.warning("out of memory at %d seats of %s", num_rows, lane.key, extra={"action": "out_of_memory"})
        has_unloaded = self._residents.keep_only(lane.key.model)
        self._account.count(ooms=1)
        with self._lock:
            if num_rows > 1 and not has_unloaded:
                self._roster.limit(lane, num_rows // 2)
        pipeline = self._residents.peek(lane.key.model)
        if self._caps is not None and pipeline is not None and lane.cap < num_rows and not lane.key.is_invariant:
            self._caps.ran_out(pipeline, seat, lane.cap)
        return has_unloaded

    def _restart_all(self, lane: Lane[BatchKey, Seat]) -> None:
        pipeline = self._residents.get(lane.key.model)
        for seat in lane.seated:
            seat.warnings.append(f"out of memory: rendered anew at a batch shape of {lane.cap}")
            # Starts that encode pictures may run out of memory as well.
            self._attempt(lane, [seat], lambda seats: self._runs.restart(pipeline, seats[0]))

    def _fail(self, seats: list[Seat], error: Exception) -> None:
        error = as_ours(error)
        for seat in seats:
            with self._lock:
                if not self._roster.leave(seat.key, seat):
                    continue  # cancelled or given up meanwhile, by another thread
            self._account.count(failed=1)
            log.error("unit failed: %s", error, extra={"action": "unit_failed", **seat.names})
            seat.settle(error)

    def _drop_cancelled(self) -> None:
        """Take cancelled seats out of all lanes."""
        with self._lock:
            dropped = [seat for lane in self._roster for seat in lane.seated if seat.cancelled]
            for seat in dropped:
                self._roster.leave(seat.key, seat)
        for seat in dropped:
            seat.settle(UnitCancelled("cancelled while it ran"))

    def _give_up(self, seats: Iterable[Seat], reason: str) -> None:
        for seat in seats:
            self._given_up.append(seat.unit.hint)
            seat.settle(EngineStopped(reason))
