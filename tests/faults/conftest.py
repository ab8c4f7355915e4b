"""The farm that all fault tests share, and the table of how long each fault was felt after its end."""

from __future__ import annotations

import pytest

from faulty import ALLOWANCE_S, faulty_farm, resumptions


@pytest.fixture(scope="session")
def whole_farm(tmp_path_factory):
    """Run servers, a launcher and two workers for all tests here."""
    with faulty_farm(tmp_path_factory.mktemp("farm")) as farm:
        farm.launcher()
        yield farm


@pytest.fixture
def farm(whole_farm):
    """Return a farm with nothing broken and two workers alive, whatever the test before did."""
    whole_farm.open_gate()
    whole_farm.launcher()
    return whole_farm


@pytest.fixture(scope="session")
def undisturbed(whole_farm):
    """Return the files of jobs that nobody disturbed, by prompt and seed."""
    whole_farm.finish(held := whole_farm.post_held())
    whole_farm.finish_begun(endless := whole_farm.post_endless())
    return {**whole_farm.files(held), **whole_farm.files(endless)}


def pytest_terminal_summary(terminalreporter):
    """Print how long work took to resume after each fault."""
    if not resumptions:
        return
    terminalreporter.section(f"work resumed after (at most two leases, and {ALLOWANCE_S:g} s for the machine)")
    for what, took_s in resumptions:
        terminalreporter.line(f"{took_s:6.2f} s  {what}")
