"""What a denoiser need not compute again at every step: features kept from one call of a run to the next.

Each run keeps its own and decides for itself, so that its picture does not depend on company. What a job asks for is in
farm.jobs.Acceleration; which families have it, farm/acceleration.py says.
"""

from worker.caching.deep import DeepCache
from worker.caching.first_block import FirstBlockCache
from worker.caching.memory import Memory
from worker.caching.rows import CachedRow, Phase, cached_rows, phase_of

__all__ = ["CachedRow", "DeepCache", "FirstBlockCache", "Memory", "Phase", "cached_rows", "phase_of"]
