"""How large a model's components are: read from its files where they are on disk, else from the published table.

Files are a diffusers folder or one `.safetensors` file in any of the layouts that models are shared in. Only headers
are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.plans.published import PUBLISHED, ComponentSize, Role, find_published
from farm.weights.headers import BadHeader, TensorInfo, read_header
from farm.weights.original import DENOISERS, split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from farm.catalog import ModelRow

_FOLDERS: Final = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "vae")

_BLOCKS: Final = re.compile(
    r"(down_blocks|mid_block|up_blocks|transformer_blocks|single_transformer_blocks"
    r"|input_blocks|middle_block|output_blocks|double_blocks|single_blocks|joint_blocks)\."
)
_TWICE: Final = "encoder.embed_tokens.weight"
"""T5's embedding under its second name, which some files save as well; in memory it is one."""

_WIDTH_OF: Final[dict[Role, tuple[str, ...]]] = {
    "denoiser": (
        "conv_in.weight",
        "input_blocks.0.0.weight",
        "x_embedder.weight",
        "img_in.weight",
        "pos_embed.proj.weight",
        "x_embedder.proj.weight",
    ),
    "vae": ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
}
"""Tensors whose first dimension is a component's width."""
_EMBEDDINGS: Final = ("token_embedding.weight", "shared.weight", "embed_tokens.weight")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The components of one model; `origin` says where the numbers come from, for people."""

    components: tuple[ComponentSize, ...]
    origin: str

    def component(self, role: Role) -> ComponentSize:
        """Return the one component of `role`: `denoiser` or `vae`."""
        return next(component for component in self.components if component.role == role)


def sizes_of(row: ModelRow, models_dir: Path) -> ModelSizes:
    """Return the sizes of the model of `row`: from its files under `models_dir` if they are there, else as published.

    Raises BadHeader when a file that is there cannot be read.
    """
    name, is_exact = find_published(row.source, row.family)
    published = PUBLISHED[name]
    local = models_dir / row.source / (row.filename or "")  # an absolute source stays as it is
    tensors = _read_folder(local) if local.is_dir() else {}
    if not tensors and local.is_file():
        whole = read_header(local)
        parts = split(whole, row.family)
        tensors = {part: {name: whole[full] for name, full in held.items()} for part, held in parts.items()}
        if "denoiser" not in {role_of(part) for part in tensors}:
            raise BadHeader(f"{local} holds no UNet or transformer in a layout that is known")
    if not tensors:
        origin = f"published sizes of {name}" if is_exact else f"published sizes of {name}, the largest of its family"
        return ModelSizes(published, origin)
    usual_widths = {size.name: size.width for size in published}
    found = {part: measure(part, held, usual_widths.get(part, 0)) for part, held in tensors.items()}
    if {"denoiser", "vae"} <= {size.role for size in found.values()} and local.is_dir():
        return ModelSizes(tuple(found.values()), f"headers under {local}")
    lacking = [size for size in published if size.name not in found]
    components = tuple(found.get(size.name, size) for size in published)
    assumed = "".join(f", {size.name} as published for {name}" for size in lacking)
    return ModelSizes(components, f"headers of {local}{assumed}")


def role_of(component: str) -> str:
    """Return what kind of part a component of this name is: `denoiser`, `vae` or `text`."""
    if component in DENOISERS:
        return "denoiser"
    return "vae" if component == "vae" else "text"


def measure(component: str, tensors: Mapping[str, TensorInfo], usual_width: int = 0) -> ComponentSize:
    """Return the size of a component from its tensors, whose names start within the component.

    `usual_width` is taken when no tensor that is known tells the width.
    """
    held = {name: info for name, info in tensors.items() if name != _TWICE or "shared.weight" not in tensors}
    role: Role
    match role_of(component):
        case "denoiser":
            role = "denoiser"
        case "vae":
            role = "vae"
        case _:
            role = "t5" if any(name.endswith("shared.weight") for name in held) else "clip"
    blocks = sum(info.num_values for name, info in held.items() if _BLOCKS.match(name) and len(info.shape) > 1)
    return ComponentSize(
        name=component,
        role=role,
        num_values=sum(info.num_values for info in held.values()),
        largest_tensor=max(info.num_values for info in held.values()),
        width=_width(role, held) or usual_width,
        num_block_values=blocks if role == "denoiser" else 0,
    )


def _width(role: Role, tensors: Mapping[str, TensorInfo]) -> int:
    """Return the width that the tensors tell, 0 when none does."""
    if role in _WIDTH_OF:
        shapes = (tensors[name].shape for name in _WIDTH_OF[role] if name in tensors)
        return next((shape[0] for shape in shapes if shape), 0)
    shapes = (info.shape for name, info in tensors.items() if name.endswith(_EMBEDDINGS))
    return next((shape[-1] for shape in shapes if shape), 0)


def _read_folder(folder: Path) -> dict[str, dict[str, TensorInfo]]:
    """Return the tensors of each component in a diffusers folder; variants of one weight count once, being one name."""
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name in _FOLDERS:
        held: dict[str, TensorInfo] = {}
        for path in sorted((folder / name).glob("*.safetensors")):
            held.update(read_header(path))
        if held:
            parts[name] = held
    return parts
