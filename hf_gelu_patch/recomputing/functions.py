"""Activations under which autograd keeps their inputs and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.implementations.derivatives import gradients_of
from hf_gelu_patch.implementations.registry import ALWAYS, Fused
from hf_gelu_patch.implementations.tensors import ORDINARY, needs_gradient, transformed

__all__ = ["Kept", "again_from", "can_be_asked", "kept", "writes"]

Function = Callable[..., Tensor]


# ------------------------------------------------------------------------------------------- functions of several ops


class Again(torch.autograd.Function):
    """function(*inputs), of any number of ops, of which the inputs alone are kept. They run again in backward, once for
    the next layer's weights and for this gradient together."""

    @staticmethod
    def forward(ctx: Any, function: Function, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.autocast, ctx.made = function, _Autocast.of(inputs[0].device.type), None
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        made, ctx.made = ctx.made, None
        if transformed():
            with ctx.autocast.entered():
                grads: Any = gradients_of(ctx.function, inputs, grad_y)
            return None, *(grad if need else None for grad, need in zip(grads, needed, strict=True))
        further = torch.is_grad_enabled()  # who differentiates this backward
        if made is None or further:
            made = _made(ctx, inputs, detached=not further)
        leaves, y = made
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=further))
        return None, *(next(found) if need else None for need in needed)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        """The result, with the ops it took, which the backward that follows takes over."""
        ctx.made = _made(ctx, ctx.saved_tensors, detached=True)
        y: Tensor = ctx.made[1].detach()
        return y


def _made(ctx: Any, inputs: tuple[Tensor, ...], *, detached: bool) -> tuple[list[Tensor], Tensor]:
    needed = ctx.needs_input_grad[1:]
    leaves = [x.detach().requires_grad_(need) if detached else x for x, need in zip(inputs, needed, strict=True)]
    with torch.enable_grad(), ctx.autocast.entered():
        return leaves, ctx.function(*leaves)


@dataclass(frozen=True)
class _Autocast:
    """Whether autocast is on, for one device type, and with which dtype."""

    device: str
    dtype: torch.dtype | None

    @classmethod
    def of(cls, device: str) -> _Autocast:
        available = torch.amp.is_autocast_available(device)
        on = available and torch.is_autocast_enabled(device)
        return cls(device if available else "", torch.get_autocast_dtype(device) if on else None)

    def entered(self) -> AbstractContextManager[Any]:
        if not self.device or self == _Autocast.of(self.device):
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)


def _followed(*inputs: Tensor) -> bool:
    """Whether autograd, and it alone, follows what is computed from these."""
    return any(map(needs_gradient, inputs)) and not torch.compiler.is_compiling() and not transformed()


def several_ops(function: Function, *inputs: Tensor) -> Tensor:
    """``function``, of which autograd keeps the inputs."""
    if not _followed(*inputs):
        return function(*inputs)
    y: Tensor = Again.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return y


# ----------------------------------------------------------------------------------------------- functions of one op

_MARK = "hf_gelu_patch: again"  # in the metadata of a node of torch's own: (function, the name of its saved input)


def one_op(function: Function, saved: str, x: Tensor) -> Tensor:
    """``function``, an op of torch that keeps its input by itself, with a note at its node of how it is made again."""
    y = function(x)
    if _followed(x):
        node: Any = y.grad_fn
        if node is not None and len(node.next_functions) == 1 and hasattr(node, saved):
            node.metadata[_MARK] = function, saved
    return y


def _kept_by(function: Function) -> str | None:
    """What autograd keeps of a function of one tensor, as its node calls it: ``_saved_self``, the input alone;
    ``_saved_result``, the result alone; None: another thing, or more."""
    try:
        with torch.enable_grad():
            x = torch.full((1,), 0.5, device="cpu", dtype=torch.float32, requires_grad=True)
            y = function(x)
            node: Any = y.grad_fn
            names = [name.removeprefix("_raw") for name in dir(node) if name.startswith("_raw_saved_")]
            above = [one for one, _ in node.next_functions]
            if len(names) != 1 or len(above) != 1 or above[0].next_functions:
                return None
            data = getattr(node, names[0]).data_ptr()
    except Exception:  # what it raises on a CPU, whoever wrote it
        return None
    if data == x.data_ptr():
        return names[0]
    return "_saved_result" if data == y.data_ptr() else None


# ---------------------------------------------------------------------------------------- what is written to a result

_WRITES = "hf_gelu_patch: writes"  # in the metadata of a node: (what counts the writes to its result, and the first)


def counted(function: Function, *inputs: Any) -> Tensor:
    """``function``, with a note at its node of how often its result is written to. What counts it has no memory, and
    does not keep the result's."""
    y = function(*inputs)
    if torch.compiler.is_compiling() or transformed() or type(y) not in ORDINARY:
        return y
    node: Any = y.grad_fn
    if node is not None:
        counter = y.detach()  # one count for both
        counter.data = y.new_empty(0)
        node.metadata[_WRITES] = counter, counter._version
    return y


