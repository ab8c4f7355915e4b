"""What the application promises before anything is connected."""

import os
import subprocess
import sys

import pytest

from api.app import create_app
from api.dialects import dialect_of
from api.job_examples import JOB_SPEC_BODY
from api.problems import Problem
from api.report_schemas import Model, Readiness, Throughput
from api.schemas import Image, Job
from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import Fatal
from farm.settings import Settings


@pytest.fixture(scope="module")
def document():
    """Return the OpenAPI document."""
    return create_app(Settings()).openapi()


def test_importing_the_api_leaves_out_what_it_does_not_need():
    """Its image has no torch, and OpenTelemetry only where traces are wanted: building it must not want either."""
    code = (
        "import sys; from api.app import create_app; from farm.settings import Settings;"
        "create_app(Settings()).openapi();"
        "left_out = {'torch', 'diffusers', 'transformers', 'numpy'};"
        "left_out |= {'opentelemetry.exporter', 'opentelemetry.sdk.trace'};"  # redis-py looks at others by itself
        "print(left_out & set(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_answer_that_is_no_success_is_documented_as_a_problem(document):
    """No endpoint documents an error in any other form than problem+json, but where another API's form is spoken."""
    dialects = create_app(Settings()).state.dialects
    num_problems = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    num_problems += 1
                    is_ours = path.startswith("/v1/models") or dialect_of(path, dialects) is None
                    expected = "application/problem+json" if is_ours else "application/json"
                    assert list(response["content"]) == [expected], (path, method, status)
    assert num_problems > 20
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_endpoint_is_described(document):
    """Each operation has a summary, a text and a tag."""
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert operation["description"]
            assert operation["tags"]


def test_all_references_of_the_document_lead_somewhere(document):
    """Schemas that are added by hand are there under the names that are used."""
    schemas = document["components"]["schemas"]

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


@pytest.mark.parametrize("name", JOB_SPEC_BODY["content"]["application/json"]["examples"])
def test_the_examples_of_bodies_are_jobs_that_would_be_accepted(name):
    """What the documentation shows can be sent."""
    example = JOB_SPEC_BODY["content"]["application/json"]["examples"][name]["value"]
    job = expanded_job(row=Catalog().row(example["model"]), **example)
    assert job.header.total > 0


@pytest.mark.parametrize("schema", [Job, Image, Throughput, Model, Readiness, Problem])
def test_the_examples_of_answers_fit_their_schemas(schema):
    """What the documentation shows is what comes."""
    for example in schema.model_config["json_schema_extra"]["examples"]:
        told = schema.model_validate(example).model_dump(mode="json")
        assert set(example) <= set(told)


def test_a_broken_catalog_file_is_told_at_once(tmp_path):
    """The process refuses to start rather than to answer every request with an error."""
    broken = tmp_path / "catalog.toml"
    broken.write_text("[[model]]\nname = 'x'\n")
    with pytest.raises(Fatal, match=str(broken)):
        create_app(Settings(catalog_file=broken))
