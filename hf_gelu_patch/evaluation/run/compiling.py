"""Both sides compiled: the unpatched model and each variant, each by itself, after the patch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from hf_gelu_patch.errors import first_line
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.twins import twin

__all__ = ["again", "compilable", "compiled", "uncompiled"]

_SHAPES = 4  # batches that each model runs at once, from the longest to the shortest
_RECOMPILED = 256  # times for all models together: their forwards are the same code


@contextmanager
def compilable(comparison: Comparison) -> Iterator[None]:
    """Within it models may be compiled anew as often as they need: by default torch gives up after eight times, and
    goes on without a word. Nothing is changed where nothing is to be compiled."""
    if not comparison.settings.loading.torch_compile:
        yield
        return
    from torch._dynamo import config

    with config.patch(
        recompile_limit=_RECOMPILED, accumulated_recompile_limit=_RECOMPILED, fail_on_recompile_limit_hit=True
    ):
        yield


def compiled(comparison: Comparison) -> tuple[Comparison, float]:
    """The same with everything compiled that is compared: twins, so that the model itself is left as it is.

    Returns:
        It; and how long compiling took, in seconds: how much longer a few batches took at first than the second time.

    Raises:
        EvaluationError: the model can have no twin, or a model cannot be compiled.
    """
    if not comparison.settings.loading.torch_compile:
        return comparison, 0.0
    if comparison.in_turn:
        raise EvaluationError(
            f"--torch_compile compiles the model and its variants side by side, and this one serves for all in turn: "
            f"{comparison.in_turn}. Drop it."
        )
    own = twin(comparison.model)
    found = replace(comparison, model=own)
    seconds = sum(_compiled(found, one) for one in (own, *(side.model for side in found.running.values())))
    return found, seconds


def _compiled(comparison: Comparison, model: torch.nn.Module) -> float:
    """Compile a model in its place, and run it; how long that took."""
    batches, task = comparison.batches, comparison.task
    some = range(0, len(batches), max(1, len(batches) // _SHAPES))
    model.compile()
    took = []
    for _ in range(2):
        start = time.perf_counter()
        for number in some:
            batch = batches[number].to(comparison.device)
            try:
                task.forward(model, batch)  # type: ignore[arg-type]
            except Exception as error:  # Dynamo's, Inductor's, a C++ compiler's
                with uncompiled():
                    _runs(comparison, model, number)
                raise EvaluationError(
                    f"{task.subject.name} cannot be compiled: {type(error).__name__}: {first_line(error)} Inductor "
                    "needs a C++ compiler on a CPU, and Triton on a GPU. Drop --torch_compile, or leave the site out "
                    "with --exclude."
                ) from error
        took.append(time.perf_counter() - start)
    return max(0.0, took[0] - took[1])


def _runs(comparison: Comparison, model: torch.nn.Module, number: int) -> None:
    """Let a batch that fails without a compiler too fail as it does: whoever runs all batches says in which row."""
    try:
        comparison.task.forward(model, comparison.batches[number].to(comparison.device))  # type: ignore[arg-type]
    except Exception as error:
        raise EvaluationError(
            f"{comparison.task.subject.name} fails on a batch without a compiler too: {first_line(error)} Run it "
            "without --torch_compile, which says on which row."
        ) from error


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within it compiled models run as they were written, so that hooks on their layers are called."""
    with torch.compiler.set_stance("force_eager"):
        yield


def again(comparison: Comparison) -> Side:
    """The unpatched model once more."""
    if comparison.in_turn:
        return Side(comparison.model)
    own = twin(comparison.model)
    if comparison.settings.loading.torch_compile:
        own.compile()
    return Side(own)
