"""What is measured in which order, and how long each step may take."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scripts.benchmarking.gpu.record import Record
from scripts.benchmarking.timing import say

SLOWER = 3
"""So many times as long as guessed may a preparation take: nothing was timed on a GPU when it was guessed."""
_SPARE = 6.0
"""Seconds of a limit for what comes after the measuring."""
_LEAST = 5.0
"""Seconds in which nothing is begun any more."""


@dataclass(frozen=True)
class Step:
    """What runs in a process of its own.

    Attributes:
        name: to be asked for by.
        group: a name for several.
        run: what it does.
        prepare: seconds that it takes until it measures, a guess.
        measure: seconds that it has for measuring.
        cells: how many it has to measure.
        needed: whether it is one of those that a run is for; each of them has its time, whatever the others take.
    """

    name: str
    group: str
    run: Callable[[Work], object]
    prepare: float
    measure: float
    cells: int = 0
    needed: bool = False

    @property
    def limit(self) -> float:
        """Seconds after which it is killed."""
        return SLOWER * self.prepare + self.measure + _SPARE


def schedule(
    steps: Sequence[Step],
    end: float,
    clock: Callable[[], float],
    run: Callable[[Step, float], object],
    leave_out: Callable[[Step, str], object],
) -> None:
    """Run one step after the other, each under its limit, until ``end`` on that clock. One that could not even prepare
    in what is left is left out."""
    for step in steps:
        left = end - clock()
        wanted = _LEAST if step.needed else step.prepare + _LEAST
        if left < wanted:
            leave_out(step, f"{max(0.0, left):.0f} s were left, and it wants {wanted:.0f}")
        else:
            run(step, min(step.limit, left))


class Work:
    """What a step has to do with the rest, in its process: its time, and the record.

    Attributes:
        options: the command's.
    """

    def __init__(self, step: Step, limit: float, record: Record, options: Any) -> None:
        self.step, self.record, self.options = step, record, options
        self._began = time.monotonic()
        self._until = self._began + limit - min(_SPARE, limit) / 2

    def prepared(self) -> None:
        """From now on it measures, for as long as it has."""
        now = time.monotonic()
        self._until = min(self._until, now + self.step.measure)
        self.write("prepared", seconds=round(now - self._began, 2))

    @property
    def left(self) -> float:
        """Seconds."""
        return self._until - time.monotonic()

    def write(self, kind: str, **fields: Any) -> None:
        self.record.write(kind, step=self.step.name, **fields)

    def cell(self, what: str, kind: str = "cell", **fields: Any) -> None:
        """What was measured, told once it is written."""
        self.write(kind, **fields)
        say(f"measured {self.step.name}: {what}")

    def leave_out(self, what: str) -> None:
        self.write("left_out", what=what, why="its step had no time left")

    def fail(self, what: str, why: str) -> None:
        say(f"failed {self.step.name}: {what}: {why.strip().splitlines()[-1]}")
        self.write("failure", what=what, why=why[-4000:])

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A failure is written down, with its traceback, and costs nothing else."""
        try:
            yield
        except Exception as error:
            self.fail(what, "".join(traceback.format_exception(error)))
