"""What A1111's clients ask, as a job of the farm: defaults, names, refusals; and nothing they send breaks it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.a1111.bodies import parse
from api.a1111.controlnet import units_in
from api.a1111.mapping import Inputs, in_a1111s_words, job_of, wanted
from api.a1111.options import Options, checked, model_named, shown
from api.a1111.requests import Generation, Img2Img, Txt2Img
from api.a1111.styles import Style, load_styles, styled
from api.problems import HttpProblem
from farm.catalog import Catalog, ModelRow
from farm.errors import Fatal, Refused
from farm.requests import JobSpec, Priority

CATALOG = Catalog()
CONTROLNET = next(iter(CATALOG.controlnets_for(CATALOG.row("sd15"))))


def job(model: str = "sd15", *, inputs: Inputs | None = None, options: Options | None = None, **body) -> JobSpec:
    """Return the job of a request's body; with `init_images` it is img2img's."""
    asked = (Img2Img if "init_images" in body else Txt2Img).model_validate(body)
    return job_of(wanted(asked, CATALOG.row(model), options or Options()), inputs or Inputs(), seed=77)


def test_a1111s_defaults_hold_for_the_models_they_were_made_for():
    """An empty request renders what A1111 would: 50 steps of Euler, CFG 7, 512x512, a drawn seed."""
    spec = job()
    assert (spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale) == (512, 512, 50, 7.0)
    assert spec.scheduler == "euler"
    assert spec.priority is Priority.INTERACTIVE
    assert [(prompt.prompt, prompt.seed) for prompt in spec.prompts] == [("", 77)]


@pytest.mark.parametrize(
    ("model", "size", "steps", "guidance", "scheduler"),
    [
        ("scenes", (128, 128), 50, 7.0, "euler"),
        ("sdxl", (1024, 1024), 50, 7.0, "euler"),
        ("sd15-lcm", (512, 512), None, None, "lcm"),
        ("flux-schnell", (1024, 1024), None, None, CATALOG.row("flux-schnell").scheduler),
    ],
)
def test_other_models_keep_their_own(model, size, steps, guidance, scheduler):
    """A default that does not fit a model, its size or its distillation, gives way to the model's row."""
    spec = job(model)
    assert (spec.width, spec.height) == size
    assert (spec.num_inference_steps, spec.guidance_scale, spec.scheduler) == (steps, guidance, scheduler)


def test_what_is_given_is_given_to_every_model():
    """Explicit values are honoured, the default's value too."""
    spec = job("sdxl", width=512, height=768, steps=4, cfg_scale=1, sampler_name="DPM++ 2M Karras", seed=5)
    assert (spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale) == (512, 768, 4, 1.0)
    assert spec.scheduler == "dpmpp_2m_karras"
    assert spec.prompts[0].seed == 5
    assert job("sd15-lcm", steps=50).num_inference_steps == 50


def test_null_is_absent_and_a_numeral_is_a_number():
    """Clients that send every field they know send many nulls, and some send numbers as text."""
    asked = parse(b'{"width": null, "steps": "12", "styles": null, "what": 1}', Txt2Img)
    assert asked.model_fields_set == {"steps"}
    assert (asked.width, asked.steps) == (512, 12)


def test_guidance_of_flux_is_distilled_where_it_is_named_so():
    """Forge's field is the model's input, and CFG the true one; without it CFG is what the model takes."""
    both = job("flux-dev", distilled_cfg_scale=3.5, cfg_scale=2)
    assert (both.guidance_scale, both.true_cfg_scale) == (3.5, 2.0)
    assert (job("flux-dev", cfg_scale=4).guidance_scale, job("flux-dev", cfg_scale=4).true_cfg_scale) == (4.0, None)


def test_a_batch_is_one_prompt_with_many_images():
    """batch_size x n_iter images; the farm gives image i seed + i."""
    (prompt,) = job(batch_size=3, n_iter=4, seed=9).prompts
    assert (prompt.num_images_per_prompt, prompt.seed) == (12, 9)


def test_several_pictures_take_turns_and_seeds_go_on():
    """img2img with a batch of pictures: image i starts from picture i, with seed + i."""
    spec = job(init_images=["", ""], batch_size=2, n_iter=2, seed=5, inputs=Inputs(("uploads/a", "uploads/b")))
    assert [(each.image, each.seed) for each in spec.prompts] == [
        ("uploads/a", 5),
        ("uploads/b", 6),
        ("uploads/a", 7),
        ("uploads/b", 8),
    ]
    assert spec.strength == 0.75


def test_hires_fix_is_the_farms_second_pass():
    """enable_hr with its fields; a size instead of a factor; the same steps for 0."""
    hires = job(
        enable_hr=True, hr_scale=1.5, hr_upscaler="Lanczos", hr_second_pass_steps=7, denoising_strength=0.5
    ).hires
    assert (hires.scale, hires.upscaler, hires.num_inference_steps, hires.strength) == (1.5, "lanczos", 7, 0.5)
    assert job(enable_hr=True, hr_resize_x=768, hr_resize_y=768).hires.scale == 1.5
    assert job(enable_hr=True).hires.num_inference_steps is None
    assert job(hr_scale=3).hires is None


