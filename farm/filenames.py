"""What an image is called that leaves the farm: the same in a folder of `farm download` and in an archive."""

from __future__ import annotations

import re
from typing import Final

_MAX_SLUG: Final = 60


def file_name(*, index: int, prompt: str, seed: int, suffix: str) -> str:
    """Return a name that sorts by index and says what is in the picture; ASCII, with `suffix` such as `.png`."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return "-".join([f"{index:05d}", *([slug] if slug else []), f"s{seed}"]) + suffix
