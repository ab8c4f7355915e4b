"""Templates and matrices: what a job unfolds to, in which order, and how its errors find the way back."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.batches.unfolding import MAX_GRID_IMAGES, unfold
from api.batches.wildcards import SHIPPED, Wildcards, wildcards_of
from api.bodies import parse_job_spec
from api.jobs import _fingerprint
from expanded_jobs import expanded_job
from farm.catalog import Catalog
from farm.errors import Refused
from farm.expand import expand
from farm.jobs import Axis
from farm.ledger.codec import decode_header, encode_header
from farm.prompts import Lora


def spec_of(**fields):
    """Return a job as a client sends it."""
    body = {"model": "scenes", "prompts": ["a {red|blue} {star|boat}"], **fields}
    return parse_job_spec(json.dumps(body).encode(), max_prompts=1_000)


def unfolded(*, folder=None, max_prompts=1_000, max_chars=10**6, **fields):
    """Return a job, unfolded."""
    wildcards = Wildcards([folder] if folder else [])
    return unfold(spec_of(**fields), wildcards, drawn_seed=100, max_prompts=max_prompts, max_chars=max_chars)


def prompts_of(job):
    """Return the texts of a job's prompts."""
    return [prompt if isinstance(prompt, str) else prompt.prompt for prompt in job.spec.prompts]


def test_a_job_that_asks_for_nothing_comes_back_as_it_is():
    """Braces are braces unless a template is asked for."""
    spec = spec_of()
    job = unfold(spec, Wildcards([]), drawn_seed=1, max_prompts=9, max_chars=99)
    assert job.spec is spec
    assert job.grid is None


def test_combinatorial_is_all_that_prompt_and_negative_prompt_can_say():
    """Each once, in order, the negative prompt varying fastest; with one seed, so that they can be compared."""
    job = unfolded(prompts=["{a|b|{a|c}}", "plain"], negative_prompt="{x|y}", template={"mode": "combinatorial"})
    got = [(prompt.prompt, prompt.negative_prompt, prompt.seed) for prompt in job.spec.prompts]
    assert got == [(text, negative, None) for text in ("a", "b", "c", "plain") for negative in ("x", "y")]
    limited = unfolded(template={"mode": "combinatorial", "num_prompts": 3})
    assert prompts_of(limited) == ["a red star", "a red boat", "a blue star"]


def test_random_prompts_follow_from_the_seed_and_have_seeds_of_their_own():
    """The same seed draws the same, more of them begin with the same; what is drawn twice gives other images."""
    ask = {"mode": "random", "num_prompts": 8}
    job = unfolded(seed=7, num_images_per_prompt=3, template=ask)
    assert [prompt.seed for prompt in job.spec.prompts] == [7 + 3 * turn for turn in range(8)]
    assert prompts_of(unfolded(seed=7, template={**ask, "num_prompts": 20}))[:8] == prompts_of(job)
    assert prompts_of(unfolded(seed=8, template=ask)) != prompts_of(job)
    assert prompts_of(unfolded(seed=8, template={**ask, "seed": 7})) == prompts_of(job)
    assert unfolded(template=ask).spec.prompts[1].seed == 101  # drawn for the job, and told with its images


def test_a_prompt_without_a_template_is_drawn_once():
    """Ten random prompts are asked of each template, and a plain prompt is none."""
    job = unfolded(prompts=["plain", "{a|b}"], template={"mode": "random", "num_prompts": 10})
    assert prompts_of(job)[0] == "plain"
    assert len(job.spec.prompts) == 11


def test_a_matrix_is_every_combination_in_the_order_of_its_axes():
    """Of each prompt, the last axis varies fastest; what a prompt says of itself gives way."""
    axes = {"guidance_scale": [5, 7.5], "num_inference_steps": [20, 30]}
    job = unfolded(prompts=["a", {"prompt": "b", "num_inference_steps": 9}], matrix=axes, grid=True)
    got = [(each.prompt, each.guidance_scale, each.num_inference_steps) for each in job.spec.prompts]
    assert got == [(text, guidance, steps) for text in "ab" for guidance in (5, 7.5) for steps in (20, 30)]
    assert job.grid == (Axis("guidance_scale", ("5", "7.5")), Axis("num_inference_steps", ("20", "30")))
    other = unfolded(prompts=["a"], matrix=dict(reversed(axes.items())))
    assert [each.num_inference_steps for each in other.spec.prompts] == [20, 20, 30, 30]


