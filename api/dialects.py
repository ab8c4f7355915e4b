"""In whose words an error is told: the paths of another system's API answer errors in that system's shape.

Which error has which status, and what there is to say of it, stands in api/problems.py for all of them. A package that
speaks a dialect exports a `Render`; `api.app` says below which paths it is spoken, in the call of `problems.install`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from api.problems import HttpProblem

Render = Callable[[Request, "HttpProblem"], JSONResponse]
"""Turns a problem into an answer: status, headers and body."""


def dialect_of(path: str, dialects: Mapping[str, Render]) -> Render | None:
    """Return what tells the errors of a path, by the longest of the prefixes (such as `/sdapi`) that it lies below.

    None: problem documents do.
    """
    fitting = [prefix for prefix in dialects if path == prefix or path.startswith(prefix + "/")]
    return dialects[max(fitting, key=len)] if fitting else None
