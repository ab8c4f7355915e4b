"""A step is told to the device without waiting for it: nothing is read back, and every copy to it is a promise."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from farm.schedulers import find_scheduler
from overhead.noop import NoopPipeline
from tiny_models import tiny_unit
from worker.pipelines.base import Encoded, pack
from worker.runs import Runs
from worker.sampling import Histories, schedule_for
from worker.seat import BatchKey, Seat
from worker.uploads import upload, upload_numbers

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
SHAPE = (4, 8, 8)
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Watched(TorchDispatchMode):
    """Keeps the copies from the CPU to another device, and whether each was waited for; counts all calls."""

    def __init__(self):
        super().__init__()
        self.num_calls = 0
        self.waited_for = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Look at the call, and make it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.num_calls += 1
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" != result.device.type:
            self.waited_for.append(not kwargs.get("non_blocking", False))
        if func is torch.ops.aten.copy_.default and args[1].device.type == "cpu" != result.device.type:
            self.waited_for.append(not (len(args) > 2 and args[2]))
        if func is torch.ops.aten._foreach_copy_.default:
            self.waited_for += [True for source in args[1] if source.device != args[0][0].device]
        return result


def advance_once(device, num_seats, scheduler="euler_ancestral"):
    """Advance so many seats by one call on `device`, under watch."""
    schedule = schedule_for(find_scheduler(scheduler), SD15, 6)
    histories = Histories(16, SHAPE, device)
    slots = list(range(num_seats))
    for slot in slots:
        histories.begin(slot, torch.zeros(1, *SHAPE), schedule)
    noise = [torch.randn(1, *SHAPE) if schedule.draws_noise[0] else None for _ in slots]
    predictions = torch.zeros(num_seats, *SHAPE, device=device)
    with Watched() as watched:
        histories.advance(slots, [0] * num_seats, [schedule] * num_seats, predictions, noise)
        pack([1.0] * num_seats, device)
    return watched


def test_a_step_never_waits_for_its_device():
    """The meta device has no numbers, so reading any back raises; weights, noise and scales go there in one copy each.

    Were a copy waited for, the engine's thread would wait for the whole forward that was told before.
    """
    assert advance_once(ELSEWHERE, 16).waited_for == [False, False, False]
    assert advance_once(ELSEWHERE, 16, "euler").waited_for == [False, False]


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_a_step_of_many_seats_is_as_few_calls_as_one_of_two(device, scheduler):
    """Seats share every kernel: what is launched does not grow with them."""
    assert advance_once(device, 2, scheduler).num_calls == advance_once(device, 16, scheduler).num_calls < 25


class Elsewhere(NoopPipeline):
    """A model on a device that has no numbers; words of different lengths cannot share a forward."""

    device = ELSEWHERE

    def encode(self, unit, _inputs):
        """Tell the length."""
        return Encoded(None, form=len(unit.prompt))

    def predict(self, latents, _rides, *, guided, batch_shape):
        """Return something of the right shape."""
        assert latents.device == self.device
        return torch.zeros_like(latents)


@pytest.mark.parametrize("prompts", [["a cat", "a dog"], ["a cat", "a long dog"]])
def test_a_whole_step_never_waits_for_its_device(prompts):
    """From the latents to the next ones, whether seats share a forward or not, and from the first noise of a run on."""
    pipeline, runs = Elsewhere(size_px=64, max_batch=4, pictures=[torch.zeros(64, 64, 3)]), Runs(4)
    seats = []
    for slot, prompt in enumerate(prompts):
        unit = tiny_unit(prompt=prompt, scheduler="euler_ancestral", width=64, height=64)
        seats.append(Seat(unit, Future(), BatchKey.of(unit), 0.0, slot=slot))
    with Watched() as watched:
        for seat in seats:
            runs.begin(pipeline, seat)
        for _ in range(2):
            runs.advance(pipeline, seats[0].key, seats, None)
    assert len(watched.waited_for) == len(seats) + 2 * 3
    assert not any(watched.waited_for)


def test_on_a_cpu_nothing_is_copied():
    """The numbers are where they are to be."""
    tensor = torch.ones(3)
    assert upload(tensor, CPU) is tensor


def test_a_gpu_gets_a_copy_that_stays_as_it_is_until_it_is_read():
    """What is sent without waiting lies in memory of its own, page-locked: the sender may change his at once."""
    sent = []

    class Pinned:
        def to(self, device, *, non_blocking):
            sent.append((device, non_blocking))
            return "there"

    tensor = SimpleNamespace(pin_memory=Pinned, device=CPU)
    assert upload(tensor, torch.device("cuda", 0)) == "there"
    assert sent == [(torch.device("cuda", 0), True)]


@pytest.mark.parametrize("numbers", [[1, 2.5], (np.float64(1), np.float64(2.5)), np.array([1, 2.5])])
def test_numbers_become_float32(numbers):
    """Whatever a schedule keeps them as."""
    tensor = upload_numbers(numbers, CPU)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [1.0, 2.5]
