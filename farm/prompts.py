"""What a prompt says beside its words: `<lora:name:weight>` tags. Pure; the grammar of weights is worker/text's."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from farm.errors import Refused

LORA_NAME: Final = re.compile(r"^\w[\w .+-]*(/\w[\w .+-]*)*$")
"""Letters, digits, blanks and `_ . + -`, in folders or not; no part begins with a dot, so none leads outside."""

MAX_LORA_WEIGHT: Final = 10.0
"""Beyond this, either way, a weight is a slip of the pen."""

_TAG: Final = re.compile(r"<(?:lora|lyco):(?P<content>[^<>]*)(?P<end>>?)", re.IGNORECASE)
_WEIGHT: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_FORM: Final = "<lora:name:weight>"


class Lora(NamedTuple):
    """One LoRA and how strongly it acts."""

    name: str
    weight: float = 1.0


def extract_loras(prompt: str, *, field_name: str = "prompt") -> tuple[str, tuple[Lora, ...]]:
    """Return `prompt` without its LoRA tags, and what they name, in order of first mention.

    `<lora:name:0.8>`; the weight is 1 when left out, and `lyco` is another word for `lora`. Weights of one name add up.
    Where a tag stood one blank remains; a prompt without tags comes back as it is. Raises Refused, quoting the tag,
    when one is malformed; `field_name` is the prompt's place in the job.
    """
    weights: dict[str, float] = {}
    words = []
    end = 0
    for match in _TAG.finditer(prompt):
        lora = _read_tag(match, field_name)
        weights[lora.name] = weights.get(lora.name, 0.0) + lora.weight
        words.append(prompt[end : match.start()].strip())
        end = match.end()
    if not words:
        return prompt, ()
    words.append(prompt[end:].strip())
    # Sums of decimals: 0.1 + 0.2 is 0.3 to everybody but a computer.
    return " ".join(filter(None, words)), tuple(Lora(name, round(weight, 9)) for name, weight in weights.items())


def _read_tag(match: re.Match[str], field_name: str) -> Lora:
    """Read one tag; two weights, of text encoder and denoiser, are taken if they are the same."""
    tag = match.group()

    def refuse(reason: str) -> Refused:
        return Refused(f"{tag!r} {reason}; write {_FORM}", field=field_name, value=tag, choices=[_FORM])

    if not match["end"]:
        raise refuse("has no end")
    name, *weights = (part.strip() for part in match["content"].split(":"))
    if not LORA_NAME.fullmatch(name):
        raise refuse("names no LoRA: letters, digits, blanks, _ . + - and / are what a name is made of")
    if any(not _WEIGHT.fullmatch(weight) or abs(float(weight)) > MAX_LORA_WEIGHT for weight in weights):
        raise refuse(f"has a weight that is no number from -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}")
    if len({float(weight) for weight in weights}) > 1:
        raise refuse("has weights that differ: one weight holds for text encoder and denoiser")
    return Lora(name, float(weights[0]) if weights else 1.0)
