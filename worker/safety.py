"""Whether a picture is one that the NSFW checker of Stable Diffusion flags.

The checker is the one that SD 1.x was published with: CLIP looks at the picture, and what it sees is compared with
concepts. It judges as diffusers' pipelines let it judge. What happens to a flagged picture is decided in
worker/finishing.py.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil

from farm.errors import ModelBroken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER: Final = "safety_checker"
"""Where in FARM_MODELS_DIR the checker is looked for first, in the layout of its repository."""

REPOSITORY: Final = "CompVis/stable-diffusion-safety-checker"
_FILES: Final = ("config.json", "preprocessor_config.json", "model.safetensors")


class SafetyChecker:
    """The checker of a worker, found by any thread, loaded and asked by the engine's; it stays on the device."""

    def __init__(self, models_dir: Path | None, device: torch.device) -> None:
        self._models_dir = models_dir
        self._device = device
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._finding = threading.Lock()  # one download, however many units wait for it
        self._folder: Path | None = None
        self._loaded: tuple[Any, Any] | None = None

    def find(self) -> Path:
        """Return the checker's folder: local if there is one, else the hub's snapshot, downloaded when needed.

        Raises ModelBroken when there is neither: no picture goes unchecked that was to be checked.
        """
        with self._finding:
            if self._folder is None:
                self._folder = self._found()
            return self._folder

    def _found(self) -> Path:
        if self._models_dir is None:
            raise ModelBroken("output.safety_checker: this worker has no models folder, hence no safety checker")
        local = self._models_dir / FOLDER
        if local.is_dir():
            return local
        try:
            return Path(snapshot_download(REPOSITORY, allow_patterns=list(_FILES)))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelBroken(
                f"output.safety_checker: no safety checker is installed: there is no folder {local}, and the hub says "
                f"of {REPOSITORY}: {reason}"
            ) from error

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether the checker finds a picture, uint8 [h, w, 3], unsafe. Raises ModelBroken if it cannot be loaded."""
        model, processor = self._load()
        seen = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        # It blackens what it flags in place; what it may blacken here is nothing that anybody wants.
        _, flagged = model(clip_input=seen.to(self._device, self._dtype), images=[torch.empty(0)])
        return bool(flagged[0])

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            folder = self.find()
            try:
                processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
                model, info = StableDiffusionSafetyChecker.from_pretrained(
                    folder,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    dtype=self._dtype,
                )
            except torch.OutOfMemoryError:
                raise  # the engine can make room
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
                raise ModelBroken(f"safety checker: {' '.join(str(error).split())}") from error
            if missing := sorted(info["missing_keys"]):
                raise ModelBroken(f"safety checker: {folder} lacks {len(missing)} weights, {missing[0]} first")
            self._loaded = (model.eval().to(self._device), processor)
        return self._loaded
