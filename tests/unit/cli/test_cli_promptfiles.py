"""Prompt files and options become the body of POST /v1/jobs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.exits import CliError, Exit
from cli.promptfiles import build_body, build_job, parse_body, parse_labels, parse_settings, read_body
from farm.requests import JobSpec

PROMPTS = Path(__file__).parents[3] / "prompts"


def write(path: Path, text: str) -> Path:
    """Return a file with this text."""
    path.write_text(text, encoding="utf-8")
    return path


def test_text_file_has_a_prompt_a_line(tmp_path):
    """Comments and empty lines are no prompts; a # within a line is part of it."""
    path = write(tmp_path / "a.txt", "# all red\n\n  a red circle  \r\na star, #1\n")
    assert read_body(path) == {"prompts": ["a red circle", "a star, #1"]}


def test_text_file_may_start_like_json(tmp_path):
    """The suffix .txt decides, whatever the first character is."""
    assert read_body(write(tmp_path / "a.txt", "[a red circle]\n")) == {"prompts": ["[a red circle]"]}


def test_json_lines_are_strings_or_prompts_with_parameters(tmp_path):
    """Both kinds may stand in one file."""
    path = write(tmp_path / "a.jsonl", '"a star"\n\n{"prompt": "a boat", "seed": 4}\n')
    assert read_body(path) == {"prompts": ["a star", {"prompt": "a boat", "seed": 4}]}


def test_json_lines_may_begin_with_the_settings_of_the_job(tmp_path):
    """An object without a prompt in the first line holds for all; options win over it."""
    path = write(tmp_path / "a.jsonl", '# mine\n{"model": "sd15", "seed": 1}\n"a star"\n{"prompt": "a boat"}\n')
    assert read_body(path) == {"model": "sd15", "seed": 1, "prompts": ["a star", {"prompt": "a boat"}]}
    assert build_body([path], [], {"seed": 2})["seed"] == 2


def test_tables_and_yaml_are_sent_as_they_are(tmp_path):
    """The API reads them; options become the query, in which objects have dots, and only a table needs a model."""
    table = write(tmp_path / "a.CSV", "prompt\na\n")
    options = {"seed": 7, "reuse": True, "output": {"format": "webp"}, "labels": {"a": "b"}, "width": None}
    query = {"seed": "7", "reuse": "true", "output.format": "webp", "labels.a": "b", "model": "scenes"}
    assert build_job([table], [], options) == (b"prompt\na\n", "text/csv", query, table)
    document = write(tmp_path / "a.yml", "prompts: [a]")
    assert build_job([document], [], {}) == (b"prompts: [a]", "application/yaml", {}, document)
    assert build_job([], ["a star"], {}) == {"model": "scenes", "prompts": ["a star"]}
    for files, prompts in (([table, table], []), ([table], ["a star"])):
        with pytest.raises(CliError, match="by itself"):
            build_job(files, prompts, {})
    with pytest.raises(CliError, match="No such file"):
        build_job([tmp_path / "none.csv"], [], {})


def test_settings_are_names_and_values():
    """A value may have an equals sign in it; a name must be there."""
    assert parse_settings(["matrix.seed=1,2", "labels.a=b=c"]) == {"matrix.seed": "1,2", "labels.a": "b=c"}
    for pair in ("grid", "=1"):
        with pytest.raises(CliError, match="name=value"):
            parse_settings([pair])


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_json_file_is_a_whole_job_body(tmp_path, suffix):
    """A body keeps every field, known to the command line or not."""
    body = {"model": "sd15", "prompts": ["a star"], "seed": 4, "something_new": True}
    assert read_body(write(tmp_path / f"a{suffix}", json.dumps(body))) == body


def test_json_list_is_a_list_of_prompts(tmp_path):
    """A bare list needs no body around it."""
    assert read_body(write(tmp_path / "a.json", '["a star", {"prompt": "a boat"}]')) == {
        "prompts": ["a star", {"prompt": "a boat"}]
    }