def test_options_act_on_the_job():
    """Format and clip skip come from options; SDXL knows no other clip skip, as in A1111."""
    options = Options.of({"samples_format": "jpg", "jpeg_quality": 70, "CLIP_stop_at_last_layers": 2})
    assert (job(options=options).output.format, job(options=options).output.quality) == ("jpeg", 70)
    assert (job(options=options).clip_skip, job("sdxl", options=options).clip_skip) == (1, None)
    assert job().clip_skip is None


REFUSED = [
    ({"subseed_strength": 0.1}, "subseed_strength"),
    ({"seed_resize_from_w": 64}, "seed_resize_from_w"),
    ({"restore_faces": True}, "restore_faces"),
    ({"tiling": True}, "tiling"),
    ({"s_churn": 1}, "s_churn"),
    ({"s_noise": 0.9}, "s_noise"),
    ({"eta": 0.5}, "eta"),
    ({"eta": 0, "sampler_name": "Euler a"}, "eta"),
    ({"refiner_checkpoint": "sdxl-refiner"}, "refiner_checkpoint"),
    ({"script_name": "x/y/z plot"}, "script_name"),
    ({"infotext": "Steps: 1"}, "infotext"),
    ({"firstphase_width": 64}, "firstphase_width"),
    ({"enable_hr": True, "hr_prompt": "b"}, "hr_prompt"),
    ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler"),
    ({"enable_hr": True, "hr_scale": 1}, "hr_scale"),
    ({"enable_hr": True, "hr_resize_x": 1024, "hr_resize_y": 600}, "hr_resize_x"),
    ({"enable_hr": True, "denoising_strength": 0}, "denoising_strength"),
    ({"alwayson_scripts": {"Regional Prompter": {"args": [True]}}}, "alwayson_scripts.Regional Prompter"),
    ({"batch_size": 64, "n_iter": 2}, "batch_size"),
    ({"seed": 2**53 - 1, "batch_size": 2}, "seed"),
    ({"init_images": [""], "denoising_strength": 0}, "denoising_strength"),
    ({"init_images": [""], "resize_mode": 3}, "resize_mode"),
    ({"init_images": [""], "mask": "x", "inpainting_fill": 2}, "inpainting_fill"),
    ({"init_images": [""], "initial_noise_multiplier": 1.1}, "initial_noise_multiplier"),
    ({"init_images": [""], "latent_mask": "x"}, "latent_mask"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED, ids=[str(body) for body, _ in REFUSED])
def test_what_the_farm_cannot_do_is_refused_by_name(body, field):
    """Nothing that would change a picture is passed over in silence."""
    with pytest.raises(Refused) as refused:
        job(**body)
    assert refused.value.field == field


def test_everything_that_changes_nothing_is_taken():
    """What webuiapi sends with every request, and neutral values of all else."""
    assert job(
        eta=1.0,
        s_tmax=0,
        subseed=3,
        seed_resize_from_h=0,
        do_not_save_samples=True,
        save_images=True,
        refiner_checkpoint="None",
        hr_prompt="unused",
        script_name="",
        alwayson_scripts={"ADetailer": {"args": [False]}, "roop": {}, "animatediff": {"args": [{"enable": False}]}},
    )
    assert job(init_images=[""], image_cfg_scale=1.5, initial_noise_multiplier=1, inpainting_fill=3)
    assert job(sampler_name="DDIM", eta=0).scheduler == "ddim"


def test_refusals_of_the_job_name_a1111s_fields():
    """What farm.expand says of the farm's fields is told by those that the client has sent."""
    told = {
        "guidance_scale": "cfg_scale",
        "prompts.0.prompt": "prompt",
        "prompts.0": "prompt",
        "hires.scale": "hr_scale",
        "hires.strength": "denoising_strength",
        "strength": "denoising_strength",
        "controlnets.1.model": "alwayson_scripts.ControlNet.args.1.model",
        "model": "sd_model_checkpoint",
        "width": "width",
    }
    assert {field: in_a1111s_words(Refused("", field=field)).field for field in told} == told
    assert in_a1111s_words(Refused("")).field is None


def unit(**fields) -> dict:
    """Return the arguments of a ControlNet script with one unit."""
    return {"ControlNet": {"args": [{"model": CONTROLNET, "image": "aaaa", **fields}]}}


def test_controlnet_units_become_the_farms():
    """A unit's model, with A1111's hash behind it, weight, range and resize mode; those that are off are not there."""
    (found,) = units_in(unit(model=f"{CONTROLNET} [abc]", weight=0.5, guidance_end=0.8, resize_mode=2), [CONTROLNET])
    spec = found.spec("uploads/k")
    assert (spec.model, spec.image, spec.conditioning_scale, spec.guidance_end) == (CONTROLNET, "uploads/k", 0.5, 0.8)
    assert found.resize_mode == 2
    assert units_in(unit(enabled=False), [CONTROLNET]) == []
    assert units_in({"controlnet": {"args": [None, {"model": "None"}]}}, [CONTROLNET]) == []


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"module": "canny"}, "module"),
        ({"control_mode": "My prompt is more important"}, "control_mode"),
        ({"mask": "aaaa"}, "mask"),
        ({"model": "nope"}, "model"),
        ({"resize_mode": "diagonal"}, "resize_mode"),
        ({"weight": "heavy"}, "weight"),
        ({"image": 7}, "image"),
    ],
)
def test_what_a_controlnet_cannot_do_is_refused(fields, at):
    """Preprocessors, masks and unknown models, each by its place in the request."""
    with pytest.raises(Refused) as refused:
        units_in(unit(**fields), [CONTROLNET])
    assert refused.value.field == f"alwayson_scripts.ControlNet.args.0.{at}"


