"""A model whose layers are split among processes: the first one leads, the others run what it runs.

Every forward of such a model takes all processes at once. The first process evaluates as if it were alone. Before each
forward, and before each generation, it tells the others which of the models it is and what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from hf_gelu_patch.errors import first_line
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.run.comparison import Comparison
from hf_gelu_patch.evaluation.variants import BEFORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["led"]

T = TypeVar("T")

_FORWARD, _GENERATE, _DONE, _FAILED = "forward", "generate", "done", "failed"


def led(comparison: Comparison, work: Callable[[], T]) -> T:
    """What ``work`` gives, on every process.

    Args:
        comparison: the same on all of them, their models split by transformers.
        work: run by the first process alone.

    Raises:
        EvaluationError: on the others, where the first process has failed.
    """
    if comparison.in_turn:
        raise EvaluationError(f"--tp_plan takes a second model beside the first, and {comparison.in_turn}: drop it.")
    if comparison.settings.memory:
        raise EvaluationError("what a training step keeps is measured in one process: drop --memory, or --tp_plan.")
    models = {BEFORE: comparison.model, **{name: side.model for name, side in comparison.running.items()}}
    if distributed.get_rank() != 0:
        followed: T = _followed(models)
        return followed
    handles = [_announce(name, model) for name, model in models.items()]
    try:
        found = work()
    except Exception as error:  # the launcher ends the others where this process is killed
        _tell(_FAILED, f"{type(error).__name__}: {first_line(error)}")
        raise
    finally:
        for undo in handles:
            undo()
    _tell(_DONE, found)
    return found


def _tell(what: str, *more: Any) -> None:
    distributed.broadcast_object_list([(what, *more)], src=0)


def _announce(name: str, model: Any) -> Callable[[], None]:
    """Have a model tell the others before it runs; undone by what is given back. A twin made later tells the same."""
    generate, inside = model.generate, [False]

    def before(_module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not inside[0]:
            _tell(_FORWARD, name, arguments, options)

    def generating(*arguments: Any, **options: Any) -> Any:
        _tell(_GENERATE, name, arguments, options)
        inside[0] = True
        try:
            return generate(*arguments, **options)
        finally:
            inside[0] = False

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    model.generate = generating

    def undo() -> None:
        handle.remove()
        del model.generate

    return undo


def _followed(models: Mapping[str, PreTrainedModel]) -> Any:
    """Run what the first process runs, until it is done."""
    while True:
        told: list[Any] = [None]
        distributed.broadcast_object_list(told, src=0)
        what, *more = told[0]
        if what == _DONE:
            return more[0]
        if what == _FAILED:
            raise EvaluationError(f"the first process has failed: {more[0]}")
        name, arguments, options = more
        model: Any = models[name]
        run: Callable[..., Any] = model if what == _FORWARD else model.generate
        try:
            with torch.inference_mode():
                run(*_here(model, arguments), **_here(model, options))
        except Exception:  # the first process fails on it likewise, and says so
            continue


def _here(model: Any, value: Any) -> Any:
    """The same on this process's device."""
    if isinstance(value, torch.Tensor):
        return value.to(model.device)
    if isinstance(value, dict):
        return {name: _here(model, one) for name, one in value.items()}
    return tuple(_here(model, one) for one in value) if isinstance(value, tuple) else value
