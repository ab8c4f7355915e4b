"""A1111's API on the farm's ledger: what its clients send, unmodified, is understood, and many may do so at once.

Each request becomes one job; what is asked, how it is answered and how errors are told is A1111's way, the rest is the
farm's. docs/a1111.md tells what is honoured, refused and ignored.
"""

from api.a1111 import extras, generation, lists, progress
from api.a1111.errors import DIALECTS

__all__ = ["DIALECTS", "ROUTERS"]

ROUTERS = (
    generation.router,
    progress.router,
    lists.router,
    extras.router,
    lists.controlnet_router,
    lists.ping_router,
)
