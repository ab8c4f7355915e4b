"""From files and options to the body of POST /v1/jobs. Pure; knows three kinds of prompt file.

Text: a prompt a line, `#` starts a comment line. JSON Lines: a prompt with its own parameters a line. JSON: a whole job
body. Whether the values make sense is for the API to say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cli.exits import CliError, Exit

DEFAULT_MODEL: Final = "scenes"

_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})


def read_body(path: Path) -> dict[str, Any]:
    """Return the job body that a file stands for; `-` is standard input. Raises CliError naming file and line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CliError(f"{path}: {reason}", code=Exit.USAGE) from error
    body = parse_body(text, suffix=path.suffix.lower(), name=str(path))
    if not body.get("prompts"):
        raise CliError(f"{path}: no prompt in it", code=Exit.USAGE)
    return body


def parse_body(text: str, *, suffix: str, name: str) -> dict[str, Any]:
    """Return the job body that a file's text stands for; without a telling suffix, its first character decides."""
    if suffix in _JSON_LINES:
        return {"prompts": parse_json_lines(text, name=name)}
    looks_like_json = text.lstrip()[:1] in {"{", "["}
    if suffix == ".json" or (suffix not in {".txt", ".md"} and looks_like_json):
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            if suffix != ".json" and error.msg == "Extra data":
                return {"prompts": parse_json_lines(text, name=name)}
            raise CliError(f"{name}:{error.lineno}: {error.msg}", code=Exit.USAGE) from error
        return job_body(document, name=name)
    return {"prompts": parse_text(text)}


def job_body(document: object, *, name: str) -> dict[str, Any]:
    """Return the job body of a JSON document: a body, a list of prompts, or one prompt object."""
    if isinstance(document, list):
        return {"prompts": document}
    if isinstance(document, dict):
        # A prompt object alone is what a JSON Lines file of one line looks like.
        return {"prompts": [document]} if "prompt" in document and "prompts" not in document else document
    raise CliError(f"{name}: expected a job body, {{…}}, or a list of prompts, […]", code=Exit.USAGE)


def parse_text(text: str) -> list[Any]:
    """Return the prompts of a text file."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def parse_json_lines(text: str, *, name: str) -> list[Any]:
    """Return the prompts of a JSON Lines file: strings, or objects with a `prompt`."""
    prompts: list[Any] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            prompt = json.loads(line)
        except json.JSONDecodeError as error:
            raise CliError(f"{name}:{number}: {error.msg}: {line.strip()[:80]}", code=Exit.USAGE) from error
        if not isinstance(prompt, str) and not (isinstance(prompt, dict) and "prompt" in prompt):
            raise CliError(
                f'{name}:{number}: expected a string or an object with a "prompt": {line.strip()[:80]}',
                code=Exit.USAGE,
            )
        prompts.append(prompt)
    return prompts


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Return the labels of `k=v` options."""
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CliError(f"--label takes key=value, not {pair!r}", code=Exit.USAGE)
        labels[key] = value
    return labels


def build_body(
    files: Sequence[Path], prompts: Sequence[str], options: Mapping[str, Any], *, default_model: str = DEFAULT_MODEL
) -> dict[str, Any]:
    """Return the job body of prompt files, prompts and options.

    Options given (not None) win over what a file says for its whole job; what a prompt says of itself wins over both.
    """
    body: dict[str, Any] = {}
    all_prompts: list[Any] = []
    for path in files:
        part = read_body(path)
        all_prompts += part.pop("prompts") if isinstance(part["prompts"], list) else [part.pop("prompts")]
        labels = {**body.get("labels", {}), **part.get("labels", {})}
        body |= part | ({"labels": labels} if labels else {})
    all_prompts += prompts
    if not all_prompts:
        raise CliError('nothing to render: name a prompt file, or -p "a prompt"', code=Exit.USAGE)
    given = {name: value for name, value in options.items() if value not in (None, {})}
    for name in ("labels", "output", "webhook"):  # of these, options change what they name and leave the rest
        if name in given and isinstance(body.get(name), dict):
            given[name] = {**body[name], **given[name]}
    return {"model": default_model, **body, **given, "prompts": all_prompts}
