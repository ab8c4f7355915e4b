"""Recipes: what a file tells comes back whole, A1111's text is A1111's, and old and foreign files are read."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from pydantic import TypeAdapter

from farm.catalog import Catalog
from farm.errors import Refused
from farm.expand import expand
from farm.jobs import Acceleration, ControlNet, Hires, Picture
from farm.prompts import Lora
from farm.recipes import (
    NoRecipe,
    Recipe,
    infotext,
    job_of_infotext,
    job_of_recipe,
    read_infotext,
    read_infotext_of,
    read_recipe,
)
from farm.requests import JobSpec, Output, Reproducibility
from farm.schedulers import SCHEDULERS

SHA256 = "0123456789abcdef" * 4
RECIPE = Recipe(
    prompt="a red heart left of a green house",
    negative_prompt="night",
    seed=7,
    num_inference_steps=20,
    guidance_scale=7.0,
    scheduler="euler_ancestral",
    width=64,
    height=48,
    guided=True,
    model="scenes",
    reproducibility=Reproducibility.FAST,
    output=Output(),
    model_sha256=SHA256,
    device="cpu",
    dtype="float32",
    farm_version="1.2.3",
)

recipes = st.builds(
    Recipe,
    prompt=st.text(min_size=1, max_size=80),
    negative_prompt=st.text(max_size=40),
    seed=st.integers(0, 2**53 - 1),
    num_inference_steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    scheduler=st.sampled_from([row.name for row in SCHEDULERS]),
    width=st.integers(8, 4096),
    height=st.integers(8, 4096),
    guided=st.booleans(),
    true_cfg_scale=st.floats(0, 100),
    clip_skip=st.integers(0, 22),
    loras=st.lists(st.builds(Lora, st.sampled_from(["a", "styles/b c"]), st.floats(-10, 10)), max_size=2).map(tuple),
    image=st.sampled_from(["", "uploads/cat.png"]),
    mask_image=st.sampled_from(["", "uploads/mask.png"]),
    strength=st.floats(0.01, 1),
    controlnets=st.lists(
        st.builds(ControlNet, st.text(max_size=9), st.text(max_size=9), *[st.floats(0, 1)] * 3), max_size=2
    ).map(tuple),
    hires=st.none() | st.builds(Hires, st.just(128), st.just(96), st.floats(0.1, 1), st.just(9), st.just("lanczos")),
    acceleration=st.builds(Acceleration, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9)),
    model=st.sampled_from(["scenes", "sdxl-base"]),
    reproducibility=st.sampled_from(Reproducibility),
    output=st.builds(
        Output,
        format=st.sampled_from(["png", "jpeg", "webp", "avif"]),
        quality=st.integers(1, 100),
        safety_checker=st.booleans(),
    ),
    file=st.sampled_from(["image", "thumbnail", "upscaled"]),
    model_sha256=st.just(SHA256),
    lora_sha256=st.dictionaries(st.sampled_from(["a", "styles/b c"]), st.just(SHA256)),
    inversion_sha256=st.dictionaries(st.sampled_from(["easy", "bad hands"]), st.just(SHA256)),
    approximations=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    batch_shape=st.none() | st.integers(1, 64),
    nsfw=st.none() | st.booleans(),
    device=st.just("NVIDIA GeForce RTX 4090"),
    dtype=st.just("float16"),
    upscaler_sha256=st.just(""),
    farm_version=st.just("1.2.3"),
)


def expanded(body, **row_fields):
    """Return the only entry of a job whose model takes LoRAs, ControlNets and any size."""
    row = (
        Catalog().row("scenes").model_copy(update={"min_size": 8, "max_size": 8192, "max_pixels": 2**26, **row_fields})
    )
    job = expand(
        TypeAdapter(JobSpec).validate_json(json.dumps(body)),
        row,
        job_id="job_0",
        tenant="default",
        created_at=0.0,
        drawn_seed=0,
        max_prompts=1,
        max_images=1,
        controlnets=["canny"],
    )
    return job.entries[0]


# -- our own


@given(recipe=recipes)
def test_json_gives_every_recipe_back(recipe):
    """Whatever is in it, what is read is what was written."""
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_json_leaves_out_what_has_its_default():
    """Files are many; a plain picture's recipe is short."""
    told = json.loads(RECIPE.to_json())
    assert told["version"] == 2
    assert "hires" not in told
    assert "controlnets" not in told
    assert told["output"] == {}


