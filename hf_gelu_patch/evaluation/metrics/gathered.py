"""What metrics take of many examples, put together a part at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import ANSWERS, Array, Columns, Rows, array_of, measured

__all__ = ["Gathered", "Merged", "merged"]

Merged = tuple[Rows, Rows, Array]
"""Two models' rows, of which those that were alike are one; and how many of them each stands for."""


class Gathered:
    """The columns of examples, of which parts are added in any order. Numbers are kept, and of texts what is counted
    about them, where that can be told of each example by itself (``Answers.apart``)."""

    def __init__(self) -> None:
        self._examples: list[Array] = []
        self._parts: dict[str, dict[str, list[Array]]] = {}

    def add(self, examples: Sequence[int], columns: Columns) -> None:
        """Add the columns of some examples, by their numbers."""
        self._examples.append(np.asarray(examples, dtype=np.int64))
        for kind, some in columns.items():
            answers, parts = ANSWERS[kind], self._parts.setdefault(kind, {})
            arrays = {name: array_of(answers.columns[name], given) for name, given in some.items()}
            for name, values in (answers.rows(**arrays) if answers.apart else arrays).items():
                parts.setdefault(name, []).append(values)

    def rows(self) -> Rows:
        """What there is to count about each example, in their order."""
        order = np.argsort(np.concatenate([np.zeros(0, dtype=np.int64), *self._examples]), kind="stable")
        found = {}
        for kind, parts in self._parts.items():
            whole = {name: np.concatenate(arrays)[order] for name, arrays in parts.items()}
            found[kind] = whole if ANSWERS[kind].apart else ANSWERS[kind].rows(**whole)
        return found

    def measured(self) -> dict[str, float]:
        """The metrics of all examples that were added."""
        return measured(self.rows())


def merged(before: Rows, after: Rows, most: int) -> Merged | None:
    """The same rows, those merged that are alike in everything before and after; None if more than ``most`` are left.

    A sample of n examples, drawn with replacement, has as many of each kind as a draw from the multinomial
    distribution says: to resample the kinds is to resample the examples, and a metric is told from how many there are
    of each.
    """
    arrays = [row for rows in (before, after) for some in rows.values() for row in some.values()]
    if not arrays or any(array.dtype == object for array in arrays):
        return None
    size = len(arrays[0])
    kinds, first, counts = np.zeros(size, dtype=np.int64), np.zeros(min(size, 1), dtype=np.int64), np.array([size])
    for array in arrays:
        for column in array.reshape(size, -1).T:
            values, codes = np.unique(column, return_inverse=True)
            if len(values) > most:
                return None
            _, first, kinds, counts = np.unique(
                kinds * len(values) + codes.reshape(-1), return_index=True, return_inverse=True, return_counts=True
            )
            if len(first) > most:
                return None
    old, new = (
        {kind: {name: row[first] for name, row in some.items()} for kind, some in rows.items()}
        for rows in (before, after)
    )
    return old, new, counts
