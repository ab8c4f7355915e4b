"""Recorded forwards: what tells them apart, what they read, how many there are, and what happens when it goes wrong."""

from __future__ import annotations

import gc
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded_forwards import Replayer
from worker.forward.bundle import Bundle
from worker.forward.graphs import PAUSE_S, Graphs


class Doubler(torch.nn.Module):
    """Doubles what it is given, and counts how often; with a bias that somebody may patch."""

    def __init__(self):
        super().__init__()
        self.bias = torch.zeros(3)
        self.num_runs = 0
        self.rows = []

    def __call__(self, bundle):
        self.num_runs += 1
        x = bundle.inputs["x"]
        self.rows.append(len(x))
        more = bundle.inputs.get("more")
        return 2 * x + self.bias + (0 if more is None else more["y"][0])


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def replayer():
    """Return a stand-in for the driver."""
    return Replayer()


@pytest.fixture
def graphs(replayer):
    """Return recordings made by it."""
    return Graphs(replayer)


def run(graphs, module, *, key="", is_padded=False, owner=None, **inputs):
    """Run `module` on `inputs` by `graphs`."""
    return graphs.run(owner or module, key, module, Bundle.of(inputs), is_padded=is_padded)


def rows(count, start=0.0):
    """Return `count` rows of three different numbers."""
    return torch.arange(start, start + 3 * count).view(count, 3)


def test_a_recording_computes_from_the_numbers_of_each_call(graphs, replayer):
    """The second call of a shape is a replay, of its own numbers, and its result outlives the next replay."""
    module = Doubler()
    first = run(graphs, module, x=rows(2))
    second = run(graphs, module, x=rows(2, start=10.0))
    assert torch.equal(first, 2 * rows(2))
    assert torch.equal(second, 2 * rows(2, start=10.0))
    assert len(replayer.recordings) == 1
    assert replayer.num_replays == 2


def test_the_result_of_one_recording_outlives_the_replay_of_another(graphs):
    """Recordings share their working memory, so results are copied out of it."""
    module = Doubler()
    first = run(graphs, module, x=rows(2))
    run(graphs, module, x=rows(3))
    assert torch.equal(first, 2 * rows(2))


@pytest.mark.parametrize(
    "other",
    [
        {"x": rows(3)},
        {"x": rows(2).double()},
        {"x": rows(2), "more": None},
        {"x": rows(2), "more": {"y": [rows(2)]}},
        {"x": rows(2), "flag": True},
        {"x": rows(2), "key": "another way to compute"},
    ],
    ids=["rows", "type", "a None", "more tensors", "a flag", "key"],
)
def test_whatever_is_not_a_number_is_part_of_the_key(graphs, replayer, other):
    """Shapes, types, what is there and what is None: each is a recording of its own."""
    module = Doubler()
    for inputs in ({"x": rows(2)}, other):
        run(graphs, module, **inputs)
    assert len(replayer.recordings) == 2


def test_nested_tensors_are_inputs_as_well(graphs, replayer):
    """Residuals come as lists and conditions as dicts: their numbers are read anew at each replay."""
    module = Doubler()
    for number in (1.0, 5.0):
        result = run(graphs, module, x=rows(2), more={"y": [torch.full((2, 3), number)]})
        assert torch.equal(result, 2 * rows(2) + number)
    assert len(replayer.recordings) == 1


def test_two_owners_never_share_a_recording(graphs, replayer):
    """Models of one family have the same shapes and other weights."""
    one, other = Doubler(), Doubler()
    other.bias += 1
    run(graphs, one, x=rows(2))
    assert torch.equal(run(graphs, other, x=rows(2)), 2 * rows(2) + 1)
    assert len(replayer.recordings) == 2


def test_weights_patched_in_place_are_read_by_recordings(graphs):
    """A LoRA that is added to weights where they lie needs no new recording."""
    module = Doubler()
    run(graphs, module, x=rows(2))
    module.bias.add_(7)
    assert torch.equal(run(graphs, module, x=rows(2)), 2 * rows(2) + 7)


def test_forgetting_records_anew(graphs, replayer):
    """Whoever replaces weights says so, and only what is theirs is recorded anew."""
    module, other = Doubler(), Doubler()
    run(graphs, module, x=rows(2))
    run(graphs, other, x=rows(2))
    graphs.forget(module)
    assert len(graphs) == 1
    run(graphs, module, x=rows(2))
    run(graphs, other, x=rows(2))
    assert len(replayer.recordings) == 3


def test_recordings_go_with_their_owner(graphs):
    """A model that is unloaded leaves no recording behind that would hold memory."""
    module = Doubler()
    graphs.run(module, "", lambda bundle: bundle.inputs["x"] * 1, Bundle.of({"x": rows(2)}), is_padded=False)
    assert len(graphs) == 1
    del module
    gc.collect()
    assert len(graphs) == 0


