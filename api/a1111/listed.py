"""The shapes of A1111's lists, item by item."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel


class _Item(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class SDModel(_Item):
    """A model of the catalog."""

    title: str = Field(description="What sd_model_checkpoint takes.")
    model_name: str
    hash: str | None = Field(None, description="Always null: hashes are in the images' recipes.")
    sha256: str | None = None
    filename: str = Field(description="Where its weights come from.")
    config: str | None = None


class Sampler(_Item):
    """A sampler."""

    name: str
    aliases: list[str]
    options: dict[str, Any]


class Schedule(_Item):
    """A way to spread the steps."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class Upscaler(_Item):
    """A way to enlarge pictures."""

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float


class Named(_Item):
    """Something with a name."""

    name: str


class Lora(_Item):
    """A LoRA that `<lora:name:weight>` may name."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any] = {}


class VAE(_Item):
    """A VAE to choose; there are none, each model has its own."""

    model_name: str
    filename: str


class PromptStyle(_Item):
    """A style of the operator's styles.csv."""

    name: str
    prompt: str
    negative_prompt: str


class Embedding(_Item):
    """A textual inversion that prompts may name."""

    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int
    vectors: int


class Embeddings(_Item):
    """Textual inversions by their words."""

    loaded: dict[str, Embedding]
    skipped: dict[str, Embedding] = Field(description="Files that are none, or pickled.")


class Memory(_Item):
    """Memory of the API's host, and of all GPUs of the farm together, in bytes."""

    ram: dict[str, Any]
    cuda: dict[str, Any]


class Scripts(_Item):
    """Scripts by name; `controlnet m2m` is how clients recognise that there is ControlNet."""

    txt2img: list[str]
    img2img: list[str]


class OptionChanges(RootModel[dict[str, Any]]):
    """Options to change, by A1111's names; the others stay."""


class ControlNetVersion(_Item):
    """The version of the extension that this is like."""

    version: int = 3


class ControlNetModels(_Item):
    """ControlNets of the catalog."""

    model_list: list[str]


class ControlNetModules(_Item):
    """Preprocessors."""

    module_list: list[str]


class Pong(_Item):
    """Nothing."""
