"""What the API answers to requests that make no sense: always a problem document that names what is wrong."""

import json

import pytest

from farm.catalog import Catalog
from farm.requests import Output

SCENES = {"model": "scenes", "prompts": ["a red circle"]}
JSON = {"Content-Type": "application/json"}


def problem_of(answer, status):
    """Check what every problem document holds; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:diffusion-farm:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"].startswith("/")
    return problem


FIELD_CASES = {
    "unknown model": ({"model": "sd9"}, "model", "sd9", Catalog().names),
    "no model": ({"model": None}, "model", None, None),
    "no prompts": ({"prompts": []}, "prompts", [], ["1 or more"]),
    "prompts no list": ({"prompts": "a"}, "prompts", "a", None),
    "empty prompt": ({"prompts": ["a", ""]}, "prompts.1", "", ["1 or more characters"]),
    "blank prompt": ({"prompts": ["a", " \t "]}, "prompts.1", " \t ", ["1 or more characters"]),
    "blank prompt object": ({"prompts": [{"prompt": " "}]}, "prompts.0.prompt", " ", ["1 or more characters"]),
    "prompt object without prompt": ({"prompts": ["a", {"seed": 1}]}, "prompts.1.prompt", None, None),
    "a number for a prompt": ({"prompts": ["a", 3]}, "prompts.1", 3, None),
    "null for a prompt": ({"prompts": [None]}, "prompts.0", None, None),
    "a long prompt": ({"prompts": ["x" * 8001]}, "prompts.0", ..., ["8000 or fewer characters"]),
    "0 steps": ({"num_inference_steps": 0}, "num_inference_steps", 0, ["1 to 1000"]),
    "10,000 steps": ({"num_inference_steps": 10_000}, "num_inference_steps", 10_000, ["1 to 1000"]),
    "width 100": ({"width": 100}, "width", 100, ["96", "104"]),
    "height 100 of a prompt": (
        {"prompts": ["a", {"prompt": "b", "height": 100}]},
        "prompts.1.height",
        100,
        ["96", "104"],
    ),
    "width 0": ({"width": 0}, "width", 0, ["8 to 16384"]),
    "width too large": ({"width": 4096}, "width", 4096, None),
    "width as text": ({"width": "128"}, "width", "128", None),
    "true for a number": ({"num_inference_steps": True}, "num_inference_steps", True, None),
    "own width of a prompt": (
        {"prompts": ["a", "b", "c", {"prompt": "d", "width": 7}]},
        "prompts.3.width",
        7,
        ["8 to 16384"],
    ),
    "guidance below 0": ({"guidance_scale": -1}, "guidance_scale", -1, ["0 to 100"]),
    "guidance too large for a float": ({"guidance_scale": 10**400}, "guidance_scale", ..., None),
    "unknown scheduler": ({"scheduler": "euler_z"}, "scheduler", "euler_z", ...),
    "unknown format": ({"output": {"format": "gif"}}, "output.format", "gif", ["png", "jpeg", "webp", "avif"]),
    "unknown priority": ({"priority": "high"}, "priority", "high", ["interactive", "normal", "bulk"]),
    "huge seed": ({"seed": 10**300}, "seed", ..., ...),
    "seed that overflows": ({"seed": 2**53 - 1, "num_images_per_prompt": 2}, "seed", 2**53 - 1, None),
    "0 images": ({"num_images_per_prompt": 0}, "num_images_per_prompt", 0, ["1 to 1000000"]),
    "too many images": (
        {"prompts": ["a"] * 11, "num_images_per_prompt": 1_000_000},
        "num_images_per_prompt",
        11_000_000,
        ["1 to 10000000 images in all"],
    ),
    "too many prompts": ({"prompts": ["a"] * 10_001}, "prompts", 10_001, ["1 to 10000"]),
    "nul in a prompt": ({"prompts": ["a", "b\0"]}, "prompts.1", None, None),
    "nul in a label": ({"labels": {"a": "\0"}}, "labels.a", None, None),
    "a label that is no text": ({"labels": {"a": 1}}, "labels.a", 1, None),
    "a label without a name": ({"labels": {"": "x"}}, "labels.", "", ["1 or more characters"]),
    "33 labels": ({"labels": {str(n): "x" for n in range(33)}}, "labels", ..., ["32 or fewer"]),
    "unknown field": ({"wdith": 128}, "wdith", 128, ...),
    "unknown field of a prompt": ({"prompts": [{"prompt": "a", "steps": 3}]}, "prompts.0.steps", 3, ...),
    "unknown field of output": ({"output": {"kind": "png"}}, "output.kind", "png", list(Output.model_fields)),
}


@pytest.mark.parametrize("case", FIELD_CASES)
def test_a_wrong_field_is_named_with_its_value_and_what_would_do(api, case):
    """Each wrong field answers 422 with its path, its value and the choices."""
    change, field, value, choices = FIELD_CASES[case]
    body = json.dumps({**SCENES, **change})
    problem = problem_of(api.post("/v1/jobs", content=body, headers=JSON), 422)
    (error,) = problem["errors"]
    assert error["field"] == field
    assert error["message"]
    assert field.rpartition(".")[2] in problem["detail"]
    if value is not ...:
        assert error["value"] == value
    if choices is ...:
        assert error["choices"]
    else:
        assert error["choices"] == choices
    assert api.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_steps", None),
        ("num_inference_step", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"),
        ("prompt", "prompts"),
    ],
)
def test_an_unknown_field_suggests_the_one_that_was_meant(api, given, meant):
    """Slips of the pen and other systems' names are answered with ours."""
    problem = problem_of(api.post("/v1/jobs", json={**SCENES, given: 1}), 422)
    message = problem["errors"][0]["message"]
    assert (f"did you mean `{meant}`?" in message) if meant else ("known field" in message)


