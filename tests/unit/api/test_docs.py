"""docs/api.md tells what the API does: endpoints, statuses, problems and limits stand there as they are in the code."""

import re
from pathlib import Path

import pytest

from api import problems
from api.app import create_app
from api.guard import gate
from farm.requests import JobSpec
from farm.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_endpoint_stands_in_the_table_with_its_statuses():
    """The first table is the OpenAPI document in short, but for what the gate may answer everywhere."""
    rows = re.findall(r"^\| `([A-Z]+) (/\S*)` \|[^|]*\| ([\d ·]+) \|$", PAGE, re.MULTILINE)
    told = {(method, path): set(re.findall(r"\d+", statuses)) for method, path, statuses in rows}
    paths = create_app(Settings()).openapi()["paths"]
    real = {
        (method.upper(), path): set(operation["responses"])
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    everywhere = {str(kind.status) for kind in gate.ANSWERS}
    assert {
        (method, path): statuses if gate.is_public(method, path) else statuses | everywhere
        for (method, path), statuses in told.items()
    } == real


def test_every_problem_stands_in_the_table_with_its_status():
    """Programs rely on these names."""
    rows = re.findall(r"^\| `([a-z-]+)` \| ([\d, ]+) \|", PAGE, re.MULTILINE)
    told = {(slug, int(status)) for slug, statuses in rows for status in statuses.split(",")}
    kinds = [kind for kind in vars(problems).values() if isinstance(kind, problems.Kind)]
    assert told == {(kind.slug, kind.status) for kind in kinds}


@pytest.mark.parametrize("name", JobSpec.model_fields)
def test_every_field_of_a_job_is_explained(name):
    """The table of POST's fields leaves none out."""
    assert re.search(rf"^\| .*`{name}`.* \|", PAGE, re.MULTILINE)


def test_every_setting_it_names_is_one():
    """No setting is named that does not exist."""
    named = {name.lower() for name in re.findall(r"FARM_([A-Z0-9_]+)", PAGE)}
    assert named <= set(Settings.model_fields)
    assert {"max_body_bytes", "max_prompts", "max_images", "max_queued_images"} <= named
