"""Torch ops over the Triton kernels: what they compute, shapes for tracing, autograd, vmap.

``triton_ops`` checks what it is given and calls these. On a CPU without the interpreter, and for float64, the ops are
the aten expressions, so that a graph that holds them runs anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.implementations.derivatives import differentiated, gradients_of
from hf_gelu_patch.implementations.triton_dispatch import by_aten, direct
from hf_gelu_patch.implementations.triton_forms import eager, eager_gated, gradients


def halves(gate_up: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return gate_up[..., ::2], gate_up[..., 1::2]
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


# The kernels


@functools.cache
def _launcher() -> ModuleType:
    from hf_gelu_patch.implementations import triton_launch

    return triton_launch


def forward(x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    y = torch.empty_like(x)
    _launcher().launch("forward", (x, y), activation, constants)
    return y


def _backward(grad_y: Tensor, x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    grad_x = torch.empty_like(x)
    _launcher().launch("backward", (x, grad_y, grad_x), activation, constants)
    return grad_x


def gated_forward(gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool) -> Tensor:
    y = torch.empty_like(gate)
    _launcher().launch("gated_forward", (gate, up, y), activation, constants, rounded)
    return y


def _gated_gradients(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
    given = (gate, up, grad_y, grad_gate, grad_up)
    _launcher().launch("gated_backward", given, activation, constants, rounded)
    return grad_gate, grad_up


def halves_forward(
    gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    return gated_forward(*halves(gate_up, interleaved), activation, constants, rounded)


def _halves_gradient(
    grad_y: Tensor, gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    grad = torch.empty_like(gate_up)
    given, into = halves(gate_up, interleaved), halves(grad, interleaved)
    _launcher().launch("gated_backward", (*given, grad_y, *into), activation, constants, rounded)
    return grad


# The ops


def _alike(*tensors: Tensor) -> None:
    """What no kernel asks: tensors of another shape would be read past their ends."""
    first = tensors[0]
    for x in tensors[1:]:
        if x.shape != first.shape or x.device != first.device:
            raise ValueError(
                f"the tensors have to be alike: one is {tuple(first.shape)} on {first.device}, one "
                f"{tuple(x.shape)} on {x.device}"
            )


_op = functools.partial(torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda"))


@_op("hf_gelu_patch::pointwise")
def pointwise(x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    if by_aten(x):
        return eager(activation, constants)(x)
    return forward(x, activation, constants)


@_op("hf_gelu_patch::pointwise_backward")
def pointwise_backward(grad_y: Tensor, x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    _alike(grad_y, x)
    if by_aten(x):
        return gradients(grad_y, x, torch.ones_like(x), activation, constants)[0]
    return _backward(grad_y, x, activation, constants)


@_op("hf_gelu_patch::gated")
def gated(gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool) -> Tensor:
    _alike(gate, up)
    if by_aten(gate):
        return eager_gated(activation, constants)(gate, up)
    return gated_forward(gate, up, activation, constants, rounded)


@_op("hf_gelu_patch::gated_backward")
def gated_backward(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gate and up, and act(gate) · up ``again``, for who did not keep it (else an empty tensor)."""
    _alike(grad_y, gate, up)
    if by_aten(gate):
        y = eager_gated(activation, constants)(gate, up) if again else gate.new_empty(0)
        return *gradients(grad_y, gate, up, activation, constants), y
    if not again:
        return *_gated_gradients(grad_y, gate, up, activation, constants, rounded), gate.new_empty(0)
    y, grad_gate, grad_up = (torch.empty_like(gate) for _ in range(3))
    given = (gate, up, grad_y, y, grad_gate, grad_up)
    _launcher().launch("gated_backward", given, activation, constants, rounded)
    return grad_gate, grad_up, y


