"""Throughput from counts in buckets of time: what is summed and divided, away from where it is kept. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from farm.ledger.records import Rate

WINDOWS: Final = ((60, 5), (300, 5), (3600, 60))
"""Windows of the throughput report and the bucket size each is summed from, in seconds."""


def sum_buckets(buckets: Iterable[dict[bytes, bytes]]) -> dict[tuple[str, str], dict[str, int]]:
    """Sum buckets by (kind, name); images of the farm are its models', steps its workers'."""
    sums: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for bucket in buckets:
        for label, amount in bucket.items():
            kind, name, what = label.decode().split("|")
            sums[kind, name][what] += int(amount)
            if (kind == "m") == (what in ("images", "gpu_ms")):
                sums["total", ""][what] += int(amount)
    return sums


def rate_of(window_s: int, sums: dict[str, int]) -> Rate:
    """Divide what was done within a window by its seconds, images and steps."""
    images, gpu_s, steps = sums.get("images", 0), sums.get("gpu_ms", 0) / 1000, sums.get("steps", 0)
    return Rate(
        window_s=window_s,
        images=images,
        images_per_s=images / window_s,
        gpu_s=gpu_s,
        gpu_s_per_image=gpu_s / images if images else None,
        mean_seat_occupancy=sums.get("seat_steps", 0) / steps if steps else None,
    )
