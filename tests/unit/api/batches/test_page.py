"""docs/batches.md shows what can be sent: every example of the page is a job, every template says what it tells."""

import re
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from api.batches.forms import Sent, job_asked
from api.batches.grammar import parse
from api.batches.places import told_by
from api.batches.sampling import Sampler, rng_of
from api.batches.unfolding import unfold
from api.batches.wildcards import wildcards_of
from api.problems import HttpProblem
from farm.catalog import Catalog
from farm.expand import expand
from farm.jobs import new_job_id
from farm.requests import MatrixSpec

PAGE = (Path(__file__).parents[4] / "docs" / "batches.md").read_text(encoding="utf-8")
TYPES = {
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv",
    "yaml": "application/yaml",
    "text": "text/plain",
}
EXAMPLES = re.findall(
    r"^```(\w+)(?: \?(\S+))? (?:prompts=(\d+) images=(\d+)|(refused))\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
TEMPLATES = re.findall(r"^\| `(.+?)` \| (`.*`) \|$", PAGE, re.MULTILINE)


def accepted(form, query, body):
    """Return the job that an example asks for, as far as the API goes without a ledger."""
    spec, places = job_asked(Sent(body.encode(), TYPES[form], tuple(parse_qsl(query))), max_prompts=10_000)
    with told_by(places):
        unfolded = unfold(spec, wildcards_of(None), drawn_seed=1, max_prompts=10_000, max_chars=10**7)
        return expand(
            unfolded.spec,
            Catalog().row(spec.model),
            job_id=new_job_id(),
            tenant="default",
            created_at=0,
            drawn_seed=1,
            max_prompts=10_000,
            max_images=10_000,
            grid=unfolded.grid,
        )


@pytest.mark.parametrize(
    ("form", "query", "prompts", "images", "body"),
    [(form, query, prompts, images, body) for form, query, prompts, images, refused, body in EXAMPLES if not refused],
)
def test_every_example_is_a_job(form, query, prompts, images, body):
    """What the page shows can be sent, and is as many prompts and images as it says."""
    job = accepted(form, query, body)
    assert (len(job.entries), job.header.total) == (int(prompts), int(images))


def test_the_example_of_a_mistake_is_told_as_the_page_says():
    """First what the form says, then what the model says, in the words that stand there."""
    ((form, query, _, _, _, body),) = [example for example in EXAMPLES if example[4]]
    for text in (body, body.replace("thirty", "30")):
        with pytest.raises(HttpProblem) as raised:
            accepted(form, query, text)
        assert f"    {raised.value.detail}\n" in PAGE


def test_the_page_shows_each_form_and_no_fence_without_a_test():
    """An example that is not found here is one that nobody tries."""
    assert {form for form, *_ in EXAMPLES} == set(TYPES)
    assert len(EXAMPLES) == len(re.findall(r"^```\w", PAGE, re.MULTILINE))
    assert len(TEMPLATES) >= 12


@pytest.mark.parametrize(("template", "texts"), TEMPLATES)
def test_every_template_stands_for_what_the_page_tells(template, texts):
    """The table of the grammar is true."""
    plain = template.replace(r"\|", "|") if "\\{" not in template else r"\{a\|b\}"
    made = [text.strip() for text in Sampler(wildcards_of(None)).all(parse(plain), rng_of(0))]
    assert [text.strip("`").replace(r"\|", "|") for text in texts.split(" · ")] == made


def test_the_page_names_every_axis_and_the_number_of_an_explosion():
    """Fields of a matrix stand there, and the refusal that it quotes is the one that comes."""
    for name in MatrixSpec.model_fields:
        assert f"`{name}`" in PAGE
    assert f"{5 * 2**30:,} prompts, and 10,000 are the most here" in PAGE
