"""Bodies, good and bad: whatever comes, it is a job or an error that names what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.bodies import _JSON_STRING, parse_job_spec
from api.field_errors import echo, nul_in
from api.problems import HttpProblem
from farm.errors import Refused
from farm.requests import AccelerationSpec, ControlNetSpec, HiresSpec, JobSpec, PromptSpec

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {"model": st.just("scenes") | JUNK, "prompts": st.lists(st.text(max_size=5) | JUNK, max_size=4) | JUNK},
    optional={name: JUNK for name in JobSpec.model_fields if name not in ("model", "prompts")} | {"stray": JUNK},
)


@given(JUNK | NEARLY)
def test_every_document_is_a_job_or_a_told_error(document):
    """No JSON document makes the parser fail in a way of its own, and errors can be sent."""
    body = json.dumps(document).encode()
    match outcome_of(body):
        case HttpProblem() as problem:
            assert problem.kind.status in (400, 422)
            assert problem.errors
            for error in problem.errors:
                assert error.message
                assert len(error.model_dump_json()) < 3_000
        case Refused() as refused:
            assert refused.field is not None
        case spec:
            assert isinstance(spec, JobSpec)


def outcome_of(body):
    """Return the job that a body asks for, or the error it is answered with."""
    try:
        return parse_job_spec(body, max_prompts=3)
    except (HttpProblem, Refused) as error:
        return error


@given(st.binary(max_size=200))
def test_any_bytes_are_told_as_no_json(body):
    """Bytes that are no JSON are the client's fault."""
    with pytest.raises((HttpProblem, Refused)):
        parse_job_spec(body, max_prompts=3)


@given(JUNK)
def test_what_is_echoed_is_short_and_valid_json(value):
    """Whatever a client sent, what comes back of it is small and strict JSON."""
    told = json.dumps(echo(value), allow_nan=False)
    assert len(told.encode()) < 2_000


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**4)), {str(n): n for n in range(10**4)}, 10**4000, 1e400])
def test_large_values_are_echoed_in_short(value):
    """Nobody gets a megabyte back."""
    assert len(json.dumps(echo(value), allow_nan=False)) < 200


def test_a_form_of_a_prompt_is_told_apart_from_the_other():
    """Errors of a prompt object speak of its fields, never of the string it could have been."""
    body = b'{"model": "scenes", "prompts": ["a", {"prompt": "b", "width": 3, "seed": "x"}, {}]}'
    with pytest.raises(HttpProblem) as raised:
        parse_job_spec(body, max_prompts=10)
    assert [(error.field, error.message) for error in raised.value.errors] == [
        ("prompts.1.seed", "must be a whole number"),
        ("prompts.1.width", "must be 8 to 16384"),
        ("prompts.2.prompt", "is required"),
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"model": "scenes", "prompts": ["a"], **{f"x{n}": n for n in range(20_000)}},
        {"model": "scenes", "prompts": ["a"], "labels": {f"x{n}": n for n in range(20_000)}},
        {"model": "scenes", "prompts": [{"prompt": "a", **{f"x{n}": n for n in range(20_000)}}]},
        {"model": "scenes", "prompts": [{"prompt": "a", "loras": [{f"x{n}": n for n in range(20_000)}]}]},
        {"model": "scenes", "prompts": [{"prompt": "a", "loras": [0] * 20_000}]},
        {"model": "scenes", "prompts": ["a"], "matrix": {"loras": [[{f"x{n}": n for n in range(20_000)}]]}},
        {"model": "scenes", "prompts": ["a"], "controlnets": [{}] * 20_000},
        {"model": "scenes", "prompts": ["a"], "hires": {f"x{n}": n for n in range(20_000)}},
        {"model": "scenes", "prompts": [0] * 20_000},
    ],
)
def test_a_document_too_broad_to_be_explained_is_refused_whole(document):
    """Twenty thousand errors are not collected to show twenty."""
    with pytest.raises((HttpProblem, Refused)) as raised:
        parse_job_spec(json.dumps(document).encode(), max_prompts=10_000)
    assert len(getattr(raised.value, "errors", ["one"])) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 300_000 + b"[]]",
        b'{"model": "scenes", "prompts": [' + b"{}," * 300_000 + b"{}]}",
        b"{" + b'"a": 1,' * 600_000 + b'"a": 1}',
        b'{"model": "scenes", "prompts": ["a"], "seed": [' + b"1," * 600_000 + b"1]}",
    ],
)
def test_a_body_of_more_parts_than_any_job_is_refused_unparsed(body, monkeypatch):
    """What would take seconds to build is not built."""
    monkeypatch.setattr("api.bodies.from_json", None)
    with pytest.raises(HttpProblem) as raised:
        parse_job_spec(body, max_prompts=4_000)
    assert raised.value.kind.status == 422
    assert "more parts" in raised.value.detail


