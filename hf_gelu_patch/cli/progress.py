"""What is told of an evaluation while it runs."""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from hf_gelu_patch.evaluation.run import Progress

__all__ = ["Lines", "as_a_line", "progress"]


@contextmanager
def as_a_line(*categories: type[Warning]) -> Iterator[None]:
    """Show warnings of some kinds as all else that is said here, without the line of code that gave them."""
    usual = warnings.showwarning

    def show(message: Warning | str, kind: type[Warning], *where: Any) -> None:
        if issubclass(kind, categories):
            print(f"hf-gelu-patch: {message}", file=sys.stderr, flush=True)
        else:
            usual(message, kind, *where)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextmanager
def progress(main: bool, models: int, stages: Sequence[str]) -> Iterator[Callable[[str], Progress]]:
    """What makes, for each model in turn, what is told of its progress: a bar on a terminal, and lines where there is
    none, as ``Lines`` writes them. Nothing on any process but the main one.

    Args:
        main: whether this is the main process.
        models: how many there are.
        stages: of each of them, in their order.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not main:
        yield _silence
    elif console.is_terminal:
        with _bars(console, stages) as bars:
            yield bars
    else:
        yield Lines(models, stages)


def _silence(name: str) -> Progress:
    del name

    def tell(stage: str, share: float) -> None:
        del stage, share

    return tell


class Lines:
    """A line for each stage as it begins; and within it one every half minute, with what is left.

    It writes only when it is told something, never in a thread of its own that would run beside what is timed. So a
    line may come later, but not by more than one batch or round takes.

    Args:
        models: how many there are.
        stages: of each of them, in their order.
        clock: seconds.
    """

    def __init__(self, models: int, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._models, self._stages, self._clock = models, stages, clock
        self._numbers = itertools.count(1)

    def __call__(self, name: str) -> Progress:
        number = next(self._numbers)
        head = f"[{number}/{self._models}] {name}"
        begun: dict[str, tuple[float, float]] = {}
        written = self._clock()

        def tell(stage: str, share: float) -> None:
            nonlocal written
            now, line = self._clock(), ""
            if stage not in begun:
                begun[stage], line = (now, share), stage
            elif now - written >= _OFTEN:
                line = f"{stage} {share:.0%}{_left(now - begun[stage][0], begun[stage][1], share)}"
                line += "".join(f"; then {after}" for after in [self._after(stage, number)] if after)
            if line:
                written = now
                print(f"{head}: {line}", file=sys.stderr, flush=True)

        return tell

    def _after(self, stage: str, number: int) -> str:
        """What comes after a stage of one of the models."""
        stages, models = self._stages[self._stages.index(stage) + 1 :], self._models - number
        more = [f"{models} more model{'s' if models > 1 else ''}"] if models else []
        return ", ".join([*stages, *more])


_OFTEN = 30.0
"""Seconds between two lines of a stage."""


def _left(seconds: float, began: float, share: float) -> str:
    """How long a stage will take still, if it goes on as it did since it began with some share done."""
    if share <= began or share >= 1:
        return ""
    left = seconds * (1 - share) / (share - began)
    for size, unit in ((3600, "h"), (60, "min")):
        if left >= 1.5 * size:
            return f", about {left / size:.0f} {unit} left"
    return f", about {left:.0f} s left"


@contextmanager
def _bars(console: Console, stages: Sequence[str]) -> Iterator[Callable[[str], Progress]]:
    """A bar is drawn only when it is told something, never in a thread of its own that would run beside what is
    timed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bars:

        def bar(name: str) -> Callable[[str, float], None]:
            task = bars.add_task(name, total=len(stages))
            drawn = 0.0

            def tell(stage: str, share: float) -> None:
                nonlocal drawn
                bars.update(task, description=f"{name}: {stage}", completed=stages.index(stage) + share)
                if share in (0.0, 1.0) or time.monotonic() - drawn > 0.1:
                    drawn = time.monotonic()
                    bars.refresh()

            return tell

        yield bar
