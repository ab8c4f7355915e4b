"""Files of weights: where they are, how they come here, whether they are whole, what they hold, and their digests.

Shared by the worker, which loads them, and the command line, which fetches and checks them. Nothing here knows torch:
of a file of weights only its header is read, and its bytes when they are hashed.
"""

from __future__ import annotations

from farm.weights.choose import COMPONENTS, Chosen, choose_weights, has_weights
from farm.weights.digests import DIGESTS_FILE, Digests
from farm.weights.digests import compute as compute_digest
from farm.weights.find import Weights
from farm.weights.found import ModelFiles
from farm.weights.headers import BadHeader, TensorInfo, read_header
from farm.weights.hub import Hub
from farm.weights.recognise import Kind, recognise

__all__ = [
    "COMPONENTS",
    "DIGESTS_FILE",
    "BadHeader",
    "Chosen",
    "Digests",
    "Hub",
    "Kind",
    "ModelFiles",
    "TensorInfo",
    "Weights",
    "choose_weights",
    "compute_digest",
    "has_weights",
    "read_header",
    "recognise",
]
