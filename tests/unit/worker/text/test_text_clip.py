"""CLIP's states are diffusers', bit for bit, for plain prompts, and A1111's beyond that."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from farm.errors import RenderFailed
from plain_prompts import encode_plainly
from worker.text.clip import emphasise, encode_texts

PLAIN = ["", "a red circle", "two squares, one blue: on the left", "x" * 75, "don't  stop\n\tnow !!"]
LONG = "a small house, with a red roof, near the sea, " * 8

MARKED = {
    "a (red) circle": [[("a ", 1), ("red", 1.1), (" circle", 1)]],
    "((a)) [b] (c:0.3) d": [[("a", 1.21), (" ", 1), ("b", 1 / 1.1), (" ", 1), ("c", 0.3), (" d", 1)]],
    "(all of it:1.5)": [[("all of it", 1.5)]],
    r"a \(toy\) (minus:-0.5)": [[("a (toy) ", 1), ("minus", -0.5)]],
    "a BREAK (b:1.2) c": [[("a", 1)], [("b", 1.2), (" c", 1)]],
    "BREAK a BREAK": [[], [("a", 1)], []],
    LONG: [[(LONG, 1)]],
    LONG + "(end:1.4)": [[(LONG, 1), ("end", 1.4)]],
    "x" * 160: [[("x" * 160, 1)]],
    "x" * 60 + ", " + "y" * 40: [[("x" * 60 + ", " + "y" * 40, 1)]],
    "x" * 75 + ", y": [[("x" * 75 + ", y", 1)]],
    "x" * 75 + " BREAK " + "(y:1.3)": [[("x" * 75, 1)], [("y", 1.3)]],
}


def diffusers_sd(kind):
    """Return diffusers' own pipeline, as far as it encodes prompts."""
    parts = {"vae": None, "unet": None, "scheduler": None, "safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        text_encoder=kind.model, tokenizer=kind.tokenizer, requires_safety_checker=False, **parts
    )


@pytest.fixture
def text_model_inside(clip_l, monkeypatch):
    """Give the text model the attribute by which diffusers 0.42 finds its norm, and which transformers 5 dropped."""
    inner = SimpleNamespace(final_layer_norm=clip_l.model.final_layer_norm)
    monkeypatch.setattr(clip_l.model, "text_model", inner, raising=False)


@pytest.mark.parametrize("prompt", PLAIN)
@pytest.mark.parametrize("negative", ["", "grey"])
def test_plain_prompts_are_those_of_stable_diffusion(clip_l, prompt, negative):
    """Prompt and negative prompt have the bits of StableDiffusionPipeline.encode_prompt."""
    expected = diffusers_sd(clip_l).encode_prompt(
        prompt, "cpu", 1, do_classifier_free_guidance=True, negative_prompt=negative
    )
    texts = encode_texts([clip_l.clip], prompt, negative, layer="last")
    assert torch.equal(texts.prompt[0].states, expected[0])
    assert torch.equal(texts.negative[0].states, expected[1])
    assert (texts.num_chunks, texts.warnings) == (1, ())


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@pytest.mark.usefixtures("text_model_inside")
def test_clip_skip_is_that_of_stable_diffusion(clip_l, clip_skip):
    """Layers are left out of the prompt and, as in diffusers, not of the negative prompt."""
    expected = diffusers_sd(clip_l).encode_prompt(
        "a red circle", "cpu", 1, do_classifier_free_guidance=True, negative_prompt="grey", clip_skip=clip_skip
    )
    texts = encode_texts([clip_l.clip], "a red circle", "grey", layer="last", clip_skip=clip_skip)
    assert torch.equal(texts.prompt[0].states, expected[0])
    assert torch.equal(texts.negative[0].states, expected[1])


