"""All examples in batches, of which none is made before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from hf_gelu_patch.evaluation.tasks.base import Batch, Task

__all__ = ["Batches"]


class Batches(Sequence["Batch"]):
    """A task's examples in batches of one shape each, the longest first: the same for any number of processes.

    Args:
        task: whose examples.
        size: examples in a batch, or fewer in the last one of a shape.
    """

    def __init__(self, task: Task, size: int) -> None:
        self._task = task
        sizes, shapes = task.examples.sizes, task.examples.shapes
        self._order = np.lexsort((np.arange(len(sizes)), -sizes, shapes))
        begins: list[np.ndarray[Any, Any]] = [np.zeros(0, dtype=np.int64)]
        ends = list(begins)
        for begin, end in _runs(shapes[self._order]):
            starts = np.arange(begin, end, size)
            begins.append(starts)
            ends.append(np.minimum(starts + size, end))
        self._cuts = np.stack([np.concatenate(begins), np.concatenate(ends)], axis=1)

    def __len__(self) -> int:
        return len(self._cuts)

    @overload
    def __getitem__(self, which: int) -> Batch: ...
    @overload
    def __getitem__(self, which: slice) -> Batches: ...
    def __getitem__(self, which: int | slice) -> Batch | Batches:
        if isinstance(which, slice):
            found = object.__new__(Batches)
            found._task, found._order, found._cuts = self._task, self._order, self._cuts[which]
            return found
        ids = self.ids(which)
        return self._task.collate(ids, self._task.examples.some(ids))

    def ids(self, number: int) -> tuple[int, ...]:
        """The examples of a batch, which is not made for that."""
        begin, end = self._cuts[number]
        return tuple(self._order[begin:end].tolist())

    def all_ids(self) -> Iterator[tuple[int, ...]]:
        """The examples of each batch."""
        return map(self.ids, range(len(self)))


def _runs(values: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """From where to where one value stands, each time."""
    edges = np.flatnonzero(np.diff(values)) + 1
    ends = [*edges.tolist(), len(values)]
    yield from zip([0, *edges.tolist()], ends, strict=True) if len(values) else ()
