"""A run: what is measured in which order, what a failure costs, what is refused, and what the command line takes."""

import argparse
import json
import os
from types import SimpleNamespace

import pytest
import torch

import tiny_models
from farm.catalog import Catalog
from farm.errors import UnknownModel
from farm.jobs import EXACT, Acceleration
from farm.settings import Settings
from tiny_models import save_tiny_sd15, tiny_row
from worker.bench import command, model_run, on_disk
from worker.bench.ceilings import Ceilings
from worker.bench.command import find_subject, label_of, main, parser
from worker.bench.disk import DiskModel
from worker.bench.driving import Driver
from worker.bench.model_run import ModelRun, Wishes
from worker.bench.random_weights import RandomModel
from worker.bench.results import ResultFile, read_results
from worker.bench.voice import Voice
from worker.gpu import Device
from worker.launcher import Device as LauncherDevice
from worker.tuning.curves import best_of

CPU = Device(torch.device("cpu"), "cpu", None)
SD15 = {"text_encoder": tiny_models._text_encoder, "unet": tiny_models._unet, "vae": tiny_models._vae}
HIGH = Ceilings({"fp32": 1.0}, 1.0)
QUICK = Wishes(batches=(1, 2), seconds=0.0, compare=False, mixed=False)


@pytest.fixture
def run(tmp_path):
    """Measure a tiny model of random weights; returns its section of the file, and the problems."""

    def measure(wishes, ceilings=HIGH):
        row = tiny_row("tiny/model", num_inference_steps=2)
        results = ResultFile(tmp_path / "result.json", {"device": "a test"})
        one = ModelRun(
            RandomModel(row, SD15, CPU),
            wishes,
            ceilings,
            settings=Settings(),
            results=results,
            voice=Voice(as_events=True),
            power=None,
        )
        problems = one.measure()
        return read_results(results.path)["models"], problems

    return measure


def test_everything_that_is_asked_for_is_measured(run):
    """Batches, the mix, diffusers beside it: all with their ratios, on a model that takes milliseconds."""
    models, problems = run(Wishes(batches=(1, 2), seconds=0.0))
    assert problems == []
    section = models["tiny"]
    assert list(section["batches"]) == ["1", "2"]
    best = section["batches"][str(section["best_batch"])]
    assert 0 < best["share_of_ceiling"] < 1
    assert best["tflop_per_image"] > section["work"]["decode_tflop"]
    assert set(section["diffusers"]) == {"one at a time", "same batch"}
    assert section["diffusers"]["same batch"]["batch"] == section["best_batch"]
    ratio = best["images_per_s"] / section["diffusers"]["one at a time"]["images_per_s"]
    assert section["diffusers"]["one at a time"]["ratio"] == pytest.approx(ratio, rel=1e-3)
    assert section["mixed"]["share_of_uniform"] > 0
    assert section["workload"]["weights"] == "random"


def test_what_the_card_cannot_do_is_refused(run, capsys):
    """A rate above the ceiling leaves its reason and no number, and the run does not end well."""
    models, problems = run(QUICK, Ceilings({"fp32": 1e-12}, 1.0))
    assert models["tiny"]["batches"] == {}
    assert "best_batch" not in models["tiny"]
    assert set(models["tiny"]["refused"]) == {"batch 1", "batch 2"}
    assert len(problems) == 2
    assert "the benchmark is wrong" in problems[0]
    assert '"event": "fail"' in capsys.readouterr().out


def test_a_failure_costs_its_own_number_alone(run, monkeypatch):
    """Without diffusers' figures the rest of the section stands, with the reason beside it."""

    def broken(*_args, **_options):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(model_run, "measure_reference", broken)
    models, problems = run(Wishes(batches=(1,), seconds=0.0, mixed=False))
    assert models["tiny"]["best_batch"] == 1
    assert models["tiny"]["failed"] == {"diffusers": "RuntimeError: no kernel image is available"}
    assert problems == ["tiny, diffusers: RuntimeError: no kernel image is available"]


