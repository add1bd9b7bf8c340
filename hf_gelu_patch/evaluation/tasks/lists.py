"""Columns of data read as lists, and lists in their cells."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

__all__ = ["Column", "array_of", "listed", "written"]

_AT_A_TIME = 10_000  # values of a column


class Column:
    """The values of a column, some of which are read at a time, as often as they are asked for."""

    def __init__(self, data: datasets.Dataset, name: str | None) -> None:
        self._data, self._name = data, name

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._data), _AT_A_TIME):
            yield from self._data[self._name][start : start + _AT_A_TIME]


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
