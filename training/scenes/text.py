"""Owns the words' side of the model: the tokenizer, and the text encoder's first lessons.

The text encoder learns to read before it meets a picture: at each thing's name it must know that thing's colour,
size and place, and at the end of the caption the whole scene. The heads that ask this are thrown away; what stays
is a `CLIPTextModel` whose states bind each colour to its thing, which two cores would take hours to learn from
pictures alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.scenes.clock import Clock
from training.scenes.settings import Settings
from training.scenes.vae import save_state
from training.scenes.words import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    COLOURS,
    FILLERS,
    KIND_WORDS,
    KINDS,
    SIZES,
    Caption,
    Scene,
    Thing,
    filler_word,
    known_words,
    noisy_caption,
    sample_scene,
)

_IGNORE = -100
_THING = {"kind": len(KINDS), "colour": len(COLOURS), "size": len(SIZES), "across": 3, "down": 3}
_SLOT = {"kind": len(KINDS) + 1, "colour": len(COLOURS), "size": len(SIZES), "across": 3, "down": 3}
_WHOLE = {"background": len(BACKGROUNDS)} | {f"{slot} {name}": size for slot in (0, 1) for name, size in _SLOT.items()}


def build_tokenizer(settings: Settings) -> CLIPTokenizer:
    """Build a tokenizer that knows each word of the vocabulary as one token, and spells what it does not know."""
    rng = random.Random(settings.seed)
    corpus = [*known_words()] * 1000 + [*FILLERS] * 60 + [filler_word(rng) for _ in range(8000)]
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = WhitespaceSplit()
    bytes_known = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=settings.vocabulary,
        end_of_word_suffix="</w>",
        initial_alphabet=bytes_known,
        show_progress=False,
        min_frequency=2,
    )
    learner.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*bytes_known, *(f"{byte}</w>" for byte in bytes_known), *dict.fromkeys(one + two for one, two in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=merges,
        model_max_length=settings.text_tokens,
    )


def build_text(settings: Settings, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build an untrained text encoder for the tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            projection_dim=settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_heads,
            max_position_embeddings=settings.text_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Turn captions into token numbers, padded to the model's length, [captions, tokens]."""
    found = tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt", max_length=tokenizer.model_max_length
    )
    ids: torch.Tensor = found.input_ids
    return ids


