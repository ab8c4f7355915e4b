"""What FARM_OPTIMISE may say."""

from __future__ import annotations

import pytest

from farm.errors import Fatal
from worker.forward.options import Optimisation, chosen_of


def test_auto_is_everything_exact_enough_on_a_card_and_nothing_on_a_cpu():
    """Nobody with a card has to set anything; attention in 8 bits never comes by itself, and CPUs stay as they are."""
    assert chosen_of("auto", on_card=True) == set(Optimisation) - {Optimisation.SAGE}
    assert chosen_of("auto", on_card=False) == set()


@pytest.mark.parametrize("on_card", [True, False])
def test_off_is_nothing(on_card):
    """`off` switches all of them off."""
    assert chosen_of("off", on_card=on_card) == set()


def test_a_list_is_what_it_names():
    """A list names what is wanted, on any device; `auto` may be one of its names."""
    assert chosen_of("fused, graphs", on_card=False) == {Optimisation.FUSED, Optimisation.GRAPHS}
    assert chosen_of("auto,sage", on_card=True) == set(Optimisation)
    assert chosen_of("auto,sage", on_card=False) == {Optimisation.SAGE}


@pytest.mark.parametrize("setting", ["turbo", "auto,fast", "off,graphs"])
def test_any_other_name_is_refused_with_the_choices(setting):
    """A slip of the pen stops the worker, and says what may stand there."""
    with pytest.raises(Fatal, match="auto, off, or a list of compile, graphs, fused, attention, fp16-accumulation"):
        chosen_of(setting, on_card=True)
