"""From files and options to what is sent to POST /v1/jobs. Pure; knows three kinds of prompt file, passes two on.

Text: a prompt a line, `#` starts a comment line. JSON Lines: a prompt with its own parameters a line, the job's
settings in the first if it has no prompt. JSON: a whole job body. Tables (CSV) and YAML go to the API as they are: it
reads them, and knows the row of what is wrong. Whether the values make sense is for the API to say in any case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cli.exits import CliError, Exit
from cli.named import Rename, rename_in_cells, written_in
from cli.tables import rename_in_table
from cli.yaml_files import rename_in_yaml

DEFAULT_MODEL: Final = "scenes"

_YAML: Final = "application/yaml"
_RAW_TYPES: Final = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".yaml": _YAML,
    ".yml": _YAML,
}
_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})


class RawFile(NamedTuple):
    """A file that is sent as it is, with what holds for the whole job beside it."""

    content: bytes
    media_type: str
    query: dict[str, str]
    path: Path

    def renamed(self, rename: Rename) -> RawFile:
        """Return the same with the pictures of this machine that it names renamed; what cannot be read stays."""
        query = rename_in_cells(self.query, rename, str)
        try:
            text = self.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return self._replace(query=query)
        rename_in = rename_in_yaml if self.media_type == _YAML else rename_in_table
        renamed = rename_in(text, rename, name=str(self.path), folder=self.path.parent)
        return self._replace(query=query, content=self.content if renamed == text else renamed.encode())


def is_sent_raw(path: Path) -> bool:
    """Whether the API reads such a file."""
    return path.suffix.lower() in _RAW_TYPES


def build_job(
    files: Sequence[Path], prompts: Sequence[str], options: Mapping[str, Any], *, default_model: str = DEFAULT_MODEL
) -> dict[str, Any] | RawFile:
    """Return what is sent: a body, or the one file that the API reads by itself. Raises CliError."""
    if not any(map(is_sent_raw, files)):
        return build_body(files, prompts, options, default_model=default_model)
    if len(files) > 1 or prompts:
        raise CliError("a table or a YAML file is sent by itself: no other files, no -p", code=Exit.USAGE)
    (path,) = files
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", code=Exit.USAGE) from error
    media_type = _RAW_TYPES[path.suffix.lower()]
    query = dict(flattened(options))
    if media_type != _YAML:  # which may say so itself
        query.setdefault("model", default_model)
    return RawFile(content, media_type, query, path)


def flattened(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield options as the query has them: `output.format` for what lies in an object."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value).lower() if isinstance(value, bool) else str(value)


def read_body(path: Path) -> dict[str, Any]:
    """Return the job body that a file stands for; `-` is standard input. Raises CliError naming file and line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CliError(f"{path}: {reason}", code=Exit.USAGE) from error
    folder = None if str(path) == "-" else path.parent
    body = parse_body(text, suffix=path.suffix.lower(), name=str(path), folder=folder)
    if not body.get("prompts"):
        raise CliError(f"{path}: no prompt in it", code=Exit.USAGE)
    return body


def parse_body(text: str, *, suffix: str, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the job body that a file's text stands for; without a telling suffix, its first character decides.

    Pictures that the file names are looked for in `folder` first.
    """
    if suffix in _JSON_LINES:
        return parse_json_lines(text, name=name, folder=folder)
    looks_like_json = text.lstrip()[:1] in {"{", "["}
    if suffix == ".json" or (suffix not in {".txt", ".md"} and looks_like_json):
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            if suffix != ".json" and error.msg == "Extra data":
                return parse_json_lines(text, name=name, folder=folder)
            raise CliError(f"{name}:{error.lineno}: {error.msg}", code=Exit.USAGE) from error
        body = job_body(document, name=name)
        written_in(body, place=f"{name}: ", folder=folder)
        prompts = body.get("prompts")
        for number, prompt in enumerate(prompts if isinstance(prompts, list) else ()):
            written_in(prompt, place=f"{name}: prompts.{number}.", folder=folder)
        return body
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


def parse_json_lines(text: str, *, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the job body of a JSON Lines file: strings, or objects with a `prompt`; the first may be the settings."""
    settings: dict[str, Any] = {}
    prompts: list[Any] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            document = json.loads(line)
        except json.JSONDecodeError as error:
            raise CliError(f"{name}:{number}: {error.msg}: {line.strip()[:80]}", code=Exit.USAGE) from error
        written_in(document, place=f"{name}: row {number}, ", folder=folder)
        if isinstance(document, str) or (isinstance(document, dict) and "prompt" in document):
            prompts.append(document)
        elif isinstance(document, dict) and not prompts and not settings:
            settings = document
        else:
            raise CliError(
                f'{name}:{number}: expected a string or an object with a "prompt": {line.strip()[:80]}',
                code=Exit.USAGE,
            )
    return {**settings, "prompts": prompts}


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Return the labels of `k=v` options."""
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CliError(f"--label takes key=value, not {pair!r}", code=Exit.USAGE)
        labels[key] = value
    return labels


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Return the fields of `--set name=value` options, as the query has them."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise CliError(f"--set takes name=value, not {pair!r}", code=Exit.USAGE)
        settings[name.strip()] = value
    return settings


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