def test_a_model_that_does_not_load_leaves_its_reason(run, monkeypatch):
    """Nothing more is tried with it."""
    monkeypatch.setattr(RandomModel, "load", lambda *_: 1 / 0)
    models, problems = run(QUICK)
    assert models["tiny"] == {"failed": {"loading": "ZeroDivisionError: division by zero"}}
    assert len(problems) == 1


def test_batches_end_where_memory_does(run, monkeypatch):
    """What does not fit is told, and nothing larger is tried."""

    class Small(Driver):
        def __init__(self, pipeline, *, max_batch, clock):
            pipeline.max_batch = 2
            super().__init__(pipeline, max_batch=max_batch, clock=clock)

    monkeypatch.setattr("worker.bench.sweep.Driver", Small)
    models, problems = run(Wishes(batches=(1, 4, 8), seconds=0.0, compare=False, mixed=False))
    assert problems == []
    assert models["tiny"]["batches"]["4"] == {"skipped": "the memory plan has 2 seats"}
    assert "8" not in models["tiny"]["batches"]


def test_batches_end_where_larger_ones_bring_nothing(run, monkeypatch):
    """Two sizes in a row that are no faster are enough to know."""
    rates = iter([4.0, 6.0, 6.01, 5.9, 7.0])

    def rate(*_args, **_options):
        return model_run.Rate(1, 1 / next(rates), 2, 1.0, 1.0, 1.0, None, None)

    monkeypatch.setattr(model_run, "measure_rate", rate)
    models, _ = run(Wishes(batches=(1, 2, 4, 8, 16), seconds=0.0, compare=False, mixed=False))
    assert list(models["tiny"]["batches"]) == ["1", "2", "4", "8"]
    assert models["tiny"]["best_batch"] == 2


def test_the_best_batch_is_the_smallest_of_nearly_the_best():
    """Within three percent nobody waits for a larger batch."""
    assert best_of({1: 5.0, 2: 9.75, 4: 10.0, 8: 9.9}) == 2
    assert best_of({1: 5.0, 2: 9.6, 4: 10.0, 8: 10.1}) == 4


def test_a_whole_farm_and_start_up_use_files_of_the_model(run, monkeypatch):
    """Random weights are written where workers find them, for as long as they are needed, and shares are formed."""
    seen = {}

    def start(model, *, steps, weights, env):
        seen["startup"] = (model, steps, [path.exists() for path in weights], env["FARM_DEVICE"])
        return {"warm": {"first_image_s": 1.0}}

    def farm(_row, *, batch, images, warm_steps, acceleration, settings, logs):
        assert (warm_steps, acceleration) == (3, EXACT)
        seen["farm"] = (batch, images, settings["FARM_MODELS_DIR"], logs.is_dir())
        return 1.0

    monkeypatch.setattr(model_run, "measure_startup", start)
    monkeypatch.setattr(model_run, "measure_farm", farm)
    monkeypatch.setattr(model_run, "measure_closed", lambda *_args, **_options: 4.0)
    wishes = Wishes(batches=(2,), seconds=0.0, compare=False, mixed=False, startup=True, end_to_end=True)
    models, problems = run(wishes)
    assert problems == []
    assert seen["startup"] == ("tiny", 2, [True] * 3, "cpu")
    assert seen["farm"][0] == 2
    assert seen["farm"][1] == models["tiny"]["end_to_end"]["images"] == 2 * 16
    assert models["tiny"]["startup"] == {"warm": {"first_image_s": 1.0}}
    assert models["tiny"]["end_to_end"]["ratio"] == 0.25


