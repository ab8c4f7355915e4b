"""Throughput from counts in buckets of time: what is summed and divided, away from where it is kept. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from farm.ledger.records import Rate

WINDOWS: Final = ((60, 5), (300, 5), (3600, 60))
"""Windows of the throughput report and the bucket size each is summed from, in seconds."""


def sum_buckets(buckets: Iterable[dict[bytes, bytes]]) -> dict[tuple[str, str], dict[str, int]]:
    """Sum buckets by (kind, name); images of the farm are its models', steps and joules its workers'.

    `metered` are images of workers that told what their cards took: a CPU in the farm makes no image cheaper.
    """
    sums: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for bucket in buckets:
        for label, amount in bucket.items():
            kind, name, what = label.decode().split("|")
            sums[kind, name][what] += int(amount)
            if (kind == "m") == (what in ("images", "gpu_ms")):
                sums["total", ""][what] += int(amount)
    for who in [who for who, done in sums.items() if who[0] == "w" and "energy_j" in done]:
        for each in (who, ("total", "")):
            sums[each]["metered"] += sums[who].get("images", 0)
    return sums


def rate_of(window_s: int, sums: dict[str, int]) -> Rate:
    """Divide what was done within a window by its seconds, images and steps."""
    images, gpu_s, steps = sums.get("images", 0), sums.get("gpu_ms", 0) / 1000, sums.get("steps", 0)
    energy_j, metered = sums.get("energy_j"), sums.get("metered", 0)
    return Rate(
        window_s=window_s,
        images=images,
        images_per_s=images / window_s,
        gpu_s=gpu_s,
        gpu_s_per_image=gpu_s / images if images else None,
        mean_seat_occupancy=sums.get("seat_steps", 0) / steps if steps else None,
        energy_j=energy_j,
        joules_per_image=energy_j / metered if energy_j is not None and metered else None,
    )
