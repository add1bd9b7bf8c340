"""Triton kernels: each activation's mathematics once, as a device function giving value and derivative.

Computed in fp32 and rounded once at the store. A forward that drops the derivative compiles to the value alone.
Importing this module imports triton; everything else in the package imports it when a kernel is first run.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

_LOG2_E = tl.constexpr(1.0 / math.log(2.0))
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_INV_SQRT_TAU = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))
_TWO_SQRT_2_OVER_PI = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))
_TANH_CUBIC = tl.constexpr(0.044715)

# The clamps below lie where value and derivative have reached their limits in fp32; they keep 0·∞ out of the
# derivative. Constants stand on the right: the interpreter cannot multiply a constexpr by a tensor.


@triton.jit
def _clamp(x, low, high):
    return tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp2(z * -_LOG2_E))


@triton.jit
def gelu(x):
    cdf = (tl.erf(x * _SQRT_HALF) + 1.0) * 0.5
    c = _clamp(x, -20.0, 20.0)
    density = tl.exp2(c * c * (-0.5 * _LOG2_E)) * _INV_SQRT_TAU
    return x * cdf, tl.fma(c, density, cdf)


@triton.jit
def gelu_tanh(x):
    # ½(1 + tanh(u)) = σ(2u): no cancellation for u < 0.
    c = _clamp(x, -20.0, 20.0)
    cubic = c * c * _TANH_CUBIC
    s = _sigmoid((cubic + 1.0) * c * _TWO_SQRT_2_OVER_PI)
    slope = (cubic * 3.0 + 1.0) * _TWO_SQRT_2_OVER_PI
    return x * s, s * tl.fma(c * slope, 1.0 - s, 1.0)


@triton.jit
def _swish(x, beta):
    z = _clamp(x * beta, -104.0, 104.0)
    s = _sigmoid(z)
    return x * s, tl.fma(z * s, 1.0 - s, s)


@triton.jit
def quick_gelu(x):
    return _swish(x, 1.702)


@triton.jit
def silu(x):
    return _swish(x, 1.0)


@triton.jit
def relu_squared(x):
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return positive * positive, 2.0 * positive


@triton.jit
def mish(x):
    # tanh(ln(1 + e)) = n/(n + 2) with n = e(e + 2)
    c = _clamp(x, -104.0, 20.0)
    e = tl.exp2(c * _LOG2_E)
    n = e * (e + 2.0)
    w = n / (n + 2.0)
    rest = 2.0 / (n + 2.0)  # 1 − w, without its cancellation
    return x * w, tl.fma(c * rest, e * (e + 1.0) * rest, w)


FUNCTIONS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": silu,
    "relu_squared": relu_squared,
    "mish": mish,
}
"""The device function of every activation there is a kernel for."""


@triton.jit
def _round(y, dtype: tl.constexpr):
    if INTERPRETED:  # noqa: SIM102 (a constexpr branch of its own)
        if dtype == tl.bfloat16:  # the interpreter truncates: add half an ulp, ties to even, before it does
            bits = y.to(tl.int32, bitcast=True)
            bits = bits + 0x7FFF + ((bits >> 16) & 1)
            y = tl.where(y == y, bits.to(tl.float32, bitcast=True), y)
    return y.to(dtype)


@triton.jit
def _pointwise_forward(X, Y, n, ACT: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value, _ = ACT(tl.load(X + at, mask=inside).to(tl.float32))
    tl.store(Y + at, _round(value, Y.dtype.element_ty), mask=inside)


@triton.jit
def _pointwise_backward(X, GRAD_Y, GRAD_X, n, ACT: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    _, derivative = ACT(tl.load(X + at, mask=inside).to(tl.float32))
    grad_x = tl.load(GRAD_Y + at, mask=inside).to(tl.float32) * derivative
    tl.store(GRAD_X + at, _round(grad_x, GRAD_X.dtype.element_ty), mask=inside)


# 8 elements of a 16-bit dtype a thread: one 128-bit access. Interpreted, a program costs a millisecond at any size.
_BLOCK = 16384 if INTERPRETED.value else 1024


def _launch(kernel, *tensors: Tensor, activation: str) -> None:
    n = tensors[0].numel()
    if n == 0:
        return
    grid = (triton.cdiv(n, _BLOCK),)
    if tensors[0].is_cuda:
        with torch.cuda.device(tensors[0].device):
            kernel[grid](*tensors, n, ACT=FUNCTIONS[activation], BLOCK=_BLOCK, num_warps=4)
    else:
        kernel[grid](*tensors, n, ACT=FUNCTIONS[activation], BLOCK=_BLOCK)


def pointwise_forward(x: Tensor, y: Tensor, activation: str) -> None:
    """y ← act(x). Both dense, with the same strides."""
    _launch(_pointwise_forward, x, y, activation=activation)


def pointwise_backward(x: Tensor, grad_y: Tensor, grad_x: Tensor, activation: str) -> None:
    """grad_x ← grad_y · act′(x). All dense, with the same strides."""
    _launch(_pointwise_backward, x, grad_y, grad_x, activation=activation)
