"""The result file: written after every step, shared by runs of one machine, never mixed with another's."""

import json

import pytest

from worker.bench.results import ResultFile, read_results

MACHINE = {"device": "Some Card", "driver": "580", "torch": "2.13", "diffusers": "0.42", "threads": 2, "commit": "abc"}
WORKLOAD = {"model": "sd15", "width": 512}


def test_every_number_is_on_disk_at_once(tmp_path):
    """Whoever pulls the plug after a step finds that step's numbers, in a folder that was not there."""
    path = tmp_path / "results" / "card.json"
    results = ResultFile(path, MACHINE)
    results.put("ceilings", value={"fp16": 165})
    assert json.loads(path.read_text())["ceilings"] == {"fp16": 165}
    results.begin("sd15", WORKLOAD)
    results.put("models", "sd15", "batches", "4", value={"images_per_s": 2})
    document = read_results(path)
    assert document["models"]["sd15"]["batches"] == {"4": {"images_per_s": 2}}
    assert document["models"]["sd15"]["commit"] == "abc"
    assert document["models"]["sd15"]["date"].endswith("Z")
    assert [each.name for each in path.parent.iterdir()] == ["card.json"]


def test_a_second_run_adds_to_the_first(tmp_path):
    """Other models' sections stay, and so does what is known of the same work by the same code; failures do not."""
    path = tmp_path / "card.json"
    first = ResultFile(path, MACHINE)
    for name in ("sd15", "sdxl"):
        first.begin(name, WORKLOAD)
        first.put("models", name, "best_batch", value=8)
    first.put("models", "sd15", "failed", "diffusers", value="out of memory")
    second = ResultFile(path, MACHINE)
    second.begin("sd15", WORKLOAD)
    assert read_results(path)["models"]["sd15"]["best_batch"] == 8
    assert "failed" not in read_results(path)["models"]["sd15"]
    assert read_results(path)["models"]["sdxl"]["best_batch"] == 8


@pytest.mark.parametrize("changed", [{"commit": "def"}, {"width": 768}], ids=["other code", "other work"])
def test_numbers_of_other_code_or_work_go(tmp_path, changed):
    """A section is of one commit and one workload."""
    path = tmp_path / "card.json"
    first = ResultFile(path, MACHINE)
    first.begin("sd15", WORKLOAD)
    first.put("models", "sd15", "best_batch", value=8)
    ResultFile(path, MACHINE | changed).begin("sd15", WORKLOAD | changed)
    assert "best_batch" not in read_results(path)["models"]["sd15"]


@pytest.mark.parametrize("field", ["device", "driver", "torch", "diffusers", "threads"])
def test_another_machine_has_a_file_of_its_own(tmp_path, field):
    """What was measured with other hardware or software is put aside, whole."""
    path = tmp_path / "card.json"
    ResultFile(path, MACHINE).put("ceilings", value={"fp16": 165})
    results = ResultFile(path, MACHINE | {field: "another"})
    assert "ceilings" not in results.document
    (aside,) = tmp_path.glob("card.*.json")
    assert read_results(aside)["ceilings"] == {"fp16": 165}


def test_a_damaged_file_is_put_aside(tmp_path):
    """A file that nobody can read is kept, and stops nothing."""
    path = tmp_path / "card.json"
    path.write_text("{ not JSON")
    assert ResultFile(path, MACHINE).document["models"] == {}
    (aside,) = tmp_path.glob("card.*.json")
    assert aside.read_text() == "{ not JSON"


@pytest.mark.parametrize("text", ["{ not JSON", "[]", '{"format": 99}'])
def test_what_is_no_result_is_named(tmp_path, text):
    """A table is made of results, and says which file is none."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        read_results(path)
