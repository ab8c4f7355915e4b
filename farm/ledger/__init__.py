"""The one truth of progress, in Redis. Key names and Lua are private to this package.

Every transition is one Lua script: atomic, and safe to repeat. A Celery message is a hint; the ledger decides.
"""

from farm.ledger.ledger import Ledger
from farm.ledger.records import (
    Chore,
    Demand,
    Gpu,
    ImageStatus,
    JobStatus,
    ModelDemand,
    News,
    Opened,
    Preview,
    Rate,
    TenantLimits,
    TenantStatus,
    Throughput,
    WorkerReport,
)

__all__ = [
    "Chore",
    "Demand",
    "Gpu",
    "ImageStatus",
    "JobStatus",
    "Ledger",
    "ModelDemand",
    "News",
    "Opened",
    "Preview",
    "Rate",
    "TenantLimits",
    "TenantStatus",
    "Throughput",
    "WorkerReport",
]
