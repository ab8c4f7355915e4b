"""The tables of what the farm can render with: models, LoRAs, ControlNets; what each is and where its weights are.

A row is all that API and worker must agree on. Rows come with the farm (built_in.py) and from an optional TOML file
(`FARM_CATALOG_FILE`: one `[[model]]`, `[[lora]]` or `[[controlnet]]` table per row). Loading weights is the worker's
business.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from farm.catalog.built_in import CONTROLNETS, LORAS, MODELS
from farm.catalog.rows import PRECISIONS, ControlNetRow, Family, LoraRow, LossyPrecision, ModelRow, Source
from farm.errors import Fatal, UnknownModel
from farm.schedulers import find_scheduler

__all__ = ["Catalog", "ControlNetRow", "Family", "LoraRow", "LossyPrecision", "ModelRow", "Source", "load_catalog"]


class Catalog:
    """An immutable set of rows, by name."""

    def __init__(
        self,
        models: Iterable[ModelRow] = MODELS,
        loras: Iterable[LoraRow] = LORAS,
        controlnets: Iterable[ControlNetRow] = CONTROLNETS,
    ) -> None:
        self._rows = {row.name: row for row in models}
        self.loras: Mapping[str, LoraRow] = {row.name: row for row in loras}
        self.controlnets: Mapping[str, ControlNetRow] = {row.name: row for row in controlnets}
        for row in self:
            find_scheduler(row.scheduler, group=row.scheduler_group)
            for lora in row.loras:
                if lora.name not in self.loras:
                    raise Fatal(f"model {row.name} wants LoRA {lora.name!r}, which the catalog does not have")

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

    def in_precision(self, precision: LossyPrecision | None) -> Catalog:
        """Return the catalog with every model asking for `precision` that asks for none, may lose bits, and has it."""

        def asking(row: ModelRow) -> ModelRow:
            takes_it = row.precision is None and row.allow_lossy and precision in PRECISIONS[row.family]
            return row.model_copy(update={"precision": precision}) if takes_it else row

        return Catalog(map(asking, self), self.loras.values(), self.controlnets.values())

    def controlnets_for(self, row: ModelRow) -> tuple[str, ...]:
        """Return the names of the ControlNets that fit a model."""
        return tuple(net.name for net in self.controlnets.values() if net.family == row.family)


def load_catalog(catalog_file: Path | None = None) -> Catalog:
    """Return the built-in rows and those of `catalog_file`, whose rows replace built-in ones of the same name.

    Raises Fatal, naming the file and the reason, when it cannot be read or a row is malformed.
    """
    models, loras, controlnets = list(MODELS), list(LORAS), list(CONTROLNETS)
    if catalog_file is not None:
        try:
            document = tomllib.loads(catalog_file.read_text(encoding="utf-8"))
            models += [ModelRow.model_validate(table) for table in document.get("model", [])]
            loras += [LoraRow.model_validate(table) for table in document.get("lora", [])]
            controlnets += [ControlNetRow.model_validate(table) for table in document.get("controlnet", [])]
        except (OSError, tomllib.TOMLDecodeError, ValidationError, AttributeError) as error:
            raise Fatal(f"catalog file {catalog_file}: {error}") from error
    return Catalog(models, loras, controlnets)
