"""The OpenAPI document: what FastAPI derives from the endpoints, with the models that it cannot see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.guard.gate import ANSWERS, is_public
from api.guard.keys import KeyEdit, KeySpec
from api.openai.batches import BatchRequest
from api.problems import Problem, documented
from api.tenants import Limits
from api.webhooks.endpoints import WebhookTest
from farm.catalog import Catalog
from farm.requests import JobSpec

_FIRST_ERROR: Final = 400

DESCRIPTION: Final = """\
A batch rendering farm for Stable Diffusion. POST a batch of prompts to `/v1/jobs`; follow it at `/v1/jobs/{id}`;
fetch its images by the signed URLs at `/v1/jobs/{id}/images`.

Every error is an RFC 9457 problem document whose `errors` name field, value and choices.
"""
TAGS: Final = [
    {"name": "jobs", "description": "Batches of prompts, and the images that become of them."},
    {"name": "webhooks", "description": "Signed messages about jobs, by the Standard Webhooks specification."},
    {"name": "uploads", "description": "Pictures for jobs to start from."},
    {"name": "tenants", "description": "Whose work it is, and how much of the farm each may take. For the operator."},
    {"name": "keys", "description": "Who may use the farm, and for what. Made by the operator."},
    {"name": "models", "description": "What the farm can render."},
    {"name": "openai", "description": "OpenAI's API for images, files and batches: what its SDKs send is understood."},
    {"name": "a1111", "description": "A1111's API: what its clients send is understood; each has its own progress."},
    {"name": "reports", "description": "How fast it runs, and who is at work."},
    {"name": "health", "description": "For load balancers and Prometheus."},
]


def document_of(app: FastAPI, *, catalog: Catalog) -> Callable[[], dict[str, Any]]:
    """Return a function for `app.openapi` that builds the document at its first call."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, catalog)
        return app.openapi_schema

    return openapi


def _build(app: FastAPI, catalog: Catalog) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        webhooks=app.webhooks.routes,
        tags=app.openapi_tags,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    # Endpoints read their bodies themselves, and problems are answered by handlers: FastAPI knows of neither.
    for model in (JobSpec, KeyEdit, KeySpec, Limits, BatchRequest, WebhookTest, Problem):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas["JobSpec"]["properties"]["model"]["enum"] = catalog.names
    _tell_of_gate(document, has_keys=app.state.asks_for_keys)
    for path in (*document["paths"].values(), *document["webhooks"].values()):
        for operation in path.values():
            # FastAPI adds its own 422 wherever there are parameters. Endpoints that can answer 422 tell so
            # themselves; the others take any text in their paths and answer 404.
            content = operation["responses"].get("422", {}).get("content", {})
            if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del operation["responses"]["422"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _tell_of_gate(document: dict[str, Any], *, has_keys: bool) -> None:
    """Add what the gate answers before any endpoint is asked, in the form of the endpoint's own errors."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if is_public(method.upper(), path):
                operation["security"] = []
                continue
            own = [answer for status, answer in operation["responses"].items() if int(status) >= _FIRST_ERROR]
            for status, answer in documented(*ANSWERS).items():
                told = operation["responses"].setdefault(str(status), answer)
                if told is answer and own and "content" in own[0]:
                    told["content"] = own[0]["content"]
    if has_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key: `farm_…`."},
            "password": {"type": "http", "scheme": "basic", "description": "The key as password, any user."},
        }
        document["security"] = [{"key": []}, {"password": []}]
