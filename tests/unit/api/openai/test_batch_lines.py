"""The input file of a batch, line by line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.batch_lines import MAX_ERRORS, MAX_LINE_BYTES, numbered_lines, parse_batch
from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import Refused
from farm.requests import Priority

CATALOG = Catalog()


def check(spec):
    """Look at a job of one line as the API does."""
    expanded_job(row=CATALOG.row(spec.model), **spec.model_dump(mode="json", exclude={"model"}))


def parse(data, *, max_lines=1000):
    """Parse a file that comes in pieces of an awkward size."""
    pieces = [data[start : start + 7] for start in range(0, len(data), 7)]
    return parse_batch(pieces, row_of=lambda name: CATALOG.row(name or "scenes"), check=check, max_lines=max_lines)


def line(custom_id="a", *, method="POST", url="/v1/images/generations", **body):
    """Return a line."""
    body = {"model": "scenes", "prompt": "a star", **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def file_of(*lines):
    """Return the bytes of a file."""
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)


def errors_of(*lines, **options):
    """Return line, code and parameter of each error of a file."""
    parsed = parse(file_of(*lines), **options)
    assert parsed.spec is None
    assert parsed.notes == []
    return [(error.line, error.code, error.param) for error in parsed.errors]


def test_all_lines_are_one_job():
    """Each line is a prompt with what it asks for; all of it is bulk work in one format."""
    data = file_of(
        line("a", size="64x64", n=2, output_format="webp"),
        b"",
        line("b", prompt="x", seed=3, num_inference_steps=4, output_format="webp", response_format="url", user="u"),
    )
    parsed = parse(b"\xef\xbb\xbf" + data + b"\r\n\n")
    assert parsed.errors == []
    assert (parsed.spec.model, parsed.spec.priority, parsed.spec.output.format) == ("scenes", Priority.BULK, "webp")
    first, second = parsed.spec.prompts
    assert (first.prompt, first.width, first.num_images_per_prompt) == ("a star", 64, 2)
    assert (second.prompt, second.seed, second.num_inference_steps) == ("x", 3, 4)
    assert parsed.notes == [("a", False), ("b", True)]


def test_every_line_that_is_wrong_is_named():
    """By its number, from 1 and with blank lines counted, with OpenAI's code and the parameter."""
    assert errors_of(
        line("a"),
        b"",
        b"{",
        b"[1]",
        line("a"),
        line("b", method="GET"),
        line("c", url="/v1/chat/completions"),
        line("", prompt="x"),
        line("d", prompt=""),
        line("e", size="9x9"),
        line("f", steps=3),
        line("g", model="sd15"),
        line("h", stream=True),
        line("i", output_format="jpeg"),
        line("j", scheduler="none"),
        {"custom_id": "k", "method": "POST", "url": "/v1/images/generations"},
        line("l", prompt="a\0"),
        line("m", prompt="<lora:a:b>"),
        b"\xff\xfe",
    ) == [
        (3, "invalid_json_line", None),
        (4, "invalid_json_line", None),
        (5, "duplicate_custom_id", "custom_id"),
        (6, "invalid_method", "method"),
        (7, "invalid_url", "url"),
        (8, "invalid_custom_id", "custom_id"),
        (9, "invalid_value", "body.prompt"),
        (10, "invalid_value", "body.size"),
        (11, "unknown_parameter", "body.steps"),
        (12, "mismatched_model", "body.model"),
        (13, "invalid_value", "body.stream"),
        (14, "mismatched_output_format", "body.output_format"),
        (15, "invalid_value", "body.scheduler"),
        (16, "missing_required_parameter", "body"),
        (17, "invalid_value", "body.prompt"),
        (18, "invalid_value", "body.prompt"),
        (19, "invalid_json_line", None),
    ]


def test_a_file_without_requests_is_an_error():
    """Of the file, not of a line."""
    assert errors_of() == [(None, "empty_file", None)]
    assert errors_of(b"", b"  ") == [(None, "empty_file", None)]


def test_a_model_that_is_not_there_is_told_once():
    """Every other line would say the same."""
    assert errors_of(line("a", model="nobody"), line("b", model="nobody")) == [(1, "model_not_found", "body.model")]


def test_a_file_has_so_many_lines():
    """Those beyond are not read."""
    assert errors_of(line("a"), line("b"), line("c"), max_lines=2) == [(None, "too_many_requests", None)]


def test_a_line_is_only_so_long():
    """It is not held; the lines after it have their numbers."""
    assert errors_of(b"x" * (MAX_LINE_BYTES + 1), b"{") == [(1, "line_too_long", None), (2, "invalid_json_line", None)]


def test_errors_are_told_up_to_a_number():
    """The rest of the file is not looked at."""
    assert len(errors_of(*[b"{"] * (3 * MAX_ERRORS))) == MAX_ERRORS


@given(st.lists(st.binary(max_size=40).filter(lambda text: b"\n" not in text)), st.integers(1, 9))
def test_lines_are_the_same_in_whatever_pieces_they_come(lines, size):
    """Number and text of each that is not blank."""
    data = b"\n".join(lines)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    expected = [(number, text.strip()) for number, text in enumerate(lines, 1)]
    if expected and expected[0][1].startswith(b"\xef\xbb\xbf"):
        expected[0] = (1, lines[0].removeprefix(b"\xef\xbb\xbf").strip())
    assert list(numbered_lines(pieces)) == [(number, text) for number, text in expected if text]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
known_names = st.sampled_from(["prompt", "model", "n", "size", "seed", "stream", "output_format", "quality", "user"])
bodies = st.dictionaries(known_names, json_values | st.sampled_from(["scenes", "64x64", "auto", 1]))
almost_lines = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.text(max_size=4) | json_values,
        "method": st.just("POST") | json_values,
        "url": st.just("/v1/images/generations") | json_values,
        "body": bodies | json_values,
    },
).map(lambda document: json.dumps(document).encode())


@given(st.lists(almost_lines | st.binary(max_size=60), max_size=6))
def test_whatever_a_file_holds_it_is_a_job_or_has_errors(lines):
    """Nothing is raised; errors name lines that are there, and a job has a prompt for each line."""
    parsed = parse(b"\n".join(lines))
    assert bool(parsed.errors) == (parsed.spec is None)
    assert all(error.line is None or 1 <= error.line <= b"\n".join(lines).count(b"\n") + 1 for error in parsed.errors)
    if parsed.spec is not None:
        assert len(parsed.spec.prompts) == len(parsed.notes) == len({note.custom_id for note in parsed.notes})


@pytest.mark.parametrize("bomb", [b"[" * 200_000, b'{"a":' * 50_000, b"[" + b"[]," * 80_000 + b"1]"])
def test_a_bomb_is_a_line_that_is_wrong(bomb):
    """However deep or broad it is."""
    assert errors_of(bomb) == [(1, "invalid_json_line", None)]


def test_a_check_that_refuses_is_told_with_its_line():
    """Whatever the catalog has against a line."""

    def refuse(_spec):
        raise Refused("no", field="prompts.0.guidance_scale")

    parsed = parse_batch([file_of(line("a"))], row_of=CATALOG.row, check=refuse, max_lines=9)
    assert [(error.line, error.param) for error in parsed.errors] == [(1, "body.guidance_scale")]