@_op("hf_gelu_patch::gated_halves")
def gated_halves(
    gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    if by_aten(gate_up):
        return eager_gated(activation, constants)(*halves(gate_up, interleaved))
    return halves_forward(gate_up, activation, constants, interleaved, rounded)


@_op("hf_gelu_patch::gated_halves_backward")
def gated_halves_backward(
    grad_y: Tensor, gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    _alike(grad_y, halves(gate_up, interleaved)[0])
    if by_aten(gate_up):
        grad = torch.empty_like(gate_up)
        grads = gradients(grad_y, *halves(gate_up, interleaved), activation, constants)
        for half, own in zip(halves(grad, interleaved), grads, strict=True):
            half.copy_(own)
        return grad
    return _halves_gradient(grad_y, gate_up, activation, constants, interleaved, rounded)


pointwise.register_fake(lambda x, *_: torch.empty_like(x))
pointwise_backward.register_fake(lambda _, x, *__: torch.empty_like(x))
gated.register_fake(lambda gate, *_: torch.empty_like(gate))
gated_halves_backward.register_fake(lambda _, gate_up, *__: torch.empty_like(gate_up))


@gated_halves.register_fake
def _(gate_up: Tensor, _activation: str, _constants: Sequence[float], interleaved: bool, _rounded: bool) -> Tensor:
    return torch.empty_like(halves(gate_up, interleaved)[0])


@gated_backward.register_fake
def _(_: Tensor, gate: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    again = options[-1]
    return torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate) if again else gate.new_empty(0)


# Autograd. Where a graph of the backward is asked for (``create_graph``), it is aten's, differentiable without end.


def _keep_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.activation, ctx.constants = inputs
    ctx.save_for_backward(x)


def _pointwise_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    if differentiated():
        return gradients_of(eager(ctx.activation, ctx.constants), (x,), grad_y)[0], None, None
    run = _backward if direct(grad_y, x) else pointwise_backward
    return run(grad_y, x, ctx.activation, ctx.constants), None, None


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate, up, ctx.activation, ctx.constants, ctx.rounded = inputs
    ctx.save_for_backward(gate, up)


def _gated_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    gate, up = ctx.saved_tensors
    if differentiated():
        grad_gate, grad_up = gradients_of(eager_gated(ctx.activation, ctx.constants), (gate, up), grad_y)
    elif direct(grad_y, gate, up):
        grad_gate, grad_up = _gated_gradients(grad_y, gate, up, ctx.activation, ctx.constants, ctx.rounded)
    else:
        grad_gate, grad_up, _ = gated_backward(grad_y, gate, up, ctx.activation, ctx.constants, ctx.rounded, False)
    return grad_gate, grad_up, None, None, None


def _keep_halves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate_up, ctx.activation, ctx.constants, ctx.interleaved, ctx.rounded = inputs
    ctx.save_for_backward(gate_up)


def _halves_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None, None]:
    (gate_up,) = ctx.saved_tensors
    if differentiated():
        function = eager_gated(ctx.activation, ctx.constants)
        (grad,) = gradients_of(lambda both: function(*halves(both, ctx.interleaved)), (gate_up,), grad_y)
    else:
        run = _halves_gradient if direct(grad_y, gate_up) else gated_halves_backward
        grad = run(grad_y, gate_up, ctx.activation, ctx.constants, ctx.interleaved, ctx.rounded)
    return grad, None, None, None, None


pointwise.register_autograd(_pointwise_grad, setup_context=_keep_pointwise)
gated.register_autograd(_gated_grad, setup_context=_keep_gated)
gated_halves.register_autograd(_halves_grad, setup_context=_keep_halves)


def _around(function: Callable[..., Tensor], keep: Callable[..., None]) -> Callable[..., Tensor]:
    """The forward of an autograd function."""

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = function(*inputs)
        keep(ctx, inputs, output)
        return output

    return forward


class Pointwise(torch.autograd.Function):
    forward = staticmethod(_around(forward, _keep_pointwise))
    backward = staticmethod(_pointwise_grad)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        y: Tensor = pointwise(*ctx.saved_tensors, ctx.activation, ctx.constants)
        return y


class Gated(torch.autograd.Function):
    forward = staticmethod(_around(gated_forward, _keep_gated))
    backward = staticmethod(_gated_grad)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        y: Tensor = gated(*ctx.saved_tensors, ctx.activation, ctx.constants, ctx.rounded)
        return y


class GatedHalves(torch.autograd.Function):
    forward = staticmethod(_around(halves_forward, _keep_halves))
    backward = staticmethod(_halves_grad)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        y: Tensor = gated_halves(*ctx.saved_tensors, ctx.activation, ctx.constants, ctx.interleaved, ctx.rounded)
        return y


# vmap: elementwise, so one more dimension in front, for all the tensors alike.


def _in_front(info: Any, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]


def _vectorised(op: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
        batched = _in_front(info, in_dims[:tensors], arguments[:tensors])
        return op(*batched, *arguments[tensors:]), 0

    return rule


pointwise.register_vmap(_vectorised(pointwise, 1))
pointwise_backward.register_vmap(_vectorised(pointwise_backward, 2))
gated.register_vmap(_vectorised(gated, 2))
gated_halves.register_vmap(_vectorised(gated_halves, 1))
gated_halves_backward.register_vmap(_vectorised(gated_halves_backward, 2))


@gated_backward.register_vmap
def _(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    batched = _in_front(info, in_dims[:3], arguments[:3])
    again = arguments[-1]
    return gated_backward(*batched, *arguments[3:]), (0, 0, 0 if again else None)
