"""Settings come from the environment, once."""

import pytest
from pydantic import ValidationError

from farm.settings import Settings


def test_a_variable_of_the_environment_is_a_setting(monkeypatch):
    """`FARM_` and the name of the field, any case."""
    monkeypatch.setenv("FARM_MAX_BATCH", "3")
    assert Settings().max_batch == 3


@pytest.mark.parametrize("name", ["FARM_CATALOG_FILE", "FARM_MAX_BATCH", "FARM_S3_ENDPOINT"])
def test_an_empty_variable_is_not_set(monkeypatch, name):
    """A compose file that passes on nothing leaves the default."""
    monkeypatch.setenv(name, "")
    assert getattr(Settings(), name.removeprefix("FARM_").lower()) == (8 if name == "FARM_MAX_BATCH" else None)


def test_a_wrong_value_names_its_setting(monkeypatch):
    """Nonsense stops the start, not the first job."""
    monkeypatch.setenv("FARM_MAX_BATCH", "many")
    with pytest.raises(ValidationError, match="max_batch"):
        Settings()


def test_settings_are_frozen():
    """Nobody changes them on the way."""
    with pytest.raises(ValidationError):
        Settings().max_batch = 4
