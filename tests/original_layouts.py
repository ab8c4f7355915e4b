"""Models in the layouts of the single files that people share: CompVis', sgm's, BFL's, Stability's and ComfyUI's.

    write(sgm, folder, path)

The names are those of the published checkpoints; the way back from diffusers' names is this file's own, so that what
reads such files is not tested against itself.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

Tensors = dict[str, torch.Tensor]
_DENOISER = "model.diffusion_model."


class Model(Protocol):
    """A model in parts, by diffusers' names."""

    def tensors(self, part: str) -> Tensors:
        """Return a part's tensors."""

    def config(self, part: str) -> Mapping[str, Any]:
        """Return a part's config."""


class InFolder:
    """A model as diffusers saved it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tensors(self, part: str) -> Tensors:
        """Return a part's tensors, of however many files."""
        tensors: Tensors = {}
        for path in sorted((self._folder / part).glob("*.safetensors")):
            tensors |= load_file(path)
        return tensors

    def config(self, part: str) -> Mapping[str, Any]:
        """Return a part's config."""
        config: Mapping[str, Any] = json.loads((self._folder / part / "config.json").read_text("utf-8"))
        return config


def write(layout: Callable[[Model], Tensors], folder: Path, path: Path) -> Path:
    """Write the model in `folder` as one file in a layout, and return the file's path."""
    tensors = layout(InFolder(folder))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def compvis(model: Model) -> Tensors:
    """Return an SD 1 model as CompVis' trainer saves it, with what else such files hold."""
    tensors = _under(_DENOISER, ldm_unet(model)) | _under("first_stage_model.", ldm_vae(model))
    tensors |= _under("cond_stage_model.transformer.", _text_model(model.tensors("text_encoder")))
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["betas"] = torch.linspace(0, 1, 1000)
    return tensors


def compvis_2(model: Model) -> Tensors:
    """Return an SD 2 model: CompVis' layout around a text encoder by open_clip."""
    tensors = _under(_DENOISER, ldm_unet(model)) | _under("first_stage_model.", ldm_vae(model))
    return tensors | _under("cond_stage_model.model.", open_clip(model.tensors("text_encoder")))


def sgm(model: Model) -> Tensors:
    """Return an SDXL model as sgm saves it: two text encoders in two layouts."""
    tensors = _under(_DENOISER, ldm_unet(model)) | _under("first_stage_model.", ldm_vae(model))
    tensors |= _under("conditioner.embedders.0.transformer.", _text_model(model.tensors("text_encoder")))
    return tensors | _under("conditioner.embedders.1.model.", open_clip(model.tensors("text_encoder_2")))


def comfy_flux(model: Model) -> Tensors:
    """Return a whole Flux model as ComfyUI saves one."""
    tensors = _under(_DENOISER, bfl(model)) | _under("vae.", ldm_vae(model))
    tensors |= _under("text_encoders.clip_l.transformer.", _text_model(model.tensors("text_encoder")))
    return tensors | _under("text_encoders.t5xxl.transformer.", model.tensors("text_encoder_2"))


def stability_sd3(model: Model) -> Tensors:
    """Return an SD 3 model as Stability publishes it, without text encoders."""
    return _under(_DENOISER, mmdit(model)) | _under("first_stage_model.", ldm_vae(model))


def stability_sd3_with_text(model: Model) -> Tensors:
    """Return an SD 3 model as Stability publishes it in its larger files."""
    tensors = stability_sd3(model)
    for name, encoder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"), ("t5xxl", "text_encoder_3")):
        tensors |= _under(f"text_encoders.{name}.transformer.", model.tensors(encoder))
    return tensors


