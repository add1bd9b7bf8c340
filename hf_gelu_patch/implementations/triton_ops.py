"""Torch ops over the Triton kernels: checks, memory layout, shapes for tracing, autograd, vmap.

``pointwise``, ``gated`` and ``gated_halves`` are what a model calls. An ordinary tensor goes straight to the kernel, or
to an autograd function around it: the dispatcher takes Python ten times as long as a launch. Where something has to see
the call (a dispatch mode: FakeTensor, make_fx, a counter of operations), it is an op of torch.library. While
torch.compile, torch.export or torch.jit traces, it is the plain aten expression, so that Inductor fuses it with its
neighbours; an opaque op would keep it from doing so. float64 is that expression too, and so are torch.func's
transforms, forward-mode derivatives, subclasses of Tensor, nested and sparse tensors and anything on a CPU, unless
Triton's interpreter runs the kernels there. Tensors of every size are computed alike.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from hf_gelu_patch.activations import Activation, Derived
from hf_gelu_patch.implementations import triton_library as library
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import in_memory
from hf_gelu_patch.implementations.triton_dispatch import DEVICES, DTYPES, direct, plain
from hf_gelu_patch.implementations.triton_forms import constants_of, eager, eager_gated


def pointwise(x: Tensor, activation: str, **parameters: float) -> Tensor:
    """act(x), elementwise, by one kernel forward and one backward.

    Args:
        x: any shape, any strides; float32, float16, bfloat16 or float64.
        activation: one of ``triton_forms.POINTWISE``.
        parameters: the activation's constants, where not its own: ``min`` and ``max`` of ``gelu_clipped``, ``mu`` and
            ``sigma`` of ``laplace``.

    Returns:
        A tensor of x's shape and dtype, computed in float32 and rounded once. Differentiable any number of times: the
        first derivative by a kernel, further ones by aten.

    Raises:
        UnknownNameError: there is no such kernel; the message lists the valid names.
        TypeError: x has another dtype, or a parameter is not one of the activation's.
        ValueError: a parameter is NaN, or not positive and has to be.
        NotImplementedError: there is no kernel for x's device.
    """
    constants = constants_of(activation, parameters)
    y: Tensor
    if direct(x):
        if x.requires_grad and torch.is_grad_enabled():
            y = library.Pointwise.apply(x, activation, constants)  # type: ignore[no-untyped-call]
            return y
        return library.forward(x, activation, constants)
    if not isinstance(x, Tensor):  # torch.fx traces with what stands for one
        return eager(activation, constants)(x)
    _check(x)
    if plain(x):
        return eager(activation, constants)(x)
    y = library.pointwise(x, activation, constants)
    return y


def gated(gate: Tensor, up: Tensor, activation: str, *, rounded: bool = False, **parameters: float) -> Tensor:
    """act(gate) · up by one kernel forward and one backward, which saves neither act(gate) nor the product.

    ``swiglu_oai`` is σ(alpha·g)·g·(u + 1) with g = min(gate, limit) and u = min(max(up, −limit), limit), as in OpenAI's
    gpt-oss.

    Args:
        gate: any shape, any strides; float32, float16, bfloat16 or float64. Two halves of one tensor, one behind the
            other or alternating, are read where they lie.
        up: of the same shape, dtype and device.
        activation: one of those, or of ``triton_forms.GATED_FORMS``.
        rounded: whether act(gate) is rounded to the dtype before the product, as two ops would do: nearer to eager's
            bits, further from the truth. float32 has nothing to round.
        parameters: as in ``pointwise``; ``alpha`` and ``limit`` of ``swiglu_oai``.

    Returns:
        A tensor of that shape and dtype, computed in float32 and rounded once (twice where ``rounded``). Differentiable
        any number of times: the first derivatives, both by one kernel; further ones by aten.

    Raises:
        UnknownNameError: there is no such kernel; the message lists the valid names.
        ValueError: gate and up differ in shape; a parameter is NaN, or not positive and has to be.
        TypeError: they differ in dtype, it is another one, or a parameter is not one of the activation's.
        NotImplementedError: there is no kernel for their device.
    """
    constants = constants_of(activation, parameters, gated=True)
    if not (isinstance(gate, Tensor) and isinstance(up, Tensor)):  # torch.fx traces with what stands for them
        return eager_gated(activation, constants)(gate, up)
    if in_memory(gate) and in_memory(up) and gate.shape != up.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)} and up {tuple(up.shape)}: expand or split them first")
    if gate.dtype != up.dtype or gate.device != up.device:
        raise TypeError(f"gate is {gate.dtype} on {gate.device}, up {up.dtype} on {up.device}: they have to be alike")
    y: Tensor
    if direct(gate, up):
        if (gate.requires_grad or up.requires_grad) and torch.is_grad_enabled():
            y = library.Gated.apply(gate, up, activation, constants, rounded)  # type: ignore[no-untyped-call]
            return y
        return library.gated_forward(gate, up, activation, constants, rounded)
    _check(gate)
    if plain(gate) or plain(up):
        return eager_gated(activation, constants)(gate, up)
    y = library.gated(gate, up, activation, constants, rounded)
    return y


def gated_halves(
    gate_up: Tensor, activation: str, *, interleaved: bool = False, rounded: bool = False, **parameters: float
) -> Tensor:
    """``gated`` of the two halves of one tensor's last dimension, whose gradient is then written as one tensor too.

    Args:
        gate_up: (..., 2n); as in ``gated``.
        activation: one of those, or of ``triton_forms.GATED_FORMS``.
        interleaved: whether gate and up alternate (``gate_up[..., ::2]``, ``gate_up[..., 1::2]``) instead of standing
            one behind the other.
        rounded: as in ``gated``.
        parameters: as in ``gated``.

    Returns:
        (..., n), as ``gated``.

    Raises:
        ValueError: the last dimension is odd, or there is none.
        UnknownNameError, TypeError, NotImplementedError: as in ``gated``.
    """
    constants = constants_of(activation, parameters, gated=True)
    if gate_up.dim() == 0 or gate_up.size(-1) % 2:
        shape = tuple(gate_up.shape) if in_memory(gate_up) else f"(…, {gate_up.size(-1)})"
        raise ValueError(f"the last dimension is split into halves, and the shape is {shape}")
    y: Tensor
    if direct(gate_up):
        if gate_up.requires_grad and torch.is_grad_enabled():
            y = library.GatedHalves.apply(gate_up, activation, constants, interleaved, rounded)  # type: ignore[no-untyped-call]
            return y
        return library.halves_forward(gate_up, activation, constants, interleaved, rounded)
    _check(gate_up)
    if plain(gate_up):
        return eager_gated(activation, constants)(*library.halves(gate_up, interleaved))
    y = library.gated_halves(gate_up, activation, constants, interleaved, rounded)
    return y


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
        raise TypeError(
            f"the triton implementation takes {names}; got {x.dtype}. "
            'unpatch(model) and patch(model, implementation="aten") for this dtype.'
        )


# The implementations


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


def _where_fused(function: Callable[..., Tensor], record: Activation) -> Callable[..., Tensor] | None:
    return None if record.kernel is None else functools.partial(function, activation=record.name)


def _triton(name: str, *, rounded: bool) -> Implementation:
    product = functools.partial(gated, rounded=rounded)
    return Implementation(
        name,
        Derived(functools.partial(_where_fused, pointwise)),
        gated=Derived(functools.partial(_where_fused, product)),
        devices=DEVICES,
        dtypes=DTYPES - {torch.float64},  # which would be aten's, under another name
        missing=_no_triton,
        keeps_inputs=True,
    )


TRITON, TRITON_ROUNDED = _triton("triton", rounded=False), _triton("triton_rounded", rounded=True)