def test_padded_rows_change_nobodys_result(graphs, replayer):
    """17 rows run as 18, the last one as a copy of the first, and 17 come back."""
    module = Doubler()
    result = run(graphs, module, is_padded=True, x=rows(17))
    assert torch.equal(result, 2 * rows(17))
    assert set(module.rows) == {18}
    assert torch.equal(run(graphs, module, is_padded=True, x=rows(18)), 2 * rows(18))
    assert len(replayer.recordings) == 1


def test_tensors_without_rows_are_left_as_they_are(graphs):
    """Positions of patches belong to all rows together."""
    bundle = Bundle.of({"x": rows(17), "ids": torch.ones(5, 3)}, unbatched=("ids",))
    seen = []

    def compute(given):
        seen.append(given.inputs["ids"].shape)
        return given.inputs["x"] + given.inputs["ids"].sum()

    assert torch.equal(graphs.run(graphs, "", compute, bundle, is_padded=True), rows(17) + 15)
    assert set(seen) == {(5, 3)}


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 4))
def test_there_are_never_more_recordings_than_allowed(counts, max_graphs):
    """Whatever lanes do, the one longest unused goes, and every result is right."""
    graphs, module = Graphs(Replayer(), max_graphs=max_graphs), Doubler()
    for count in counts:
        assert torch.equal(run(graphs, module, is_padded=True, x=rows(count)), 2 * rows(count))
        assert len(graphs) <= max_graphs


def test_the_longest_unused_recording_goes(replayer):
    """What is used stays."""
    graphs, module = Graphs(replayer, max_graphs=2), Doubler()
    for count in (1, 2, 1, 3, 1):
        run(graphs, module, x=rows(count))
    assert len(replayer.recordings) == 3


def test_a_forward_that_reads_very_much_is_not_recorded(replayer):
    """Copies of its inputs would take more than launches cost."""
    graphs, module = Graphs(replayer, max_input_bytes=23), Doubler()
    assert torch.equal(run(graphs, module, x=rows(2)), 2 * rows(2))
    assert not replayer.recordings


# -- when it goes wrong


def test_a_forward_that_cannot_be_recorded_runs_as_it_is(graphs, replayer, caplog):
    """One line in the log says so, once, and that shape is not tried again; at its own number of rows."""
    module = Doubler()
    replayer.failure = RuntimeError("operation not permitted when stream is capturing")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(run(graphs, module, is_padded=True, x=rows(17)), 2 * rows(17))
    (record,) = caplog.records
    assert record.action == "graph_failed"
    assert "not permitted" in record.getMessage()
    assert module.rows[-1] == 17
    replayer.failure = None
    run(graphs, module, x=rows(2))
    assert len(replayer.recordings) == 1


def test_what_the_forward_itself_raises_is_raised(graphs):
    """A poisoned input is no fault of recording, and the next one is recorded."""

    def fail(_bundle):
        raise RuntimeError("poisoned")

    with pytest.raises(RuntimeError, match="poisoned"):
        graphs.run(graphs, "", fail, Bundle.of({"x": rows(1)}), is_padded=False)
    assert torch.equal(graphs.run(graphs, "", Doubler(), Bundle.of({"x": rows(1)}), is_padded=False), 2 * rows(1))


def test_when_memory_runs_out_recordings_go_first(replayer, caplog):
    """Giving up frees all recordings, and nothing is recorded for a while."""
    clock = Clock()
    graphs, module = Graphs(replayer, clock=clock), Doubler()
    assert not graphs.give_up()
    run(graphs, module, x=rows(2))
    with caplog.at_level(logging.WARNING):
        assert graphs.give_up()
    assert len(graphs) == 0
    assert [record.action for record in caplog.records] == ["graphs_given_up"]
    run(graphs, module, x=rows(2))
    assert len(graphs) == 0
    clock.now_s = PAUSE_S
    run(graphs, module, x=rows(2))
    assert len(graphs) == 1


def test_a_recording_that_runs_out_of_memory_leaves_the_forward_a_chance(graphs):
    """Recording takes more than the forward alone: that one is made without."""
    failures = [torch.OutOfMemoryError("no room to record")]

    def compute(bundle):
        if failures:
            raise failures.pop()
        return bundle.inputs["x"] * 2

    assert torch.equal(graphs.run(graphs, "", compute, Bundle.of({"x": rows(2)}), is_padded=False), 2 * rows(2))
    assert len(graphs) == 0


def test_rows_that_disagree_are_refused():
    """A tensor with other rows than its neighbours is a mistake of ours."""
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        Bundle.of({"x": rows(2), "y": rows(3)})
