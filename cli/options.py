"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TemplateMode(StrEnum):
    """What prompts with braces stand for."""

    RANDOM = "random"
    COMBINATORIAL = "combinatorial"


Api = Annotated[str, typer.Option("--api", envvar="FARM_API", metavar="URL", help="Where the farm's API is.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FILE", help="Prompts: text, JSON Lines, JSON, CSV or YAML; - is standard input."),
]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A model; see farm models.")]
Steps = Annotated[int | None, typer.Option("--steps", "-s", help="Denoising steps.")]
Seed = Annotated[int | None, typer.Option(help="Image i of a prompt has seed + i.")]
Num = Annotated[int | None, typer.Option("--num", "-n", help="Images per prompt.")]
Template = Annotated[
    TemplateMode | None,
    typer.Option("--template", help="Read {a|b} and __wildcard__ in prompts: all that they say, or some by chance."),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any field of the job, such as matrix.guidance_scale=5,7."),
]