def test_all_that_is_wrong_is_told_at_once(api):
    """One answer lists every wrong field, and no more than a person can read."""
    body = {"model": "scenes", "prompts": [{"prompt": "a", "width": 1}] * 200, "seed": "x", "foo": 1}
    problem = problem_of(api.post("/v1/jobs", json=body), 422)
    assert len(problem["errors"]) == 20
    assert "(and 201 more)" in problem["detail"]


def test_echoed_values_are_short(api):
    """A value of a megabyte is not sent back."""
    answer = api.post("/v1/jobs", json={**SCENES, "scheduler": "x" * 1_000_000})
    problem_of(answer, 422)
    assert len(answer.content) < 4_000  # most of it the choices
    answer = api.post("/v1/jobs", json={**SCENES, "y" * 1_000_000: ["z" * 1_000_000]})
    problem_of(answer, 422)
    assert len(answer.content) < 2_000


MALFORMED = {
    "cut off": b'{"model": "scenes", "prompts": ["a"',
    "empty": b"",
    "no json": b"hello",
    "not utf-8": b'{"model": "\xff\xfe"}',
    "nan": b'{"model": "scenes", "prompts": ["a"], "guidance_scale": NaN}',
    "infinity": b'{"model": "scenes", "prompts": ["a"], "guidance_scale": -Infinity}',
    "lone surrogate": b'{"model": "scenes", "prompts": ["\\ud800"]}',
    "deep": b"[" * 50_000,
    "deep objects": b'{"a":' * 50_000,
    "raw nul": b'{"model": "scenes", "prompts": ["a\x00"]}',
    "huge int": b'{"model": "scenes", "prompts": ["a"], "seed": ' + b"9" * 5_000 + b"}",
    "something after it": b'{"model": "scenes", "prompts": ["a"]} x',
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_not_json_is_400(api, case):
    """A body that no JSON parser should take says where it breaks."""
    problem = problem_of(api.post("/v1/jobs", content=MALFORMED[case], headers=JSON), 400)
    assert problem["type"].endswith("malformed-json")
    assert problem["errors"][0]["field"] == "body"
    assert "line 1" in problem["detail"]


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"1", b"true", b'[{"model": "scenes"}]'])
def test_json_that_is_no_object_is_422(api, body):
    """A body must be an object."""
    problem = problem_of(api.post("/v1/jobs", content=body, headers=JSON), 422)
    assert "must be an object" in problem["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/html"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_another_content_type_is_415(api, headers):
    """What is not plain UTF-8 JSON is refused by name before it is read."""
    problem = problem_of(api.post("/v1/jobs", content=json.dumps(SCENES), headers=headers), 415)
    assert problem["errors"][0]["field"] in headers
    assert problem["errors"][0]["choices"]


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON ; charset=UTF-8", "application/vnd.x+json"]
)
def test_json_by_any_of_its_names_is_read(api, content_type):
    """Case, parameters and +json suffixes do not matter."""
    answer = api.post("/v1/jobs", content=json.dumps(SCENES), headers={"Content-Type": content_type})
    assert answer.status_code == 202


