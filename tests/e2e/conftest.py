"""A whole farm for those end-to-end tests that ask for nothing special."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from running_farm import Farm, running_farm


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Run a farm with one CPU worker and the model that ships; uploads may have a megabyte."""
    with running_farm(tmp_path_factory.mktemp("farm"), max_upload_bytes="1000000") as farm:
        farm.start_worker()
        yield farm
