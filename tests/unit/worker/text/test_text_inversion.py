"""A word that names a file becomes its vectors, as diffusers' load_textual_inversion has it; or stays text, and why."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from worker.text.clip import encode_texts
from worker.text.inversion import Inversion, Inversions


def vectors(num, width=16, seed=0):
    """Return random vectors."""
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def save(folder, name, tensors):
    """Write a file of tensors and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder / name


def encoder_of(kind, folder):
    """Return an encoder that knows the embeddings in `folder`."""
    return kind.encoder(inversions=Inversions(folder, {kind.part: kind.model.config.hidden_size}))


def by_diffusers(kind, prompt, files):
    """Return the states of diffusers' pipeline after load_textual_inversion of `files`, by token."""
    pipeline = StableDiffusionPipeline(
        text_encoder=copy.deepcopy(kind.model),
        tokenizer=copy.deepcopy(kind.tokenizer),
        requires_safety_checker=False,
        **dict.fromkeys(["vae", "unet", "scheduler", "safety_checker", "feature_extractor"]),
    )
    with torch.inference_mode(mode=False), torch.no_grad():
        for token, path in files.items():
            pipeline.load_textual_inversion(os.fspath(path.parent), weight_name=path.name, token=token)
        return pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("key", ["emb_params", "<whatever>"])
@pytest.mark.parametrize("prompt", ["a {} backpack", "{}", "{} and {}, twice", "on the left,{}"])
def test_states_are_those_of_diffusers(clip_l, tmp_path, prompt, key, num):
    """One vector or several, in A1111's file or diffusers', once or twice in a prompt."""
    path = save(tmp_path, "cat-toy.safetensors", {key: vectors(num)})
    expected = by_diffusers(clip_l, prompt.format(*["<cat-toy>"] * 2), {"<cat-toy>": path})
    for word in ("<cat-toy>", "cat-toy", "Cat-Toy"):
        encoding = encoder_of(clip_l, tmp_path).encode(prompt.format(word, word), layer="last")
        torch.testing.assert_close(encoding.states, expected, rtol=0, atol=1e-6)
        assert encoding.warnings == ()


def test_a_vector_without_rows_is_one(clip_l, tmp_path):
    """Diffusers saves a single vector flat."""
    path = save(tmp_path, "toy.safetensors", {"<toy>": vectors(1)[0]})
    states = encoder_of(clip_l, tmp_path).encode("a toy", layer="last").states
    torch.testing.assert_close(states, by_diffusers(clip_l, "a <toy>", {"<toy>": path}), rtol=0, atol=1e-6)


def test_other_prompts_do_not_change(clip_l, tmp_path):
    """Neither the model nor the tokenizer remembers a word: the next prompt has the bits it always had."""
    before = {name: tensor.clone() for name, tensor in clip_l.model.state_dict().items()}
    save(tmp_path, "toy.safetensors", {"emb_params": vectors(3)})
    clip = encoder_of(clip_l, tmp_path)
    clip.encode("a toy", layer="last")
    for prompt in ("a boat", "toys", "toy-boat", "<toyland>"):
        expected = clip_l.encoder().encode(prompt, layer="last").states
        assert torch.equal(clip.encode(prompt, layer="last").states, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip_l.model.state_dict().items())
    assert not clip_l.model.get_input_embeddings()._forward_hooks


def test_weights_and_chunks_hold_for_vectors(clip_l, tmp_path):
    """A weighted word weights all its vectors, and vectors that do not fit a chunk go to the next one together."""
    save(tmp_path, "toy.safetensors", {"emb_params": vectors(8)})
    clip = encoder_of(clip_l, tmp_path)
    plain = clip.encode("toy", layer="last").states
    weighted = clip.encode("(toy:1.5)", layer="last").states
    ratio = (weighted / plain).mean(-1)[0]
    torch.testing.assert_close(ratio / ratio[0], torch.tensor([1.0] + [1.5] * 8 + [1.0] * 68))
    (first, second) = clip.encode("x" * 70 + " toy", layer="last").states.chunk(2, dim=1)
    assert torch.equal(first, clip.encode("x" * 70, layer="last").states)
    assert torch.equal(second, plain)


