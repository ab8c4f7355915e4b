"""OpenAI's API for images, files and batches, on the farm's ledger: what its SDKs send, unmodified, is understood.

Each request becomes one job; what is asked, how it is answered and how errors are told is OpenAI's way, the rest is the
farm's. Models are listed by api/models.py, for both APIs.
"""

from api.openai import batches, edits, files, images
from api.openai.batch_outputs import CHORE, keep_outputs
from api.openai.errors import DIALECTS

__all__ = ["CHORE", "DIALECTS", "ROUTERS", "keep_outputs"]

ROUTERS = (images.router, edits.router, files.router, batches.router)
