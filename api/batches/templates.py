"""The prompts that a job's templates stand for, each with its texts and its seed.

What a template may say is in api.batches.grammar, what texts it makes in api.batches.sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from api.batches.grammar import Node, Text, is_template, parse
from api.batches.sampling import CEILING, Sampler, rng_of
from api.batches.wildcards import Wildcards
from farm.errors import Refused
from farm.requests import JobSpec, PromptSpec, TemplateSpec

_MAX_MARKS: Final = {"{|": 200_000, "}_$\\<": 1_000_000}
"""Characters of a job's templates that are looked at one by one; those of the first kind make nodes of a tree."""


@dataclass(frozen=True, slots=True)
class _Template:
    """A prompt of the client's, with the trees of its texts where there is anything to choose."""

    prompt: PromptSpec
    place: int
    field: str
    negative_field: str
    text: Node
    negative: Node | None  # None: nothing in it is to be chosen

    @property
    def is_plain(self) -> bool:
        """Whether it stands for itself."""
        return self.negative is None and isinstance(self.text, Text)


def templated(
    spec: JobSpec, wildcards: Wildcards, *, job_seed: int, max_prompts: int
) -> Iterator[tuple[int, PromptSpec]]:
    """Yield what each prompt of a job stands for, with the place of that prompt.

    Raises Refused with field and value for what is no template, and, before anything is made, with the number of
    prompts where that is beyond `max_prompts`.
    """
    ask = spec.template
    sampler = Sampler(wildcards)
    _check_marks(spec)
    # A negative prompt is mostly that of all prompts, and read once.
    trees: dict[str, Node] = {}
    templates = [_template_of(spec, place, trees) for place in range(len(spec.prompts))]
    numbers = [1 if each.is_plain else _num_prompts(each, ask, sampler) for each in templates]
    if (total := sum(numbers)) > max_prompts:
        raise Refused(
            f"the templates stand for {'more than ' if total >= CEILING else ''}{min(total, CEILING):,} prompts, and "
            f"{max_prompts:,} are the most here; lower template.num_prompts, or draw some with mode random",
            field="template",
            value=min(total, CEILING),
            choices=[f"1 to {max_prompts}"],
        )
    for template, number in zip(templates, numbers, strict=True):
        if template.is_plain:
            made = iter([template.prompt])
        elif ask.mode == "random":
            made = _drawn(template, ask, sampler, number=number, job_seed=job_seed, spec=spec)
        else:
            made = _combined(template, sampler, number=number, job_seed=job_seed)
        for prompt in made:
            yield template.place, prompt


def _check_marks(spec: JobSpec) -> None:
    """Refuse templates so full of marks that reading them would take seconds and a part of memory that tells."""
    own = (each for each in spec.prompts if isinstance(each, PromptSpec))
    texts = {each if isinstance(each, str) else each.prompt for each in spec.prompts}
    texts |= {spec.negative_prompt, *(each.negative_prompt or "" for each in own)}
    for marks, most in _MAX_MARKS.items():
        if (number := sum(text.count(mark) for text in texts if is_template(text) for mark in marks)) > most:
            told = " ".join(marks)
            raise Refused(
                f"the templates have {number:,} of the marks {told}, and {most:,} are the most; split the batch",
                field="prompts",
                value=number,
                choices=[f"0 to {most}"],
            )


def _template_of(spec: JobSpec, place: int, trees: dict[str, Node]) -> _Template:
    given = spec.prompts[place]
    own = given if isinstance(given, PromptSpec) else PromptSpec.model_construct(prompt=given)
    field = f"prompts.{place}.prompt" if isinstance(given, PromptSpec) else f"prompts.{place}"
    has_own = own.negative_prompt is not None
    negative_text = own.negative_prompt if own.negative_prompt is not None else spec.negative_prompt
    negative_field = f"prompts.{place}.negative_prompt" if has_own else "negative_prompt"
    for name, text in ((field, own.prompt), (negative_field, negative_text)):
        if text not in trees:
            with _placed(name):
                trees[text] = parse(text) if is_template(text) else Text(text)
    negative = trees[negative_text] if is_template(negative_text) else None
    return _Template(own, place, field, negative_field, trees[own.prompt], negative)


def _num_prompts(template: _Template, ask: TemplateSpec, sampler: Sampler) -> int:
    if ask.mode == "random":
        return ask.num_prompts or 1
    with _placed(template.field):
        number = sampler.count(template.text)
    if template.negative is not None:
        with _placed(template.negative_field):
            number *= sampler.count(template.negative)
    return number if ask.num_prompts is None else min(number, ask.num_prompts)


def _drawn(
    template: _Template, ask: TemplateSpec, sampler: Sampler, *, number: int, job_seed: int, spec: JobSpec
) -> Iterator[PromptSpec]:
    """Yield prompts drawn by chance; their images' seeds count on, so that one drawn twice gives other images."""
    own = template.prompt
    first_seed = job_seed if own.seed is None or own.seed == -1 else own.seed
    num_images = own.num_images_per_prompt or spec.num_images_per_prompt
    for turn in range(number):
        rng = rng_of(job_seed if ask.seed is None else ask.seed, template.place, turn)
        with _placed(template.field):
            text = sampler.draw(template.text, rng)
        negative = None
        if template.negative is not None:
            with _placed(template.negative_field):
                negative = sampler.draw(template.negative, rng)
        yield _with_texts(template, text, negative, seed=first_seed + turn * num_images)


def _combined(template: _Template, sampler: Sampler, *, number: int, job_seed: int) -> Iterator[PromptSpec]:
    """Yield all that a template can say, once each and up to a number; the negative prompt varies faster."""
    rng = rng_of(job_seed, template.place)
    made: dict[tuple[str, str | None], None] = {}
    with _placed(template.field):
        for text in sampler.all(template.text, rng):
            negatives = iter([None]) if template.negative is None else sampler.all(template.negative, rng)
            for negative in negatives:
                if (text, negative) not in made:
                    made[text, negative] = None
                    yield _with_texts(template, text, negative)
                if len(made) == number:
                    return


def _with_texts(template: _Template, text: str, negative: str | None, *, seed: int | None = None) -> PromptSpec:
    if not text.strip():
        raise Refused("the template makes a text without words", field=template.field, value=template.prompt.prompt)
    changes: dict[str, object] = {"prompt": text.strip()}
    if negative is not None:
        changes["negative_prompt"] = negative.strip()
    if seed is not None:
        changes["seed"] = seed
    return template.prompt.model_copy(update=changes)


@contextmanager
def _placed(field: str) -> Iterator[None]:
    """Name the field in what is refused without one."""
    try:
        yield
    except Refused as error:
        if error.field is not None:
            raise
        raise Refused(str(error), field=field, value=error.value, choices=error.choices) from error