def writes(node: Any) -> tuple[int | None, int]:
    """How often a node's result has been written to until now, None where that is not known; and when it was made."""
    counter, first = node.metadata.get(_WRITES, (None, 0))
    return None if counter is None else counter._version, first


# ------------------------------------------------------------------------------------------------------------- nodes


@functools.lru_cache(maxsize=1024)
def _way(node: Any) -> Callable[[Any], Callable[[], Tensor] | None] | None:
    """How nodes of a type are asked to make their result again; None for those that cannot be asked."""
    forward: Any = getattr(node, "_forward_cls", None)
    if forward is not None:
        again = getattr(forward, "again", None)
        return None if again is None else lambda ctx: functools.partial(again, ctx)
    return _by_mark if sum(name.startswith("_raw_saved_") for name in dir(node)) == 1 else None


def _by_mark(node: Any) -> Callable[[], Tensor] | None:
    mark = node.metadata.get(_MARK)
    return None if mark is None else functools.partial(_from_input, node, *mark)


def _from_input(node: Any, function: Function, saved: str) -> Tensor:
    return function(getattr(node, saved).detach())


def can_be_asked(node: Any) -> bool:
    """Whether ``again_from`` may find something at nodes of a type."""
    return _way(node) is not None


def again_from(node: Any) -> Callable[[], Tensor] | None:
    """What makes a node's result again out of what the node keeps; None where that cannot be done. It raises
    RuntimeError where that was freed, or written over since."""
    kind: Any = type(node)
    way = _way(kind)
    return None if way is None else way(node)


# ------------------------------------------------------------------------------------------------------ what is fused


@dataclass(frozen=True)
class Kept:
    """What takes an activation's place in training, and what it keeps.

    Attributes:
        fused: the functions.
        of_activation: what is kept of act(x): ``input``, or ``result``, which the next layer keeps as well.
    """

    fused: Fused
    of_activation: str


@functools.lru_cache(maxsize=1024)
def kept(fused: Fused) -> Kept:
    """``fused``, keeping nothing but inputs; the same object each time."""
    if fused.least is not ALWAYS:
        return _kept_by_size(fused)
    if fused.keeps_inputs:
        return Kept(_counted(fused), "input")
    name = _kept_by(fused.pointwise)
    pointwise: Callable[[Tensor], Tensor]
    if name == "_saved_result":
        pointwise = fused.pointwise
    elif name is not None:
        pointwise = functools.partial(one_op, fused.pointwise, name)
    else:
        pointwise = functools.partial(several_ops, fused.pointwise)
    product = fused.gated or functools.partial(_product, fused.pointwise)
    linear = None if fused.linear is None else functools.partial(_after_linear, fused.linear, pointwise)
    made = replace(
        fused, pointwise=pointwise, gated=functools.partial(several_ops, product), linear=linear, keeps_inputs=True
    )
    return Kept(_counted(made), "result" if name == "_saved_result" else "input")


def _counted(fused: Fused) -> Fused:
    gated, linear = (one and functools.partial(counted, one) for one in (fused.gated, fused.linear))
    return replace(fused, pointwise=functools.partial(counted, fused.pointwise), gated=gated, linear=linear)


def _kept_by_size(fused: Fused) -> Kept:
    """Where few numbers are computed by the model's own ops, those keep nothing but inputs either."""
    taken, own = kept(replace(fused, least=ALWAYS)), kept(Fused(fused.activation, fused.eager, fused.eager))
    assert own.fused.gated is not None
    product = taken.fused.gated or functools.partial(several_ops, functools.partial(_product, fused.pointwise))
    linear = taken.fused.linear and functools.partial(
        _by_size, fused, taken.fused.linear, functools.partial(_then, own.fused.pointwise)
    )
    made = replace(
        fused,
        pointwise=functools.partial(_by_size, fused, taken.fused.pointwise, own.fused.pointwise),
        gated=functools.partial(_by_size, fused, product, own.fused.gated),
        linear=linear,
        least=ALWAYS,
        keeps_inputs=True,
    )
    return Kept(made, "result" if "result" in (taken.of_activation, own.of_activation) else "input")


def _by_size(fused: Fused, taken: Function, own: Function, *inputs: Any) -> Tensor:
    x = next(one for one in inputs if isinstance(one, Tensor))
    return (own if fused.spares(x) else taken)(*inputs)


def _then(function: Callable[[Tensor], Tensor], linear: nn.Module, x: Tensor) -> Tensor:
    return function(linear(x))


def _product(function: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return function(gate) * up


def _after_linear(
    fused: Callable[[nn.Module, Tensor], Tensor],
    function: Callable[[Tensor], Tensor],
    linear: nn.Module,
    x: Tensor,
) -> Tensor:
    """act(linear(x)) in two steps where autograd follows them."""
    if any(map(needs_gradient, _tensors(linear, x))) and not torch.compiler.is_compiling():
        return function(linear(x))
    return fused(linear, x)


def _tensors(linear: nn.Module, x: Tensor) -> Iterator[Tensor]:
    yield x
    yield from linear.parameters(recurse=False)
