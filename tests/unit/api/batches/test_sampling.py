"""Templates: what they say, how many texts they stand for, and that none of them keeps anybody busy for long."""

import logging
from contextlib import suppress
from itertools import islice, pairwise

import pytest
from dynamicprompts.generators import CombinatorialPromptGenerator
from dynamicprompts.wildcards import WildcardManager
from hypothesis import given, reject
from hypothesis import strategies as st

from api.batches.grammar import MAX_DEPTH, is_template, parse
from api.batches.sampling import CEILING, MAX_CHARS, MAX_NESTED, Sampler, rng_of
from api.batches.wildcards import Wildcards
from farm.errors import Refused

LINES = {"colour": ["red", "blue", "green"], "pair": ["__colour__ and __colour__", "{two|both}"], "one": ["alone"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of wildcards."""
    folder = tmp_path_factory.mktemp("wildcards")
    for name, lines in LINES.items():
        (folder / f"{name}.txt").write_text("\n".join(["# a comment", *lines, ""]), encoding="utf-8")
    return folder


def texts_of(template, folder=None, *, seed=0):
    """Return all that a template stands for, as it counts itself."""
    sampler = Sampler(Wildcards([folder] if folder else []))
    tree = parse(template)
    texts = list(sampler.all(tree, rng_of(seed)))
    assert sampler.count(tree) == len(texts)
    return texts


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("plain", ["plain"]),
        ("a {red|blue} car", ["a red car", "a blue car"]),
        ("{a|b}{1|2}", ["a1", "a2", "b1", "b2"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{1-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{-1$$a|b}", ["a", "b"]),
        ("{2-$$a|b}", ["a,b", "b,a"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{0.5::a|2::b}", ["a", "b"]),
        ("{a|a|b}", ["a", "b"]),
        ("{a|{b|c}} d", ["a d", "b d", "c d"]),
        ("{|very }big", ["big", "verybig"]),
        ("${x={a|b}}${x}${x}", ["aa", "ab", "ba", "bb"]),
        ("${x=!{a|b}}${x}${x}", ["aa", "bb"]),
        ("${x=a}${x?=b}${x}", ["a"]),
        ("${x:b}", ["b"]),
        ("__colour__!", ["red!", "blue!", "green!"]),
        ("{2$$ $$__one__|x}", ["alone x", "x alone"]),
        ("{2$$__colour__}", ["red,blue", "red,green", "blue,red", "blue,green", "green,red", "green,blue"]),
        ("__*o*__", ["red", "blue", "green", "alone"]),
    ],
)
def test_what_a_template_stands_for(template, texts, folder):
    """Every form of the grammar gives the texts that users of it expect, in order, and as many as are counted."""
    assert texts_of(template, folder) == texts


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.2) [deep] ((fox)) <lora:my__own__style:0.8>",
        "50% off, $5 // not a comment # nor this",
        "a } b ] c | d",
        "snake_case and __init",
        "[cat|dog] AND (bird:1.1)",
    ],
)
def test_what_other_grammars_say_is_left_alone(text):
    """Weights, LoRA tags and stray marks come through as they are."""
    assert texts_of(text) == [text]


def test_a_lora_tag_may_have_a_choice_within_and_a_backslash_makes_a_mark_a_letter():
    """Users vary the weight of a LoRA by a template; what should be shown is escaped."""
    assert texts_of("<lora:ink:{0.5|1}>") == ["<lora:ink:0.5>", "<lora:ink:1>"]
    assert texts_of(r"\{a\|b\} \$\{x\} \_\_y\_\_ C:\dir") == [r"{a|b} ${x} __y__ C:\dir"]


WORDS = st.sampled_from(["red", "blue", "fog", "a b", "x"])


def _choice(inner):
    option = st.tuples(st.sampled_from(["", "", "0.5::", "2::"]), inner).map("".join)
    bounds = st.sampled_from(["", "", "1$$", "2$$", "1-2$$", "2$$ and $$", "2-$$"])
    options = st.lists(option, min_size=1, max_size=3).map("|".join)
    return st.tuples(bounds, options).map(lambda parts: "{" + "".join(parts) + "}")


TEMPLATES = st.recursive(
    WORDS, lambda inner: st.lists(inner, min_size=1, max_size=2).map(" ".join) | _choice(inner), max_leaves=6
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the library calls old names of another
@given(TEMPLATES)
def test_the_texts_are_those_of_the_library_whose_grammar_it_is(template):
    """Whatever is written in the grammar, dynamicprompts and we make the same set of texts of it.

    Blanks at the edges of options and within a text aside: there they are kept on one side and cut on the other.
    """
    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)
    try:
        theirs = CombinatorialPromptGenerator(wildcard_manager=WildcardManager()).generate(template, 5_000)
    except RuntimeError:  # where a selection has nothing to select, the library breaks
        reject()
    ours = list(Sampler(Wildcards([])).all(parse(template), rng_of(0)))
    # They leave out selections in which two options happen to say the same.
    assert {" ".join(text.split()) for text in theirs} <= {" ".join(text.split()) for text in ours}
    if "$$" not in template:
        assert {" ".join(text.split()) for text in theirs} == {" ".join(text.split()) for text in ours}


@given(TEMPLATES)
def test_it_counts_what_it_makes_and_draws_only_that(template):
    """The count is that of the texts made, and each draw is one of them."""
    sampler, tree = Sampler(Wildcards([])), parse(template)
    made = list(sampler.all(tree, rng_of(0)))
    assert sampler.count(tree) == len(made)
    for turn in range(5):
        assert sampler.draw(tree, rng_of(1, turn)) in made


def test_what_is_drawn_depends_on_the_seed_and_the_place_alone(folder):
    """The same seed draws the same, another sampler and other draws in between change nothing."""
    tree = parse("a {red|blue|green} {2$$x|y|z} __pair__")
    first = [Sampler(Wildcards([folder])).draw(tree, rng_of(7, turn)) for turn in range(20)]
    sampler = Sampler(Wildcards([folder]))
    assert [sampler.draw(tree, rng_of(7, turn)) for turn in reversed(range(20))] == first[::-1]
    assert len(set(first)) > 10


def test_weights_decide_how_often_an_option_is_drawn():
    """An option of weight 9 comes about nine times as often as one of weight 1, one of weight 0 never."""
    sampler, tree = Sampler(Wildcards([])), parse("{9::often|1::seldom|0::never}")
    drawn = [sampler.draw(tree, rng_of(3, turn)) for turn in range(1_000)]
    assert 850 < drawn.count("often") < 950
    assert "never" not in drawn


def test_a_sampler_of_its_own_holds_whatever_the_mode():
    """`~` is drawn and `@` goes round, among all that the rest of a template can say."""
    assert texts_of("{@a|b|c}{1|2|3|4}") == ["a1", "a2", "a3", "a4"]
    drawn = [Sampler(Wildcards([])).draw(parse("{@a|b}"), rng_of(0)) for _ in range(3)]
    assert drawn == ["a", "a", "a"]
    sampler, tree = Sampler(Wildcards([])), parse("{@a|b}")
    assert [sampler.draw(tree, rng_of(turn)) for turn in range(4)] == ["a", "b", "a", "b"]
    assert len(texts_of("{~a|b}{1|2}")) == 2


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{a|b", "never closed"),
        ("a {b {c|d}", "never closed"),
        ("${x", "never closed"),
        ("${1=a}", "names no variable"),
        ("${x}", "set nowhere"),
        ("${x=${x}}${x}", "within itself"),
        ("__nowhere__", "no wildcard 'nowhere'"),
        ("__colours__", "did you mean colour"),
        ("{" * (MAX_DEPTH + 1) + "a" + "}" * (MAX_DEPTH + 1), "braces deep"),
        ("%{a$$b}", "wrap"),
        ("${x=" + "a" * 5_000 + "}${x}${x}", "8,000 characters"),
    ],
)
def test_what_is_no_template_is_refused_with_its_reason(template, reason, folder):
    """The client learns what is wrong and where."""
    sampler = Sampler(Wildcards([folder]))
    with pytest.raises(Refused, match=reason):
        list(sampler.all(parse(template), rng_of(0)))
    with pytest.raises(Refused, match=reason):
        sampler.draw(parse(template), rng_of(0))


def test_wildcards_that_lead_in_a_circle_are_refused(tmp_path):
    """A file that names itself, by another or not, is told with the way it went."""
    (tmp_path / "a.txt").write_text("x __b__")
    (tmp_path / "b.txt").write_text("__a__ y")
    for work in (Sampler.count, lambda sampler, tree: sampler.draw(tree, rng_of(0))):
        with pytest.raises(Refused, match="__a__ → __b__ → __a__"):
            work(Sampler(Wildcards([tmp_path])), parse("__a__"))
    for number in range(MAX_NESTED + 1):
        (tmp_path / f"n{number}.txt").write_text(f"__n{number + 1}__")
    with pytest.raises(Refused, match="names deep"):
        Sampler(Wildcards([tmp_path])).count(parse("__n0__"))


@pytest.mark.parametrize(
    "template",
    [
        "{a|b}" * 1_500,
        "{9$$" + "|".join(map(str, range(1_000))) + "}",
        "{300-900$$" + "|".join(map(str, range(1_000))) + "}",
        "{1-1000$$" + "|".join(map(str, range(1_000))) + "}",
        "${a={0|1|2|3|4|5|6|7|8|9}}" + "${a}" * 1_500,
    ],
)
def test_an_explosion_is_counted_and_begun_without_being_made(template):
    """Of what nobody could ever render, the number is known at once, and the first texts can be had."""
    sampler, tree = Sampler(Wildcards([])), parse(template)
    assert sampler.count(tree) == CEILING
    assert len(list(islice(sampler.all(tree, rng_of(0)), 3))) == 3
    assert len(sampler.draw(tree, rng_of(0))) <= MAX_CHARS


@pytest.mark.parametrize(
    "work",
    [
        Sampler.count,
        lambda sampler, tree: list(sampler.all(tree, rng_of(0))),
        lambda sampler, tree: sampler.draw(tree, rng_of(0)),
    ],
)
def test_work_that_multiplies_ends_with_the_budget(work):
    """Variables within variables, many times each, are refused when the budget is spent, not when they are done."""
    sets = "".join(f"${{{name}={('${' + inner + '}') * 150}}}" for name, inner in pairwise("abcdefg"))
    tree = parse(f"{sets}${{g=}}${{a}}")
    sampler = Sampler(Wildcards([]), max_steps=20_000)
    with pytest.raises(Refused, match="too long to work out"):
        work(sampler, tree)


MARKS = st.lists(
    st.sampled_from([*"{}|ax=!:?2-~@\\*>%,é \n", "$$", "${", "::", "__", "0.5", "colour", "pair", "<lora:"]),
    max_size=60,
).map("".join)


@given(MARKS)
def test_any_text_is_a_template_or_told_what_is_wrong(text):
    """Whatever marks follow each other: texts, or Refused; in bounded time, and nothing else."""
    sampler = Sampler(Wildcards([]), max_steps=20_000)
    with suppress(Refused):
        tree = parse(text)
        assert 0 <= sampler.count(tree) <= CEILING
        list(islice(sampler.all(tree, rng_of(0)), 50))
        sampler.draw(tree, rng_of(0))


@pytest.mark.parametrize(
    "text",
    ["{" * 8_000, "}" * 8_000, "_" * 8_000, "{a|" * 2_600, "${a=" * 2_000, "<lora:" * 1_300],
)
def test_long_nonsense_is_read_or_refused(text):
    """No mark makes reading slower than the text is long: a regular expression that goes back and forth would hang."""
    for _ in range(20):
        with suppress(Refused):
            parse(text)


def test_only_what_has_a_mark_is_looked_at():
    """A prompt without braces and wildcards is no template, whatever else is in it."""
    assert not is_template("a (b:1.2), [c|d] <lora:e:1> snake_case")
    assert all(map(is_template, ("{a}", "${a}", "__a__")))
