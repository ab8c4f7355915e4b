"""Small CLIPs with random weights, of the kinds that the families have."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from worker.text.cache import EmbeddingCache
from worker.text.clip import ClipText


def random_clip(cls, vocab_size, *, width=16, seed=0):
    """Return a text model of three layers whose states have a mean: that of a fresh LayerNorm is nothing but noise."""
    torch.manual_seed(seed)
    model = cls(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model.eval()


class Kind:
    """A tokenizer, a model, and our encoder of both."""

    def __init__(self, tokenizer, model, part="clip_l"):
        self.tokenizer = tokenizer
        self.model = model
        self.part = part
        self.clip = self.encoder()

    def encoder(self, *, cache_bytes=1 << 20, inversions=None):
        """Return a ClipText with a cache of its own."""
        return ClipText(
            self.tokenizer,
            self.model,
            device=torch.device("cpu"),
            cache=EmbeddingCache(cache_bytes),
            part=self.part,
            inversions=inversions,
        )


@pytest.fixture(scope="session")
def clip_l(tiny_folder):
    """Return the encoder of SD 1.x, the first of SDXL: it pads with its last token."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")
    return Kind(tokenizer, random_clip(CLIPTextModel, len(tokenizer)))


@pytest.fixture(scope="session")
def clip_g(tiny_folder):
    """Return the second encoder of SDXL: wider, with a projection, padded with another token."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer", pad_token="!")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    model = random_clip(CLIPTextModelWithProjection, len(tokenizer), width=24, seed=1)
    return Kind(tokenizer, model, "clip_g")


@pytest.fixture(autouse=True)
def _inference():
    """Compute as the engine does."""
    with torch.inference_mode():
        yield