@pytest.mark.parametrize("end", ["", "\\", '"', '\\"', "é\n"])
def test_commas_and_brackets_in_prompts_are_no_parts(end):
    """The largest job of the most elaborate prompts is read."""
    every = {"negative_prompt": "d,e", "num_images_per_prompt": 1, "seed": 1, "num_inference_steps": 9, "width": 64}
    every |= {"guidance_scale": 1.5, "scheduler": "euler", "height": 64, "true_cfg_scale": 2, "clip_skip": 1}
    every |= {"image": "uploads/a,b.png", "mask_image": "uploads/[c].png", "strength": 0.5}
    every["loras"] = [{"name": f"style {n}", "weight": 0.5} for n in range(16)]
    control = {"model": "sd15-canny", "image": "uploads/{a}.png"}
    control |= {"conditioning_scale": 1, "guidance_start": 0, "guidance_end": 0.5}
    every["controlnets"] = [control] * 4
    every["hires"] = {"scale": 2, "strength": 0.5, "num_inference_steps": 5, "upscaler": "latent"}
    every["acceleration"] = dict.fromkeys(AccelerationSpec.model_fields, 1)
    prompts = [{"prompt": f"{n} [a], {{b}}, " * 20 + end + "x", **every} for n in range(300)]
    assert set(prompts[0]) == set(PromptSpec.model_fields)
    assert set(control) == set(ControlNetSpec.model_fields)
    assert set(every["hires"]) == set(HiresSpec.model_fields)
    spec = parse_job_spec(json.dumps({"model": "scenes", "prompts": prompts}).encode(), max_prompts=300)
    assert len(spec.prompts) == 300


@given(st.text(max_size=60))
def test_any_text_is_taken_out_whole(text):
    """Whatever stands between quotes counts for nothing."""
    assert _JSON_STRING.sub(b"", json.dumps([text, text]).encode()) == b"[, ]"
    assert _JSON_STRING.sub(b"", json.dumps([text], ensure_ascii=False).encode("utf-8", "replace")) == b"[]"


def test_nul_is_found_wherever_it_hides():
    """The path of the first NUL is told, keys included."""
    assert nul_in({"a": ["b", {"c": "\0"}]}) == "a.1.c"
    assert nul_in({"a\0": "b"}) == '"a\\u0000"'
    assert nul_in({"a": ["b", 1, None]}) is None


def test_an_escaped_backslash_is_no_nul():
    r"""A prompt that shows the six characters \u0000 is no NUL."""
    spec = parse_job_spec(rb'{"model": "scenes", "prompts": ["a \\u0000 b"]}', max_prompts=10)
    assert spec.prompts == ["a \\u0000 b"]


def test_of_very_many_errors_the_first_are_told():
    """Ten thousand wrong fields are answered at once, by some of them and how many there are at least."""
    prompts = [{"prompt": "a", "loras": [{"weight": "heavy"}] * 16}] * 300
    with pytest.raises(HttpProblem) as raised:
        parse_job_spec(json.dumps({"model": "scenes", "prompts": prompts}).encode(), max_prompts=10_000)
    assert raised.value.errors[0].field == "prompts.0.loras.0.name"
    assert len(raised.value.errors) == 20
    assert raised.value.detail.endswith(" or more)")
