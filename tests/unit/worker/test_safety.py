"""The safety checker: it flags what diffusers' own pipeline flags, and nothing goes unchecked when it is missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil

from farm.errors import ModelBroken, RenderFailed
from farm.requests import Output
from tiny_models import tiny_unit
from worker import safety
from worker.engine import Engine
from worker.files import recipe_of
from worker.finishing import Finishing
from worker.safety import SafetyChecker

CPU = torch.device("cpu")
CHECKED = Output(safety_checker=True)
FLAGS_ALL, FLAGS_NONE = -2.0, 2.0
"""Thresholds below and above every cosine."""


def save_checker(models_dir, *, threshold):
    """Save a tiny random checker whose concepts all have this threshold."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds.data = torch.randn(17, 8)
    checker.special_care_embeds.data = torch.randn(3, 8)
    checker.concept_embeds_weights.data[:] = threshold
    checker.special_care_embeds_weights.data[:] = 2.0
    folder = models_dir / safety.FOLDER
    checker.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return models_dir


@pytest.fixture
def _no_hub(monkeypatch):
    """Let the hub be away."""

    def away(_repository, **_options):
        raise OSError("offline")

    monkeypatch.setattr(safety, "snapshot_download", away)


def run(pipeline, finishing, **fields):
    """Render one unit on an engine of its own."""
    engine = Engine(lambda _: pipeline, max_batch=2, finishing=finishing)
    engine.start()
    try:
        return engine.submit(tiny_unit(**fields)).result(60)
    finally:
        engine.stop()


def test_it_flags_what_diffusers_own_checker_flags(tmp_path):
    """Of many pictures some are flagged and some are not, the same ones as diffusers says."""
    checker = SafetyChecker(save_checker(tmp_path, threshold=0.0), CPU)
    folder = tmp_path / safety.FOLDER
    theirs = StableDiffusionSafetyChecker.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 1 + 15 * i, (40, 56, 3), dtype=np.uint8) for i in range(16)]
    seen = torch.stack([processor(picture, return_tensors="pt").pixel_values[0] for picture in pictures])
    scores = theirs.visual_projection(theirs.vision_model(seen)[1])
    cosines = torch.nn.functional.cosine_similarity(scores[:, None], theirs.concept_embeds[None], dim=-1)
    # A threshold that parts the pictures: the median of each one's highest cosine.
    weights = load_file(folder / "model.safetensors")
    weights["concept_embeds_weights"][:] = cosines.amax(1).median()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _, expected = StableDiffusionSafetyChecker.from_pretrained(folder)(
        clip_input=seen, images=np.stack(pictures).astype(np.float32)
    )
    assert [checker.flags(picture) for picture in pictures] == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize("threshold", [FLAGS_ALL, FLAGS_NONE])
def test_a_checked_image_is_what_diffusers_pipeline_gives(tiny_folder, tiny_pipeline, tmp_path, threshold):
    """Flagged: black, said in recipe and remarks. Not flagged: untouched, and the recipe says that it was checked."""
    folder = save_checker(tmp_path, threshold=threshold) / safety.FOLDER
    theirs = StableDiffusionPipeline.from_pretrained(
        tiny_folder,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(folder),
        feature_extractor=CLIPImageProcessorPil.from_pretrained(folder),
    )
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red circle",
        num_inference_steps=3,
        guidance_scale=5.0,
        width=16,
        height=16,
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="np",
    )
    made = run(tiny_pipeline, Finishing(tmp_path, CPU), scheduler="ddim", output=CHECKED)
    is_flagged = threshold == FLAGS_ALL
    assert expected.nsfw_content_detected == [is_flagged]
    assert np.abs(made.pixels / 255 - expected.images[0]).max() <= 0.51 / 255
    assert made.nsfw is is_flagged
    assert recipe_of(tiny_unit(output=CHECKED), made).nsfw is is_flagged
    assert made.pixels.any() == (not is_flagged)
    assert any("safety checker" in warning for warning in made.warnings) == is_flagged


def test_black_on_purpose_is_no_broken_picture(tiny_pipeline, tmp_path):
    """The engine renders all-black pictures again, but not those that were blackened; enlarged ones are black too."""
    finishing = Finishing(save_checker(tmp_path, threshold=FLAGS_ALL), CPU)
    made = run(tiny_pipeline, finishing, output=Output(safety_checker=True, upscale=2))
    assert made.warnings == ("the safety checker flagged the picture, so it is black",)
    assert made.timings.steps == 3


@pytest.mark.usefixtures("_no_hub")
def test_who_does_not_ask_is_not_checked(tiny_pipeline, tmp_path):
    """No checker is looked for, and the recipe says nothing of one."""
    made = run(tiny_pipeline, Finishing(tmp_path, CPU))
    assert made.nsfw is None
    assert "nsfw" not in json.loads(recipe_of(tiny_unit(), made).to_json())


@pytest.mark.usefixtures("_no_hub")
def test_without_a_checker_the_unit_fails(tiny_pipeline, tmp_path):
    """Never silently unchecked; the reason says where it was looked for."""
    with pytest.raises(ModelBroken, match=r"no safety checker is installed.*safety_checker.*hub says.*offline"):
        run(tiny_pipeline, Finishing(tmp_path, CPU), output=CHECKED)
    with pytest.raises(ModelBroken, match="no models folder"):
        run(tiny_pipeline, Finishing(), output=CHECKED)


def test_a_broken_checker_fails_the_unit(tiny_pipeline, tmp_path):
    """Weights that are missing are no random numbers, and a pickle is not read."""
    folder = save_checker(tmp_path, threshold=FLAGS_NONE) / safety.FOLDER
    weights = load_file(folder / "model.safetensors")
    del weights["concept_embeds_weights"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelBroken, match=r"safety checker: .*lacks 1 weights, concept_embeds_weights first"):
        run(tiny_pipeline, Finishing(tmp_path, CPU), output=CHECKED)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelBroken, match=r"safety checker: .*safetensors"):
        run(tiny_pipeline, Finishing(tmp_path, CPU), output=CHECKED)


def test_the_published_layout_is_read(tmp_path):
    """CompVis' file was written when the vision model had one more level, and positions that it computes itself now."""
    models_dir = save_checker(tmp_path, threshold=FLAGS_ALL)
    path = models_dir / safety.FOLDER / "model.safetensors"
    weights = load_file(path)
    published = {name.replace("vision_model.", "vision_model.vision_model.", 1): w for name, w in weights.items()}
    published["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    assert published.keys() != weights.keys()
    save_file(published, path, metadata={"format": "pt"})
    assert SafetyChecker(models_dir, CPU).flags(np.zeros((32, 32, 3), np.uint8))


def test_an_unknown_upscaler_fails_before_it_is_rendered(tiny_pipeline, tmp_path):
    """Nobody waits for a picture that cannot be finished."""
    engine = Engine(lambda _: tiny_pipeline, max_batch=2, finishing=Finishing(tmp_path, CPU))
    with pytest.raises(RenderFailed, match="there are: lanczos"):
        engine.submit(tiny_unit(output=Output(upscale=2, upscaler="gone")))
    assert engine.stats().waiting == 0