def test_options_are_kept_by_name_and_checked():
    """Titles with a hash or an ending mean the model; other options are kept as they came; null is no change."""
    kept = checked({"sd_model_checkpoint": "SDXL.safetensors", "jpeg_quality": "90", "other": [1], "x": None}, CATALOG)
    assert kept == {"sd_model_checkpoint": "sdxl", "jpeg_quality": 90, "other": [1]}
    assert model_named("sd15 [0123456789]", CATALOG) == "sd15"
    assert shown(kept, model="sdxl")["other"] == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sd_model_checkpoint", "nope"),
        ("samples_format", "tiff"),
        ("CLIP_stop_at_last_layers", 1.5),
        ("jpeg_quality", 0),
        ("sd_vae", "other.vae.pt"),
        ("eta_noise_seed_delta", 31337),
        ("x" * 200, 1),
        ("x", "y" * 10_000),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(name, value):
    """Where a client would get other pictures than it believes, and what is too much to keep."""
    with pytest.raises(Refused):
        checked({name: value}, CATALOG)


def test_styles_are_read_and_worked_in(tmp_path):
    """A1111's file, old and new; {prompt} is where the prompt goes, else the style follows."""
    file = tmp_path / "styles.csv"
    file.write_text(
        '\ufeffname,prompt,negative_prompt\nink,"ink of {prompt}, bold",blur\nx,"a, b",\n', encoding="utf-8"
    )
    styles = load_styles(file)
    assert styles == (Style("ink", "ink of {prompt}, bold", "blur"), Style("x", "a, b", ""))
    assert styled("fox", "", ["ink", "x"], styles) == ("ink of fox, bold, a, b", "blur")
    assert load_styles(None) == ()
    with pytest.raises(Fatal, match=r"none\.csv"):
        load_styles(tmp_path / "none.csv")


def test_a_prompt_that_styles_make_too_long_is_refused():
    """The farm's limit holds for what is rendered."""
    styles = [Style("long", "x" * 9000, "")]
    want = wanted(Txt2Img(prompt="a", styles=["long"]), CATALOG.row("sd15"), Options())
    with pytest.raises(Refused) as refused:
        job_of(want, Inputs(), styles, seed=1)
    assert refused.value.field == "prompt"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": "\\u0000"}', b'{"steps": 1e999}', b"[" * 60_000])
def test_bodies_that_are_none_are_refused(body):
    """Broken JSON, no object, a NUL, an infinite number, a flood of brackets."""
    with pytest.raises((HttpProblem, Refused)):
        parse(body, Txt2Img)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SENSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=30),
        "steps": st.integers(1, 60),
        "batch_size": st.integers(1, 8),
        "sampler_name": st.sampled_from(["Euler a", "DPM++ 2M Karras", "DDIM", "LCM", "what"]),
        "scheduler": st.sampled_from(["Automatic", "karras", "SGM Uniform", "turbo"]),
        "enable_hr": st.booleans(),
        "denoising_strength": st.floats(0, 1),
        "seed": st.integers(-1, 2**53 - 1),
    },
)


def bodies(model: type[Generation]) -> st.SearchStrategy[dict]:
    """Return strategies of bodies: known fields with sensible values, and any with anything."""
    anything = st.dictionaries(st.sampled_from(sorted(model.model_fields)), JSON, max_size=5)
    return st.builds(lambda sensible, wild: {**sensible, **wild}, SENSIBLE, anything)


@pytest.mark.parametrize("model", [Txt2Img, Img2Img])
@given(data=st.data(), row=st.sampled_from(list(CATALOG)))
def test_no_request_breaks_the_mapping(model, data, row: ModelRow):
    """Whatever is sent becomes a job of as many images, or is refused; nothing else comes out."""
    body = json.dumps(data.draw(bodies(model))).encode()
    try:
        asked = parse(body, model)
        want = wanted(asked, row, Options.of(checked(asked.override_settings, CATALOG)))
        units_in(asked.alwayson_scripts, CATALOG.controlnets_for(row))
        spec = job_of(want, Inputs(), seed=1)
    except (Refused, HttpProblem):
        return
    assert spec.model == row.name
    assert sum(prompt.num_images_per_prompt for prompt in spec.prompts) == asked.num_images
