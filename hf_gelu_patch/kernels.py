"""Triton kernels: each activation's mathematics once, as a device function giving value and derivative.

Computed in fp32 and rounded once at the store. A forward that drops the derivative compiles to the value alone.
Importing this module imports triton; everything else in the package imports it when a kernel is first run.
``scripts/kernels.py`` fits the coefficients, measures the errors and compiles every kernel without a GPU; what it
found stands in ``scripts/kernels.md``.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

_LOG2_E = tl.constexpr(1.0 / math.log(2.0))
_LN_2 = tl.constexpr(math.log(2.0))
_INV_SQRT_TAU = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))
_TWO_SQRT_2_OVER_PI = tl.constexpr(2.0 * math.sqrt(2.0 / math.pi))
_TANH_CUBIC = tl.constexpr(0.044715)

# Device functions of fp32 x: (value, derivative). P are the activation's constants in the order of its record,
# DTYPE is what the result will be stored in. Constants stand on the right: the interpreter cannot multiply a constexpr
# by a tensor. Clamps lie where value and derivative have reached their limits in fp32: they keep 0·∞ out, and let NaN
# through, so that ±∞ give the limits.


@triton.jit
def _at_least(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _at_most(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _divide(a, b):
    """a/b within 2 ulp for |b| ≤ 2¹²⁶, and 0 beyond, in two instructions; ``/`` takes six more."""
    if INTERPRETED:
        ratio = a / b
    else:
        ratio = libdevice.fast_dividef(a, b)
    return ratio


# The tail of the normal distribution is Φ(−t) = e^(−t²/2)·R(t), R being Mills' ratio over √(2π). With
# v = t/(shift + t), R(t) ≈ ½ + c₁v + c₂v² + … on [0, 14.2], beyond which Φ(−t) is 0 in fp32. No large number is taken
# from another: the negative tail keeps its relative accuracy, which ½(1 + erf) loses from −5.5 on.

NORMAL_END = tl.constexpr(14.2)
MILLS = {
    "bfloat16": (3.0, (0.5, -1.19682312, 1.05279338, -0.281972051, -0.183749735, 0.110825978)),
    "float16": (2.5, (0.5, -0.997361481, 0.565350831, 0.0473395623, -0.0882209316, -0.0837912187, 0.0569261797)),
    "float32": (
        2.25,
        (
            0.5,
            -0.897620618,
            0.368029505,
            0.118453458,
            -0.0392432436,
            -0.0692401677,
            0.0410422906,
            -0.0929614902,
            0.107476361,
            -0.0359432176,
        ),
    ),
}
"""(shift, coefficients) for each dtype a result is stored in, as ``scripts/kernels.py fit`` finds them."""
_SHIFT_BF16, _BF16 = (tl.constexpr(value) for value in MILLS["bfloat16"])
_SHIFT_FP16, _FP16 = (tl.constexpr(value) for value in MILLS["float16"])
_SHIFT_FP32, _FP32 = (tl.constexpr(value) for value in MILLS["float32"])


@triton.jit
def _polynomial(v, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    y = tl.fma(v, COEFFICIENTS[DEGREE], COEFFICIENTS[DEGREE - 1])
    for k in tl.static_range(2, DEGREE + 1):
        y = tl.fma(y, v, COEFFICIENTS[DEGREE - k])
    return y


@triton.jit
def _normal(t, DTYPE: tl.constexpr):
    """Φ(−t) and the density φ(t), for t in [0, 14.2]."""
    if DTYPE == tl.bfloat16:
        ratio = _polynomial(_divide(t, t + _SHIFT_BF16), _BF16, 5)
    elif DTYPE == tl.float16:
        ratio = _polynomial(_divide(t, t + _SHIFT_FP16), _FP16, 6)
    else:
        ratio = _polynomial(_divide(t, t + _SHIFT_FP32), _FP32, 9)
    e = tl.exp2(t * (-0.5 * _LOG2_E) * t)
    return e * ratio, e * _INV_SQRT_TAU


@triton.jit
def gelu(x, P: tl.constexpr, DTYPE: tl.constexpr):
    t = _at_most(tl.abs(x), NORMAL_END)
    tail, density = _normal(t, DTYPE)
    minus_t = t * -1.0  # folded into the instructions that use it, which -t, being 0 − t, is not
    slope = tl.fma(minus_t, density, tail)
    return tl.fma(minus_t, tail, _at_least(x, 0.0)), tl.where(x < 0.0, slope, 1.0 - slope)


@triton.jit
def gelu_clipped(x, P: tl.constexpr, DTYPE: tl.constexpr):
    value, slope = gelu(x, (), DTYPE)
    outside = (value < P[0]) | (value > P[1])
    return _at_most(_at_least(value, P[0]), P[1]), tl.where(outside, 0.0, slope)


@triton.jit
def _logistic(minus_z):
    """1 + e^−z, σ(z) and 1 − σ(z) without its cancellation, from −z·log₂e."""
    e = tl.exp2(minus_z)
    w = e + 1.0
    s = _divide(1.0, w)
    return w, s, tl.minimum(e, 1e38) * s


@triton.jit
def gelu_tanh(x, P: tl.constexpr, DTYPE: tl.constexpr):
    # ½(1 + tanh(u)) = σ(2u): no cancellation for u < 0.
    low = _at_least(x, -11.0)
    minus_2u = tl.fma(low * low, -_LOG2_E * _TWO_SQRT_2_OVER_PI * _TANH_CUBIC, -_LOG2_E * _TWO_SQRT_2_OVER_PI) * low
    w, s, rest = _logistic(minus_2u)
    c = _at_most(low, 11.0)
    slope_2u = tl.fma(c * c, 3.0 * _TWO_SQRT_2_OVER_PI * _TANH_CUBIC, _TWO_SQRT_2_OVER_PI)
    return _divide(low, w), s * tl.fma(c * slope_2u, rest, 1.0)


@triton.jit
def _swish(x, BETA: tl.constexpr):
    low = _at_least(x, -104.0 / BETA)
    w, s, rest = _logistic(low * (-_LOG2_E * BETA))
    c = _at_most(low, 104.0 / BETA)
    return _divide(low, w), s * tl.fma(c * BETA, rest, 1.0)


@triton.jit
def quick_gelu(x, P: tl.constexpr, DTYPE: tl.constexpr):
    return _swish(x, 1.702)


@triton.jit
def silu(x, P: tl.constexpr, DTYPE: tl.constexpr):
    return _swish(x, 1.0)


@triton.jit
def relu(x, P: tl.constexpr, DTYPE: tl.constexpr):
    return _at_least(x, 0.0), tl.where(x <= 0.0, 0.0, 1.0)


@triton.jit
def relu_squared(x, P: tl.constexpr, DTYPE: tl.constexpr):
    positive = _at_least(x, 0.0)
    return positive * positive, positive * 2.0


@triton.jit
def mish(x, P: tl.constexpr, DTYPE: tl.constexpr):
    # With e = eˣ, tanh(ln(1 + e)) = n/(n + 2), n = e(e + 2): 1 in fp32 from 20 on. The derivative is eω/(n + 2)² with
    # ω = 4(x + 1) + e(4x + 6) + 4e² + e³, which loses the least where it passes 0.
    c = _at_most(_at_least(x, -104.0), 20.0)
    e = tl.exp2(c * _LOG2_E)
    n = e * (e + 2.0)
    omega = tl.fma(tl.fma(e + 4.0, e, tl.fma(c, 4.0, 6.0)), e, (c + 1.0) * 4.0)
    return tl.where(x > 20.0, x, c * _divide(n, n + 2.0)), _divide(e * omega, (n + 2.0) * (n + 2.0))


@triton.jit
def laplace(x, P: tl.constexpr, DTYPE: tl.constexpr):
    z = (x - P[0]) * (1.0 / P[1])
    tail, density = _normal(_at_most(tl.abs(z), NORMAL_END), DTYPE)
    return tl.where(z < 0.0, tail, 1.0 - tail), density * (1.0 / P[1])


@triton.jit
def sqrt_softplus(x, P: tl.constexpr, DTYPE: tl.constexpr):
    # Below −20, ln(1 + eˣ) is eˣ in fp32. Above, ln(1 + e) = ln(w)·e/(w − 1) with w = 1 + e as rounded.
    far = tl.exp2(x * (0.5 * _LOG2_E))
    e = tl.exp2(tl.abs(x) * -_LOG2_E)
    w = e + 1.0
    log1p = tl.where(w == 1.0, e, tl.log2(w) * _LN_2 * _divide(e, w - 1.0))
    value = tl.sqrt(_at_least(x, 0.0) + log1p)
    sigmoid = tl.where(x < 0.0, e, 1.0) * _divide(1.0, w)
    return tl.where(x < -20.0, far, value), tl.where(x < -20.0, 0.5 * far, _divide(0.5 * sigmoid, value))


# A gated form is act(gate) · f(up), f being the identity unless it is named here.


@triton.jit
def swiglu_oai(gate, P: tl.constexpr, DTYPE: tl.constexpr):
    """σ(alpha·g)·g with g = min(gate, limit); P are (alpha, limit)."""
    value, slope = _swish(_at_most(gate, P[1]), P[0])
    return value, tl.where(gate > P[1], 0.0, slope)


@triton.jit
def _identity(up, P: tl.constexpr):
    return up, 1.0


@triton.jit
def _swiglu_oai_up(up, P: tl.constexpr):
    clamped = _at_most(_at_least(up, -P[1]), P[1])
    return clamped + 1.0, tl.where(tl.abs(up) > P[1], 0.0, 1.0)


FUNCTIONS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "gelu_clipped": gelu_clipped,
    "silu": silu,
    "relu": relu,
    "relu_squared": relu_squared,
    "mish": mish,
    "laplace": laplace,
    "sqrt_softplus": sqrt_softplus,
    "swiglu_oai": swiglu_oai,
}
"""The device function of every activation there is a kernel for; swiglu_oai's only in the gated kernels."""

