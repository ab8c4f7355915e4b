"""Writes docs/api-reference.md from the API's OpenAPI document: `python docs/reference.py`. A test compares the two."""

# ruff: noqa: INP001  a script, in no package

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from api.app import create_app
from farm.settings import Settings

Json = dict[str, Any]

PAGE: Final = Path(__file__).parent / "api-reference.md"
_MAX_CHOICES: Final = 12
_PROBLEM: Final = "application/problem+json"
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_INTRO: Final = """\
# API reference

Every endpoint with what it takes and answers, made from the OpenAPI document that every API gives at `/openapi.json`:
`python docs/reference.py` makes this page anew. How to use them, with examples: [api.md](api.md), the page of the
[A1111 API](a1111.md) and that of the [OpenAI API](openai.md). Who may use them: [security.md](security.md).
"""


def page_of(document: Json) -> str:
    """Return the page about an OpenAPI document."""
    by_tag: dict[str, list[tuple[str, str, Json]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                by_tag.setdefault(operations[method]["tags"][0], []).append((method.upper(), path, operations[method]))
    about = {tag["name"]: tag["description"] for tag in document["tags"]}
    schemas = document["components"]["schemas"]
    parts = [_INTRO, _contents(by_tag)]
    for tag, operations in by_tag.items():
        if operations:
            parts.append(f"## {tag.capitalize()}\n\n{about.get(tag, '')}\n")
            parts.extend(_operation(*operation) for operation in operations)
    parts.append("## Objects\n")
    parts.extend(_object(name, schemas[name]) for name in sorted(schemas, key=str.lower))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _contents(by_tag: dict[str, list[tuple[str, str, Json]]]) -> str:
    lines = ["| | |", "|---|---|"]
    for operations in by_tag.values():
        for method, path, operation in operations:
            first = re.split(r"(?<=\.)\s", _cell(operation["description"]))[0].removesuffix(".")
            lines.append(f"| [`{method} {path}`](#{_anchor(f'{method} {path}')}) | {first} |")
    return "\n".join(lines) + "\n"


def _operation(method: str, path: str, operation: Json) -> str:
    lines = [f"### `{method} {path}`\n", f"{_text(operation['description'])}\n"]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | | |", "|---|---|---|---|"]
        for each in parameters:
            schema = each["schema"]
            told = _cell(each.get("description") or schema.get("description", ""))
            lines.append(f"| `{each['name']}` | {each['in']} | {_kind(schema)}{_default(schema)} | {told} |")
        lines.append("")
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        lines.append(f"Body, `{media}`: {_kind(content.get('schema', {})) or 'bytes'}\n")
    lines += ["| answers | |", "|---|---|"]
    for status, response in sorted(operation["responses"].items()):
        lines.append(f"| {status} | {_answer(response)} |")
    return "\n".join(lines) + "\n"


def _answer(response: Json) -> str:
    told = _cell(response["description"]).replace("Successful Response", "Done")
    for media, content in response.get("content", {}).items():
        if media == _PROBLEM:
            continue
        schema = _kind(content.get("schema", {}))
        told += f": {schema}" if schema and media == "application/json" else f": `{media}`"
    if headers := response.get("headers"):
        told += "; with " + ", ".join(f"`{name}`" for name in headers)
    return told


def _object(name: str, schema: Json) -> str:
    lines = [f"### {name}\n"]
    if schema.get("description"):
        lines.append(f"{_text(schema['description'])}\n")
    fields = schema.get("properties", {})
    if fields:
        required = set(schema.get("required", ()))
        lines += ["| field | | |", "|---|---|---|"]
        for field, about in fields.items():
            must = ", required" if field in required and "default" not in about else _default(about)
            lines.append(f"| `{field}` | {_kind(about)}{must} | {_cell(about.get('description', ''))} |")
        lines.append("")
    elif kind := _kind(schema):
        lines.append(f"{kind}\n")
    return "\n".join(lines)


def _kind(schema: Json) -> str:
    """Return what a value of this schema is, in words; nothing where it may be anything."""
    match schema:
        case {"$ref": str(target)}:
            name = target.rpartition("/")[2]
            told = f"[{name}](#{_anchor(name)})"
        case {"anyOf": several} | {"oneOf": several} | {"allOf": several}:
            told = " or ".join(dict.fromkeys(_kind(each) for each in several))
        case {"const": value}:
            told = f"`{json.dumps(value)}`"
        case {"enum": choices}:
            told = ", ".join(f"`{choice}`" for choice in choices[:_MAX_CHOICES])
            told = told if len(choices) <= _MAX_CHOICES else f"one of {len(choices)}: {told}, …"
        case _:
            told = _plain_kind(schema)
    return told


def _plain_kind(schema: Json) -> str:
    kind = schema.get("type", "")
    if isinstance(kind, list):
        return " or ".join(_kind({**schema, "type": each}) for each in kind)
    if kind == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}{_bounds(schema, 'Items')}"
    if kind == "object":
        values = schema.get("additionalProperties")
        inside = _kind(values) if isinstance(values, dict) else ""
        return f"object of {inside}" if inside else "object"
    named = {"date-time": "time", "binary": "bytes"}.get(schema.get("format", ""), kind)
    return f"{named}{_bounds(schema, 'Length')}"


def _bounds(schema: Json, what: str) -> str:
    """Return the least and the most that a value may be."""
    low = schema.get("minimum", schema.get(f"min{what}"))
    high = schema.get("maximum", schema.get(f"max{what}"))
    over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    told = []
    if low is not None and high is not None:
        told.append(f"{low} to {high}")
    elif low is not None:
        told.append(f"{low} or more")
    elif high is not None:
        told.append(f"up to {high}")
    told += [] if over is None else [f"over {over}"]
    told += [] if under is None else [f"under {under}"]
    unit = " characters" if schema.get("type") == "string" else ""
    return f", {', '.join(told)}{unit}" if told else ""


def _default(schema: Json) -> str:
    if "default" not in schema or "const" in schema:
        return ""
    default = schema["default"]
    return "" if default in (None, [], {}, ()) else f", default `{json.dumps(default)}`"


def _text(text: str) -> str:
    """Return a docstring's paragraphs, each on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    """Return the anchor that a heading gets, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> int:
    """Write the page, or with --check say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is out of date")
    arguments = parser.parse_args()
    page = page_of(create_app(Settings()).openapi())
    if not arguments.check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    is_current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
    if not is_current:
        print(f"{PAGE} is out of date: python docs/reference.py", file=sys.stderr)  # noqa: T201  a script's word
    return 0 if is_current else 1


if __name__ == "__main__":
    sys.exit(main())