def test_json_names_the_parts_of_its_records():
    """Other programs read it too."""
    told = json.loads(replace(RECIPE, loras=(Lora("ink", 0.5),), hires=Hires(128, 96, 0.5, 9, "latent")).to_json())
    assert told["loras"] == [{"name": "ink", "weight": 0.5}]
    assert told["hires"]["num_inference_steps"] == 9


def test_recipes_of_version_1_are_read():
    """Pictures that the farm's first version made keep their recipe."""
    old = {
        "version": 1,
        "prompt": "a red heart",
        "negative_prompt": "",
        "seed": 7,
        "num_inference_steps": 20,
        "guidance_scale": 1.0,
        "scheduler": "euler",
        "width": 128,
        "height": 128,
        "model": "scenes",
        "model_sha256": SHA256,
        "reproducibility": "invariant",
        "device": "cpu",
        "dtype": "float32",
        "farm_version": "0.1.0",
    }
    recipe = Recipe.from_json(json.dumps(old), image_format="webp")
    assert recipe.prompt == "a red heart"
    assert not recipe.guided
    assert recipe.clip_skip == 0
    assert recipe.output.format == "webp"
    assert Recipe.from_json(json.dumps({**old, "guidance_scale": 1.5})).guided


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 2}', "damaged: .*Field required"),
        (RECIPE.to_json().replace('"seed":7', '"seed":"seven"'), "damaged: seed"),
        (RECIPE.to_json().replace('"version":2', '"version":3'), "version 3.*up to 2.*newer farm"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(text, reason):
    """The reason says what is wrong with it."""
    with pytest.raises(Refused, match=reason):
        Recipe.from_json(text)


def test_other_peoples_files_have_no_recipe():
    """A plain picture, a camera's note and no picture at all are named as such."""
    plain = io.BytesIO()
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"Camera\0\x01\x02"
    Image.new("RGB", (8, 8)).save(plain, "JPEG", exif=exif)
    empty = io.BytesIO()
    Image.new("RGB", (8, 8)).save(empty, "PNG")
    for data in (plain.getvalue(), empty.getvalue(), b"", b"no image", empty.getvalue()[:40]):
        with pytest.raises(NoRecipe):
            read_recipe(data)
        with pytest.raises(NoRecipe):
            read_infotext_of(data)


# -- A1111's text


def test_infotext_is_what_a1111_writes():
    """Galleries and scripts parse this text; every comma counts."""
    assert infotext(RECIPE) == (
        "a red heart left of a green house\n"
        "Negative prompt: night\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.0, Seed: 7, Size: 64x48, "
        "Model hash: 0123456789, Model: scenes, Version: diffusion-farm 1.2.3"
    )
    karras = replace(RECIPE, scheduler="dpmpp_2m_karras", negative_prompt="")
    assert "\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG" in infotext(karras)
    assert "Negative prompt" not in infotext(karras)


def test_infotext_tells_all_that_a_picture_may_have():
    """LoRAs as tags with their hashes, the second pass, ControlNets and clip skip, by A1111's names."""
    full = replace(
        RECIPE,
        prompt="a cat",
        clip_skip=1,
        loras=(Lora("ink", 0.8), Lora("pen", -1.0)),
        lora_sha256={"ink": SHA256, "pen": SHA256[::-1]},
        inversion_sha256={"easy": SHA256},
        hires=Hires(128, 96, 0.55, 10, "latent"),
        controlnets=(ControlNet("canny", "uploads/edges.png", 0.5, 0.0, 0.75),),
    )
    text = infotext(full)
    assert text.startswith("a cat <lora:ink:0.8> <lora:pen:-1>\n")
    assert (
        ", Clip skip: 2, Denoising strength: 0.55, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent," in text
    )
    assert '"Module: none, Model: canny, Weight: 0.5, Resize Mode: Just Resize, Guidance Start: 0.0, ' in text
    assert 'Lora hashes: "ink: 0123456789ab, pen: fedcba987654", TI hashes: "easy: 0123456789ab", Model hash' in text
    assert "Denoising strength: 0.3," in infotext(replace(RECIPE, image="uploads/cat.png", strength=0.3))
    assert "Hires resize: 128x112," in infotext(replace(full, hires=Hires(128, 112, 0.5, 9, "lanczos")))


def test_infotext_tells_what_was_given_up_and_the_job_asks_for_it_again():
    """An acceleration has no names at A1111's; ours are read back as what they mean, and nothing else is told."""
    recipe = replace(RECIPE, acceleration=Acceleration(0.1, 0.6, deep_cache_interval=3))
    assert ", Guidance start: 0.1, Guidance end: 0.6, DeepCache interval: 3, Model hash" in infotext(recipe)
    assert "Guidance" not in infotext(RECIPE)
    body, remarks = job_of_infotext(read_infotext(infotext(recipe)))
    assert body["acceleration"] == {"guidance_start": 0.1, "guidance_end": 0.6, "deep_cache_interval": 3}
    assert remarks == []
    assert "acceleration" not in job_of_infotext(read_infotext(infotext(RECIPE)))[0]
    assert job_of_recipe(recipe)["acceleration"]["guidance_end"] == 0.6
    assert "acceleration" not in job_of_recipe(RECIPE)


@pytest.mark.parametrize(
    ("guided", "true_cfg_scale", "told"),
    [
        (False, 1.0, "CFG scale: 1.0, Distilled CFG Scale: 3.5"),
        (True, 4.0, "CFG scale: 4.0, Distilled CFG Scale: 3.5"),
        (True, 1.0, "CFG scale: 3.5, Seed"),
    ],
)
def test_guidance_that_is_an_input_has_a_name_of_its_own(guided, true_cfg_scale, told):
    """As Forge writes it of Flux; CFG scale is then that of the negative prompt."""
    recipe = replace(RECIPE, guidance_scale=3.5, guided=guided, true_cfg_scale=true_cfg_scale)
    assert told in infotext(recipe)


@given(recipe=recipes.filter(lambda recipe: not recipe.controlnets and not recipe.lora_sha256))
def test_our_text_is_read_back(recipe):
    """The parameters survive whatever stands in the prompt."""
    told = read_infotext(infotext(recipe)).parameters
    assert int(told["Steps"]) == recipe.num_inference_steps
    assert int(told["Seed"]) == recipe.seed
    assert told["Size"] == f"{recipe.width}x{recipe.height}"
    assert told["Model"] == recipe.model


def test_a1111s_text_is_taken_apart():
    """Prompts of several lines, quotes with commas inside, and a prompt that looks like parameters."""
    told = read_infotext(
        "a cat,\nSteps: 3, up a hill\nNegative prompt: bad,\nworse\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, Clip skip: 2, "
        'Model: dream, Lora hashes: "ink: ab, pen: \\"cd\\"", Hires upscale: 1.5, Version: v1.10.1'
    )
    assert told.prompt == "a cat,\nSteps: 3, up a hill"
    assert told.negative_prompt == "bad,\nworse"
    assert told.parameters["Lora hashes"] == 'ink: ab, pen: "cd"'
    assert told.parameters["Hires upscale"] == "1.5"
    with pytest.raises(Refused, match="no line of parameters"):
        read_infotext("a cat\nSteps: 3")


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_a1111s_jpegs_are_read(encoding):
    """EXIF does not say which byte comes first, and programs differ."""
    exif = Image.Exif()
    text = "ein Käfer 甲虫\nSteps: 28, Sampler: Euler a, CFG scale: 6.5, Seed: 42, Size: 512x768"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode(encoding)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    assert read_infotext_of(file.getvalue()).prompt == "ein Käfer 甲虫"


def test_a1111s_pngs_are_read():
    """Its PNGs carry the text as a chunk."""
    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 28, Sampler: Euler a, CFG scale: 6.5, Seed: 42, Size: 512x768")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    assert read_infotext_of(file.getvalue()).parameters["Seed"] == "42"
    with pytest.raises(NoRecipe):
        read_recipe(file.getvalue())


# -- the job that asks for it again


pictures = st.builds(
    lambda loras, hires, acceleration, **given: {
        "model": "scenes",
        "loras": [{"name": name, "weight": weight} for name, weight in loras.items()],
        **({"hires": hires} if hires else {}),
        **given,
        "acceleration": {
            **acceleration,
            # Without guidance there is none to end.
            "guidance_end": acceleration["guidance_end"] if given["guidance_scale"] > 1 else 1.0,
        },
    },
    prompts=st.tuples(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), min_size=1, max_size=40).map(
            lambda text: text.strip() or "x"
        )
    ),
    negative_prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    seed=st.integers(0, 2**53 - 1),
    num_inference_steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    scheduler=st.sampled_from([row.name for row in SCHEDULERS if row.group == "diffusion"]),
    width=st.integers(8, 128).map(lambda size: size * 8),
    height=st.integers(8, 128).map(lambda size: size * 8),
    clip_skip=st.integers(0, 3),
    loras=st.dictionaries(
        st.sampled_from(["ink", "pen", "lcm"]), st.integers(-9000, 9000).map(lambda mills: mills / 1000)
    ),
    hires=st.none()
    | st.fixed_dictionaries(
        {"scale": st.floats(1.1, 4), "strength": st.floats(0.1, 1), "num_inference_steps": st.integers(10, 50)}
    ),
    acceleration=st.fixed_dictionaries({"guidance_end": st.floats(0.1, 1), "deep_cache_interval": st.integers(1, 5)}),
)


