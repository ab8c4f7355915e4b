"""Bodies in every form: each becomes the same job, and what is wrong is told with its row and column."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batches.forms import Sent, job_asked
from api.batches.places import told_by
from api.batches.yaml_documents import MAX_YAML_BYTES
from api.problems import HttpProblem
from farm.errors import Refused
from farm.requests import JobSpec, LoraSpec, PromptSpec

CSV, LINES, YAML, TEXT, JSON = "text/csv", "application/jsonl", "application/yaml", "text/plain", "application/json"
MODEL = ("model", "scenes")


def asked(body, media_type, *query, max_prompts=100):
    """Return the job that a body asks for."""
    body = body if isinstance(body, bytes) else body.encode()
    return job_asked(Sent(body, media_type, query), max_prompts=max_prompts)[0]


def refusal(body, media_type, *query, max_prompts=100):
    """Return (detail, [(field, row, column)]) of a body that is refused."""
    with pytest.raises(HttpProblem) as raised:
        asked(body, media_type, *query, max_prompts=max_prompts)
    problem = raised.value
    assert problem.kind.status in (400, 413, 422)
    return problem.detail, [(error.field, error.row, error.column) for error in problem.errors]


def test_every_form_of_a_job_is_the_same_job():
    """One batch, six ways to write it: the checks see one JobSpec."""
    prompts = [{"prompt": "a, b", "seed": 1, "guidance_scale": 7.5}, {"prompt": "c"}]
    first, second = map(json.dumps, prompts)
    settings = '"model": "scenes", "num_inference_steps": 5'
    query = [MODEL, ("num_inference_steps", "5")]
    yaml = "- {prompt: 'a, b', seed: 1, guidance_scale: 7.5}\n- prompt: c\n"
    jobs = [
        asked(f'{{{settings}, "prompts": [{first}, {second}]}}', JSON),
        asked(f"{{{settings}}}\n\n# note\n{first}\n{second}\n", LINES),
        asked(f"{first}\n{second}", "application/x-ndjson", *query),
        asked(f"model: scenes\nnum_inference_steps: 5\nprompts:\n{yaml}", YAML),
        asked(yaml, YAML, *query),
        asked('prompt,seed,guidance_scale\n"a, b",1,7.5\nc,,\n', CSV, *query),
        asked("prompt\tseed\tcfg\na, b\t1\t7.5\nc\n", "text/tab-separated-values", *query),
    ]
    assert all(job == jobs[0] for job in jobs)
    assert asked("a, b\n# note\n\nc\n", TEXT, MODEL).prompts == ["a, b", "c"]


def test_a_spreadsheet_as_excel_writes_it():
    """A byte order mark, semicolons, decimal commas, line ends of Windows, names of other programs, quotes, gaps."""
    body = (
        "\ufeffPrompt;Negative Prompt;CFG Scale;Steps;Batch-Size;# mine;;\r\n"
        '"a ""red"" fox; at\nnight";blurry;7,5;20.0;2;anything;;\r\n'
        ";;;;;;;\r\n"
        "a boat;;;;;;;\r\n"
    )
    first, second = asked(body, CSV, MODEL).prompts
    assert first == PromptSpec(
        prompt='a "red" fox; at\nnight',
        negative_prompt="blurry",
        guidance_scale=7.5,
        num_inference_steps=20,
        num_images_per_prompt=2,
    )
    assert second == PromptSpec(prompt="a boat")
    assert asked("sep=;\r\nprompt;width\r\na,b;64\r\n", CSV, MODEL).prompts[0] == PromptSpec(prompt="a,b", width=64)


def test_a_cell_is_typed_by_its_field():
    """A prompt that looks like a number is text, a seed is none; parts of objects have columns, lists are JSON."""
    body = 'prompt,seed,hires.scale,acceleration.guidance_end,loras\n1984,7,1.5,0.5,"[{""name"": ""ink""}]"\n'
    (prompt,) = asked(body, CSV, MODEL).prompts
    assert (prompt.prompt, prompt.seed, prompt.hires.scale) == ("1984", 7, 1.5)
    assert (prompt.acceleration.guidance_end, prompt.loras[0].name) == (0.5, "ink")


def test_the_query_names_what_holds_for_the_whole_job_and_wins():
    """Scalars, parts of objects, labels and axes; typed by the field, over what the body says."""
    query = [("num_inference_steps", "9"), ("output.format", "webp"), ("labels.shoot", "7"), ("grid", "true")]
    query += [("matrix.guidance_scale", "5, 7"), ("matrix.scheduler", "euler,ddim"), ("reuse", "false")]
    job = asked('{"model": "scenes", "num_inference_steps": 5, "prompts": ["a"]}', JSON, *query)
    assert (job.num_inference_steps, job.output.format, job.labels) == (9, "webp", {"shoot": "7"})
    assert job.grid
    assert job.matrix.axes == {"guidance_scale": [5.0, 7.0], "scheduler": ["euler", "ddim"]}
    loras = asked("a star", TEXT, MODEL, ("matrix.loras", '[[], [{"name": "ink", "weight": 0.5}]]'))
    assert loras.matrix.axes == {"loras": [(), (LoraSpec(name="ink", weight=0.5),)]}


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        ('["ink:0.8"]', "matrix.loras.0", "must be a list"),
        ('[[], ["ink:0.8"]]', "matrix.loras.1.0", "must be an object"),
        ('[[{"nam": "ink"}]]', "matrix.loras.0.0.name", "is required"),
        ('[[{"name": "ink", "wight": 1}]]', "matrix.loras.0.0.wight", "did you mean `weight`?"),
        ('[[{"name": "' + "x" * 513 + '"}]]', "matrix.loras.0.0.name", "is too long"),
    ],
)
def test_what_is_wrong_with_the_loras_of_a_matrix_is_told_where_it_stands(values, field, told):
    """Down to the name of a field that nobody knows."""
    detail, errors = refusal("a", TEXT, MODEL, ("matrix.loras", values))
    assert errors[0][0] == field
    assert told in detail


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("modle", "scenes")], "modle"),
        ([("prompts", "a")], "prompts"),
        ([("seed", "1"), ("seed", "2")], "seed"),
        ([("seed", "")], "seed"),
        ([("seed", "x")], "seed"),
        ([("grid", "1")], "grid"),
        ([("guidance_scale", "nan")], "guidance_scale"),
        ([("output.format", "bmp")], "output.format"),
    ],
)
def test_a_wrong_parameter_is_told(query, field):
    """A slip of the pen in the query is no silent default."""
    _, places = refusal("a", TEXT, MODEL, *query)
    assert places[0] == (field, None, None)


@pytest.mark.parametrize(
    ("media_type", "body", "detail", "place"),
    [
        (
            CSV,
            "prompt,steps\na,5\n\nb,x\n",
            'prompts.1.num_inference_steps (row 4, column "steps"): must be a whole',
            4,
        ),
        (CSV, 'prompt,width\n"a\nb",64\nc,1.5\n', 'prompts.1.width (row 4, column "width")', 4),
        (CSV, "prompt,width\n,64\n", 'prompts.0.prompt (row 2, column "prompt"): is required', 2),
        (CSV, "prompt,hires.scale\na,9\n", 'prompts.0.hires.scale (row 2, column "hires.scale")', 2),
        (CSV, "promt\na\n", 'row 1, column "promt": is not a known column; did you mean `prompt`?', 1),
        (CSV, "prompt,model\na,sd15\n", 'row 1, column "model": holds for the whole job', 1),
        (CSV, "prompt,text\na,b\n", 'row 1, column "text": is `prompt`, and so is', 1),
        (CSV, "width\n64\n", "row 1: the first row names the columns, and none of them is `prompt`", 1),
        (CSV, "prompt\na\nb,c\n", "row 3: has 2 cells", 3),
        (CSV, 'prompt\n"a"b\n', "row 2: cannot be read", 2),
        (CSV, 'prompt\na\n"b\n', "row 3: cannot be read", 3),
        (CSV, "prompt\n" + "a\n" * 101, "row 102: is one more than a job takes (100 prompts)", 102),
        (CSV, b"prompt\na\n\xe4\n", "row 3: is not UTF-8", 3),
        (LINES, '"a"\n{"prompt": "b"\n', "row 2: is not JSON", 2),
        (
            LINES,
            '{"model": "scenes"}\n"a"\n{"prompt": "b", "seed": "x"}\n',
            "prompts.1.seed (row 3): must be a whole",
            3,
        ),
        (LINES, '"a"\n{"model": "scenes"}\n', "prompts.1.prompt (row 2): is required", 2),
        (LINES, '{"model": "scenes", "width": "x"}\n"a"\n', "width (row 1): must be a whole", 1),
        (LINES, '"a"\n' * 101, "row 101: is one more", 101),
        (TEXT, "a\n" * 101, "row 101: is one more", 101),
        (YAML, "prompts:\n- a\n- prompt: b\n  width: x\n", "prompts.1.width (row 4): must be a whole", 4),
        (YAML, "- a\n- *b\n", "row 2: has an anchor or an alias", 2),
        (YAML, "- &a a\n", "row 1: has an anchor or an alias", 1),
        (YAML, "- !!python/object/apply:os.system [ls]\n", "row 1: has a tag", 1),
        (YAML, "- a\n--- b\n", "row 2: begins a second document", 2),
        (YAML, "model: a\nmodel: b\n", "row 2: names 'model' a second time", 2),
        (YAML, "- a\n- [b\n", "row 3: is not YAML", 3),
        (YAML, "[" * 9 + "]" * 9, "row 1: lies more than 8 levels deep", 1),
    ],
)
def test_what_is_wrong_is_told_with_its_row_and_column(media_type, body, detail, place):
    """A person finds the spot in the file that was sent."""
    told, places = refusal(body, media_type, MODEL)
    assert told.startswith(detail), told
    assert places[0][1] == place


def test_what_only_the_model_refuses_is_placed_too():
    """Errors that come after the parser, from the catalog's limits, are put in the words of the file."""
    _, places = job_asked(Sent(b"prompt,Width\na,\nb,513\n", CSV, (MODEL,)), max_prompts=9)
    with pytest.raises(HttpProblem) as raised, told_by(places):
        raise Refused("sd15 renders multiples of 8 pixels", field="prompts.1.width", value=513, choices=["512"])
    (error,) = raised.value.errors
    assert (error.field, error.row, error.column, error.choices) == ("prompts.1.width", 3, "Width", ["512"])
    assert raised.value.detail == 'prompts.1.width (row 3, column "Width"): sd15 renders multiples of 8 pixels'
    with pytest.raises(Refused), told_by(places):
        raise Refused("the farm does not have it", field="model")


