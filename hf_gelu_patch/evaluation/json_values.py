"""Plain data for JSON, with one spelling of the numbers that JSON does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> Any:
    """``value`` as ``json.dumps(…, allow_nan=False)`` takes it: lists for tuples, texts for keys, and a number that is
    not finite as its name: "nan", "inf" or "-inf". ``float`` reads these names back. Python writes any other float so
    that it is read back to the bit."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return repr(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
