"""A1111's rules for weights and long prompts once more, in plain loops over all chunks at once, to compare ours with.

Takes a prompt that a reader has already taken apart by hand: sections between BREAKs, of (text, weight).
"""

from __future__ import annotations

from typing import Any

import torch

Sections = list[list[tuple[str, float]]]


def encode_plainly(
    tokenizer: Any, model: Any, sections: Sections, *, skip: int = 0, normalised: bool = True, num_chunks: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states [1, 77 * chunks, width], `skip` layers left out, and the first chunk's pooled state."""
    rows = [[(token, weight) for text, weight in section for token in tokenizer.tokenize(text)] for section in sections]
    chunks = [chunk for row in rows for chunk in _cut(row)]
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    chunks += [[]] * (num_chunks - len(chunks))

    ids = torch.full((len(chunks), 77), tokenizer.pad_token_id)
    weights = torch.ones(len(chunks), 77)
    for number, chunk in enumerate(chunks):
        ids[number, 0] = tokenizer.bos_token_id
        for place, (token, weight) in enumerate(chunk, 1):
            ids[number, place] = tokenizer.convert_tokens_to_ids(token)
            weights[number, place] = weight
        ids[number, len(chunk) + 1] = tokenizer.eos_token_id
    output = model(ids, output_hidden_states=True)
    states = output.hidden_states[-1 - skip]
    if normalised:
        states = getattr(model, "text_model", model).final_layer_norm(states)
    for number in range(len(chunks)):
        mean = states[number].mean()
        emphasised = states[number] * weights[number][:, None]
        states[number] = emphasised * (mean / emphasised.mean())
    pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
    return states.reshape(1, -1, states.shape[-1]), pooled[:1]


def _cut(row: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """Cut after 75 tokens, or after the last comma among the 20 before unless what follows is a comma itself."""
    chunks = []
    while len(row) > 75:
        end = 75
        if row[75][0] != ",</w>":
            for place in range(55, 75):
                if row[place][0] == ",</w>":
                    end = place + 1
        chunks.append(row[:end])
        row = row[end:]
    return [*chunks, row]
