"""The short form of the soak: some minutes, as part of `make soak` and by hand."""

from __future__ import annotations

import pytest

from soak.run import soak, undisturbed

UNITS = 300
SEED = 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_short_soak_ends_as_if_nothing_had_been(tmp_path):
    """Under a minute of faults, all that is counted, stored, told and left is what an undisturbed farm leaves."""
    said = []
    reference = undisturbed(tmp_path / "undisturbed", UNITS, said.append)
    result = soak(tmp_path / "soak", seed=SEED, units=UNITS, minutes=0.75, reference=reference, say=said.append)
    assert result["wrong"] == [], said[-5:]
    assert result["faults"] > 0
    assert result["stored"] + result["cancelled"] + result["failed"] == result["units"] == UNITS