def train_text(settings: Settings) -> None:
    """Teach a text encoder to read scenes for the settings' minutes, going on from the last checkpoint."""
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings)
    text = build_text(settings, tokenizer)
    heads = torch.nn.ModuleDict(
        {
            "thing": torch.nn.Linear(settings.text_width, sum(_THING.values())),
            "whole": torch.nn.Linear(settings.text_width, sum(_WHOLE.values())),
        }
    )
    parameters = [*text.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.text_lr, weight_decay=0.01)
    path, step, spent_s = settings.work / "text.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        text.load_state_dict(state["text"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent_s = int(state["step"]), float(state["spent_s"])
    clock = Clock(settings.text_minutes, spent_s=spent_s)
    rng = random.Random(settings.seed + step)
    while not clock.is_over:
        for group in optimizer.param_groups:
            group["lr"] = clock.rate(settings.text_lr, step=step, warmup_steps=60)
        loss, right = _lesson(text, heads, tokenizer, rng, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            clock.say("text", step, loss=loss.item(), **right)
        if clock.is_time_to("save", settings.checkpoint_every_s) or clock.is_over:
            states = {"text": text.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(path, {**states, "step": step, "spent_s": clock.spent_s})
    with torch.no_grad():
        _, right = _lesson(text, heads, tokenizer, random.Random(9), settings, held_out=True)
    print("text on held-out combinations:", {name: round(share, 4) for name, share in right.items()}, flush=True)


def load_text(settings: Settings) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Load the tokenizer and the text encoder that has learnt to read."""
    tokenizer = build_tokenizer(settings)
    text = build_text(settings, tokenizer)
    text.load_state_dict(torch.load(settings.work / "text.pt", weights_only=True)["text"])
    return tokenizer, text


def _lesson(
    text: CLIPTextModel,
    heads: torch.nn.ModuleDict,
    tokenizer: CLIPTokenizer,
    rng: random.Random,
    settings: Settings,
    *,
    held_out: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Ask about one batch of captions; returns the loss and the share of right answers by question."""
    scenes = [sample_scene(rng, held_out=held_out) for _ in range(settings.text_batch)]
    captions = [noisy_caption(rng, scene) for scene in scenes]
    ids = tokenize(tokenizer, [caption.text for caption in captions])
    ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
    length = settings.text_tokens if rng.random() < 0.25 else min(settings.text_tokens, int(ends.max()) + 2)
    states = text(ids[:, :length]).last_hidden_state  # [captions, tokens, width]
    noun_ids = torch.tensor(
        [tokenizer.convert_tokens_to_ids(f"{word}</w>") for words in KIND_WORDS.values() for word in words]
    )
    rows, columns, answers = [], [], []
    for number, caption in enumerate(captions):
        found = torch.isin(ids[number, :length], noun_ids).nonzero().flatten().tolist()
        if len(found) == len(caption.things):
            for column, thing in zip(found, caption.things, strict=True):
                rows.append(number)
                columns.append(column)
                answers.append(_answer(thing, scenes[number], caption))
    loss, right = _ask(heads["thing"](states[rows, columns]), torch.tensor(answers), _THING)
    wholes = torch.tensor([_answer_whole(scene, caption) for scene, caption in zip(scenes, captions, strict=True)])
    everyone = torch.arange(len(scenes))
    pads = ends + (torch.rand(len(scenes)) * (length - ends).clamp(min=1)).long()
    for places in (ends.clamp(max=length - 1), pads.clamp(max=length - 1)):
        more, right_whole = _ask(heads["whole"](states[everyone, places]), wholes, _WHOLE)
        loss = loss + more
    return loss, {"thing": min(right.values()), "whole": min(right_whole.values())}


def _ask(
    scores: torch.Tensor, answers: torch.Tensor, questions: dict[str, int]
) -> tuple[torch.Tensor, dict[str, float]]:
    loss, right = scores.new_zeros(()), {}
    for column, (name, part) in enumerate(zip(questions, scores.split(list(questions.values()), dim=1), strict=True)):
        answer = answers[:, column]
        loss = loss + functional.cross_entropy(part, answer, ignore_index=_IGNORE)
        asked = answer != _IGNORE
        right[name] = (part.argmax(dim=1)[asked] == answer[asked]).float().mean().item()
    return loss / len(questions), right


def _answer(thing: Thing, scene: Scene, caption: Caption) -> list[int]:
    """Answer the questions about one thing, by number; what the caption does not say is not asked."""
    if scene.relation:
        step = -1 if thing is scene.things[0] else 1
        across, down = (step, 0) if scene.relation == "left" else (0, step)
    else:
        across = ("right" in thing.place) - ("left" in thing.place)
        down = ("bottom" in thing.place) - ("top" in thing.place)
    colour = COLOURS.index(thing.colour) if thing.colour in caption.text else _IGNORE
    return [KINDS.index(thing.kind), colour, SIZES.index(thing.size), across + 1, down + 1]


def _answer_whole(scene: Scene, caption: Caption) -> list[int]:
    said = any(phrase in caption.text for phrase in BACKGROUND_WORDS[scene.background])
    answers = [BACKGROUNDS.index(scene.background) if said else _IGNORE]
    for slot in (0, 1):
        if slot < len(scene.things):
            answers += _answer(scene.things[slot], scene, caption)
        else:
            answers += [len(KINDS), *[_IGNORE] * (len(_SLOT) - 1)]
    return answers
