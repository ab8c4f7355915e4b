"""The catalog: built-in rows, a file of one's own, and the scheduler names."""

import pytest

from farm.catalog import Catalog, load_catalog
from farm.errors import Fatal, Refused, UnknownModel
from farm.schedulers import SCHEDULERS, find_scheduler


def test_an_unknown_model_is_refused_with_the_choices():
    """The error lists what there is."""
    with pytest.raises(UnknownModel) as caught:
        Catalog().row("sd1.5")
    assert caught.value.choices == Catalog().names
    assert caught.value.field == "model"


def test_a_file_adds_rows_and_replaces_built_in_ones(tmp_path):
    """Rows of FARM_CATALOG_FILE come on top."""
    file = tmp_path / "catalog.toml"
    file.write_text(
        '[[model]]\nname = "mine"\nfamily = "sd15"\nsource = "/weights/mine"\nwidth = 512\nheight = 640\n'
        '[[model]]\nname = "scenes"\nfamily = "sd15"\nsource = "elsewhere"\nwidth = 64\nheight = 64\n'
    )
    catalog = load_catalog(file)
    assert catalog.row("mine").height == 640
    assert catalog.row("scenes").source == "elsewhere"
    assert "sd15" in catalog


@pytest.mark.parametrize("text", ["[[model]", "[[model]]\nname = 'x'\n", "[[model]]\nname = 'x'\nfamily = 'dall-e'\n"])
def test_a_malformed_file_is_fatal_and_named(tmp_path, text):
    """A typo in the catalog stops the start, with the file's name."""
    file = tmp_path / "catalog.toml"
    file.write_text(text)
    with pytest.raises(Fatal, match=r"catalog\.toml"):
        load_catalog(file)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m", "dpmpp_2m"),
        ("Euler a", "euler_ancestral"),
        ("EulerDiscreteScheduler", "euler"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("euler_a", "euler_ancestral"),
        ("PLMS", "pndm"),
    ],
)
def test_names_of_other_worlds_resolve(alias, name):
    """A1111's labels and diffusers' classes mean our rows."""
    assert find_scheduler(alias).name == name


def test_scheduler_names_are_unique():
    """No two rows share a canonical name, and each resolves to itself."""
    names = [row.name for row in SCHEDULERS]
    assert len(set(names)) == len(names)
    assert all(find_scheduler(name).name == name for name in names)


def test_an_unknown_scheduler_is_refused_with_the_choices():
    """The error lists every canonical name."""
    with pytest.raises(Refused) as caught:
        find_scheduler("magic", field_name="prompts.3.scheduler")
    assert caught.value.field == "prompts.3.scheduler"
    assert "euler" in caught.value.choices


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ('precision = "nf4"', "not for the family sdxl; choices: fp8, fp8-dynamic, int8-dynamic"),
        ('precision = "fp8"\nallow_lossy = false', "allow_lossy = false forbids"),
        ('precision = "fp4"', "precision"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(tmp_path, fields, reason):
    """The file is named, and why."""
    file = tmp_path / "catalog.toml"
    file.write_text(f'[[model]]\nname = "mine"\nfamily = "sdxl"\nsource = "x"\nwidth = 64\nheight = 64\n{fields}\n')
    with pytest.raises(Fatal, match=f"catalog.toml.*(?s:.)*{reason}"):
        load_catalog(file)


def test_a_setting_asks_for_rows_that_say_nothing():
    """FARM_PRECISION is for models that have it and may lose bits; a row's own word counts more."""
    rows = [row.model_copy(update={"name": name, **fields}) for row, name, fields in _rows_to_ask()]
    asked = Catalog(rows).in_precision("nf4")
    assert {row.name: row.precision for row in asked} == {"flux": "nf4", "own": "fp8", "exact": None, "unet": None}
    assert {row.precision for row in Catalog(rows).in_precision(None)} == {None, "fp8"}
    assert asked.loras == Catalog().loras


def _rows_to_ask():
    """Return rows that say something about precision, and rows that do not."""
    flux, sdxl = Catalog().row("flux-dev"), Catalog().row("sdxl")
    yield flux, "flux", {}
    yield flux, "own", {"precision": "fp8"}
    yield flux, "exact", {"allow_lossy": False}
    yield sdxl, "unet", {}
