"""T5's states are those of FluxPipeline and StableDiffusion3Pipeline, bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from worker.text.cache import EmbeddingCache
from worker.text.t5 import T5Text

PROMPTS = ["", "a red circle", "a (red:1.3) circle BREAK [x]", "a b " * 40]


@pytest.fixture(scope="module")
def t5():
    """Return a tokenizer of single letters and a random encoder."""
    letters = [(sign + letter, -3.0) for sign in ("▁", "") for letter in map(chr, range(33, 127))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *letters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return tokenizer, T5EncoderModel(config).eval()


def encoder_of(t5, cache_bytes=1 << 20):
    """Return our encoder with a cache of its own."""
    tokenizer, model = t5
    return T5Text(tokenizer, model, device=torch.device("cpu"), cache=EmbeddingCache(cache_bytes))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("limit", [32, 256])
def test_states_are_those_of_flux_and_sd3(t5, prompt, limit):
    """Marks are text, padding is not hidden, and what is too long is cut at the same token."""
    tokenizer, model = t5
    parts = dict.fromkeys(["scheduler", "vae", "text_encoder", "tokenizer", "transformer"])
    flux = FluxPipeline(text_encoder_2=model, tokenizer_2=tokenizer, **parts)
    parts |= dict.fromkeys(["text_encoder_2", "tokenizer_2"])
    sd3 = StableDiffusion3Pipeline(text_encoder_3=model, tokenizer_3=tokenizer, **parts)
    states = encoder_of(t5).encode(prompt, max_sequence_length=limit).states
    for pipeline in (flux, sd3):
        settings = {"max_sequence_length": limit, "device": "cpu", "dtype": model.dtype}
        assert torch.equal(states, pipeline._get_t5_prompt_embeds(prompt, **settings))


def test_what_is_cut_off_is_quoted(t5):
    """A text that just fits is not warned of; of one that does not, the lost end is named."""
    clip = encoder_of(t5)
    assert clip.encode("a" * 31, max_sequence_length=32).warnings == ()
    (warning,) = clip.encode("a" * 31 + "xyz", max_sequence_length=32).warnings
    assert warning == "is too long for the model, ignored: 'xyz'"


def test_the_cache_tells_lengths_and_adapters_apart(t5):
    """The same text is encoded once for each length and each set of adapters."""
    text = encoder_of(t5)
    first = text.encode("a", max_sequence_length=32)
    assert text.encode("a", max_sequence_length=32) is first
    assert text.encode("a", max_sequence_length=64).states.shape == (1, 64, 16)
    assert text.encode("a", max_sequence_length=32, adapters="ink") is not first
    assert torch.equal(encoder_of(t5, 0).encode("a", max_sequence_length=32).states, first.states)
