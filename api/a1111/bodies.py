"""From the bytes of an A1111 request to its model: pictures make it large, numbers may be strings, null is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from api.bodies import read_body
from api.field_errors import FieldError, echo, nul_in
from api.parts import Parts
from api.problems import INVALID_REQUEST, MALFORMED_JSON, HttpProblem, invalid
from farm.errors import Refused

_MAX_PARTS: Final = 50_000  # commas and opening brackets: base64 has none, and prompts have few
_MAX_EXCERPT_BYTES: Final = 100
_MAX_PICTURES: Final = 3  # as large as one may be: a picture, its mask, a ControlNet's


class Lenient(BaseModel):
    """A body as A1111 takes it: `"20"` is a number, null is the default, what nobody knows is passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Tell in the schema that null will do, too."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                told = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **told}
        return schema


Model = TypeVar("Model", bound=BaseModel)


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return OpenAPI's description of a body that an endpoint reads itself, for its `openapi_extra`."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))  # what stands elsewhere could not be found from there
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a part of a JSON schema with its references to `definitions` replaced by what they name."""
    match part:
        case {"$ref": str(name)}:
            return _inlined(definitions[name.rpartition("/")[2]], definitions)
        case dict():
            return {key: _inlined(value, definitions) for key, value in part.items()}
        case list():
            return [_inlined(item, definitions) for item in part]
    return part


async def read_model(request: Request, farm: Parts, model: type[Model]) -> Model:
    """Return what a request's body asks for; raises HttpProblem, naming every field that is wrong, and Refused."""
    settings = farm.settings
    max_bytes = settings.max_body_bytes + _MAX_PICTURES * settings.max_upload_bytes * 4 // 3  # base64
    body = await read_body(request, max_bytes=max_bytes)
    return await run_in_threadpool(parse, body, model)


def parse(body: bytes, model: type[Model]) -> Model:
    """Read a body's JSON; raises as `read_model` does."""
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_PARTS:
        raise HttpProblem(INVALID_REQUEST, "the body has more parts than any request has")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        message = f"is not JSON: {error}"
        excerpt = echo(body[:_MAX_EXCERPT_BYTES].decode("utf-8", "replace"))
        found = FieldError(field="body", value=excerpt, message=message)
        raise HttpProblem(MALFORMED_JSON, f"the body {message}", errors=[found]) from error
    if not isinstance(document, dict):
        found = FieldError(field="body", value=echo(document), message="must be an object")
        raise HttpProblem(INVALID_REQUEST, "the body must be an object", errors=[found])
    if (at := nul_in(document)) is not None:
        raise Refused("no image file can carry a NUL character", field=at)
    if not _is_finite(document):
        raise HttpProblem(INVALID_REQUEST, "the body has a number that is too large")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid(error, document=document, known=list(model.model_fields)) from error


def _is_finite(document: object) -> bool:
    """Whether every number of a document is one: 1e999 is infinite, and no answer could repeat it."""
    waiting = [document]
    while waiting:
        match waiting.pop():
            case float() as number if not math.isfinite(number):
                return False
            case dict() as found:
                waiting.extend(found.values())
            case list() as found:
                waiting.extend(found)
    return True