def test_loras_are_an_axis_whose_values_are_lists():
    """They take the place of the prompt's own and the job's, none of them too; tags are added as ever."""
    ink, grain = {"name": "ink", "weight": 0.75}, {"name": "styles/grain"}
    job = unfolded(
        prompts=["a <lora:tagged:0.5>", {"prompt": "b", "loras": [{"name": "own"}]}],
        loras=[{"name": "job"}],
        matrix={"loras": [[], [ink], [ink, grain]], "seed": [1, 2]},
        grid=True,
    )
    assert job.grid == (Axis("loras", ("none", "ink:0.75", "ink:0.75 + styles/grain:1")), Axis("seed", ("1", "2")))
    entries = expand(
        job.spec,
        Catalog().row("scenes"),
        job_id="job_1",
        tenant="default",
        created_at=0,
        drawn_seed=1,
        max_prompts=99,
        max_images=99,
    ).entries
    axis = [(), (Lora("ink", 0.75),), (Lora("ink", 0.75), Lora("styles/grain", 1.0))]
    each = [loras for loras in axis for _ in range(2)]
    tagged = (Lora("tagged", 0.5),)
    assert [entry.loras for entry in entries] == [tuple(sorted(loras + tagged)) for loras in each] + each
    assert job.written("prompts.8.loras") == "matrix.loras.1"


def test_two_orders_of_axes_are_two_requests():
    """An Idempotency-Key of one is no answer to the other, whose images stand in another order."""
    axes = {"guidance_scale": [5], "num_inference_steps": [20]}
    first, second = spec_of(matrix=axes), spec_of(matrix=dict(reversed(axes.items())))
    assert _fingerprint(first) != _fingerprint(second)
    assert _fingerprint(first) == _fingerprint(spec_of(matrix=axes))
    with_loras = [spec_of(matrix={"loras": [[], [{"name": name}]]}) for name in ("ink", "ink", "grain")]
    assert _fingerprint(with_loras[0]) == _fingerprint(with_loras[1]) != _fingerprint(with_loras[2])


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        (
            {"prompts": ["{5-9$$a|b|c|d|e|f|g|h|i}"], "template": {"mode": "combinatorial"}},
            "template",
            "982,800 prompts",
        ),
        ({"prompts": ["{a|b}" * 99], "template": {"mode": "combinatorial"}}, "template", "more than 1,000,000,000"),
        ({"template": {"mode": "random", "num_prompts": 1_001}}, "template", "1,001 prompts"),
        ({"matrix": {"seed": list(range(64)), "clip_skip": list(range(20))}}, "matrix", "1,280"),
        ({"prompts": ["a", "{b"], "template": {"mode": "random"}}, "prompts.1", "never closed"),
        ({"prompts": [{"prompt": "__x__"}], "template": {"mode": "combinatorial"}}, "prompts.0.prompt", "no wildcard"),
        ({"negative_prompt": "{x", "template": {"mode": "random"}}, "negative_prompt", "never closed"),
        ({"prompts": ["{|}"], "template": {"mode": "random"}}, "prompts.0", "without words"),
        ({"matrix": {"width": [64, 128, 64]}}, "matrix.width.2", "twice"),
        ({"matrix": {"loras": [[{"name": "a"}], [], [{"name": "a", "weight": 1}]]}}, "matrix.loras.2", "twice"),
        (
            {"matrix": {"width": [8], "height": [8], "seed": [1], "clip_skip": [1], "strength": [1]}},
            "matrix",
            "5 fields",
        ),
        ({"prompts": ["a"], "num_images_per_prompt": MAX_GRID_IMAGES + 1, "grid": True}, "grid", "more than a grid"),
        ({"prompts": ["a", {"prompt": "b", "num_images_per_prompt": 2}], "grid": True}, "grid", "as many images"),
    ],
)
def test_what_does_not_unfold_is_refused_before_anything_is_made(fields, field, reason):
    """The number, the field, and what would do."""
    with pytest.raises(Refused, match=reason) as raised:
        unfolded(**fields)
    assert raised.value.field == field


@pytest.mark.parametrize("text", ["{a}" * 2_600, "{a|" + "b|" * 3_900 + "}", "{a}" + "$" * 7_900, "__a" + "_" * 7_900])
def test_a_body_full_of_marks_is_refused_before_it_is_read(text, monkeypatch):
    """Sixteen megabytes of braces would be a tree of gigabytes."""
    monkeypatch.setattr("api.batches.templates.parse", None)
    prompts = [f"{number}{text}" for number in range(150)]
    with pytest.raises(Refused, match="marks") as raised:
        unfolded(prompts=prompts, template={"mode": "random"})
    assert raised.value.field == "prompts"


def test_all_texts_together_have_a_bound():
    """A short body cannot become more than the largest body that may be sent."""
    with pytest.raises(Refused, match="characters; split") as raised:
        unfolded(prompts=["x" * 5_000], matrix={"seed": list(range(50))}, max_chars=200_000)
    assert raised.value.field == "prompts"
    matrix = {"loras": [[], [{"name": "x" * 500}] * 16], "seed": list(range(50))}
    assert len(unfolded(prompts=["a"], matrix=matrix, max_chars=410_000).spec.prompts) == 100
    with pytest.raises(Refused, match="characters; split"):
        unfolded(prompts=["a"], matrix=matrix, max_chars=400_000)


