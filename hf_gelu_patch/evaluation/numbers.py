"""One spelling of numbers that JSON does not have."""

from __future__ import annotations

import math


def plain_number(number: float) -> float | str:
    """As JSON has it: what is not finite by its name."""
    return number if math.isfinite(number) else repr(float(number))
