"""What stays is looked at by no search for garbage; what comes later is."""

import gc
import weakref

import pytest

from worker.lasting import coming_to_stay, leave_it_to_the_system


class _Ring:
    """Something that only a search for garbage ends."""

    def __init__(self):
        self.own = self


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.enable()


def test_what_stays_is_not_looked_at_again():
    """Rings that are dropped later are garbage for good; those made later are found as ever."""
    with coming_to_stay():
        assert not gc.isenabled()
        stays = _Ring()
    assert gc.isenabled()
    later = _Ring()
    of_stays, of_later = weakref.ref(stays), weakref.ref(later)
    del stays, later
    gc.collect()
    assert of_stays() is not None
    assert of_later() is None


def test_garbage_of_the_imports_does_not_stay():
    """What is dropped within the block is found at its end, even when the block fails."""
    with pytest.raises(ZeroDivisionError), coming_to_stay():  # noqa: PT012
        dropped = weakref.ref(_Ring())
        assert dropped() is not None
        _ = 1 / 0
    assert dropped() is None
    assert gc.isenabled()


def test_at_the_end_nothing_is_left_to_look_at():
    """Neither old objects nor new ones."""
    ring = _Ring()
    leave_it_to_the_system()
    gone = weakref.ref(ring)
    del ring
    gc.collect()
    assert gone() is not None