@given(body=pictures, with_own=st.booleans())
def test_the_job_of_a_recipe_asks_for_the_same_picture(body, with_own):
    """A job expands to a picture, its recipe to a job, and that to the same picture: with a model's own LoRAs too."""
    own = (Lora("lcm", 1.0),) if with_own else ()
    first = expanded(body, loras=own, clip_skip=1)
    picture = {each.name: getattr(first, each.name) for each in fields(Picture)}
    recipe = Recipe(**picture, **{name: getattr(RECIPE, name) for name in _BESIDE_THE_PICTURE})
    again = expanded(job_of_recipe(recipe, model_loras=own), loras=own, clip_skip=1)
    assert again == first


_BESIDE_THE_PICTURE = {each.name for each in fields(Recipe)} - {each.name for each in fields(Picture)}


def test_a_models_own_loras_are_not_asked_for_twice():
    """The catalog adds them again, to exactly what the recipe says."""
    recipe = replace(RECIPE, loras=(Lora("ink", 0.3), Lora("lcm", 0.7)))
    assert job_of_recipe(recipe, model_loras=[Lora("lcm", 0.7)])["loras"] == [{"name": "ink", "weight": 0.3}]
    assert {"name": "lcm", "weight": -0.7} in job_of_recipe(RECIPE, model_loras=[Lora("lcm", 0.7)])["loras"]