def ldm_unet(model: Model) -> Tensors:
    """Return a model's UNet by the names of latent-diffusion: blocks counted through, whatever their level."""
    config = model.config("unet")
    per_level = config["layers_per_block"] + 1
    has_attention = ["CrossAttn" in kind for kind in config["up_block_types"]]
    outside = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }

    def rename(name: str) -> str:
        for new, old in outside.items():
            if name.startswith(f"{new}."):
                return _ldm_resnet(old + name.removeprefix(new), in_middle="resnets" in new)
        side, level, kind, layer, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name).groups()
        number = int(level) * per_level + int(layer)
        if kind == "downsamplers":
            return f"input_blocks.{int(level) * per_level + per_level}.0.{rest.replace('conv', 'op')}"
        if kind == "upsamplers":
            last = int(level) * per_level + per_level - 1
            return f"output_blocks.{last}.{2 if has_attention[int(level)] else 1}.{rest}"
        block = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        return _ldm_resnet(f"{block}.0.{rest}") if kind == "resnets" else f"{block}.1.{rest}"

    return {rename(name): tensor for name, tensor in model.tensors("unet").items()}


def _ldm_resnet(name: str, *, in_middle: bool = True) -> str:
    if not in_middle:
        return name
    for new, old in (
        (".norm1.", ".in_layers.0."),
        (".conv1.", ".in_layers.2."),
        (".norm2.", ".out_layers.0."),
        (".conv2.", ".out_layers.3."),
        (".time_emb_proj.", ".emb_layers.1."),
        (".conv_shortcut.", ".skip_connection."),
    ):
        name = name.replace(new, old)
    return name


def ldm_vae(model: Model) -> Tensors:
    """Return a model's VAE by the names of latent-diffusion: the decoder's levels counted from its end."""
    num_levels = len(model.config("vae")["block_out_channels"])
    tensors = {}
    for new, held in model.tensors("vae").items():
        name = new.replace("down_blocks", "down")
        name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{num_levels - 1 - int(match[1])}.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
        name = name.replace(".downsamplers.0.", ".downsample.").replace(".upsamplers.0.", ".upsample.")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        tensor = held
        if ".attn_1." in name:
            name = name.replace("group_norm", "norm").replace("to_out.0", "proj_out").replace(".to_", ".")
            tensor = held[:, :, None, None] if held.ndim == 2 else held  # convolutions, in those days
        tensors[name] = tensor
    return tensors


