"""What methods of a model's modules are called with while it runs on a batch, and such a call made again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.tuning.groups import Group, Subject
from hf_gelu_patch.tuning.watches import Watch
from hf_gelu_patch.verification.copies import copied
from hf_gelu_patch.verification.restoring import as_it_was, seeded
from hf_gelu_patch.verification.runs import called, cannot_run, derived
from hf_gelu_patch.verification.values import output_tensors

__all__ = ["Call", "Clock", "batch_clock", "call_clock", "largest_calls", "mode"]

Enter = Callable[[], AbstractContextManager[object]]
"""Makes the model compute in one way, for the length of a ``with`` block."""

Clock = Callable[[Enter], float]
"""How many seconds a call takes in one way."""

_SPAN = 2e-3  # seconds, at least, between two looks at the clock: shorter calls are repeated
_LONG = 5e-3  # a call that long needs none before it to warm up


@dataclass(frozen=True)
class Call:
    """What a method was called with.

    Attributes:
        subject: the method.
        given, named: copies of its arguments.
        size: how many numbers are in them.
    """

    subject: Subject
    given: tuple[Any, ...]
    named: dict[str, Any]
    size: int


@contextmanager
def mode(*, gradients: bool) -> Iterator[None]:
    """Gradients are recorded, or they are not."""
    with ExitStack() as modes:
        if gradients:
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        yield


def largest_calls(model: nn.Module, batch: object, groups: Sequence[Group]) -> list[Call | None]:
    """The call with the most numbers that any method of each group gets while the model runs on a batch; None where
    none of them is called. What the run changes in the model is for the caller to put back.

    Raises:
        PatchError: the model cannot run on the batch.
    """
    found: list[Call | None] = [None] * len(groups)
    watched: dict[tuple[int, str], tuple[Subject, list[int]]] = {}
    for number, group in enumerate(groups):
        for subject in group.subjects:
            numbers = watched.setdefault(subject.key, (subject, []))[1]
            if number not in numbers:
                numbers.append(number)

    def look(subject: Subject, numbers: list[int], given: tuple[Any, ...], named: dict[str, Any]) -> None:
        size = sum(tensor.numel() for tensor in output_tensors((given, named)).values())
        least = [number for number in numbers if (known := found[number]) is None or known.size < size]
        if least:
            kept, kept_named = copied((given, named))
            call = Call(subject, kept, kept_named, size)
            for number in least:
                found[number] = call

    with ExitStack() as watching:
        for subject, numbers in watched.values():
            watching.enter_context(_watched(subject, functools.partial(look, subject, numbers)))
        try:
            called(model, copied(batch))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise PatchError(cannot_run(model, "the batch given as tune=", error)) from error
    return found


@contextmanager
def _watched(subject: Subject, look: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """A module with a method of its own around the one that it has: what looks it up there comes by."""
    own = vars(subject.owner)
    method = getattr(subject.owner, subject.method)
    bound = own.get(subject.method)

    @functools.wraps(method)
    def watching(*given: Any, **named: Any) -> Any:
        look(given, named)
        return method(*given, **named)

    own[subject.method] = watching
    try:
        yield
    finally:
        if bound is None:
            own.pop(subject.method, None)
        else:
            own[subject.method] = bound


# ---------------------------------------------------------------------------------------------------------- timed again


def call_clock(call: Call, watch: Watch, own: Enter, *, gradients: bool) -> Clock:
    """Times a call by itself, and the gradients of what it returns with it, as often in a row as the clock needs.

    Args:
        call: which.
        watch: takes the time.
        own: the way by which it is found out how long a call takes.
        gradients: with those of what it returns, with respect to the module's parameters and the call's tensors.

    Raises:
        Exception: whatever the call raises.
    """
    subject = call.subject
    calls, warm = 1, True

    def seconds(enter: Enter) -> float:
        with enter():
            given, named = copied((call.given, call.named))
            leaves = _leaves(subject.owner, (given, named))
            step = _step(functools.partial(subject.now, *given, **named), leaves, gradients)
            if warm:
                step()
            return watch(step, calls)

    shortest = min(seconds(own) for _ in range(3))
    calls, warm = max(1, round(_SPAN / max(shortest, 1e-9))), shortest < _LONG
    return seconds


def batch_clock(model: nn.Module, batch: object, watch: Watch, *, gradients: bool) -> Clock:
    """Times a model on a batch, and the gradients of its loss with it. Each time the batch, the model's buffers and the
    random states are what they were."""

    def seconds(enter: Enter) -> float:
        with enter(), as_it_was(model), seeded():
            arguments = copied(batch)
            step = _step(functools.partial(called, model, arguments), _leaves(model, arguments), gradients)
            return watch(step, 1)

    return seconds


def _leaves(module: nn.Module, arguments: object) -> list[Tensor]:
    tensors = [*module.parameters(), *output_tensors(arguments).values()]
    return [tensor for tensor in tensors if tensor.requires_grad]


def _step(call: Callable[[], object], leaves: list[Tensor], gradients: bool) -> Callable[[], None]:
    def forward() -> None:
        call()

    def both() -> None:
        output = call()
        ends = _ends(output)
        if ends:
            derived(ends, leaves, [torch.ones_like(end) for end in ends])

    return both if gradients and leaves else forward


def _ends(output: Any) -> list[Tensor]:
    """What is differentiated: the output's own loss, else all of its numbers that depend on a leaf."""
    found = output_tensors(output)
    loss = found.get("loss")
    ends = [loss] if loss is not None and loss.numel() == 1 else list(found.values())
    return [end for end in ends if end.requires_grad and end.numel()]
