"""The one truth of progress, in Redis. Key names and Lua are private to this package.

Every transition is one Lua script: atomic, and safe to repeat. A Celery message is a hint; the ledger decides.
"""

from farm.ledger.keys import ApiKey
from farm.ledger.ledger import Ledger
from farm.ledger.records import (
    Chore,
    ChoreBacklog,
    Demand,
    Gpu,
    Heard,
    ImageChange,
    ImageStatus,
    JobStatus,
    Look,
    ModelBacklog,
    ModelDemand,
    News,
    Opened,
    Preview,
    PreviewTold,
    Rate,
    TenantLimits,
    TenantStatus,
    Throughput,
    WorkerReport,
)

__all__ = [
    "ApiKey",
    "Chore",
    "ChoreBacklog",
    "Demand",
    "Gpu",
    "Heard",
    "ImageChange",
    "ImageStatus",
    "JobStatus",
    "Ledger",
    "Look",
    "ModelBacklog",
    "ModelDemand",
    "News",
    "Opened",
    "Preview",
    "PreviewTold",
    "Rate",
    "TenantLimits",
    "TenantStatus",
    "Throughput",
    "WorkerReport",
]