def open_clip(text_encoder: Tensors) -> Tensors:
    """Return a CLIP text encoder by the names of open_clip: queries, keys and values in one."""
    held = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.items()}
    tensors: Tensors = {"logit_scale": torch.tensor(4.6)}
    width = held["final_layer_norm.weight"].shape[0]
    tensors["text_projection"] = held.pop("text_projection.weight", torch.ones(8, width)).T.contiguous()
    for name in list(held):
        if (match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name)) is not None:
            three = [held.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            tensors[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(three)
    for name, tensor in held.items():
        old = name
        for new, replacement in (
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("encoder.layers.", "transformer.resblocks."),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("final_layer_norm", "ln_final"),
        ):
            old = old.replace(new, replacement)
        tensors[old] = tensor
    return tensors


def bfl(model: Model) -> Tensors:
    """Return a Flux model's transformer, and nothing else, as Black Forest Labs publish it."""
    held = dict(model.tensors("transformer"))
    tensors: Tensors = {}
    for old, new in {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
    }.items():
        _move(held, tensors, new, old)
    _move_final_modulation(held, tensors, "norm_out", "final_layer")
    for block in _numbers(held, "transformer_blocks"):
        new, old = f"transformer_blocks.{block}", f"double_blocks.{block}"
        _fuse(held, tensors, [f"{new}.attn.to_{letter}" for letter in "qkv"], f"{old}.img_attn.qkv")
        _fuse(held, tensors, [f"{new}.attn.add_{letter}_proj" for letter in "qkv"], f"{old}.txt_attn.qkv")
        for side, suffix, added, out in (("img", "", "", "to_out.0"), ("txt", "_context", "added_", "to_add_out")):
            _move(held, tensors, f"{new}.norm1{suffix}.linear", f"{old}.{side}_mod.lin")
            _move(held, tensors, f"{new}.ff{suffix}.net.0.proj", f"{old}.{side}_mlp.0")
            _move(held, tensors, f"{new}.ff{suffix}.net.2", f"{old}.{side}_mlp.2")
            _move(held, tensors, f"{new}.attn.{out}", f"{old}.{side}_attn.proj")
            for letter, word in (("q", "query"), ("k", "key")):
                scale = held.pop(f"{new}.attn.norm_{added}{letter}.weight")
                tensors[f"{old}.{side}_attn.norm.{word}_norm.scale"] = scale
    for block in _numbers(held, "single_transformer_blocks"):
        new, old = f"single_transformer_blocks.{block}", f"single_blocks.{block}"
        parts = [*(f"{new}.attn.to_{letter}" for letter in "qkv"), f"{new}.proj_mlp"]
        _fuse(held, tensors, parts, f"{old}.linear1")
        _move(held, tensors, f"{new}.proj_out", f"{old}.linear2")
        _move(held, tensors, f"{new}.norm.linear", f"{old}.modulation.lin")
        for letter, word in (("q", "query"), ("k", "key")):
            tensors[f"{old}.norm.{word}_norm.scale"] = held.pop(f"{new}.attn.norm_{letter}.weight")
    assert not held, f"no original name for {sorted(held)}"
    return tensors


def mmdit(model: Model) -> Tensors:
    """Return an SD 3 model's transformer by Stability's names."""
    held = dict(model.tensors("transformer"))
    tensors: Tensors = {"pos_embed": held.pop("pos_embed.pos_embed")}
    for old, new in {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
    }.items():
        _move(held, tensors, new, old)
    _move_final_modulation(held, tensors, "norm_out", "final_layer")
    blocks = _numbers(held, "transformer_blocks")
    for block in blocks:
        new, old = f"transformer_blocks.{block}", f"joint_blocks.{block}"
        image, text = f"{old}.x_block", f"{old}.context_block"
        if block == blocks[-1]:  # the text ends here: its block only modulates
            _move_final_modulation(held, tensors, f"{new}.norm1_context", text)
        for attention in ("attn", "attn2"):
            if f"{new}.{attention}.to_q.weight" in held:
                _fuse(held, tensors, [f"{new}.{attention}.to_{x}" for x in "qkv"], f"{image}.{attention}.qkv")
                _move(held, tensors, f"{new}.{attention}.to_out.0", f"{image}.{attention}.proj")
                for letter in "qk":
                    _move(held, tensors, f"{new}.{attention}.norm_{letter}", f"{image}.{attention}.ln_{letter}")
        _fuse(held, tensors, [f"{new}.attn.add_{x}_proj" for x in "qkv"], f"{text}.attn.qkv")
        for letter in "qk":
            _move(held, tensors, f"{new}.attn.norm_added_{letter}", f"{text}.attn.ln_{letter}")
        _move(held, tensors, f"{new}.attn.to_add_out", f"{text}.attn.proj")
        for side, suffix in ((image, ""), (text, "_context")):
            _move(held, tensors, f"{new}.norm1{suffix}.linear", f"{side}.adaLN_modulation.1")
            _move(held, tensors, f"{new}.ff{suffix}.net.0.proj", f"{side}.mlp.fc1")
            _move(held, tensors, f"{new}.ff{suffix}.net.2", f"{side}.mlp.fc2")
    assert not held, f"no original name for {sorted(held)}"
    return tensors


def _move(held: Tensors, tensors: Tensors, new: str, old: str) -> None:
    """Move a module's tensors, if it has any."""
    for leaf in ("weight", "bias"):
        if f"{new}.{leaf}" in held:
            tensors[f"{old}.{leaf}"] = held.pop(f"{new}.{leaf}")


def _move_final_modulation(held: Tensors, tensors: Tensors, new: str, old: str) -> None:
    """Move a last modulation, which has shift before scale in the original and scale before shift in diffusers."""
    for leaf in ("weight", "bias"):
        scale, shift = held.pop(f"{new}.linear.{leaf}").chunk(2)
        tensors[f"{old}.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])


def _fuse(held: Tensors, tensors: Tensors, parts: Iterable[str], old: str) -> None:
    for leaf in ("weight", "bias"):
        tensors[f"{old}.{leaf}"] = torch.cat([held.pop(f"{part}.{leaf}") for part in list(parts)])


def _numbers(held: Tensors, blocks: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in held if name.startswith(f"{blocks}.")})


def _text_model(text_encoder: Tensors) -> Tensors:
    """Return a CLIP text encoder as transformers named its tensors when these files were made."""
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text_encoder.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