def test_a_body_over_the_limit_is_413(make_api):
    """A declared length over the limit is refused with the limit."""
    api = make_api(max_body_bytes=2_000)
    problem = problem_of(api.post("/v1/jobs", json={**SCENES, "negative_prompt": "x" * 3_000}), 413)
    assert problem["errors"][0]["field"] == "body"
    assert problem["errors"][0]["value"] > 3_000
    assert problem["errors"][0]["choices"] == ["0 to 2000"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=100000", "limit"),
        ("limit=many", "limit"),
        ("state=finished", "state"),
        ("offset=1", "offset"),
        ("before=" + "x" * 100, "before"),
    ],
)
def test_a_wrong_query_parameter_is_named(api, query, field):
    """Paging takes what it documents and refuses the rest, unknown parameters included."""
    problem = problem_of(api.get(f"/v1/jobs?{query}"), 422)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert problem["errors"][0]["choices"] or query == "limit=many"


@pytest.mark.parametrize("index", ["-1", "x", "1.5", "9" * 30])
def test_an_image_index_that_is_no_index_is_422(api, index):
    """An index is a whole number from 0."""
    url = api.post_job()["links"]["images"]
    problem = problem_of(api.get(f"{url}/{index}"), 422)
    assert problem["errors"][0]["field"] == "index"


def test_an_unknown_model_is_404_with_the_choices(api):
    """A model that the catalog does not have names those it has."""
    problem = problem_of(api.get("/v1/models/flux"), 404)
    assert problem["errors"][0]["choices"] == Catalog().names


@pytest.mark.parametrize(
    "path", ["/page", "/v1", "/v1/nothing", "/v1/jobs/", "/v1/jobs/a/b/c", "/%00", "/" + "x" * 5_000]
)
def test_an_unknown_path_is_a_problem_too(api, path):
    """404 for a path that is no endpoint, echoed in short."""
    answer = api.get(path)
    assert problem_of(answer, 404)["type"].endswith("not-found")
    assert len(answer.content) < 1_500


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("DELETE", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/v1/jobs/job_00000000000000000000", "DELETE, GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("BREW", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/v1/jobs", "GET, HEAD, POST"),
    ],
)
def test_a_wrong_method_is_405_and_told_the_right_ones(api, method, path, allow):
    """405 lists every method of the path, whichever endpoint serves it."""
    answer = api.request(method, path)
    problem = problem_of(answer, 405)
    assert answer.headers["allow"] == allow
    assert problem["errors"][0]["choices"] == allow.split(", ")


def test_a_head_request_is_a_get_without_its_body(api):
    """Load balancers ask with HEAD."""
    answer = api.head("/healthz")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_full_farm_is_429_with_a_time_to_come_back(make_api):
    """Above the limit on waiting images the client is told to try again later, and nothing is kept."""
    api = make_api(max_queued_images=10)
    api.post_job(num_images_per_prompt=8)
    answer = api.post("/v1/jobs", json={**SCENES, "num_images_per_prompt": 3})
    problem = problem_of(answer, 429)
    assert problem["type"].endswith("queue-full")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(api.get("/v1/jobs").json()["data"]) == 1
