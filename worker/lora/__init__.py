"""LoRAs: which file a name means and what is in it (files.py), and putting them into a model's weights (patch.py)."""

from worker.lora.files import LoraLayer, LoraLibrary, LoraWeights
from worker.lora.patch import LoraPatch

__all__ = ["LoraLayer", "LoraLibrary", "LoraPatch", "LoraWeights"]
