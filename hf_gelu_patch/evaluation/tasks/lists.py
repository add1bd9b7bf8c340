"""Lists in cells of data, and lists as one column."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["array_of", "listed", "written"]


def written(text: str) -> Any:
    """What a text says in the notation of JSON, or of Python; the text itself where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def listed(value: Any) -> list[Any] | None:
    """A list, or the one that a text in brackets is; None where it is none."""
    if isinstance(value, str) and value.strip()[:1] + value.strip()[-1:] == "[]":
        value = written(value)
    return value if isinstance(value, list) else None


def array_of(lists: Sequence[list[Any]]) -> np.ndarray[Any, Any]:
    """An array of lists, also where all of them are equally long."""
    found = np.empty(len(lists), dtype=object)
    for number, one in enumerate(lists):
        found[number] = one
    return found
