"""`farm plan`: the picture, the numbers, the JSON, and how it ends when there is no plan."""

import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import main as cli_main
from cli import plan as cli_plan
from cli import show
from cli.exits import CliError
from farm.catalog import Catalog
from farm.plans import plan_for_row, sizes_of

GIB = 1 << 30


@pytest.fixture
def farm(monkeypatch, tmp_path):
    """Run `farm` with these arguments, with no models on disk; returns its result."""
    monkeypatch.setenv("FARM_MODELS_DIR", str(tmp_path))

    def run(*arguments):
        return CliRunner().invoke(cli_main.app, list(arguments))

    return run


def the_plan(name, vram_gib, tmp_path, **options):
    """Return the plan that the farm makes."""
    row = next(row for row in Catalog() if row.name == name)
    return plan_for_row(row, sizes_of(row, tmp_path), vram_bytes=vram_gib * GIB, **options)


def test_a_plan_is_shown_with_its_numbers(farm, tmp_path):
    """Size, layout, each component, each phase, what it changes and what it assumes."""
    result = farm("plan", "flux-dev", "--vram", "24")
    assert result.exit_code == 0, result.output
    found = the_plan("flux-dev", 24, tmp_path)
    for words in (
        "an image of 1024x1024 at a time on 24.0 GiB",
        "transformer fp8, text encoders evicted",
        "transformer in fp8",
        f"up to {found.max_batch} images share a step",
        f"{found.headroom_bytes / GIB:.1f} GiB at the peak",
        "published sizes of flux-dev",
        "11.1 GiB",
        "assumed",
    ):
        assert words in result.output
    for phase in found.phases:
        assert f"{phase.peak_bytes / GIB:.1f} GiB" in result.output


def test_the_setting_of_workers_holds_for_plans(farm, monkeypatch):
    """What workers here would be asked to keep denoisers in is planned for, on cards of any size."""
    monkeypatch.setenv("FARM_PRECISION", "int8-dynamic")
    found = json.loads(farm("plan", "flux-dev", "--vram", "80", "--json").output)
    assert found["approximations"] == ["transformer in int8-dynamic"]
    exact = json.loads(farm("plan", "flux-dev", "--vram", "80", "--json", "--exact").output)
    assert exact["approximations"] == []


def test_bars_are_as_long_as_the_card_and_true_to_their_parts(tmp_path):
    """Each bar has the card's 64 cells, and each part its share of them, give or take a cell."""
    found = the_plan("sdxl", 12, tmp_path)
    lines = [line.plain for line in cli_plan._bars(found)]
    cells = cli_plan._cells(list(dict.fromkeys(label for phase in found.phases for label, _ in phase.parts)))
    for line, phase in zip(lines, found.phases, strict=False):
        assert line.startswith(phase.name)
        bar = line[9 : 9 + 64]
        assert set(bar) <= {cell for cell, _ in cells.values()} | {"·"}
        for label, num_bytes in phase.parts:
            assert abs(bar.count(cells[label][0]) - num_bytes / found.vram_bytes * 64) <= 1
        assert abs(bar.count("·") - (found.vram_bytes - phase.peak_bytes) / found.vram_bytes * 64) <= 1


def test_parts_are_told_apart_with_and_without_colours(monkeypatch):
    """On a terminal by colour, in a pipe by a letter of their own."""
    labels = ["transformer", "text_encoder", "text_encoder_2", "text embeddings", "workspaces", "working"]
    monkeypatch.setattr(show, "console", Console(force_terminal=True, color_system="truecolor"))
    cells = cli_plan._cells(labels)
    assert {cell for cell, _ in cells.values()} == {"█"}
    assert len({style for _, style in cells.values()}) == len(labels)
    monkeypatch.setattr(show, "console", Console(color_system=None))
    assert len({cell for cell, _ in cli_plan._cells(labels).values()}) == len(labels)


