"""Forwards recorded as CUDA graphs, by key: the launches of a thousand kernels become one.

Owns what is recorded, the memory that recordings read from, and how many there may be, for all models of a worker. A
recording reads weights where they lie: patched in place they stay valid, replaced they do not, and then whoever
replaced them calls `forget`. Used by the engine's thread alone. The driver's part is behind `Capturer`.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from worker.forward.buckets import bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from worker.forward.bundle import Bundle

log: Final = logging.getLogger(__name__)

MAX_GRAPHS: Final = 32
"""Recordings kept, of all models together: a lane runs through at most a dozen shapes while it fills and empties."""
MAX_INPUT_BYTES: Final = 128 * 2**20
"""Inputs of one recording, which are held beside the lane's own. A forward that reads more is busy for so long that
launches do not matter: with ControlNets it reads a feature map per block."""
PAUSE_S: Final = 600.0
"""How long nothing is recorded after memory ran out."""
_WARM_UPS: Final = 2


class Recording(Protocol):
    """A forward that was recorded with its inputs where they lay."""

    @property
    def output(self) -> torch.Tensor:
        """Where each replay leaves its result, until the next one of any recording."""

    def replay(self) -> None:
        """Compute again, from what the inputs hold now."""


class Capturer(Protocol):
    """Records what a device is told to do."""

    def warm_up(self, run: Callable[[], torch.Tensor]) -> None:
        """Run once or more, so that nothing is made for the first time while it is recorded."""

    def capture(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Record one run. Raises RuntimeError when it does what cannot be recorded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    buffers: list[torch.Tensor]
    recording: Recording


class Graphs:
    """The recorded forwards of a worker's models."""

    def __init__(
        self,
        capturer: Capturer,
        *,
        max_graphs: int = MAX_GRAPHS,
        max_input_bytes: int = MAX_INPUT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record by `capturer`; of more than `max_graphs` the one longest unused is dropped."""
        self._capturer = capturer
        self._max_graphs = max_graphs
        self._max_input_bytes = max_input_bytes
        self._clock = clock
        self._graphs: OrderedDict[tuple[int, Hashable], _Graph] = OrderedDict()
        self._plain: set[tuple[int, Hashable]] = set()  # what cannot be recorded
        self._owners: set[int] = set()
        self._paused_until_s = -float("inf")

    def __len__(self) -> int:
        return len(self._graphs)

    def run(
        self,
        owner: object,
        key: Hashable,
        compute: Callable[[Bundle], torch.Tensor],
        bundle: Bundle,
        *,
        is_padded: bool,
    ) -> torch.Tensor:
        """Return what `compute` makes of `bundle`, a tensor of its rows: from a recording, where there can be one.

        `key` says what `compute` depends on beside the bundle, for `owner`, with whose end its recordings go. With
        `is_padded` it is recorded for a round number of rows.
        """
        num_rows = bucket_of(bundle.num_rows) if is_padded else bundle.num_rows
        full_key = (id(owner), (key, bundle.key, num_rows))
        graph = self._graphs.get(full_key) or self._record(owner, full_key, compute, bundle, num_rows)
        if graph is None:
            return compute(bundle)
        self._graphs.move_to_end(full_key)
        bundle.fill(graph.buffers)
        graph.recording.replay()
        # The next replay, of whichever recording, writes where this one's result lies.
        return graph.recording.output[: bundle.num_rows].clone()

    def forget(self, owner: object) -> None:
        """Drop what was recorded for `owner`: its weights lie elsewhere now, or it computes in another way."""
        self._drop(id(owner))

    def give_up(self) -> bool:
        """Drop everything because memory ran out, and record nothing for a while; return whether there was anything."""
        if not self._graphs:
            return False
        self._pause()
        return True

    def _record(
        self,
        owner: object,
        key: tuple[int, Hashable],
        compute: Callable[[Bundle], torch.Tensor],
        bundle: Bundle,
        num_rows: int,
    ) -> _Graph | None:
        """Record a forward; None where it is not to be, or cannot be."""
        if key in self._plain or self._clock() < self._paused_until_s or bundle.num_bytes > self._max_input_bytes:
            return None
        if id(owner) not in self._owners:
            self._owners.add(id(owner))
            weakref.finalize(owner, self._end, id(owner))
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        try:
            buffers = bundle.buffers(num_rows)
            bundle.fill(buffers)
            recorded = bundle.moved_to(buffers)
            self._capturer.warm_up(lambda: compute(recorded))  # what fails here fails unrecorded as well
        except torch.OutOfMemoryError:
            self._pause()  # unrecorded it takes less
            return None
        try:
            recording = self._capturer.capture(lambda: compute(recorded))
        except RuntimeError as error:  # a torch.AcceleratorError too: a device that is lost says so again
            self._plain.add(key)
            reason = " ".join(str(error).split())[:300]
            log.warning("a forward of %d rows stays unrecorded: %s", num_rows, reason, extra={"action": "graph_failed"})
            return None
        graph = self._graphs[key] = _Graph(buffers, recording)
        log.debug("recorded a forward of %d rows", num_rows, extra={"action": "graph_recorded"})
        return graph

    def _pause(self) -> None:
        had = len(self._graphs)
        self._graphs.clear()
        self._paused_until_s = self._clock() + PAUSE_S
        words = "memory ran out: %d recorded forwards are dropped, and none is recorded for %.0f s"
        log.warning(words, had, PAUSE_S, extra={"action": "graphs_given_up"})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _drop(self, owner: int) -> None:
        for key in [key for key in self._graphs if key[0] == owner]:
            del self._graphs[key]
        self._plain = {key for key in self._plain if key[0] != owner}

    def _end(self, owner: int) -> None:
        """Drop what was an object's that is no more: its number may be another's tomorrow."""
        self._drop(owner)
        self._owners.discard(owner)


class CudaCapturer:
    """Records on one CUDA device, on a stream of its own; recordings share their working memory.

    They may, because they run one after the other and nobody reads a result after the next one has begun.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._users: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, run: Callable[[], torch.Tensor]) -> None:
        """Run twice on the recording stream: libraries make their handles and workspaces per stream."""
        stream = self._stream = self._stream or torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def capture(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Record one run. Raises RuntimeError when it does what cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        if not self._users:
            self._pool = torch.cuda.graph_pool_handle()  # a pool ends with its last user
        before = torch.cuda.current_stream(self._device)
        try:
            # Other threads of this process may ask the driver for memory meanwhile: thread_local allows them to.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = run()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind as the current one
        self._users.add(graph)
        return _CudaRecording(graph, output)


@dataclass(frozen=True, slots=True, eq=False)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor

    def replay(self) -> None:
        self.graph.replay()