UP_FUNCTIONS = {name: _swiglu_oai_up if name == "swiglu_oai" else _identity for name in FUNCTIONS}
"""What the gated kernels apply to ``up``."""


# Memory. A program works on BLOCK columns of one row of strided tensors of up to four dimensions; dense ones are a
# single row. Whole blocks are read and written without a mask, so that accesses are 128 bits wide whatever the row's
# length: only the last block of a row pays for its end. Offsets are 64 bits.


@triton.jit
def _to_fp32(x):
    # The interpreter gets the subnormals of bf16 wrong, and truncates to bf16: it is shown the bits instead.
    if INTERPRETED:
        if x.dtype == tl.bfloat16:
            y = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        else:
            y = x.to(tl.float32)
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def _round(y, dtype: tl.constexpr):
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = y.to(tl.int32, bitcast=True)
            bits = tl.where(y == y, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)  # half an ulp, ties to even
            rounded = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        else:
            rounded = y.to(dtype)
    else:
        rounded = y.to(dtype)
    return rounded


@triton.jit
def _place(columns, BLOCK: tl.constexpr, RANK: tl.constexpr):
    """This program's row, and its block in that row."""
    program = tl.program_id(0)
    if RANK == 1:
        row, block = 0, program
    else:
        blocks = ((columns + (BLOCK - 1)) // BLOCK).to(tl.int32)
        row = program // blocks
        block = program - row * blocks
    return row, block


@triton.jit
def _at(pointer, row, block, sizes, strides, BLOCK: tl.constexpr, RANK: tl.constexpr):
    """Where that block begins."""
    for dim in tl.static_range(RANK - 1):  # from the row's neighbours outwards
        pointer += (row % sizes[dim]).to(tl.int64) * strides[dim]
        row = row // sizes[dim]
    return pointer + block.to(tl.int64) * BLOCK * strides[RANK - 1]


@triton.jit
def _read(pointer, stride, left, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    at = tl.arange(0, BLOCK)
    if WHOLE:
        x = tl.load(pointer + at.to(tl.int64) * stride)
    else:
        x = tl.load(pointer + at.to(tl.int64) * stride, mask=at < left)
    return _to_fp32(x)


@triton.jit
def _write(pointer, stride, y, left, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    at = tl.arange(0, BLOCK)
    if WHOLE:
        tl.store(pointer + at.to(tl.int64) * stride, _round(y, pointer.dtype.element_ty))
    else:
        tl.store(pointer + at.to(tl.int64) * stride, _round(y, pointer.dtype.element_ty), mask=at < left)


# Interleaved tensors: gate and up alternate in memory, and are read and written as one of twice as many columns.


@triton.jit
def _read_both(gate, gate_stride, up, up_stride, left, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PAIRS: tl.constexpr):
    if PAIRS:
        g, u = tl.split(tl.reshape(_read(gate, 1, left * 2, 2 * BLOCK, WHOLE), (BLOCK, 2)))
    else:
        g = _read(gate, gate_stride, left, BLOCK, WHOLE)
        u = _read(up, up_stride, left, BLOCK, WHOLE)
    return g, u


@triton.jit
def _write_both(
    gate, gate_stride, g, up, up_stride, u, left, BLOCK: tl.constexpr, WHOLE: tl.constexpr, PAIRS: tl.constexpr
):
    if PAIRS:
        _write(gate, 1, tl.reshape(tl.join(g, u), (2 * BLOCK,)), left * 2, 2 * BLOCK, WHOLE)
    else:
        _write(gate, gate_stride, g, left, BLOCK, WHOLE)
        _write(up, up_stride, u, left, BLOCK, WHOLE)


# Each kernel, and what it does with one block.


@triton.jit
def _pointwise_forward(
    x, x_stride, y, y_stride, left, ACT: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr
):
    value, _ = ACT(_read(x, x_stride, left, BLOCK, WHOLE), P, y.dtype.element_ty)
    _write(y, y_stride, value, left, BLOCK, WHOLE)


@triton.jit
def pointwise_forward_kernel(
    x,
    x_strides,
    y,
    y_strides,
    columns,
    sizes,
    ACT: tl.constexpr,
    P: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = _place(columns, BLOCK, RANK)
    x = _at(x, row, block, sizes, x_strides, BLOCK, RANK)
    y = _at(y, row, block, sizes, y_strides, BLOCK, RANK)
    if block < columns // BLOCK:
        _pointwise_forward(x, x_strides[RANK - 1], y, y_strides[RANK - 1], BLOCK, ACT, P, BLOCK, True)
    else:
        left = columns % BLOCK
        _pointwise_forward(x, x_strides[RANK - 1], y, y_strides[RANK - 1], left, ACT, P, BLOCK, False)


@triton.jit
def _pointwise_backward(
    grad_y,
    grad_y_stride,
    x,
    x_stride,
    grad_x,
    grad_x_stride,
    left,
    ACT: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    _, slope = ACT(_read(x, x_stride, left, BLOCK, WHOLE), P, grad_x.dtype.element_ty)
    _write(grad_x, grad_x_stride, _read(grad_y, grad_y_stride, left, BLOCK, WHOLE) * slope, left, BLOCK, WHOLE)


@triton.jit
def pointwise_backward_kernel(
    grad_y,
    grad_y_strides,
    x,
    x_strides,
    grad_x,
    grad_x_strides,
    columns,
    sizes,
    ACT: tl.constexpr,
    P: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = _place(columns, BLOCK, RANK)
    grad_y = _at(grad_y, row, block, sizes, grad_y_strides, BLOCK, RANK)
    x = _at(x, row, block, sizes, x_strides, BLOCK, RANK)
    grad_x = _at(grad_x, row, block, sizes, grad_x_strides, BLOCK, RANK)
    dy, dx = grad_y_strides[RANK - 1], grad_x_strides[RANK - 1]
    if block < columns // BLOCK:
        _pointwise_backward(grad_y, dy, x, x_strides[RANK - 1], grad_x, dx, BLOCK, ACT, P, BLOCK, True)
    else:
        left = columns % BLOCK
        _pointwise_backward(grad_y, dy, x, x_strides[RANK - 1], grad_x, dx, left, ACT, P, BLOCK, False)


@triton.jit
def _gated_forward(
    gate,
    gate_stride,
    up,
    up_stride,
    y,
    y_stride,
    left,
    ACT: tl.constexpr,
    UP: tl.constexpr,
    P: tl.constexpr,
    ROUNDED: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    g, u = _read_both(gate, gate_stride, up, up_stride, left, BLOCK, WHOLE, PAIRS)
    value, _ = ACT(g, P, y.dtype.element_ty)
    factor, _ = UP(u, P)
    if ROUNDED:
        value = _to_fp32(_round(value, y.dtype.element_ty))
    _write(y, y_stride, value * factor, left, BLOCK, WHOLE)


@triton.jit
def gated_forward_kernel(
    gate,
    gate_strides,
    up,
    up_strides,
    y,
    y_strides,
    columns,
    sizes,
    ACT: tl.constexpr,
    UP: tl.constexpr,
    P: tl.constexpr,
    ROUNDED: tl.constexpr,
    PAIRS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = _place(columns, BLOCK, RANK)
    gate = _at(gate, row, block, sizes, gate_strides, BLOCK, RANK)
    up = _at(up, row, block, sizes, up_strides, BLOCK, RANK)
    y = _at(y, row, block, sizes, y_strides, BLOCK, RANK)
    g, u, v = gate_strides[RANK - 1], up_strides[RANK - 1], y_strides[RANK - 1]
    if block < columns // BLOCK:
        _gated_forward(gate, g, up, u, y, v, BLOCK, ACT, UP, P, ROUNDED, PAIRS, BLOCK, True)
    else:
        _gated_forward(gate, g, up, u, y, v, columns % BLOCK, ACT, UP, P, ROUNDED, PAIRS, BLOCK, False)


@triton.jit
def _gated_backward(
    grad_y,
    grad_y_stride,
    gate,
    gate_stride,
    up,
    up_stride,
    grad_gate,
    grad_gate_stride,
    grad_up,
    grad_up_stride,
    y,
    y_stride,
    left,
    ACT: tl.constexpr,
    UP: tl.constexpr,
    P: tl.constexpr,
    ROUNDED: tl.constexpr,
    AGAIN: tl.constexpr,
    PAIRS: tl.constexpr,
    GRAD_PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    g, u = _read_both(gate, gate_stride, up, up_stride, left, BLOCK, WHOLE, PAIRS)
    value, slope = ACT(g, P, gate.dtype.element_ty)
    factor, factor_slope = UP(u, P)
    dy = _read(grad_y, grad_y_stride, left, BLOCK, WHOLE)
    grad_act = dy * factor
    if ROUNDED:
        value = _to_fp32(_round(value, gate.dtype.element_ty))
        grad_act = _to_fp32(_round(grad_act, gate.dtype.element_ty))
    _write_both(
        grad_gate,
        grad_gate_stride,
        grad_act * slope,
        grad_up,
        grad_up_stride,
        dy * value * factor_slope,
        left,
        BLOCK,
        WHOLE,
        GRAD_PAIRS,
    )
    if AGAIN:
        _write(y, y_stride, value * factor, left, BLOCK, WHOLE)


@triton.jit
def gated_backward_kernel(
    grad_y,
    grad_y_strides,
    gate,
    gate_strides,
    up,
    up_strides,
    grad_gate,
    grad_gate_strides,
    grad_up,
    grad_up_strides,
    y,
    y_strides,
    columns,
    sizes,
    ACT: tl.constexpr,
    UP: tl.constexpr,
    P: tl.constexpr,
    ROUNDED: tl.constexpr,
    AGAIN: tl.constexpr,
    PAIRS: tl.constexpr,
    GRAD_PAIRS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, block = _place(columns, BLOCK, RANK)
    grad_y = _at(grad_y, row, block, sizes, grad_y_strides, BLOCK, RANK)
    gate = _at(gate, row, block, sizes, gate_strides, BLOCK, RANK)
    up = _at(up, row, block, sizes, up_strides, BLOCK, RANK)
    grad_gate = _at(grad_gate, row, block, sizes, grad_gate_strides, BLOCK, RANK)
    grad_up = _at(grad_up, row, block, sizes, grad_up_strides, BLOCK, RANK)
    y = _at(y, row, block, sizes, y_strides, BLOCK, RANK)
    dy, g, u = grad_y_strides[RANK - 1], gate_strides[RANK - 1], up_strides[RANK - 1]
    dg, du, v = grad_gate_strides[RANK - 1], grad_up_strides[RANK - 1], y_strides[RANK - 1]
    if block < columns // BLOCK:
        _gated_backward(
            *(grad_y, dy, gate, g, up, u, grad_gate, dg, grad_up, du, y, v, BLOCK),
            *(ACT, UP, P, ROUNDED, AGAIN, PAIRS, GRAD_PAIRS, BLOCK, True),
        )
    else:
        _gated_backward(
            *(grad_y, dy, gate, g, up, u, grad_gate, dg, grad_up, du, y, v, columns % BLOCK),
            *(ACT, UP, P, ROUNDED, AGAIN, PAIRS, GRAD_PAIRS, BLOCK, False),
        )


# Launching. Any shape and strides: what would be slow as it lies in memory goes through dense copies.

# Interpreted, a program costs a millisecond at any size.
_BLOCK = 16384 if INTERPRETED.value else 1024
_WARP = 8 * (64 if torch.version.hip else 32)
"""The elements of a warp: 8 a thread, of a 16-bit dtype one 128-bit access."""
_MAX_RANK = 4
_MIN_COLUMNS = 64
"""Rows shorter than this are not worth a program each."""


def _coalesced(tensors: Sequence[Tensor], like: Tensor) -> tuple[list[int], list[list[int]]]:
    """The sizes, and each tensor's strides, with as few dimensions as describe them all, in the order of the strides of
    ``like``; at least one."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [like.numel()], [[1] for _ in tensors]
    dims = [dim for dim, size in enumerate(like.shape) if size != 1]
    dims.sort(key=like.stride, reverse=True)
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for dim in dims:
        size, steps = like.shape[dim], [tensor.stride(dim) for tensor in tensors]
        if sizes and all(own[-1] == size * step for own, step in zip(strides, steps, strict=True)):
            sizes[-1] *= size
            for own, step in zip(strides, steps, strict=True):
                own[-1] = step
        else:
            sizes.append(size)
            for own, step in zip(strides, steps, strict=True):
                own.append(step)
    return (sizes, strides) if sizes else ([1], [[1] for _ in tensors])


def _launch(
    kernel: Any,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    activation: str,
    parameters: Sequence[float],
    pairs: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    **constants: Any,
) -> None:
    """``pairs``: which of the tensors may alternate in memory, by the constant that says whether they do."""
    tensors = [*inputs, *outputs]
    if outputs[0].numel() == 0:
        return
    sizes, strides = _coalesced(tensors, outputs[0])
    rank, columns = len(sizes), sizes[-1]
    if rank > 1 and (rank > _MAX_RANK or columns < _MIN_COLUMNS):
        dense = {id(y): torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in outputs}  # one may be there twice
        results = [dense[id(y)] for y in outputs]
        _launch(kernel, [x.contiguous() for x in inputs], results, activation, parameters, pairs, **constants)
        for y in outputs:
            y.copy_(dense[id(y)])
        return
    for name, (i, k) in pairs.items():
        alternate = tensors[k].data_ptr() - tensors[i].data_ptr() == tensors[i].element_size()
        constants[name] = alternate and strides[i] == strides[k] and strides[i][-1] == 2
    if INTERPRETED.value:
        block = min(_BLOCK, triton.next_power_of_2(columns))
    else:
        block = next((size for size in (1024, 512, 256) if rank > 1 and columns % size == 0), _BLOCK)
        constants["num_warps"] = max(1, block // _WARP)
    arguments: list[Any] = []
    for tensor, (*outer, inner) in zip(tensors, strides, strict=True):
        arguments += [tensor, (*reversed(outer), inner)]
    grid = (math.prod(sizes[:-1]) * triton.cdiv(columns, block),)
    with torch.cuda.device(tensors[0].device) if tensors[0].is_cuda else contextlib.nullcontext():
        kernel[grid](
            *arguments,
            columns,
            tuple(reversed(sizes[:-1])),
            ACT=FUNCTIONS[activation],
            P=tuple(parameters),
            RANK=rank,
            BLOCK=block,
            **constants,
        )


def pointwise_forward(x: Tensor, y: Tensor, activation: str, parameters: Sequence[float]) -> None:
    """y ← act(x)."""
    _launch(pointwise_forward_kernel, (x,), (y,), activation, parameters)


def pointwise_backward(grad_y: Tensor, x: Tensor, grad_x: Tensor, activation: str, parameters: Sequence[float]) -> None:
    """grad_x ← grad_y · act′(x)."""
    _launch(pointwise_backward_kernel, (grad_y, x), (grad_x,), activation, parameters)


def gated_forward(
    gate: Tensor, up: Tensor, y: Tensor, activation: str, parameters: Sequence[float], rounded: bool
) -> None:
    """y ← act(gate) · up, act(gate) being rounded to y's dtype before the product where ``rounded``."""
    _launch(
        gated_forward_kernel,
        (gate, up),
        (y,),
        activation,
        parameters,
        {"PAIRS": (0, 1)},
        UP=UP_FUNCTIONS[activation],
        ROUNDED=rounded,
    )


def gated_backward(
    grad_y: Tensor,
    gate: Tensor,
    up: Tensor,
    grad_gate: Tensor,
    grad_up: Tensor,
    y: Tensor | None,
    activation: str,
    parameters: Sequence[float],
    rounded: bool,
) -> None:
    """grad_gate ← grad_y · up · act′(gate), grad_up ← grad_y · act(gate), and y ← act(gate) · up where y is given."""
    _launch(
        gated_backward_kernel,
        (grad_y, gate, up),
        (grad_gate, grad_up, grad_gate if y is None else y),
        activation,
        parameters,
        {"PAIRS": (1, 2), "GRAD_PAIRS": (3, 4)},
        UP=UP_FUNCTIONS[activation],
        ROUNDED=rounded,
        AGAIN=y is not None,
    )