def test_weights_that_do_not_fit_on_the_disk_are_not_written(run, monkeypatch):
    """A full disk would hurt more than a missing number."""
    monkeypatch.setattr(on_disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    models, _ = run(Wishes(batches=(1,), seconds=0.0, compare=False, mixed=False, startup=True))
    assert "--scratch" in models["tiny"]["failed"]["start-up and whole farm"]


def test_images_that_give_something_up_are_no_share_of_the_ceiling(run):
    """Where a cache or an early end of guidance spares work, the rate stands alone, and nothing is refused for it."""
    wishes = Wishes(batches=(1,), seconds=0.0, compare=False, acceleration=Acceleration(guidance_end=0.5))
    models, problems = run(wishes, Ceilings({"fp32": 1e-12}, 1.0))
    assert problems == []
    assert models["tiny"]["batches"]["1"]["share_of_ceiling"] is None
    assert models["tiny"]["workload"]["approximations"] == ["guided from 0 to 0.5 of the run"]
    assert "mixed" not in models["tiny"]


def test_results_of_other_options_say_so():
    """Each option that changes what is measured is in the name of the section."""
    parse = parser().parse_args
    assert label_of(parse([])) == ""
    asked = ["--optimise", "off", "--precision", "fp8-dynamic", "--acceleration", '{"deep_cache_interval": 3}']
    assert (
        label_of(parse([*asked, "--label", "again"]))
        == "optimise=off precision=fp8-dynamic deep_cache_interval=3 again"
    )


def test_labels_and_caps_have_sections_of_their_own(run):
    """Numbers of other settings do not replace the plain ones."""
    models, _ = run(Wishes(batches=(1,), seconds=0.0, compare=False, mixed=False, label="eager"))
    assert list(models) == ["tiny eager"]


@pytest.mark.parametrize(("weights", "kind"), [("auto", DiskModel), ("disk", DiskModel), ("random", RandomModel)])
def test_weights_on_disk_come_before_random_ones(tmp_path, weights, kind):
    """What a user has is what is measured, unless told otherwise; steps may be others than the row's."""
    save_tiny_sd15(tmp_path / "tiny")
    row = tiny_row("tiny", name="mine").model_copy(update={"source": "tiny"})
    options = argparse.Namespace(weights=weights, steps=7)
    if kind is RandomModel:
        row = Catalog().row("sd15")
    subject = find_subject(row.name, options, Catalog([row]), tmp_path, CPU)
    assert type(subject) is kind
    assert subject.row.num_inference_steps == 7


@pytest.mark.parametrize(
    ("name", "weights", "error", "words"),
    [
        ("nothing", "auto", UnknownModel, "no model 'nothing'"),
        ("scenes", "auto", ValueError, "no published model"),
        ("sd15", "disk", ValueError, "farm models pull sd15"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(tmp_path, name, weights, error, words):
    """Before anything is measured."""
    with pytest.raises(error, match=words):
        find_subject(name, argparse.Namespace(weights=weights, steps=None), Catalog(), tmp_path, CPU)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu", "--vram", "24"], "--vram caps the memory of a card"),
        (["--device", "cpu", "--models", "nothing"], "no model 'nothing'"),
        (["--table", "missing.json"], "missing.json"),
        (["--device", "cpu", "--optimise", "magic"], "FARM_OPTIMISE names 'magic'"),
        (["--device", "cpu", "--precision", "fp7"], "precision"),
        (["--device", "cpu", "--acceleration", '{"wings": 2}'], "wings"),
    ],
)
def test_what_makes_no_sense_ends_at_once(arguments, words, capsys):
    """With exit code 2 and the reason, before a second is spent on measuring."""
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_of_several_cards_one_is_measured(monkeypatch):
    """A box of cards is measured by one of them, the first unless told otherwise; without a card nothing is hidden."""
    cards = [LauncherDevice(f"gpu{i}", f"GPU-{i}", "cuda") for i in range(4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all of them")
    monkeypatch.setattr(command, "find_gpus", lambda visible: cards if visible == "all of them" else [])
    command.show_one_card(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    command.show_one_card(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all of them")
    with pytest.raises(ValueError, match="there is no card 4; there are 4, from 0 on"):
        command.show_one_card(4)


def test_tables_are_printed_or_put_into_a_page(tmp_path, capsys):
    """`--table` renders files, `--into` a page."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"format": 1, "machine": {"device": "x"}, "models": {}}))
    assert main(["--table", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| model |")
    page = tmp_path / "page.md"
    page.write_text("<!-- farm bench --table -->\n<!-- end of farm bench -->\n")
    assert main(["--table", str(path), "--into", str(page)]) == 0
    assert page.read_text() == f"<!-- farm bench --table {path} -->\n{printed}<!-- end of farm bench -->\n"
