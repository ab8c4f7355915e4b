"""What a model takes the finished picture for, at any call of a run: from its latents and its prediction, by weights.

Needs nothing but the run's table. With which weights picture and noise are mixed before each call is in it, as
inpainting needs them, and what models predict is one of four mixtures of the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def denoising_weights(
    noising: NDArray[np.float64], input_scale: NDArray[np.float64], prediction_type: str
) -> NDArray[np.float64]:
    """Return the weights of (latents, prediction) in the estimate of the picture's latents, [calls, 2].

    `noising` [calls, 2] are the weights of (picture, noise) in the latents before each call, `input_scale` [calls] is
    what they are multiplied with for the model. Where a prediction tells nothing of the picture, as an `epsilon` does
    under noise alone, the estimate is the latents.
    """
    # Where latents are scaled for the model, to unit deviation, they are the picture and so much noise: true of the
    # calls between two steps as well, which noising knows nothing of.
    is_scaled = input_scale < 1
    kept = np.where(is_scaled, 1.0, noising[:, 0])
    added = np.where(is_scaled, np.sqrt(np.maximum(input_scale**-2.0 - 1, 0)), noising[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        match prediction_type:
            case "sample" | "original_sample":
                pair = np.zeros_like(kept), np.ones_like(kept)
            case "v_prediction":  # of latents scaled to unit deviation
                size = np.hypot(kept, added)
                pair = kept / size**2, -added / size
            case "flow_prediction":
                pair = 1 / (kept + added), -added / (kept + added)
            case _:
                pair = 1 / kept, -added / kept
    weights = np.stack(pair, axis=1)
    weights[~np.isfinite(weights).all(axis=1)] = (1.0, 0.0)
    return weights