def test_a_mask_is_used_where_the_config_asks_for_one(clip_l, monkeypatch):
    """A text encoder trained with a mask over its padding gets one, as from diffusers."""
    without = clip_l.encoder().encode("a red circle", layer="last").states
    monkeypatch.setattr(clip_l.model.config, "use_attention_mask", True, raising=False)
    (expected, _) = diffusers_sd(clip_l).encode_prompt("a red circle", "cpu", 1, do_classifier_free_guidance=False)
    states = clip_l.encoder().encode("a red circle", layer="last").states
    assert torch.equal(states, expected)
    assert not torch.equal(states, without)


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_prompts_are_those_of_sdxl(clip_l, clip_g, prompt, clip_skip):
    """States of both encoders side by side and the pooled one of the second, as StableDiffusionXLPipeline has them."""
    pipeline = StableDiffusionXLPipeline(
        vae=None,
        unet=None,
        scheduler=None,
        text_encoder=clip_l.model,
        tokenizer=clip_l.tokenizer,
        text_encoder_2=clip_g.model,
        tokenizer_2=clip_g.tokenizer,
        add_watermarker=False,
    )
    expected = pipeline.encode_prompt(prompt, device="cpu", negative_prompt="grey", clip_skip=clip_skip)
    texts = encode_texts([clip_l.clip, clip_g.clip], prompt, "grey", layer="penultimate", clip_skip=clip_skip or 0)
    assert torch.equal(torch.cat([encoding.states for encoding in texts.prompt], -1), expected[0])
    assert torch.equal(torch.cat([encoding.states for encoding in texts.negative], -1), expected[1])
    assert torch.equal(texts.prompt[1].pooled, expected[2])
    assert torch.equal(texts.negative[1].pooled, expected[3])


@pytest.mark.parametrize("prompt", [*PLAIN, "a (red:1.3) BREAK [x]", "z" * 80])
def test_as_written_is_what_flux_pools(clip_l, prompt):
    """Not weighted, a text goes in with its brackets, and is cut where FluxPipeline cuts it."""
    parts = dict.fromkeys(["scheduler", "vae", "text_encoder_2", "tokenizer_2", "transformer"])
    pipeline = FluxPipeline(text_encoder=clip_l.model, tokenizer=clip_l.tokenizer, **parts)
    encoding = clip_l.clip.encode(prompt, layer="last", weighted=False)
    assert torch.equal(encoding.pooled, pipeline._get_clip_prompt_embeds(prompt, device="cpu"))
    assert encoding.num_chunks == 1


def test_what_is_cut_off_is_quoted(clip_l):
    """Not weighted, the end of a text too long is named in a warning; weighted, nothing is lost."""
    prompt = "red " * 25 + "finis"
    assert clip_l.clip.encode(prompt, layer="last").warnings == ()
    (warning,) = clip_l.clip.encode(prompt, layer="last", weighted=False).warnings
    assert warning.startswith("is too long for the model, ignored: ")
    assert "f i n i s" in warning or "finis" in warning
    assert "red red" not in warning


@pytest.mark.parametrize("prompt", MARKED)
@pytest.mark.parametrize(("layer", "clip_skip"), [("last", 0), ("last", 1), ("penultimate", 0)])
@pytest.mark.parametrize("which", ["clip_l", "clip_g"])
def test_marks_and_lengths_are_those_of_plain_loops(request, which, prompt, layer, clip_skip):
    """Weights, BREAK and chunks give what a loop over all chunks gives, for either layer and either encoder."""
    kind = request.getfixturevalue(which)
    skip = clip_skip + (layer == "penultimate")
    states, pooled = encode_plainly(kind.tokenizer, kind.model, MARKED[prompt], skip=skip, normalised=layer == "last")
    encoding = kind.clip.encode(prompt, layer=layer, clip_skip=clip_skip)
    assert encoding.states.shape == states.shape == (1, 77 * encoding.num_chunks, kind.model.config.hidden_size)
    torch.testing.assert_close(encoding.states, states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoding.pooled, pooled, rtol=1e-4, atol=1e-5)