def test_errors_find_the_way_back_to_what_was_written():
    """What is wrong with a plain prompt is told of the axis or the prompt that it came from."""
    job = unfolded(
        prompts=["{a|b}", {"prompt": "c", "height": 72}],
        template={"mode": "combinatorial"},
        matrix={"width": [64, 72, 80], "seed": [1, 2]},
    )
    assert len(job.spec.prompts) == 18
    assert job.written("prompts.8.width") == "matrix.width.1"
    assert job.written("prompts.9.seed") == "matrix.seed.1"
    assert job.written("prompts.17.height") == "prompts.1.height"
    assert job.written("prompts.3.prompt") == "prompts.0"
    assert job.written("num_images_per_prompt") == "num_images_per_prompt"
    assert unfolded(prompts=["a"]).written("prompts.0") == "prompts.0"


@given(st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 3))
@settings(max_examples=40)
def test_a_matrix_keeps_count_and_order(num_prompts, lengths, num_images):
    """As many prompts as combinations, each different, and each knows the place it came from."""
    names = ["num_inference_steps", "clip_skip", "seed"]
    axes = {name: list(range(1, length + 1)) for name, length in zip(names, lengths, strict=False)}
    prompts = [f"p{number}" for number in range(num_prompts)]
    job = unfolded(prompts=prompts, matrix=axes, num_images_per_prompt=num_images)
    made = [each if isinstance(each, str) else each.model_dump_json() for each in job.spec.prompts]
    total = num_prompts
    for values in axes.values():
        total *= len(values)
    assert len(set(made)) == len(made) == total
    if job.sources is not None:
        assert prompts_of(job) == [prompts[source] for source in job.sources]


def test_the_ledger_keeps_what_a_grid_needs():
    """The axes come back as they were; a job without a grid, and one of an older farm, have none."""
    axes = (Axis("scheduler", ("ddim", "euler")),)
    job = expanded_job()
    for grid in (axes, (), None):
        header = type(job.header)(
            **{**{name: getattr(job.header, name) for name in job.header.__slots__}, "grid": grid}
        )
        assert decode_header(encode_header(header, job.entries[0]))[0] == header
    text = json.loads(encode_header(job.header, job.entries[0]))
    del text["grid"]
    assert decode_header(json.dumps(text))[0].grid is None


def test_every_wildcard_that_ships_can_be_drawn_and_counted():
    """No file of ours has a slip of the pen in it, names what is not there, or goes in a circle."""
    wildcards = wildcards_of(None)
    assert {"weather", "light", "camera", "medium", "place", "scenes/thing"} <= set(wildcards.names)
    for name in wildcards.names:
        template = {"mode": "combinatorial", "num_prompts": 50}
        job = unfolded(folder=SHIPPED, prompts=[f"a __{name}__"], template=template)
        assert len(job.spec.prompts) >= 5
        assert not any("_" in prompt for prompt in prompts_of(job))


def test_a_wildcard_never_leaves_its_folder(tmp_path):
    """Names are looked up among the files that are there: no dots, no links to other folders, no absolute paths."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "wildcards"
    folder.mkdir()
    (folder / "up").symlink_to(tmp_path, target_is_directory=True)
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "Sub Folder").mkdir()
    (folder / "Sub Folder" / "Mine.txt").write_text("\ufeff# note\n\n mine \n")
    wildcards = Wildcards([folder])
    assert wildcards.names == ["sub folder/mine"]
    assert wildcards.lines("Sub Folder/MINE") == ("mine",)
    for name in ("../secret", "up/secret", "/etc/passwd", str(tmp_path / "secret"), ".hidden", "..", "*/../secret"):
        with pytest.raises(Refused, match="no wildcard"):
            wildcards.lines(name)


def test_own_wildcards_come_before_those_that_ship(tmp_path):
    """A file of the operator's with the name of one of ours is the one that counts; a missing folder has none."""
    (tmp_path / "weather.txt").write_text("under two suns")
    assert wildcards_of(tmp_path).lines("weather") == ("under two suns",)
    assert wildcards_of(tmp_path / "nowhere").names == wildcards_of(None).names


@pytest.mark.parametrize(("data", "reason"), [(b"# nothing\n", "no line"), (b"a\n" * 600_000, "bytes")])
def test_a_wildcard_that_is_no_use_is_refused(tmp_path, data, reason):
    """An empty file, or one too large, is told by its name."""
    (tmp_path / "odd.txt").write_bytes(data)
    with pytest.raises(Refused, match=rf"'odd' .*{reason}"):
        Wildcards([tmp_path]).lines("odd")
    assert Wildcards([tmp_path]).lines_if_readable("odd") == ()
