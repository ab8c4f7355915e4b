"""What device time costs, where the operator has said what an hour of a GPU does (FARM_GPU_HOUR_PRICE). Pure."""

from __future__ import annotations


def price_of(gpu_s: float, gpu_hour_price: float | None) -> float | None:
    """Return the price of so many seconds of device time, in the currency of the hour's; None without one.

    Hours in which a card idles are nobody's image and in no price.
    """
    return None if gpu_hour_price is None else gpu_s / 3600 * gpu_hour_price


def price_per_1000(gpu_s: float, images: int, gpu_hour_price: float | None) -> float | None:
    """Return the price of a thousand images like these; None without a price or an image."""
    return price_of(gpu_s * 1000 / images, gpu_hour_price) if images else None
