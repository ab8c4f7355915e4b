"""How many rows a recorded forward has: few shapes, little padding. Pure."""

from __future__ import annotations

from typing import Final

_BITS: Final = 3
"""Leading bits, after the first, in which a number of rows is kept: padding is less than an eighth of the rows."""


def bucket_of(num_rows: int) -> int:
    """Return the number of rows that a forward of `num_rows` is padded to: itself, up to 16 and where it is round.

    Up to 128 rows, 64 guided seats, there are 40 shapes; lanes of 8 guided seats are never padded.
    """
    if num_rows < 1:
        raise ValueError(f"a forward has rows, not {num_rows}")
    step = 1 << max(0, num_rows.bit_length() - 1 - _BITS)
    return -(-num_rows // step) * step
