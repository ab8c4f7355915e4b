"""Tests of the tokenizer: known words are one token, unknown words are spelt and never lost."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from training.scenes.settings import Settings
from training.scenes.text import build_tokenizer, tokenize
from training.scenes.words import known_words


def test_every_known_word_is_one_token() -> None:
    """A colour or a kind reaches the model whole."""
    tokenizer = build_tokenizer(Settings())
    assert [word for word in known_words() if len(tokenizer.tokenize(word)) != 1] == []


def test_unknown_words_are_spelt() -> None:
    """Words of any script become known pieces, never the unknown token."""
    tokenizer = build_tokenizer(Settings())
    for word in ("unprecedented", "Überraschung", "猫", "🦊"):
        pieces = tokenizer(word).input_ids[1:-1]
        assert pieces
        assert tokenizer.unk_token_id not in pieces


def test_captions_are_padded_to_the_length_of_sd_1_5() -> None:
    """Every caption has 77 tokens, as long ones are cut."""
    ids = tokenize(build_tokenizer(Settings()), ["a red heart", "star " * 200])
    assert tuple(ids.shape) == (2, 77)
