"""The table of models the farm can render: what each is, where its weights are, what it does when not told.

A row is all that API and worker must agree on about a model. Rows come with the farm (`BUILT_IN`) and from an optional
TOML file (`FARM_CATALOG_FILE`, one `[[model]]` table per row). Loading weights is the worker's business.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.errors import Fatal, UnknownModel
from farm.schedulers import find_scheduler

Family = Literal["sd15"]


class ModelRow(BaseModel):
    """One model of the catalog. Sizes are pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    source: str = Field(description="Local folder (relative ones start at FARM_MODELS_DIR) or hub repository.")
    revision: str | None = None
    description: str = ""
    width: int = Field(gt=0, description="Native width; the default of a job.")
    height: int = Field(gt=0)
    size_multiple: int = Field(8, gt=0, description="Widths and heights are multiples of this.")
    min_size: int = Field(64, gt=0)
    max_size: int = Field(2048, gt=0, description="Largest width or height.")
    max_pixels: int = Field(2048 * 2048, gt=0)
    num_inference_steps: int = Field(20, gt=0)
    max_steps: int = Field(1000, gt=0)
    guidance_scale: float = 7.5
    scheduler: str = "dpmpp_2m"
    max_batch: int | None = Field(None, gt=0, description="Cap on seats of a lane below FARM_MAX_BATCH.")


BUILT_IN: Final[tuple[ModelRow, ...]] = (
    ModelRow(
        name="scenes",
        family="sd15",
        source="scenes",
        description="A small Stable Diffusion of drawn scenes that ships with the farm and runs on a CPU.",
        width=128,
        height=128,
        max_size=256,
        max_pixels=256 * 256,
        num_inference_steps=20,
        guidance_scale=5.0,
        scheduler="dpmpp_2m",
    ),
    ModelRow(
        name="sd15",
        family="sd15",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Stable Diffusion 1.5.",
        width=512,
        height=512,
        max_size=1024,
        max_pixels=1024 * 1024,
        num_inference_steps=20,
        guidance_scale=7.5,
        scheduler="dpmpp_2m_karras",
    ),
)


class Catalog:
    """An immutable set of rows, by name."""

    def __init__(self, rows: Iterable[ModelRow] = BUILT_IN) -> None:
        self._rows = {row.name: row for row in rows}
        for row in self:
            find_scheduler(row.scheduler)

    def __iter__(self) -> Iterator[ModelRow]:
        return iter(self._rows.values())

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    @property
    def names(self) -> list[str]:
        """Names of all models, in catalog order."""
        return list(self._rows)

    def row(self, name: str) -> ModelRow:
        """Return the row of `name`; raises UnknownModel with the choices."""
        if name not in self._rows:
            raise UnknownModel(f"the catalog has no model {name!r}", field="model", value=name, choices=self.names)
        return self._rows[name]


def load_catalog(catalog_file: Path | None = None) -> Catalog:
    """Return the built-in rows and those of `catalog_file`, whose rows replace built-in ones of the same name.

    Raises Fatal, naming the file and the reason, when it cannot be read or a row is malformed.
    """
    rows = {row.name: row for row in BUILT_IN}
    if catalog_file is not None:
        try:
            document = tomllib.loads(catalog_file.read_text(encoding="utf-8"))
            extra = [ModelRow.model_validate(table) for table in document.get("model", [])]
        except (OSError, tomllib.TOMLDecodeError, ValidationError, AttributeError) as error:
            raise Fatal(f"catalog file {catalog_file}: {error}") from error
        rows.update({row.name: row for row in extra})
    return Catalog(rows.values())
