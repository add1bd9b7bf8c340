"""Which examples come up when: told by the seed and the epoch alone, for any number of processes."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from hf_gelu_patch.evaluation.tasks.base import Task

__all__ = ["Order"]

_WINDOW = 50  # steps whose examples are sorted by length together, as transformers' Trainer has it

Ids = tuple[int, ...]
"""Examples that are run at once, as numbered in the task."""


@dataclass(frozen=True)
class Order:
    """The examples of a task, epoch by epoch, cut into batches that are run at once and steps of several of these.

    Attributes:
        task: whose examples.
        size: examples in a batch, or fewer at an end.
        batches: batches in a step, of all processes together, or fewer in an epoch's last one.
        seed: of the order.
        by_length: put examples of like length into one batch.
    """

    task: Task
    size: int
    batches: int
    seed: int
    by_length: bool = False

    def epoch(self, number: int) -> list[list[Ids]]:
        """The steps of an epoch, counted from 0: each a list of batches. Those of one batch have one shape."""
        draw = random.Random(f"finetune {self.seed} {number}")
        examples = self.task.examples
        order = draw.sample(range(len(examples)), len(examples))
        if self.by_length:
            window = _WINDOW * self.size * self.batches
            cut = (order[start : start + window] for start in range(0, len(order), window))
            order = [one for part in cut for one in sorted(part, key=lambda i: -int(examples.sizes[i]))]
        alike: dict[int, list[int]] = {}
        for one in order:
            alike.setdefault(int(examples.shapes[one]), []).append(one)
        found = [
            tuple(some[start : start + self.size])
            for some in alike.values()
            for start in range(0, len(some), self.size)
        ]
        if self.by_length or len(alike) > 1:
            draw.shuffle(found)
        return [found[start : start + self.batches] for start in range(0, len(found), self.batches)]

    @property
    def steps_in_epoch(self) -> int:
        """The same in every epoch."""
        alike = np.bincount(self.task.examples.shapes)
        batches = sum(-(-int(many) // self.size) for many in alike)
        return -(-batches // self.batches)