def test_json_lines_without_a_suffix_are_recognised():
    """Standard input has no suffix: several JSON objects are JSON Lines, one is one prompt."""
    assert parse_body('{"prompt": "a"}\n{"prompt": "b"}\n', suffix="", name="-") == {
        "prompts": [{"prompt": "a"}, {"prompt": "b"}]
    }
    assert parse_body('{"prompt": "a"}\n', suffix="", name="-") == {"prompts": [{"prompt": "a"}]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "# nothing\n", "a.txt: no prompt in it"),
        ("a.jsonl", '"a star"\n{"prompt": \n', "a.jsonl:2: Expecting value"),
        ("a.jsonl", '"a star"\n\n{"seed": 1}\n', 'a.jsonl:3: expected a string or an object with a "prompt"'),
        ("a.json", '{"model": "scenes",\n "prompts" ["a"]}', "a.json:2: Expecting ':' delimiter"),
        ("a.json", "7", "a.json: expected a job body"),
        ("a.json", '{"model": "scenes"}', "a.json: no prompt in it"),
    ],
)
def test_broken_file_names_file_and_line(tmp_path, name, text, message):
    """What is wrong is said with its place, and the exit code is that of usage."""
    with pytest.raises(CliError) as caught:
        read_body(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert caught.value.code is Exit.USAGE


def test_missing_file_is_named(tmp_path):
    """A path that is not there is no traceback."""
    with pytest.raises(CliError, match=r"none\.txt: No such file or directory"):
        read_body(tmp_path / "none.txt")


def test_binary_file_is_refused(tmp_path):
    """A picture given for a prompt file is told, not decoded."""
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CliError, match="utf-8"):
        read_body(tmp_path / "a.txt")


def test_options_win_over_the_file_but_not_over_a_prompt(tmp_path):
    """Options replace the job's own values; a prompt's own parameters are left alone."""
    path = write(
        tmp_path / "a.json",
        json.dumps(
            {"model": "sd15", "seed": 1, "labels": {"a": "1", "b": "1"}, "prompts": [{"prompt": "a star", "seed": 9}]}
        ),
    )
    options = {"seed": 0, "model": None, "negative_prompt": "", "labels": {"b": "2"}}
    assert build_body([path], ["a boat"], options) == {
        "model": "sd15",
        "seed": 0,
        "negative_prompt": "",
        "labels": {"a": "1", "b": "2"},
        "prompts": [{"prompt": "a star", "seed": 9}, "a boat"],
    }


def test_prompts_alone_need_no_file():
    """-p twice and nothing else is a job of the model that ships."""
    assert build_body([], ["a star", "a boat"], {"labels": {}}) == {"model": "scenes", "prompts": ["a star", "a boat"]}


def test_nothing_to_render_is_refused():
    """Neither file nor prompt: say what to do."""
    with pytest.raises(CliError, match="name a prompt file"):
        build_body([], [], {})


def test_an_option_changes_only_its_part_of_what_a_file_says(tmp_path):
    """`--output webp` over a file that asks for thumbnails leaves the thumbnails."""
    body = {"prompts": ["x"], "output": {"format": "png", "thumbnail_px": 64}, "webhook": {"url": "a", "events": ["b"]}}
    path = write(tmp_path / "a.json", json.dumps(body))
    assert build_body([path], [], {"output": {"format": "webp"}, "webhook": {"url": "c"}}) == {
        "model": "scenes",
        "prompts": ["x"],
        "output": {"format": "webp", "thumbnail_px": 64},
        "webhook": {"url": "c", "events": ["b"]},
    }


def test_labels_are_key_value_pairs():
    """The first = divides; without one it is a mistake."""
    assert parse_labels(["shoot=spring", "note=a=b", "empty="]) == {"shoot": "spring", "note": "a=b", "empty": ""}
    with pytest.raises(CliError, match="key=value"):
        parse_labels(["spring"])


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1), max_size=20))
def test_text_keeps_every_prompt_in_order(prompts):
    """Whatever stands in a line is the prompt, comments apart."""
    expected = [prompt for prompt in prompts if not prompt.startswith("#")]
    assert parse_body("\n".join(prompts), suffix=".txt", name="x")["prompts"] == expected


SETS = [path for path in PROMPTS.glob("*/*") if path.is_file() and path.parent.name != "wildcards"]


@pytest.mark.parametrize("path", sorted(SETS), ids=lambda path: path.name)
def test_sets_that_ship_are_jobs_the_farm_accepts(path):
    """Every file under prompts/ becomes a valid body."""
    spec = JobSpec.model_validate(build_body([path], [], {}))
    assert len(spec.prompts) >= 4


def test_scenes_sets_use_words_the_model_knows():
    """A prompt of the scenes sets has no word that means nothing to the model."""
    from training.scenes.words import known_words  # noqa: PLC0415  only this test needs it

    known = set(known_words())
    for path in (PROMPTS / "scenes").iterdir():
        for prompt in JobSpec.model_validate(build_body([path], [], {})).prompts:
            text = prompt if isinstance(prompt, str) else prompt.prompt
            assert not set(text.replace(",", "").split()) - known, text
