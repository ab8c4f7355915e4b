"""LoRAs of the other families, in the layouts that are about: the pictures of diffusers and PEFT."""

from __future__ import annotations

import copy
import re

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from farm.catalog import Catalog
from farm.prompts import Lora
from flow_parity import MAX_SEQUENCE_LENGTH
from lora_files import save_kohya_lora, save_peft_lora
from parity import Studio
from tiny_flow_models import save_tiny_flux, save_tiny_sd3
from tiny_models import save_tiny_sdxl, tiny_row, tiny_unit
from worker.lora import LoraLibrary
from worker.lora.files import read_lora
from worker.pipelines.loading import load_pipeline

pytestmark = [
    # diffusers adds a second adapter to the text encoder through transformers, which minds
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


class LoraStudio(Studio):
    """One model by diffusers with PEFT, fresh for each set of LoRAs, and by us with the same files."""

    def __init__(self, folder, family, **row_fields):
        self.loras = folder / "loras"
        self.loras.mkdir()
        library = LoraLibrary(Catalog(), self.loras, fetch=None)
        row = tiny_row(folder, family=family, **row_fields)
        ours = load_pipeline(row, models_dir=folder, device=torch.device("cpu"), loras=library)
        super().__init__(ours, diffusers.DiffusionPipeline.from_pretrained(folder))
        self.untouched = copy.deepcopy(self.reference)

    def arguments_for(self, unit, inputs):
        arguments = dict(super().arguments_for(unit, inputs))
        if self.ours.family in ("flux", "sd3"):
            arguments |= {"max_sequence_length": MAX_SEQUENCE_LENGTH}
        if self.ours.family == "flux":
            del arguments["clip_skip"], arguments["negative_prompt"]
        return arguments

    def pipeline_for(self, unit, _inputs):
        pipeline = copy.deepcopy(self.untouched)
        for lora in unit.loras:
            pipeline.load_lora_weights(str(self.loras), weight_name=f"{lora.name}.safetensors", adapter_name=lora.name)
        if unit.loras:
            pipeline.set_adapters([lora.name for lora in unit.loras], [lora.weight for lora in unit.loras])
        return pipeline

    def assert_loras_count(self, *sets, **fields):
        """Compare units of each set of LoRAs, and one without, with diffusers; each set must change the picture."""
        units = [tiny_unit(index=i, loras=loras, **fields) for i, loras in enumerate([(), *sets])]
        images = self.assert_all_same(units, seed=1, max_batch=2)
        plain = self.by_us(images[0])
        for loras, image in zip(sets, images[1:], strict=True):
            assert float((self.by_us(image) - plain).abs().max()) > 1e-2, f"{loras} does nothing, so proves nothing"


def test_sdxl(tmp_path):
    """PEFT's files, kohya's with diffusers' names of the blocks, and kohya's with SAI's, which its scripts write."""
    studio = LoraStudio(save_tiny_sdxl(tmp_path / "tiny"), "sdxl")
    layers = studio.reference.unet.config.layers_per_block
    save_peft_lora(studio.reference, studio.loras / "peft.safetensors", seed=1)
    save_kohya_lora(studio.reference, studio.loras / "plain.safetensors", seed=2)
    save_kohya_lora(studio.reference, studio.loras / "sai.safetensors", seed=3, rename=lambda name: _sai(name, layers))
    studio.assert_loras_count(
        (Lora("peft", 0.9),), (Lora("plain", 0.6),), (Lora("sai", 0.8),), (Lora("peft", 0.3), Lora("sai", -0.5))
    )


def _sai(name: str, layers_per_block: int) -> str:
    """Return a flat name of diffusers' UNet as SAI's code has it."""
    span = layers_per_block + 1

    def numbered(offset):
        return lambda found: f"{offset + int(found[1]) * span + int(found[2])}_1_"

    name = re.sub(r"^down_blocks_(\d+)_attentions_(\d+)_", lambda x: "input_blocks_" + numbered(1)(x), name)
    name = re.sub(r"^up_blocks_(\d+)_attentions_(\d+)_", lambda x: "output_blocks_" + numbered(0)(x), name)
    return re.sub(r"^mid_block_attentions_0_", "middle_block_1_", name)


def test_flux(tmp_path):
    """PEFT's files, and kohya's, whose layers are those of BFL's code, three of diffusers' in one."""
    studio = LoraStudio(
        save_tiny_flux(tmp_path / "tiny", guidance_embeds=True),
        "flux",
        guidance="embedded",
        max_sequence_length=MAX_SEQUENCE_LENGTH,
    )
    save_peft_lora(studio.reference, studio.loras / "peft.safetensors", seed=1)
    _save_kohya_flux(studio.reference.transformer, studio.loras / "kohya.safetensors")
    studio.assert_loras_count(
        (Lora("peft", 0.9),),
        (Lora("kohya", 0.7),),
        (Lora("kohya", 0.5), Lora("peft", 0.5)),
        scheduler="flow_euler",
        guided=False,
    )


def _save_kohya_flux(transformer, path):
    generator = torch.Generator("cpu").manual_seed(4)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    shapes = {
        "double_blocks_0_img_attn_qkv": (width, 3 * width),
        "double_blocks_0_txt_attn_qkv": (width, 3 * width),
        "double_blocks_0_img_attn_proj": (width, width),
        "double_blocks_0_img_mlp_0": (width, 4 * width),
        "single_blocks_0_linear2": (5 * width, width),
    }
    state = {}
    for name, (num_in, num_out) in shapes.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(6, num_in, generator=generator) * 0.3
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(num_out, 6, generator=generator) * 0.3
        state[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
    save_file(state, path)


def test_flux_single_blocks_in_one_matrix(tmp_path):
    """Kohya's layer of a single block holds four of diffusers', of Flux's full width: its converter knows no other."""
    width, name = 3072, "lora_unet_single_blocks_3_linear1"
    up = torch.randn(7 * width, 1, generator=torch.Generator("cpu").manual_seed(5))
    layers = {"lora_down.weight": torch.ones(1, width), "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    path = tmp_path / "wide.safetensors"
    save_file({f"{name}.{key}": tensor for key, tensor in layers.items()}, path)
    layers = read_lora("wide", path, "flux", {}).layers["transformer"]
    block = "single_transformer_blocks.3"
    parts = [layers[f"{block}.{part}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert torch.allclose(torch.cat([part.up * part.scale for part in parts]), up)


def test_sd3(tmp_path):
    """PEFT's files, text encoder included."""
    studio = LoraStudio(save_tiny_sd3(tmp_path / "tiny"), "sd3", max_sequence_length=MAX_SEQUENCE_LENGTH)
    save_peft_lora(studio.reference, studio.loras / "peft.safetensors", seed=1)
    studio.assert_loras_count((Lora("peft", 0.9),), (Lora("peft", -0.4),), scheduler="flow_euler")
