"""LoRA tags come out of a prompt, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import Refused
from farm.prompts import LORA_NAME, Lora, extract_loras

LETTERS = "aZ_9é漢"
PARTS = st.tuples(st.text(LETTERS, min_size=1, max_size=3), st.text(f"{LETTERS} .+-", max_size=5)).map("".join)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join).map(str.strip).filter(LORA_NAME.fullmatch)
WEIGHTS = st.integers(-999, 999).map(lambda hundredths: hundredths / 100)
WORDS = st.text("abc ,.:()[]<>\n", max_size=12).filter(lambda text: "<" not in text)


@pytest.mark.parametrize(
    ("prompt", "words", "loras"),
    [
        ("a cat <lora:ink:0.8>", "a cat", [("ink", 0.8)]),
        ("<lora:ink>a cat", "a cat", [("ink", 1.0)]),
        ("a <lora:ink:.5> cat", "a cat", [("ink", 0.5)]),
        ("a cat<lyco:styles/ink v1.2:-1>, red", "a cat , red", [("styles/ink v1.2", -1.0)]),
        ("a <LoRA:ink:1><lora:wash:+2.> cat", "a cat", [("ink", 1.0), ("wash", 2.0)]),
        ("<lora: ink\n: 0.7 : 0.70 >", "", [("ink", 0.7)]),
        ("<lora:ink:0.1> x <lora:wash> <lora:ink:0.2>", "x", [("ink", 0.3), ("wash", 1.0)]),
        ("<lora:ink:1> x <lora:ink:-1>", "x", [("ink", 0.0)]),
    ],
)
def test_tags_name_loras(prompt, words, loras):
    """Each form that A1111 users write is understood, in order of first mention; weights of one name add up."""
    assert extract_loras(prompt) == (words, tuple(Lora(*lora) for lora in loras))


@pytest.mark.parametrize(
    "prompt", ["", "a  cat ", "a < b > c", "<lor:x:1>", "<flora:x>", "lora:x:1", "<cat-toy> (x:1.2)"]
)
def test_a_prompt_without_tags_is_left_alone(prompt):
    """Not even blanks change where there is no tag."""
    assert extract_loras(prompt) == (prompt, ())


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<lora:>", "names no LoRA"),
        ("<lora::1>", "names no LoRA"),
        ("<lora:../secret:1>", "names no LoRA"),
        ("<lora:a/../b>", "names no LoRA"),
        ("<lora:/etc/passwd>", "names no LoRA"),
        ("<lora:.hidden>", "names no LoRA"),
        ("<lora:a\\b>", "names no LoRA"),
        ("<lora:a//b>", "names no LoRA"),
        ("<lora:ink:>", "weight"),
        ("<lora:ink:strong>", "weight"),
        ("<lora:ink:nan>", "weight"),
        ("<lora:ink:1e9>", "weight"),
        ("<lora:ink:10.1>", "no number from -10 to 10"),
        ("<lora:ink:1:te=0.5>", "weight"),
        ("<lora:ink:0.5:0.7>", "weights that differ"),
        ("<lora:ink:0.5", "has no end"),
        ("<lora:ink <lora:wash>", "has no end"),
    ],
)
def test_a_malformed_tag_is_refused(tag, reason):
    """The refusal quotes the tag, names its place, says what is wrong, and shows the form."""
    with pytest.raises(Refused, match=reason) as refusal:
        extract_loras(f"a cat {tag}", field_name="prompts.3.prompt")
    assert refusal.value.field == "prompts.3.prompt"
    assert tag.startswith(refusal.value.value)
    assert refusal.value.choices == ["<lora:name:weight>"]


@given(st.text(), st.text("<>lorayc:/.019- \n", max_size=200))
def test_any_text_is_read_or_refused(prompt, tags):
    """Whatever stands there, the answer is words and LoRAs that are safe to look up, or a refusal."""
    for text in (prompt, tags, prompt + tags):
        try:
            words, loras = extract_loras(text)
        except Refused:
            continue
        assert "<lora:" not in words.lower()
        assert all(LORA_NAME.fullmatch(lora.name) and ".." not in lora.name.split("/") for lora in loras)


@given(st.lists(st.tuples(WORDS, NAMES, WEIGHTS), max_size=6), WORDS)
def test_words_and_tags_come_apart_again(parts, last):
    """Of words and tags in any order the words remain in order, and every name with the sum of its weights."""
    prompt = "".join(f"{words}<lora:{name}:{weight}>" for words, name, weight in parts) + last
    words, loras = extract_loras(prompt)
    assert words.split() == " ".join([*(words for words, _, _ in parts), last]).split()
    expected = {}
    for _, name, weight in parts:
        expected[name] = expected.get(name, 0.0) + weight
    assert {lora.name: lora.weight for lora in loras} == pytest.approx(expected)
    assert [lora.name for lora in loras] == list(expected)


def test_a_long_row_of_half_tags_is_read_at_once():
    """Eight thousand characters of beginnings cost no more than a look: no pattern goes back and forth."""
    with pytest.raises(Refused, match="has no end"):
        extract_loras("<lora:" + "a " * 4000)
    assert extract_loras("<lora" * 1600) == ("<lora" * 1600, ())