def test_words_in_yaml_stay_words():
    """`yes`, `no`, `on` and times are text as in YAML 1.2; numbers, true and null are what they are in JSON."""
    text = "prompts: [yes, no, on, 12:30, 0x1f, '1984']\nseed: 7\nguidance_scale: 7.\nreuse: false\nscheduler: ~"
    job = asked(text, YAML, MODEL)
    assert job.prompts == ["yes", "no", "on", "12:30", "0x1f", "1984"]
    assert (job.seed, job.guidance_scale, job.reuse, job.scheduler) == (7, 7.0, False, None)


def test_a_large_yaml_is_sent_elsewhere_and_a_bomb_is_none():
    """YAML has a limit of its own, because reading it is slow; and nothing in it can multiply."""
    detail, _ = refusal("- a\n" * (MAX_YAML_BYTES // 4 + 1), YAML, MODEL, max_prompts=10**6)
    assert "1,048,576 bytes as YAML" in detail
    detail, _ = refusal("- [" + "1," * 200_000 + "1]", YAML, MODEL, max_prompts=10)
    assert "more parts than any job" in detail


FORMS = st.sampled_from([CSV, LINES, YAML, TEXT, "text/tab-separated-values"])
WORDS = ["prompt", "width", "seed", "7,5", "null", '"a"', '{"prompt": "b"}', "- a", "prompt: a", "sep=;\n", "<<"]
WORDS += ["9" * 50, "1e400", "---", "...", "\ufeff", "\0", "\u2028", "\ud7ff", "é", "\r\n"]
PIECES = st.lists(st.sampled_from([*"\",;:-[]{}#&*!|>?%@`'\\ \n\tx1", *WORDS]), max_size=40).map("".join)


@given(FORMS, PIECES | st.text(max_size=60))
def test_any_text_of_any_form_is_a_job_or_a_told_error(media_type, text):
    """Whatever is sent under whatever name: a job, or a problem of the client's with a reason; nothing else."""
    check(text.encode("utf-8", "surrogatepass"), media_type)


@given(FORMS, st.binary(max_size=80))
def test_any_bytes_of_any_form_are_a_job_or_a_told_error(media_type, body):
    """Not even bytes that are no text break a parser."""
    check(body, media_type)


def check(body, media_type):
    """Assert that a body is a job, or refused with an error that can be sent."""
    match outcome_of(body, media_type):
        case HttpProblem() as problem:
            assert problem.kind.status in (400, 413, 422)
            assert problem.errors
            assert all(len(error.model_dump_json()) < 4_000 for error in problem.errors)
        case Refused() as refused:
            assert refused.field is not None
        case job:
            assert isinstance(job, JobSpec)


def outcome_of(body, media_type):
    """Return the job that a body asks for, or the error it is answered with."""
    try:
        return asked(body, media_type, MODEL, max_prompts=10)
    except (HttpProblem, Refused) as error:
        return error


@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)},
            optional={"seed": st.integers(0, 99), "guidance_scale": st.floats(0, 100), "width": st.integers(8, 999)},
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_a_form_can_say_comes_through(prompts):
    """Written as JSON Lines and as JSON, any prompts are the same job."""
    body = json.dumps({"model": "scenes", "prompts": prompts})
    lines = "\n".join(map(json.dumps, prompts))
    expected, got = outcome_of(body.encode(), JSON), outcome_of(lines.encode(), LINES)
    if isinstance(expected, HttpProblem):
        assert [error.field for error in got.errors] == [error.field for error in expected.errors]
    else:
        assert got == expected


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (CSV, b"prompt\n" + b"," * 1_000_000),
        (CSV, b"prompt\n" + b'"\n",' * 250_000),
        (CSV, b"," * 1_000_000),
        (CSV, b'prompt\n"' + b"a" * 1_000_000),
        (LINES, b"[]\n" * 300_000),
        (LINES, b"[" * 1_000_000),
        (LINES, b"\n" * 1_000_000),
        (TEXT, b"\n" * 1_000_000),
        (TEXT, b"a" * 1_000_000),
        (YAML, b"[" * 1_000_000),
        (YAML, b"{a: " * 200_000),
        (YAML, b"? " * 500_000),
        (YAML, b"- " * 500_000),
        (YAML, b"#" * 1_000_000),
        (YAML, b"a: |\n" + b"  \n" * 300_000),
        (YAML, b"'" * 1_000_001),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:12].decode().strip(),
)
def test_a_megabyte_of_nonsense_take_bounded_memory(media_type, body):
    """No form makes much more of a body than it is."""
    tracemalloc.start()
    try:
        with pytest.raises((HttpProblem, Refused)):
            job_asked(Sent(body, media_type, (MODEL,)), max_prompts=10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25 * len(body) + 10_000_000