def test_a_prompt_of_tags_alone_is_asked_for_as_such():
    """It is empty without them, and no job takes an empty prompt."""
    assert expanded(job_of_recipe(replace(RECIPE, prompt="", loras=(Lora("ink", 0.25),)))).loras == (Lora("ink", 0.25),)


def test_the_job_of_a_recipe_names_its_pictures_and_output():
    """Keys of pictures, strength, ControlNets and the file that is wanted; always `invariant`."""
    recipe = replace(
        RECIPE,
        image="uploads/cat.png",
        mask_image="uploads/mask.png",
        strength=0.4,
        controlnets=(ControlNet("canny", "uploads/edges.png", 0.5, 0.0, 0.75),),
        output=Output(format="webp", quality=40, upscale=2),
    )
    body = job_of_recipe(recipe)
    assert body["output"] == {"format": "webp", "quality": 40, "upscale": 2}
    assert body["reproducibility"] == "invariant"
    again = expanded(body)
    assert (again.image, again.mask_image, again.strength) == (recipe.image, recipe.mask_image, recipe.strength)
    assert again.controlnets == recipe.controlnets


def test_the_job_of_a1111s_text():
    """What means the same is taken over; clip skip counts differently there."""
    body, remarks = job_of_infotext(
        read_infotext(
            "a cat <lora:ink:0.8>\nNegative prompt: bad\nSteps: 28, Sampler: DPM++ 2M, Schedule type: Karras, "
            "CFG scale: 6.5, Seed: 42, Size: 512x768, Model hash: 12ab, Model: dream, Clip skip: 2, "
            "Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: 4x-UltraSharp, "
            "Token merging ratio: 0.3, Version: v1.10.1"
        )
    )
    assert body == {
        "model": "dream",
        "prompts": ["a cat <lora:ink:0.8>"],
        "negative_prompt": "bad",
        "reproducibility": "invariant",
        "num_inference_steps": 28,
        "scheduler": "DPM++ 2M Karras",
        "guidance_scale": 6.5,
        "seed": 42,
        "width": 512,
        "height": 768,
        "clip_skip": 1,
        "hires": {"scale": 1.5, "strength": 0.4, "num_inference_steps": 12, "upscaler": "latent"},
    }
    assert remarks == [
        "the second pass enlarges by latents, not by 4x-UltraSharp",
        "left out: Token merging ratio",
    ]


