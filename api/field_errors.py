"""From pydantic's findings to errors that a person can act on: the field's path, the value, what would do. Pure."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic import BaseModel, Field

from farm.requests import (
    AccelerationSpec,
    ControlNetSpec,
    HiresSpec,
    JobSpec,
    LoraSpec,
    MatrixSpec,
    Output,
    PromptSpec,
    TemplateSpec,
    WebhookSpec,
)

MAX_ERRORS: Final = 20
"""Errors that one answer lists; it says how many more there are."""

_MAX_VALUE_CHARS: Final = 120
_MAX_FIELD_CHARS: Final = 200
_LARGEST_EXACT_INT: Final = 2**53
_UNION_ITEM_PARTS: Final = 3  # ("prompts", 3, <pydantic's name for the branch it tried>)

# What other systems call it.
_FOREIGN_NAMES: Final = {
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "sampler_index": "scheduler",
    "n": "num_images_per_prompt",
    "n_iter": "num_images_per_prompt",
    "batch_size": "num_images_per_prompt",
    "num_images": "num_images_per_prompt",
    "text": "prompt",
    "negative": "negative_prompt",
    "metadata": "labels",
    "guidance_end": "acceleration",
    "deep_cache_interval": "acceleration",
    "first_block_cache": "acceleration",
    "end_percent": "guidance_end",
    "cutoff_step_ratio": "guidance_end",
    "cache_interval": "deep_cache_interval",
    "residual_diff_threshold": "first_block_cache",
    "output_format": "output",
    "format": "output",
}

_SAME_MEANING: Final = frozenset(
    {"num_inference_steps", "guidance_scale", "scheduler", "num_images_per_prompt", "prompt", "negative_prompt"}
)


def our_name(foreign: str) -> str | None:
    """Return what a parameter of another system is called here, where it means just the same."""
    name = _FOREIGN_NAMES.get(foreign)
    return name if name in _SAME_MEANING else None


_MESSAGES: Final = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is out of range",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}


class FieldError(BaseModel):
    """One thing wrong with a request."""

    field: str | None = Field(description="Path of the offending value, such as `prompts.3.width`.")
    value: Any = Field(None, description="What was given; long values are cut.")
    message: str
    choices: list[str] | None = Field(None, description="What would do: values, or a range such as `1 to 1000`.")
    row: int | None = Field(None, description="Line of the body where it stands, from 1; of forms that have lines.")
    column: str | None = Field(None, description="What the body calls its column, in a table.")


def echo(value: object) -> object:
    """Return `value` as it may stand in an answer: short, and always valid JSON."""
    shown: object = value
    match value:
        case None | bool():
            pass
        case int() if abs(value) > _LARGEST_EXACT_INT:
            shown = cut(str(value))
        case float() if not math.isfinite(value):
            shown = str(value)
        case int() | float():
            pass
        case list() | tuple():
            shown = f"a list of {len(value):,}" if value else []
        case dict():
            shown = f"an object of {len(value):,} fields" if value else {}
        case _:
            shown = cut(str(value))
    return shown


def cut(text: str, limit: int = _MAX_VALUE_CHARS) -> str:
    """Return `text`, or its beginning when it is longer than `limit` characters."""
    whole = text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
    return whole.encode("utf-8", "replace").decode("utf-8")


def translate(
    findings: Iterable[Any], *, document: object = None, skip: int = 0, known: list[str] | None = None
) -> list[FieldError]:
    """Return pydantic's error details as field errors, one per path and in their order.

    `document` is the JSON document they were found in, needed to tell which form of a prompt was meant; `skip` is the
    number of leading parts of a path that are not the client's (FastAPI's "query", "header", …); `known` are the
    parameters that exist, if it is parameters that were checked.
    """
    errors: dict[str, FieldError] = {}
    for finding in findings:
        loc = tuple(finding["loc"])[skip:]
        kind, value = finding["type"], finding["input"]
        if loc[:1] == ("prompts",) and len(loc) >= _UNION_ITEM_PARTS and isinstance(document, dict):
            item = document["prompts"][loc[1]]
            if not isinstance(item, str | dict):
                message = "must be a string, or an object with `prompt` and parameters of its own"
                error = FieldError(field=_path(loc[:2]), value=echo(item), message=message)
                errors.setdefault(str(error.field), error)
                continue
            if (loc[2] == PromptSpec.__name__) != isinstance(item, dict):
                continue  # pydantic tried the other form as well
            loc = (*loc[:2], *loc[_UNION_ITEM_PARTS:])
        is_key = loc[-1:] == ("[key]",)
        loc = loc[:-1] if is_key else loc
        message, choices = _explain(finding, loc, known)
        shown = None if kind == "missing" else echo(value)
        error = FieldError(field=_path(loc), value=shown, message=message, choices=choices)
        errors.setdefault(str(error.field), error)
    return list(errors.values())


def _path(loc: Sequence[object]) -> str | None:
    return cut(".".join(str(part) for part in loc), _MAX_FIELD_CHARS) if loc else None


def _explain(finding: Any, loc: Sequence[object], known: list[str] | None) -> tuple[str, list[str] | None]:
    """Return the message and the choices of one finding."""
    kind, value, context = finding["type"], finding["input"], finding.get("ctx") or {}
    choices: list[str] | None = None
    message = _MESSAGES.get(kind, str(finding["msg"]))
    match kind:
        case "extra_forbidden":
            message, choices = _unknown_field(str(loc[-1]), known or _known_fields(loc))
        case "literal_error" | "enum":
            choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            message = f"must be one of {', '.join(choices)}"
        case "greater_than_equal" | "less_than_equal":
            low, high = _BOUNDS.get(str(loc[-1]) if loc else "", (context.get("ge"), context.get("le")))
            span = f"{low} or more" if high is None else f"{high} or less" if low is None else f"{low} to {high}"
            message, choices = f"must be {span}", [span]
        case "string_too_short":
            message, choices = ("must not be blank" if value else "must not be empty"), ["1 or more characters"]
        case "string_too_long":
            message, choices = "is too long", [f"{context['max_length']} or fewer characters"]
        case "too_short":
            message, choices = "must not be empty", [f"{context['min_length']} or more"]
        case "too_long":
            message, choices = "holds too many", [f"{context['max_length']} or fewer"]
    return message, choices


def _unknown_field(name: str, known: list[str] | None) -> tuple[str, list[str] | None]:
    """Return message and choices for a field that nobody knows."""
    foreign = _FOREIGN_NAMES.get(name)
    near = [foreign] if foreign in (known or ()) else difflib.get_close_matches(name[:64], known or (), n=1)
    return ("is not a known field" + (f"; did you mean `{near[0]}`?" if near else "")), known


_PARTS_OF_JOB: Final[dict[str, type[BaseModel]]] = {
    "output": Output,
    "webhook": WebhookSpec,
    "template": TemplateSpec,
    "matrix": MatrixSpec,
}


def _known_fields(loc: Sequence[object]) -> list[str] | None:
    """Return the fields that the object at this path has."""
    model: type[BaseModel] | None = None
    match tuple(loc[:-1]):
        case ():
            model = JobSpec
        case ("prompts", _):
            model = PromptSpec
        case (str(name),) if name in _PARTS_OF_JOB:
            model = _PARTS_OF_JOB[name]
        case (*_, "loras", int()) | ("matrix", "loras", int(), int()):
            model = LoraSpec
        case (*_, "controlnets", int()):
            model = ControlNetSpec
        case (*_, "hires"):
            model = HiresSpec
        case (*_, "acceleration"):
            model = AccelerationSpec
    return None if model is None else list(model.model_fields)


def _bounds_of(*models: type[BaseModel]) -> dict[str, tuple[float, float]]:
    """Read the least and largest value of each numeric field from the models themselves."""
    bounds: dict[str, tuple[float, float]] = {}
    for model in models:
        for name, schema in model.model_json_schema()["properties"].items():
            for branch in (schema, *schema.get("anyOf", ())):
                if "minimum" in branch and "maximum" in branch:
                    bounds[name] = (branch["minimum"], branch["maximum"])
    return bounds


_BOUNDS: Final = _bounds_of(JobSpec, PromptSpec, Output, AccelerationSpec)


def nul_in(document: object) -> str | None:
    """Return the path of the first string with a NUL character in it, if any: no image format can carry one."""
    waiting: list[tuple[tuple[object, ...], object]] = [((), document)]
    while waiting:
        loc, value = waiting.pop()
        match value:
            case str():
                if "\0" in value:
                    return _path(loc) or ""
            case dict():
                for key, below in value.items():
                    if "\0" in key:
                        return _path((*loc, json.dumps(key)))
                    waiting.append(((*loc, key), below))
            case list():
                waiting.extend(((*loc, position), below) for position, below in enumerate(value))
    return None
