"""docs/api-reference.md is what docs/reference.py makes of the API as it is."""

import importlib.util
import re
from pathlib import Path

import pytest

from api.app import create_app
from farm.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def reference():
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document():
    """Return the OpenAPI document."""
    return create_app(Settings()).openapi()


def test_the_page_is_up_to_date(reference, document):
    """Whoever changes an endpoint makes the page anew: `python docs/reference.py`."""
    assert (DOCS / "api-reference.md").read_text(encoding="utf-8") == reference.page_of(document)


def test_every_endpoint_and_object_has_its_place(reference, document):
    """None is left out, and whatever the page points at stands in it."""
    page = reference.page_of(document)
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    endpoints = [f"`{method.upper()} {path}`" for path, found in document["paths"].items() for method in found]
    assert set(headings) == {*endpoints, *document["components"]["schemas"]}
    assert len(headings) == len(set(headings))
    anchors = {reference._anchor(heading) for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_kinds_are_told_in_words(reference):
    """Bounds, choices, references and what may be missing; long lists of choices are cut."""
    told = {
        "integer, 1 to 64": {"type": "integer", "minimum": 1, "maximum": 64},
        "string, up to 8 characters": {"type": "string", "maxLength": 8},
        "`a`, `b` or null": {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
        "list of [Job](#job), 1 or more": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Job"},
            "minItems": 1,
        },
        "object of number": {"type": "object", "additionalProperties": {"type": "number"}},
        "time": {"type": "string", "format": "date-time"},
    }
    for words, schema in told.items():
        assert reference._kind(schema) == words
    assert reference._kind({"enum": list(range(30))}).startswith("one of 30: `0`, ")