@pytest.mark.parametrize(
    ("told", "scale"), [("Hires resize: 768x1152", 1.5), ("Hires resize: 1024x0", 2.0), ("Hires upscale: 1.25", 1.25)]
)
def test_the_second_passes_size_is_a_factor(told, scale):
    """A1111 tells a factor or a size, of which one side may be left to the shape."""
    text = f"a cat\nSteps: 8, Sampler: Euler, CFG scale: 5, Size: 512x768, {told}, Hires upscaler: Lanczos"
    body, remarks = job_of_infotext(read_infotext(text))
    assert body["hires"] == {"scale": scale, "upscaler": "lanczos"}
    assert remarks == []


def test_a_picture_over_another_one_is_told_of():
    """The other one is not in the file."""
    text = "a cat\nSteps: 28, Sampler: Euler a, CFG scale: 6.5, Seed: 42, Size: 512x512, Denoising strength: 0.4"
    body, remarks = job_of_infotext(read_infotext(text))
    assert "strength" not in body
    assert "over another picture" in remarks[0]


def test_a1111s_numbers_must_be_numbers():
    """The parameter is named."""
    with pytest.raises(Refused, match="Steps: 'many'"):
        job_of_infotext(read_infotext("a cat\nSteps: many, Sampler: Euler a, CFG scale: 6.5, Seed: 42"))


def test_forges_distilled_guidance_is_flux_guidance():
    """CFG scale above 1 is then the true one."""
    text = "a cat\nSteps: 28, Sampler: Euler, CFG scale: {}, Distilled CFG Scale: 3.5, Seed: 42"
    body, _ = job_of_infotext(read_infotext(text.format("1")))
    assert body["guidance_scale"] == 3.5
    assert "true_cfg_scale" not in body
    body, _ = job_of_infotext(read_infotext(text.format("4")))
    assert (body["guidance_scale"], body["true_cfg_scale"]) == (3.5, 4.0)
