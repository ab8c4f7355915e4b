"""`farm models add` and `remove`: a model of one's own under a name, with what its files and its family tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from cli import show
from cli.catalog_file import add_model, remove_model
from cli.exits import CliError, Exit
from farm.catalog import Catalog, ModelRow, Source
from farm.errors import Fatal
from farm.settings import Settings
from farm.weights import Hub, Kind, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

_USUAL: Final = {"sd15": "sd15", "sdxl": "sdxl", "flux": "flux-dev", "sd3": "sd35-medium"}
"""The model whose settings are usual in a family."""
_SETTINGS: Final = (
    *("width", "height", "size_multiple", "max_size", "num_inference_steps", "guidance", "guidance_scale"),
    *("scheduler", "max_sequence_length"),
)


def register(
    name: str, family: str | None, given: Mapping[str, Any], catalog: Path | None, settings: Settings | None = None
) -> None:
    """Add a row for a model to the catalog file.

    Raises CliError when the files are not of the family that was said, when nobody said one and no file tells, or
    when the row makes no sense.
    """
    settings = settings or Settings()
    path = _catalog_file(catalog, settings)
    fields = {**given, "source": _source(given["source"], settings.models_dir)}
    kind = _look(fields, settings)
    if kind is not None and (kind.family is None or family not in (None, kind.family)):
        meant = f"a model of family {family}" if family else "a model that can be rendered with"
        raise CliError(f"{fields['source']} is {kind.words}, not {meant}", code=Exit.USAGE)
    family = family or (kind.family if kind is not None else None)
    if family is None:
        raise CliError(f"{fields['source']} is not here, so its family cannot be told: say --family", code=Exit.USAGE)
    usual = {key: value for key, value in _usual(family, kind).items() if key not in fields}
    row = add_model(path, {"name": name, "family": family, **fields, **usual})
    told = f", {kind.words}" if kind is not None else ""
    show.console.print(
        f"[bold]{escape(row.name)}[/]{escape(told)}, is in {escape(str(path))}; a farm that starts offers it"
    )


def unregister(name: str, catalog: Path | None, settings: Settings | None = None) -> None:
    """Take the row of a model out of the catalog file. Raises CliError when it has none."""
    path = _catalog_file(catalog, settings or Settings())
    remove_model(path, name)
    show.console.print(f"[bold]{escape(name)}[/] is out of {escape(str(path))}; its files stay where they are")


def _look(fields: Mapping[str, Any], settings: Settings) -> Kind | None:
    """Return what a model's files are, if they are on this machine."""
    source = Source(source=fields["source"], filename=fields.get("filename"), revision=fields.get("revision"))
    try:
        return Weights(settings.models_dir, Hub(is_asked=False)).recognise(source)
    except Fatal as error:
        raise CliError(str(error), code=Exit.USAGE) from error


def _usual(family: str, kind: Kind | None) -> dict[str, Any]:
    """Return the settings of the published model that this one was probably trained from."""
    rows = list(Catalog())
    usual = next((row for row in rows if kind is not None and row.source == kind.config), None)
    usual = usual or next(row for row in rows if row.name == _USUAL[family])
    defaults = {name: ModelRow.model_fields[name].default for name in _SETTINGS}
    return {name: getattr(usual, name) for name in _SETTINGS if getattr(usual, name) != defaults[name]}


def _source(given: str, models_dir: Path) -> str:
    """Return how the catalog names a source: as it was given if it lies in the models folder, else in full."""
    path = Path(given).expanduser()
    if not (models_dir / path).exists() and path.exists():
        return str(path.absolute())
    return given


def _catalog_file(given: Path | None, settings: Settings) -> Path:
    path = given or settings.catalog_file
    if path is None:
        raise CliError(
            "say which file: --catalog FILE, or FARM_CATALOG_FILE, where API and workers look as well", code=Exit.USAGE
        )
    return path