def test_json_is_the_plan_in_bytes(farm, tmp_path):
    """One object for a given card, with every number of the plan."""
    result = farm("plan", "flux-dev", "--vram", "24", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    found = the_plan("flux-dev", 24, tmp_path)
    assert document["model"] == "flux-dev"
    assert document["peak_bytes"] == found.peak_bytes
    assert document["components"][2] == {
        "name": "transformer",
        "storage": "fp8",
        "compute": "bf16",
        "where": "resident",
        "weight_bytes": found.component("transformer").weight_bytes,
    }
    assert [sum(phase["parts"].values()) for phase in document["phases"]] == [p.peak_bytes for p in found.phases]
    assert document["approximations"] == ["transformer in fp8"]


def test_options_change_the_plan(farm, tmp_path):
    """Size, batch, guidance, exactness and extra weights reach the plan."""
    words = "plan sdxl --vram 10 --width 768 --height 1280 --batch 3 --unguided --exact --extra 1.5 --json"
    document = json.loads(farm(*words.split()).output)
    found = the_plan(
        "sdxl",
        10,
        tmp_path,
        width=768,
        height=1280,
        batch=3,
        guided=False,
        allow_lossy=False,
        extra_bytes=3 * GIB // 2,
    )
    assert document["peak_bytes"] == found.peak_bytes
    assert (document["width"], document["height"], document["batch"], document["guided"]) == (768, 1280, 3, False)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("flux-dev --vram 2", 1, ["flux-dev does not fit", "needs", "you have 2.0 GiB", "smallest plan"]),
        ("flux-9 --vram 24", 2, ["no model 'flux-9'", "choices: scenes", "flux-dev"]),
        ("sd15 --vram 8 --width 515", 2, ["--width 515", "multiples of 8 pixels from 64 to"]),
        ("sd15 --vram 8 --height 9000", 2, ["--height 9000", "to 2048"]),
    ],
)
def test_no_plan_ends_with_its_reason_and_code(arguments, code, words, farm):
    """What does not fit fails with the numbers; what makes no sense is a matter of usage."""
    error = farm("plan", *arguments.split()).exception
    assert isinstance(error, CliError)
    assert error.code == code
    for word in words:
        assert word in str(error)


def test_a_broken_file_is_told(farm, tmp_path, monkeypatch):
    """A model file that is no safetensors ends the command with file and fault."""
    (tmp_path / "broken.safetensors").write_bytes(b"junk")
    catalog = tmp_path / "catalog.toml"
    table = '[[model]]\nname = "broken"\nfamily = "sd15"\nsource = "broken.safetensors"\nwidth = 512\nheight = 512\n'
    catalog.write_text(table, "utf-8")
    monkeypatch.setenv("FARM_CATALOG_FILE", str(catalog))
    error = farm("plan", "broken", "--vram", "8").exception
    assert isinstance(error, CliError)
    assert "broken.safetensors is no safetensors file, or it is cut short" in str(error)


class PlayedDriver:
    """NVML with the given cards, by name and bytes; without any, the driver is missing."""

    class NVMLError(Exception):
        """What NVML raises."""

    def __init__(self, *cards):
        self.cards = cards

    def nvmlInit(self):  # noqa: N802
        if not self.cards:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetName(self, card):  # noqa: N802
        return card[0]

    def nvmlDeviceGetMemoryInfo(self, card):  # noqa: N802
        return type("Memory", (), {"total": card[1]})


def test_without_a_size_the_cards_here_are_planned_for(farm, monkeypatch):
    """Each card gets its plan; one that is too small is told with its name, after the others."""
    monkeypatch.setitem(sys.modules, "pynvml", PlayedDriver(("RTX 4090", 24 * GIB), ("GT 710", 1 * GIB)))
    result = farm("plan", "sdxl")
    assert "RTX 4090, 24.0 GiB" in result.output
    assert "GT 710: sdxl does not fit" in str(result.exception)
    assert result.exception.code == 1


@pytest.mark.parametrize("driver", [PlayedDriver(), None])
def test_without_a_card_a_size_is_asked_for(driver, farm, monkeypatch):
    """No driver, or no way to ask it: the option is named."""
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    error = farm("plan", "sdxl").exception
    assert isinstance(error, CliError)
    assert error.code == 2
    assert "--vram 24" in str(error)


def test_planning_loads_no_torch():
    """The command answers at once: neither torch nor a worker's module is imported."""
    code = (
        "import sys; from cli.plan import PlanOptions, run_plan; run_plan('sd15', PlanOptions(vram_gib=8));"
        "sys.exit(any(name.split('.')[0] in {'torch', 'diffusers', 'worker'} for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