def test_the_shorter_text_is_lengthened_by_the_empty_one(clip_l, clip_g):
    """All encodings of a unit have one number of chunks; what is added is what the empty text becomes."""
    clips = [clip_l.clip, clip_g.clip]
    for prompt, negative in [(LONG, "grey"), ("grey", LONG)]:
        texts = encode_texts(clips, prompt, negative, layer="penultimate")
        assert {encoding.num_chunks for encoding in texts.prompt + texts.negative} == {texts.num_chunks}
        for clip, short in zip(clips, texts.negative if prompt == LONG else texts.prompt, strict=True):
            grey = clip.encode("grey", layer="penultimate")
            empty = clip.encode("", layer="penultimate")
            assert torch.equal(short.states, torch.cat([grey.states, *[empty.states] * (texts.num_chunks - 1)], 1))
            assert torch.equal(short.pooled, grey.pooled)


def test_without_a_negative_prompt_there_is_none(clip_l):
    """An unguided unit pays for one text."""
    clip = clip_l.encoder()
    assert encode_texts([clip], "a", None, layer="last").negative is None
    assert clip._cache.misses == 1


def test_a_cached_encoding_has_the_bits_of_a_fresh_one(clip_l):
    """With a cache, without one, and in whatever order, an encoding is the same."""
    kept, fresh = clip_l.encoder(), clip_l.encoder(cache_bytes=0)
    for prompt in [*MARKED, *PLAIN, *reversed(MARKED)]:
        for num_chunks in (1, 3):
            first = kept.encode(prompt, layer="last", num_chunks=num_chunks)
            assert kept.encode(prompt, layer="last", num_chunks=num_chunks) is first
            other = fresh.encode(prompt, layer="last", num_chunks=num_chunks)
            assert torch.equal(first.states, other.states)
            assert torch.equal(first.pooled, other.pooled)


def test_the_cache_tells_apart_what_differs(clip_l, clip_g):
    """Text, layer, clip skip, reading, adapters and encoder: each has an entry of its own."""
    clip = clip_l.encoder()
    clip.encode("a (b)", layer="last")
    for settings in (
        {"layer": "last", "clip_skip": 1},
        {"layer": "penultimate"},
        {"layer": "last", "weighted": False},
        {"layer": "last", "adapters": ("ink", 1.0)},
    ):
        misses = clip._cache.misses
        clip.encode("a (b)", **settings)
        assert clip._cache.misses == misses + 1
    other = clip_g.encoder()
    other._cache = clip._cache
    assert other.encode("a (b)", layer="last").states.shape[-1] == 24


def test_too_many_layers_left_out_fail_the_unit(clip_l):
    """The reason names both numbers; leaving out every layer but the embeddings is allowed, as in diffusers."""
    clip_l.clip.encode("a", layer="last", clip_skip=3)
    with pytest.raises(RenderFailed, match="clip_skip 3 leaves none of the 3 layers"):
        clip_l.clip.encode("a", layer="penultimate", clip_skip=3)


def test_emphasis_keeps_the_mean_and_plain_bits():
    """Weights of 1 return the very states; others keep their mean; states without a mean are weighted and no more."""
    states = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)) + 1
    assert emphasise(states, [1.0] * 4) is states
    weighted = emphasise(states, [1.0, 1.3, 0.2, 1.0])
    torch.testing.assert_close(weighted.mean(), states.mean())
    ratio = (weighted / states).mean(-1)[0]
    torch.testing.assert_close(ratio / ratio[0], torch.tensor([1.0, 1.3, 0.2, 1.0]))
    zeros = torch.zeros(1, 4, 3)
    assert torch.equal(emphasise(zeros, [1.0, 1.3, 0.2, 1.0]), zeros)
    half = emphasise(states.half(), [1.0, 1.3, 0.2, 1.0])
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), weighted, rtol=2e-3, atol=2e-3)
