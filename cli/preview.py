"""`farm preview`: what would become of a batch, before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from cli import promptfiles, show
from cli.client import DEFAULT_API, FarmClient
from cli.options import Api, Files, Model, Num, Prompt, Seed, Setting, Steps, Template
from cli.pictures import Asked, LocalPictures

app = typer.Typer()


@app.command(name="preview")
def preview_job(
    *,
    files: Files = None,
    prompt: Prompt = None,
    model: Model = None,
    num: Num = None,
    steps: Steps = None,
    seed: Seed = None,
    template: Template = None,
    settings: Setting = None,
    api: Api = DEFAULT_API,
) -> None:
    """Show how many images a batch would have, its first prompts, its cost and its time; nothing is sent to render."""
    options: dict[str, Any] = {
        "model": model,
        "num_images_per_prompt": num,
        "num_inference_steps": steps,
        "seed": seed,
        "template": {} if template is None else {"mode": template.value},
    }
    job = promptfiles.build_job(files or [], prompt or [], options)
    with FarmClient(api) as client:
        asked = Asked(job, promptfiles.parse_settings(settings or []))
        told = client.preview(*LocalPictures(asked).to_come())
    show.console.print(_prompts_table(told["prompts"]))
    if (more := told["num_prompts"] - len(told["prompts"])) > 0:
        show.console.print(f"[dim]… and {more:,} more[/]")
    show.console.print()
    show.console.print(_summary(told))


def _prompts_table(prompts: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("prompt", overflow="ellipsis", no_wrap=True, max_width=80)
    for name in ("images", "seed", "size", "steps", "guidance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("scheduler", no_wrap=True)
    has_loras = any(prompt.get("loras") for prompt in prompts)
    if has_loras:
        table.add_column("loras", overflow="ellipsis", no_wrap=True)
    for prompt in prompts:
        loras = " + ".join(f"{lora['name']}:{lora['weight']:g}" for lora in prompt.get("loras") or ())
        table.add_row(
            escape(str(prompt["prompt"])),
            str(prompt["num_images"]),
            str(prompt["seed"]),
            f"{prompt['width']}x{prompt['height']}",
            str(prompt["num_inference_steps"]),
            f"{prompt['guidance_scale']:g}",
            escape(str(prompt["scheduler"])),
            *([escape(loras)] if has_loras else []),
        )
    return table


def _summary(told: Mapping[str, Any]) -> Table:
    cost = told["cost"]
    images, prompts = told["num_images"], told["num_prompts"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    of_prompts = f"{prompts:,} prompt{'s' * (prompts != 1)}"
    table.add_row("images", f"{images:,} of {of_prompts}, {escape(str(told['model']))}")
    if cost["gpu_s"] is not None:
        table.add_row("device time", f"{show.span(cost['gpu_s'])}, {cost['gpu_s_per_image']:.2g} s an image")
    if cost["price"] is not None:
        table.add_row("price", f"{cost['price']:.4g}")
    ahead = told["images_ahead"]
    waits = f", {ahead:,} image{'s' * (ahead != 1)} before it" if ahead else ""
    if told["eta_s"] is not None:
        table.add_row("done in", f"{show.span(told['eta_s'])}{waits}")
    else:
        reason = "nobody serves the model now" if not told["workers"] else "nothing like it has been rendered yet"
        table.add_row("done in", f"unknown: {reason}{waits}")
    return table
