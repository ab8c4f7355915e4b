"""The published models in their original layouts, at full size: names and shapes alone, which takes no weights."""

from __future__ import annotations

import pytest
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from farm.plans.published import PUBLISHED, find_published
from farm.weights import TensorInfo, recognise
from farm.weights.original import split
from original_layouts import bfl, comfy_flux, compvis, compvis_2, sgm, stability_sd3_with_text
from worker.bench.published import build
from worker.pipelines.bfl import convert_bfl
from worker.pipelines.single_file import convert

LAYOUTS = {
    "sd15": ("sd15", compvis),
    "sd21": ("sd15", compvis_2),
    "sdxl": ("sdxl", sgm),
    "flux-schnell": ("flux", comfy_flux),
    "flux-dev": ("flux", comfy_flux),
    "sd35-medium": ("sd3", stability_sd3_with_text),
    "sd35-large": ("sd3", stability_sd3_with_text),
}
TIED = "encoder.embed_tokens.weight"


class FullSize:
    """A published model on the meta device."""

    def __init__(self, name):
        self._name = name

    def tensors(self, part):
        return {name: tensor for name, tensor in build(self._name, part).state_dict().items() if name != TIED}

    def config(self, part):
        return dict(build(self._name, part).config)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_part_of_the_published_file_is_found(name):
    """The file is recognised, its parts are told apart, and each is renamed to just what its network wants."""
    family, layout = LAYOUTS[name]
    tensors = layout(FullSize(name))
    kind = recognise({key: TensorInfo("F16", tuple(tensor.shape), 0) for key, tensor in tensors.items()})
    assert kind.family == family
    assert find_published(kind.config, family) == (name, True)
    held = split(tensors, family)
    assert held.keys() == {size.name for size in PUBLISHED[name]}
    for part, names in held.items():
        module = build(name, part)
        prefix = next(full.removesuffix(own) for own, full in names.items())
        converted = convert(module, {own: tensors[full] for own, full in names.items()}, prefix)
        expected = {key: tensor.shape for key, tensor in module.state_dict().items() if key != TIED}
        assert {key: tensor.shape for key, tensor in converted.items() if key in expected} == expected


def test_flux_converter_agrees_with_diffusers():
    """At the one width that diffusers' converter knows, ours gives the same names and shapes."""
    original = bfl(FullSize("flux-dev"))
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    ours = convert_bfl(original)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
