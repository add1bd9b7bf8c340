"""Triton kernels: each activation's mathematics once, as a device function giving value and derivative.

Computed in fp32 and rounded once at the store. A forward that drops the derivative compiles to the value alone.
Importing this module imports triton; everything else in the package imports it when a kernel is first run.
``python -m scripts.benchmarking.static`` fits the coefficients, measures the errors and compiles every kernel without a
GPU; what it found stands in ``scripts/benchmarking/static/kernels.md``.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from triton.language.extra import libdevice

from hf_gelu_patch.implementations.normal_tail import END, MILLS

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


# The tail of the normal distribution: ``normal_tail``. Interpreted, exact GELU in bf16 is at most 0.545 ulp off. With
# the exponential and quotient of NVIDIA's GPUs, emulated, it is at most 0.503 ulp off from −5 on and 32.5 ulp below.

NORMAL_END = tl.constexpr(END)
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


# A gated form is act(gate) · f(up). ``triton_forms`` says where f is not the identity.


@triton.jit
def swiglu_oai(gate, P: tl.constexpr, DTYPE: tl.constexpr):
    """σ(alpha·g)·g with g = min(gate, limit); P are (alpha, limit)."""
    value, slope = _swish(_at_most(gate, P[1]), P[0])
    return value, tl.where(gate > P[1], 0.0, slope)


@triton.jit
def identity(up, P: tl.constexpr):
    return up, 1.0


@triton.jit
def swiglu_oai_up(up, P: tl.constexpr):
    clamped = _at_most(_at_least(up, -P[1]), P[1])
    return clamped + 1.0, tl.where(tl.abs(up) > P[1], 0.0, 1.0)


# Memory. Dense tensors are one row. Others are rows, of which there may be a further dimension or two. A program works
# on a block of columns of one row; where rows are short, or a tensor lies across them, on a tile of several rows. Whole
# blocks are read and written without a mask, so that accesses are 128 bits wide whatever the row's length: only the
# last block of a row pays for its end. Offsets are 32 bits only where every tensor's fit.


class How(NamedTuple):
    """How tensors lie in memory and how they are read and written, which is compiled in.

    Attributes:
        BLOCK: columns that a program works on at once, a power of two.
        ROWS: and rows, likewise.
        RANK: dimensions; 1 where all tensors are dense.
        LAYERS: whether there are more rows, or tiles of them, than a grid may have in its second dimension.
        ALIGNED: whether the columns of a row are divisible by 16, so that its last block has wide accesses too.
        OFFSET: the type of offsets.
        PAIRS, GRAD_PAIRS: whether gate and up, or their gradients, take turns in memory. They are read or written as
            one of twice as many columns.
        LOAD, EVICT, STORE: as in ``triton_launch.Variant``.
        STAGES: 0: a program a block; else a program takes block after block, and has so many under way.
    """

    BLOCK: int
    ROWS: int
    RANK: int
    LAYERS: bool
    ALIGNED: bool
    OFFSET: tl.dtype
    PAIRS: bool
    GRAD_PAIRS: bool
    LOAD: str
    EVICT: str
    STORE: str
    STAGES: int


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
def _tiles(sizes, HOW: tl.constexpr):
    """How many tiles of rows there are."""
    if HOW.ROWS == 1:
        count = sizes[0]
    else:
        count = (sizes[0] + (HOW.ROWS - 1)) // HOW.ROWS
    return count


@triton.jit
def _places(pointer, strides, sizes, row, block, PAIRS: tl.constexpr, HOW: tl.constexpr):
    """Pointers to a block of a row, or of a tile; where PAIRS, to it and what it alternates with."""
    WIDTH: tl.constexpr = 2 * HOW.BLOCK if PAIRS else HOW.BLOCK
    if HOW.RANK == 1:
        places = pointer + block.to(HOW.OFFSET) * HOW.BLOCK + tl.arange(0, HOW.BLOCK).to(HOW.OFFSET)
    else:
        offsets = block.to(HOW.OFFSET) * WIDTH + tl.arange(0, WIDTH).to(HOW.OFFSET)
        if not PAIRS:
            offsets = offsets * strides[HOW.RANK - 1]
        if HOW.ROWS > 1:
            offsets = offsets[None, :] + (tl.arange(0, HOW.ROWS).to(HOW.OFFSET) * strides[0])[:, None]
        rest = row
        for dim in tl.static_range(HOW.RANK - 1):
            if dim == HOW.RANK - 2:
                at = rest
            elif dim == 0:
                at = rest % _tiles(sizes, HOW)
                rest = rest // _tiles(sizes, HOW)
            else:
                at = rest % sizes[dim]
                rest = rest // sizes[dim]
            if dim == 0:
                at = at * HOW.ROWS
            offsets = offsets + at.to(HOW.OFFSET) * strides[dim]
        places = pointer + offsets
    return places


@triton.jit
def _inside(columns, sizes, row, block, PAIRS: tl.constexpr, HOW: tl.constexpr):
    """Which of those places there are."""
    if HOW.ALIGNED:
        columns = (columns // 16) * 16  # so that the compiler sees it
    if HOW.ROWS == 1:
        left = columns % HOW.BLOCK  # of the last block, the only one that is not whole
    else:
        left = columns - block.to(HOW.OFFSET) * HOW.BLOCK
    if PAIRS:
        inside = tl.arange(0, 2 * HOW.BLOCK) < left * 2
    elif HOW.ROWS == 1:
        inside = tl.arange(0, HOW.BLOCK) < left
    else:
        rows = sizes[0] - (row % _tiles(sizes, HOW)) * HOW.ROWS
        inside = (tl.arange(0, HOW.BLOCK) < left)[None, :] & (tl.arange(0, HOW.ROWS) < rows)[:, None]
    return inside


@triton.jit
def _read(
    pointer, strides, columns, sizes, row, block, PAIRS: tl.constexpr, WHOLE: tl.constexpr, HOW: tl.constexpr
):  # fmt: skip
    places = _places(pointer, strides, sizes, row, block, PAIRS, HOW)
    if WHOLE:
        x = tl.load(places, cache_modifier=HOW.LOAD, eviction_policy=HOW.EVICT)
    else:
        inside = _inside(columns, sizes, row, block, PAIRS, HOW)
        x = tl.load(places, mask=inside, cache_modifier=HOW.LOAD, eviction_policy=HOW.EVICT)
    return _to_fp32(x)


@triton.jit
def _write(
    pointer, strides, y, columns, sizes, row, block, PAIRS: tl.constexpr, WHOLE: tl.constexpr, HOW: tl.constexpr
):  # fmt: skip
    places = _places(pointer, strides, sizes, row, block, PAIRS, HOW)
    rounded = _round(y, pointer.dtype.element_ty)
    if WHOLE:
        tl.store(places, rounded, cache_modifier=HOW.STORE)
    else:
        inside = _inside(columns, sizes, row, block, PAIRS, HOW)
        tl.store(places, rounded, mask=inside, cache_modifier=HOW.STORE)


@triton.jit
def _block(
    tensors, strides, columns, sizes, row, block,
    ACT: tl.constexpr, UP: tl.constexpr, P: tl.constexpr, ROUNDED: tl.constexpr,
    WHOLE: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """What is done with one block."""
    gate, up, grad_y, y, grad_gate, grad_up = tensors
    GATED: tl.constexpr = up is not None
    written = y if y is not None else grad_gate
    stored: tl.constexpr = written.dtype.element_ty
    x = _read(gate, strides[0], columns, sizes, row, block, HOW.PAIRS, WHOLE, HOW)
    if HOW.PAIRS:
        g, u = tl.split(tl.reshape(x, (HOW.BLOCK, 2)))
    else:
        g = x
        if GATED:
            u = _read(up, strides[1], columns, sizes, row, block, False, WHOLE, HOW)
    value, slope = ACT(g, P, stored)
    if GATED:
        factor, factor_slope = UP(u, P)
        if ROUNDED:
            value = _to_fp32(_round(value, stored))
    if y is not None:
        product = value
        if GATED:
            product = value * factor
        _write(y, strides[3], product, columns, sizes, row, block, False, WHOLE, HOW)
    if grad_y is not None:
        dy = _read(grad_y, strides[2], columns, sizes, row, block, False, WHOLE, HOW)
        grad_act = dy
        if GATED:
            grad_act = dy * factor
            if ROUNDED:
                grad_act = _to_fp32(_round(grad_act, stored))
        dg = grad_act * slope
        if HOW.GRAD_PAIRS:
            dg = tl.reshape(tl.join(dg, dy * value * factor_slope), (2 * HOW.BLOCK,))
        _write(grad_gate, strides[4], dg, columns, sizes, row, block, HOW.GRAD_PAIRS, WHOLE, HOW)
        if GATED and not HOW.GRAD_PAIRS:
            du = dy * value * factor_slope
            _write(grad_up, strides[5], du, columns, sizes, row, block, False, WHOLE, HOW)


@triton.jit(do_not_specialize_on_alignment=["columns"])
def fused_kernel(
    tensors, strides, columns, sizes,
    ACT: tl.constexpr, UP: tl.constexpr, P: tl.constexpr, ROUNDED: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Every form. ``tensors`` are gate, up, grad_y, y, grad_gate, grad_up; what is None is neither read nor written:

    ======================= ================== ======================
    form                    reads              writes
    ======================= ================== ======================
    act(x)                  gate, being x      y
    act(gate) · up          gate, up           y
    the gradient of x       gate, grad_y       grad_gate
    both gradients          gate, up, grad_y   grad_gate, grad_up
    both, and the product   gate, up, grad_y   grad_gate, grad_up, y
    ======================= ================== ======================

    ``strides``, a tuple for each tensor, and ``sizes`` count dimensions from a row's neighbours outwards; the stride
    along the row comes last. Dense tensors have none. The grid is: blocks of a row, rows or tiles, layers of those.
    """
    first = tl.program_id(0)
    row = 0
    if HOW.RANK > 1:
        row = tl.program_id(1)
        if HOW.LAYERS:
            count = _tiles(sizes, HOW)
            for dim in tl.static_range(1, HOW.RANK - 1):
                count *= sizes[dim]
            # The last programs have no row of their own where the grid is larger: they write the last one again.
            row = tl.minimum(row + tl.program_id(2) * tl.num_programs(1), count - 1)
    whole = columns // HOW.BLOCK
    if HOW.STAGES:
        for block in tl.range(first, whole, tl.num_programs(0), num_stages=HOW.STAGES):
            _block(tensors, strides, columns, sizes, row, block, ACT, UP, P, ROUNDED, True, HOW)
        if first == whole % tl.num_programs(0):
            _block(tensors, strides, columns, sizes, row, whole, ACT, UP, P, ROUNDED, False, HOW)
    elif (HOW.ROWS == 1) & (first < whole):
        _block(tensors, strides, columns, sizes, row, first, ACT, UP, P, ROUNDED, True, HOW)
    else:
        _block(tensors, strides, columns, sizes, row, first, ACT, UP, P, ROUNDED, False, HOW)
