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

__all__ = ["as_a_line", "progress"]


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
    """What makes, for each model in turn, what is told of its progress: a bar on a terminal, a line for each stage
    where there is none, and nothing on any process but the main one.

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
        yield _lines(models)


def _silence(name: str) -> Progress:
    del name

    def tell(stage: str, share: float) -> None:
        del stage, share

    return tell


def _lines(models: int) -> Callable[[str], Progress]:
    numbers = itertools.count(1)

    def lines(name: str) -> Progress:
        told: set[str] = set()
        head = f"[{next(numbers)}/{models}] {name}"

        def tell(stage: str, share: float) -> None:
            del share
            if stage not in told:
                told.add(stage)
                print(f"{head}: {stage}", file=sys.stderr, flush=True)

        return tell

    return lines


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