def test_sdxl_takes_a_vector_for_each_encoder(clip_l, clip_g, tmp_path):
    """A file with clip_l and clip_g serves both encoders of SDXL, each with its own."""
    both = {"clip_l": vectors(2, 16), "clip_g": vectors(2, 24, seed=1)}
    save(tmp_path / "xl", "toy.safetensors", both)
    inversions = Inversions(tmp_path / "xl", {"clip_l": 16, "clip_g": 24})
    clips = [kind.encoder(inversions=inversions) for kind in (clip_l, clip_g)]
    texts = encode_texts(clips, "a toy", None, layer="last")
    assert texts.warnings == ()
    for kind, encoding in zip((clip_l, clip_g), texts.prompt, strict=True):
        alone = save(tmp_path / kind.part, "toy.safetensors", {"emb_params": both[kind.part]})
        expected = encoder_of(kind, alone.parent).encode("a toy", layer="last")
        assert torch.equal(encoding.states, expected.states)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"emb_params": vectors(1, 16)}, "16 numbers per vector"),
        ({"clip_l": vectors(1, 16)}, "16 numbers per vector"),
        ({"clip_l": vectors(1, 16), "clip_g": vectors(1, 16)}, "another kind of model"),
        ({"emb_params": vectors(76, 24)}, "1 to 75 vectors"),
        ({"emb_params": vectors(1, 24)[None]}, "1 to 75 vectors"),
        ({"a": vectors(1), "b": vectors(1)}, "no embedding: it holds a, b"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_the_word_stays_text(clip_l, clip_g, tmp_path, tensors, reason):
    """An embedding of SD 1.x on SDXL and its like: one warning with the file's name, and the plain prompt's states."""
    save(tmp_path, "toy.safetensors", tensors)
    inversions = Inversions(tmp_path, {"clip_l": 16, "clip_g": 24})
    clips = [kind.encoder(inversions=inversions) for kind in (clip_l, clip_g)]
    texts = encode_texts(clips, "a <toy>, (toy:1.2)", "toy", layer="last")
    plain = encode_texts([kind.encoder() for kind in (clip_l, clip_g)], "a <toy>, (toy:1.2)", "toy", layer="last")
    for encoding, expected in zip(texts.prompt + texts.negative, plain.prompt + plain.negative, strict=True):
        assert torch.equal(encoding.states, expected.states)
    assert len(texts.warnings) == 3
    assert texts.warnings[0].startswith("prompt has '<toy>' read as text: toy.safetensors ")
    assert texts.warnings[2].startswith("negative_prompt has 'toy' read as text: toy.safetensors ")
    assert all(reason in warning for warning in texts.warnings)


def test_pickles_and_broken_files_are_named(clip_l, tmp_path):
    """A pickle is never opened, a broken file does no harm; a safe file of the same name is preferred."""
    (tmp_path / "toy.pt").write_bytes(b"not even a pickle")
    (tmp_path / "boat.safetensors").write_bytes(b"broken")
    clip = encoder_of(clip_l, tmp_path)
    (warning,) = clip.encode("a toy", layer="last").warnings
    assert "toy.pt is pickled, which can run code" in warning
    (warning,) = clip.encode("a boat", layer="last").warnings
    assert "boat.safetensors cannot be read" in warning
    save(tmp_path, "toy.safetensors", {"emb_params": vectors(1)})
    assert clip.encode("a toy", layer="last").warnings == ()
    (tmp_path / "boat.safetensors").unlink()
    assert clip.encode("a boat", layer="last").warnings == ()


def test_files_may_come_change_and_go(clip_l, tmp_path):
    """What is encoded follows the folder, cache or not, and a file is read once per change."""
    folder = tmp_path / "embeddings"
    clip = encoder_of(clip_l, folder)
    plain = clip.encode("a toy", layer="last").states
    path = save(folder / "styles", "toy.safetensors", {"emb_params": vectors(1)})
    first = clip.encode("a toy", layer="last").states
    assert not torch.equal(first, plain)
    loaded = clip._inversions._loaded[path][1]
    clip.encode("the toy", layer="last")
    assert clip._inversions._loaded[path][1] is loaded
    save(folder / "styles", "toy.safetensors", {"emb_params": vectors(1, seed=5)})
    os.utime(path, ns=(1, 1))  # whatever the clock says: another time
    assert not torch.equal(clip.encode("a toy", layer="last").states, first)
    path.unlink()
    assert torch.equal(clip.encode("a toy", layer="last").states, plain)


def test_the_longest_name_wins_and_case_decides_between_files(tmp_path):
    """`cat-toy` is not `cat`; of two files that differ in case alone, each is named exactly."""
    for number, stem in enumerate(["cat", "cat toy", "cat-toy", "Dog", "dog"]):
        save(tmp_path, f"{stem}.safetensors", {"emb_params": vectors(1, seed=number)})
    inversions = Inversions(tmp_path, {"clip_l": 16})

    def stems(text):
        return [mention.found.version.path.stem for mention in inversions.split(text) if not isinstance(mention, str)]

    assert stems("cat toy, cat-toy, cat. <cat-toy>(cat) category cats my-cat cat_1") == [
        "cat toy",
        "cat-toy",
        "cat",
        "cat-toy",
        "cat",
    ]
    assert stems("Dog dog") == ["Dog", "dog"]
    assert stems("CAT") == ["cat"]
    mentions = [part for part in inversions.split("a <cat> b") if not isinstance(part, str)]
    assert [(mention.text, isinstance(mention.found, Inversion)) for mention in mentions] == [("<cat>", True)]
    assert "".join(part if isinstance(part, str) else part.text for part in inversions.split("x<cat, cat>x")) == (
        "x<cat, cat>x"
    )
