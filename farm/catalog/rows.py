"""What a row of the catalog says about a model, a LoRA or a ControlNet."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from farm.prompts import LORA_NAME, Lora
from farm.schedulers import Group

Family = Literal["sd15", "sdxl", "flux", "sd3"]
LossyPrecision = Literal["fp8", "nf4", "fp8-dynamic", "int8-dynamic"]

_FLOW_FAMILIES: Final = ("flux", "sd3")
_UNET_PRECISIONS: Final = ("fp8", "fp8-dynamic", "int8-dynamic")  # too small to be worth four bits
PRECISIONS: Final[Mapping[Family, tuple[LossyPrecision, ...]]] = MappingProxyType(
    {
        "sd15": _UNET_PRECISIONS,
        "sdxl": _UNET_PRECISIONS,
        "flux": (*_UNET_PRECISIONS, "nf4"),
        "sd3": (*_UNET_PRECISIONS, "nf4"),
    }
)
"""What a denoiser of each family may be asked to be kept in."""


class Source(BaseModel):
    """Where weights are: a folder, a `.safetensors` file, or a repository of the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="Local folder or file (relative ones start at FARM_MODELS_DIR) or hub repository.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub repository.")
    filename: str | None = Field(None, description="The one .safetensors file of the repository that is meant.")


class ModelRow(Source):
    """One model of the catalog. Sizes are pixels."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Family
    description: str = ""
    vae: Source | None = Field(None, description="A VAE to take instead of the model's own.")
    config: str | None = Field(
        None,
        description="For a single file: folder or repository with its configs and tokenizers, and parts that it lacks;"
        " by default that of the model it was trained from.",
    )
    config_revision: str | None = Field(None, description="Branch, tag or commit of that repository.")
    width: int = Field(gt=0, description="Native width; the default of a job.")
    height: int = Field(gt=0)
    size_multiple: int = Field(8, gt=0, description="Widths and heights are multiples of this.")
    min_size: int = Field(64, gt=0)
    max_size: int = Field(2048, gt=0, description="Largest width or height.")
    max_pixels: int = Field(2048 * 2048, gt=0)
    num_inference_steps: int = Field(20, gt=0)
    max_steps: int = Field(1000, gt=0)
    guidance: Literal["cfg", "embedded"] = Field(
        "cfg",
        description="`cfg`: the prompt against a negative one. `embedded`: the model takes the scale as an input.",
    )
    guidance_scale: float = 7.5
    scheduler: str = "dpmpp_2m"
    scheduler_config: Mapping[str, Any] = Field(
        default_factory=dict, description="What to change in the scheduler config that comes with the weights."
    )
    clip_skip: int = Field(0, ge=0)
    max_sequence_length: int = Field(512, gt=0, description="Tokens of a T5 text encoder.")
    loras: tuple[Lora, ...] = Field((), description="LoRAs of the catalog that every image of this model gets.")
    max_batch: int | None = Field(None, gt=0, description="Cap on seats of a lane below FARM_MAX_BATCH.")
    allow_lossy: bool = Field(default=True, description="Whether a small card may hold it in less than 16 bits.")
    precision: LossyPrecision | None = Field(
        None,
        description="What GPUs keep its denoiser in, however much memory they have; by default 16 bits where they fit."
        " With `-dynamic` it computes in it as well.",
    )

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.precision is not None and not self.allow_lossy:
            raise ValueError(f"precision {self.precision} loses bits, which allow_lossy = false forbids")
        if self.precision is not None and self.precision not in PRECISIONS[self.family]:
            choices = ", ".join(PRECISIONS[self.family])
            raise ValueError(f"precision {self.precision} is not for the family {self.family}; choices: {choices}")
        return self

    @property
    def scheduler_group(self) -> Group:
        """Which schedulers fit: those of flow matching or those of diffusion."""
        return "flow" if self.family in _FLOW_FAMILIES else "diffusion"


class LoraRow(Source):
    """One LoRA that has a name. Files in `loras/` of FARM_MODELS_DIR need no row."""

    name: str = Field(pattern=LORA_NAME.pattern)
    family: Family
    description: str = ""


class ControlNetRow(Source):
    """One ControlNet, for a family whose denoiser is a UNet."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    family: Literal["sd15", "sdxl"]
    description: str = ""
