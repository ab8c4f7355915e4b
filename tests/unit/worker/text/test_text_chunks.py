"""Where a prompt is cut, against a plain loop over rows of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.text.chunks import Token, Vocabulary, cut, truncate

COMMA = 7
BOS, EOS, PAD = 97, 98, 99
CLIP = Vocabulary(bos=BOS, eos=EOS, pad=PAD, comma=COMMA, length=77)

IDS = st.lists(st.sampled_from([COMMA, *range(10, 40)]), max_size=260)


def in_groups_of_one(ids):
    """Return tokens of text."""
    return [(Token(number, 1 + number / 100),) for number in ids]


def by_a_plain_loop(rows):
    """Cut each row after 75, or after its last comma among the 20 before, unless what follows is a comma itself."""
    chunks = []
    for row in rows:
        rest = list(row)
        while len(rest) > 75:
            end = 75
            commas = [place for place in range(55, 75) if rest[place] == COMMA]
            if commas and rest[75] != COMMA:
                end = commas[-1] + 1
            chunks.append(rest[:end])
            rest = rest[end:]
        chunks.append(rest)
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    return chunks


@given(st.lists(IDS, min_size=1, max_size=4))
def test_chunks_are_those_of_a_plain_loop(rows):
    """Every chunk is beginning, tokens, end and padding, 77 in all; weights and mask go along."""
    chunks = cut([in_groups_of_one(row) for row in rows], CLIP)
    expected = by_a_plain_loop(rows)
    assert [chunk.ids for chunk in chunks] == [[BOS, *ids, EOS, *[PAD] * (75 - len(ids))] for ids in expected]
    for chunk, ids in zip(chunks, expected, strict=True):
        assert chunk.weights == [1, *(1 + number / 100 for number in ids), 1, *[1] * (75 - len(ids))]
        assert chunk.mask == [1] * (len(ids) + 2) + [0] * (75 - len(ids))
        assert chunk.vectors == {}


@pytest.mark.parametrize(("comma_at", "first_chunk"), [(54, 75), (55, 56), (74, 75)])
def test_a_chunk_goes_back_to_a_comma_among_its_last_twenty(comma_at, first_chunk):
    """The twentieth token from the end still counts, the one before it does not."""
    ids = [10] * comma_at + [COMMA] + [10] * (99 - comma_at)
    first, second = cut([in_groups_of_one(ids)], CLIP)
    assert (sum(first.mask), sum(second.mask)) == (first_chunk + 2, 100 - first_chunk + 2)


@given(st.lists(st.one_of(st.just(None), st.integers(1, 75)), max_size=40))
def test_vectors_of_one_embedding_stay_together(sizes):
    """A group of vectors is never torn apart, loses none, and stands where its chunk says."""
    groups = [
        (Token(10),) if size is None else tuple(Token(BOS, 1.0, (number, place)) for place in range(size))
        for number, size in enumerate(sizes)
    ]
    found = []
    for chunk in cut([groups], CLIP):
        assert len(chunk.ids) == 77
        for place, vector in chunk.vectors.items():
            assert chunk.ids[place] == BOS
            found.append((vector, id(chunk), place))
    assert [vector for vector, _, _ in found] == [token.vector for group in groups for token in group if token.vector]
    for (one, chunk, place), (other, next_chunk, next_place) in pairwise(found):
        if one[0] == other[0]:
            assert (next_chunk, next_place) == (chunk, place + 1)


def test_without_a_comma_in_the_vocabulary_chunks_are_full():
    """A tokenizer that knows no comma has nothing to fall back to."""
    ids = [10] * 70 + [COMMA] + [10] * 30
    first, second = cut([in_groups_of_one(ids)], CLIP._replace(comma=None))
    assert first.mask == [1] * 77
    assert second.mask == [1] * 28 + [0] * 49


@given(IDS)
def test_truncation_keeps_the_first_75(ids):
    """One chunk, its beginning and end in place, and what did not fit."""
    tokens = [Token(number) for number in ids]
    chunk, lost = truncate(tokens, CLIP)
    assert chunk.ids == [BOS, *ids[:75], EOS, *[PAD] * (75 - len(ids))]
    assert [token.id for token in lost] == ids[75:]
