"""Torch ops over the Triton kernels: checks, memory layout, shapes for tracing, autograd.

``pointwise`` is what a model calls. While torch.compile traces, it is the activation's plain aten expression, so
that Inductor fuses it with its neighbours; an opaque op would keep it from doing so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.activations import ACTIVATIONS

POINTWISE = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu_squared", "mish")
"""The activations the kernels compute (kept beside kernels.FUNCTIONS without importing triton; a test compares)."""

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""The dtypes they take."""


def pointwise(x: Tensor, activation: str) -> Tensor:
    """act(x), elementwise, by one Triton kernel forward and one backward.

    Args:
        x: any shape, any strides; float32, float16 or bfloat16. Layouts that are not dense (a chunked half, an
            expanded tensor) are copied first.
        activation: one of ``POINTWISE``.

    Returns:
        A tensor of x's shape and dtype, computed in float32 and rounded once. Differentiable once.

    Raises:
        RuntimeError: x is not on a device Triton compiles for.
        TypeError: x has another dtype.
    """
    if torch.compiler.is_compiling():
        return ACTIVATIONS[activation].eager(x)
    y: Tensor = _pointwise(x, activation)
    return y


def _check(x: Tensor) -> None:
    from hf_gelu_patch import kernels

    if not (x.is_cuda or kernels.INTERPRETED.value):
        raise RuntimeError(
            f"the triton implementation runs on CUDA and ROCm devices; got a tensor on {x.device}. "
            'Move the model back, or unpatch(model) and patch(model, implementation="auto").'
        )
    if x.dtype not in DTYPES:
        raise TypeError(
            f"the triton implementation takes float32, float16 and bfloat16; got {x.dtype}. "
            'unpatch(model) and patch(model, implementation="aten") for this dtype.'
        )


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """x itself where it has the strides and dtype of ``like``, else a copy that does. ``torch.empty_like(x)`` keeps
    x's strides only if its elements fill its storage without gaps or overlap, as the kernels need them to."""
    return x if x.stride() == like.stride() and x.dtype == like.dtype else torch.empty_like(like).copy_(x)


@torch.library.custom_op("hf_gelu_patch::pointwise", mutates_args=())
def _pointwise(x: Tensor, activation: str) -> Tensor:
    from hf_gelu_patch import kernels

    _check(x)
    y = torch.empty_like(x)
    kernels.pointwise_forward(_laid_out_as(y, x), y, activation)
    return y


@_pointwise.register_fake
def _(x: Tensor, activation: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@torch.library.custom_op("hf_gelu_patch::pointwise_backward", mutates_args=())
def _pointwise_backward(grad_y: Tensor, x: Tensor, activation: str) -> Tensor:
    from hf_gelu_patch import kernels

    _check(x)
    grad_x = torch.empty_like(x)
    # sum() gives a gradient of stride 0
    kernels.pointwise_backward(_laid_out_as(grad_x, x), _laid_out_as(grad_x, grad_y), grad_x, activation)
    return grad_x


@_pointwise_backward.register_fake
def _(grad_y: Tensor, x: Tensor, activation: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.activation = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return _pointwise_backward(grad_y, x, ctx.activation), None


_pointwise.register_autograd(_backward, setup_context=_keep)
