"""Studios (tests/parity.py) that make the reference of anything a unit may ask for, all of it at once.

LoRAs, weighted prompts of several chunks, pictures, masks, ControlNets and second passes: each unit by diffusers' own
pipelines for what it brings along, one call per pass. What is drawn, and what happens in the engine meanwhile, is the
test's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
import transformers
from PIL import Image
from torch.nn.functional import interpolate, pixel_shuffle

from farm.catalog import Catalog, ControlNetRow
from flow_parity import MAX_SEQUENCE_LENGTH, FlowStudio
from lora_files import save_kohya_lora, save_peft_lora
from parity import Studio
from picture_parity import PictureStudio, control_arguments, picture
from plain_prompts import encode_plainly
from tiny_models import save_tiny_controlnet, tiny_row
from worker.lora import LoraLibrary
from worker.pipelines.base import NO_INPUTS, Inputs
from worker.pipelines.loading import load_pipeline
from worker.seat import passes_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from farm.jobs import Unit
    from plain_prompts import Sections

LORAS: Final = ("style", "sketch", "old")
CONTROLNETS: Final = ("edges", "depth")

_LONG: Final = "a small house, with a red roof, near the sea, " * 3
WORDS: Final[Mapping[str, Sections]] = {
    "": [[]],
    "a red circle": [[("a red circle", 1.0)]],
    "a (red:1.4) [circle]": [[("a ", 1), ("red", 1.4), (" ", 1), ("circle", 1 / 1.1)]],
    "blue BREAK (b:1.3)": [[("blue", 1)], [("b", 1.3)]],
    _LONG: [[(_LONG, 1)]],
    f"{_LONG}(x:0.5) BREAK y": [[(_LONG, 1), ("x", 0.5)], [("y", 1)]],
}
"""Prompts of one to three chunks, taken apart by hand."""


class EverythingStudio(PictureStudio):
    """One model by diffusers and by us, from the same files, in passes; a base for the families' own."""

    @classmethod
    def open(cls, folder: Path, **row_fields: Any) -> EverythingStudio:
        """Set up the model in `folder`, with LoRAs and, beside a UNet, ControlNets made for it."""
        for encoder in folder.glob("text_encoder*"):
            _give_a_mean(encoder)
        options = {"safety_checker": None} if row_fields["family"] == "sd15" else {}
        reference = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
        loras = folder / "loras"
        loras.mkdir()
        save_peft_lora(reference, loras / "style.safetensors", seed=1)
        save_peft_lora(reference, loras / "sketch.safetensors", seed=2, rank=4, alpha=4.0, with_text=False)
        nets, rows = {}, {}
        if hasattr(reference, "unet"):
            save_kohya_lora(reference, loras / "old.safetensors", seed=3)
            for seed, name in enumerate(CONTROLNETS):
                save_tiny_controlnet(reference.unet, folder / name, seed=seed)
                rows[name] = ControlNetRow(name=name, family=row_fields["family"], source=str(folder / name))
                nets[name] = diffusers.ControlNetModel.from_pretrained(folder / name)
        ours = load_pipeline(
            tiny_row(folder, **row_fields),
            models_dir=folder,
            device=torch.device("cpu"),
            loras=LoraLibrary(Catalog(), loras, fetch=None),  # type: ignore[arg-type]  # no LoRA has a row
            controlnets=rows,
        )
        studio = cls(ours, reference)
        studio.nets = nets
        for path in loras.glob("*.safetensors"):
            reference.load_lora_weights(str(loras), weight_name=path.name, adapter_name=path.stem)
        return studio

    def __init__(self, ours: Any, reference: Any) -> None:
        super().__init__(ours, reference)
        self.nets: dict[str, Any] = {}
        self._steered: dict[tuple[str, tuple[str, ...]], Any] = {}

    @torch.no_grad()
    def by_diffusers(self, unit: Unit, inputs: Inputs = NO_INPUTS) -> torch.Tensor:
        """Render `unit`, one call of diffusers per pass, each from its seed; float [h, w, 3]."""
        self._wear(unit)
        first, following = passes_of(unit)
        if following is None:
            return torch.from_numpy(self._picture(first, inputs))
        second, upscaler = following
        latents = self._unpacked(first, self._call(first, inputs, output_type="latent"))
        if upscaler == "latent":
            factor = 2  # of the tiny VAEs
            image = interpolate(latents, size=(second.height // factor, second.width // factor), mode="bilinear")
        else:
            (pixels,) = self._decoded(latents, output_type="pil")
            image = pixels.resize((second.width, second.height), Image.Resampling.LANCZOS)
        stand_in = Inputs(image=picture(0), controls=inputs.controls)
        return torch.from_numpy(self._call(second, stand_in, output_type="np", image=image)[0])

    def _call(self, unit: Unit, inputs: Inputs, **changes: Any) -> Any:
        generator = torch.Generator("cpu").manual_seed(unit.seed)
        pipeline = self.pipeline_for(unit, inputs)
        pipeline.scheduler = self.scheduler_for(unit, generator)
        return pipeline(**{**self.arguments_for(unit, inputs), "generator": generator, **changes}).images

    def _picture(self, unit: Unit, inputs: Inputs) -> Any:
        """Return what the pipeline makes of the only pass of a unit, [h, w, 3]."""
        return self._call(unit, inputs, output_type="np")[0]

    def _decoded(self, latents: Any, *, output_type: str) -> Any:
        """Return the pictures of `latents`, which are as the VAE has them but for scale and shift."""
        vae = self.reference.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        image = vae.decode(latents / vae.config.scaling_factor + shift).sample
        return self.reference.image_processor.postprocess(image, output_type=output_type)

    def _unpacked(self, _unit: Unit, latents: Any) -> Any:
        """Return `latents` as the VAE has them."""
        return latents

    def _wear(self, unit: Unit) -> None:
        """Put exactly the LoRAs of `unit` into the reference."""
        active = {lora.name: lora.weight for lora in unit.loras}
        for part in self.reference.components.values():
            if not isinstance(part, torch.nn.Module):
                continue
            for layer in part.modules():
                if hasattr(layer, "lora_A"):
                    here = [name for name in active if name in layer.lora_A]
                    layer.enable_adapters(enabled=bool(here))
                    layer.set_adapter(here)
                    for name in here:
                        layer.set_scale(name, active[name])


class UnetStudio(EverythingStudio):
    """A model with a UNet, given embeddings that were made in plain loops."""

    def pipeline_for(self, unit: Unit, inputs: Inputs) -> Any:
        """Return the pipeline for what the unit brings along."""
        if not unit.controlnets:
            return super().pipeline_for(unit, inputs)
        kind = "" if inputs.image is None else "Img2Img" if inputs.mask is None else "Inpaint"
        names = tuple(net.model for net in unit.controlnets)
        if (kind, names) not in self._steered:
            stem = "StableDiffusionXL" if self.ours.family == "sdxl" else "StableDiffusion"
            pipeline_class = getattr(diffusers, f"{stem}ControlNet{kind}Pipeline")
            pipeline = pipeline_class(**self.reference.components, controlnet=[self.nets[name] for name in names])
            pipeline.set_progress_bar_config(disable=True)
            self._steered[kind, names] = pipeline
        return self._steered[kind, names]

    def arguments_for(self, unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
        """Return what the pipeline is called with: no texts, but what they have become."""
        arguments = dict(super().arguments_for(unit, inputs))
        del arguments["prompt"], arguments["negative_prompt"], arguments["clip_skip"]
        arguments |= self._embeddings(unit)
        if not unit.controlnets:
            return arguments
        return arguments | control_arguments(unit, inputs)

    def _embeddings(self, unit: Unit) -> Mapping[str, torch.Tensor]:
        is_xl = self.ours.family == "sdxl"
        texts = {"prompt": (unit.prompt, unit.clip_skip)}
        if unit.guided and (unit.negative_prompt or not is_xl):
            texts["negative_prompt"] = (unit.negative_prompt, 0)
        # Chunks by any encoder: both have one tokenizer's words.
        length = max(self._encode("", text, skip)[0].shape[1] // 77 for text, skip in texts.values())
        made: dict[str, torch.Tensor] = {}
        for field, (text, skip) in texts.items():
            sides = [self._encode(end, text, skip, length) for end in (["", "_2"] if is_xl else [""])]
            made[f"{field}_embeds"] = torch.cat([states for states, _ in sides], dim=-1)
            if is_xl:
                made[f"{field.replace('prompt', 'pooled_prompt')}_embeds"] = sides[-1][1]
        if is_xl and unit.guided and not unit.negative_prompt:
            for name in list(made):
                made[f"negative_{name}"] = torch.zeros_like(made[name])
        return made

    def _encode(self, end: str, text: str, skip: int, length: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        is_xl = self.ours.family == "sdxl"
        parts = self.reference.components
        return encode_plainly(
            parts[f"tokenizer{end}"],
            parts[f"text_encoder{end}"],
            WORDS[text],
            skip=skip + is_xl,
            normalised=not is_xl,
            num_chunks=length,
        )


class FlowEverything(EverythingStudio, FlowStudio):
    """A flow-matching model; its pipelines read the texts themselves, as marks mean nothing to them."""

    def __init__(self, ours: Any, reference: Any) -> None:
        Studio.__init__(self, ours, reference)
        self.nets, self._steered = {}, {}
        stem = type(reference).__name__.removesuffix("Pipeline")
        self._by_kind = {"": reference}
        for kind in ("Img2Img", "Inpaint"):
            self._by_kind[kind] = getattr(diffusers, f"{stem}{kind}Pipeline")(**reference.components)
            self._by_kind[kind].set_progress_bar_config(disable=True)

    def pipeline_for(self, _unit: Unit, inputs: Inputs) -> Any:
        """Return the one for text, for a picture, or for a picture with a mask."""
        return self._by_kind["" if inputs.image is None else "Img2Img" if inputs.mask is None else "Inpaint"]

    def arguments_for(self, unit: Unit, inputs: Inputs) -> Mapping[str, Any]:
        """Return what it is called with."""
        arguments = FlowStudio.arguments_for(self, unit, inputs)
        return arguments if inputs.mask is None else {**arguments, "mask_image": Image.fromarray(inputs.mask)}

    def _picture(self, unit: Unit, inputs: Inputs) -> Any:
        if inputs.mask is None or self.is_packed:
            return super()._picture(unit, inputs)
        # StableDiffusion3InpaintPipeline decodes without the VAE's shift, unlike all others, so its latents are taken.
        return self._decoded(self._call(unit, inputs, output_type="latent"), output_type="np")[0]

    def _unpacked(self, unit: Unit, latents: Any) -> Any:
        if not self.is_packed:
            return latents
        patches = latents.unflatten(1, (unit.height // 4, unit.width // 4)).permute(0, 3, 1, 2)
        return pixel_shuffle(patches, 2)


def flow_row(family: str) -> dict[str, Any]:
    """Return the fields of a flow model's row."""
    guidance = {"guidance": "embedded"} if family == "flux" else {}
    return {"family": family, "max_sequence_length": MAX_SEQUENCE_LENGTH, **guidance}


def _give_a_mean(folder: Path) -> None:
    """Let a text encoder's states have a mean to keep, as every trained one's have; weights divide by it."""
    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    encoder = getattr(transformers, name).from_pretrained(folder)
    generator = torch.Generator("cpu").manual_seed(0)
    for key, parameter in encoder.named_parameters():
        if key.endswith(("fc2.bias", "final_layer_norm.bias")):
            parameter.data = 0.2 + 0.3 * torch.randn(parameter.shape, generator=generator)
    encoder.save_pretrained(folder)
