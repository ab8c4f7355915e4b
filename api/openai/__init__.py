"""OpenAI's API for images, files and batches, on the farm's ledger: what its SDKs send, unmodified, is understood.

Each request becomes one job; what is asked, how it is answered and how errors are told is OpenAI's way, the rest is the
farm's. Models are listed by api/models.py, for both APIs.
"""

from api.openai.batch_outputs import CHORE, keep_outputs
from api.openai.batches import router as _batches
from api.openai.edits import router as _edits
from api.openai.errors import DIALECTS
from api.openai.files import router as _files
from api.openai.images import router as _images

__all__ = ["CHORE", "DIALECTS", "ROUTERS", "keep_outputs"]

ROUTERS = (_images, _edits, _files, _batches)
