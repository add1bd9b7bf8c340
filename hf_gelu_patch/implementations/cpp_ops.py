"""``cpp``: one compiled kernel on a CPU, over the whole tensor, computed in float32 and rounded once.

An ordinary CPU tensor goes straight to the kernel, or to an autograd function around it. Everything else gets the plain
aten expression: what a dispatch mode or a transform has to see, what torch.compile, torch.export and torch.jit trace,
float64, other devices, subclasses of Tensor. So does every tensor where no kernel can be had, on a machine without a
compiler that a patched model was brought to: once, with a warning.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Derived
from hf_gelu_patch.errors import ImplementationUnavailableError, first_line
from hf_gelu_patch.implementations import cpp_build
from hf_gelu_patch.implementations.derivatives import differentiated, gradients_of
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import needs_gradient, nothing_but_memory, watched
from hf_gelu_patch.implementations.triton_forms import eager, eager_gated

__all__ = ["CPP", "after_linear", "gated", "pointwise"]

_FORWARD, _BACKWARD, _GATED_FORWARD, _GATED_BACKWARD = range(4)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PER_THREAD = 8192
"""How many elements a further thread has to have to do. It takes microseconds to wake."""


def pointwise(x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """act(x), elementwise, by one kernel forward and one backward.

    Args:
        x: any shape, any strides, any dtype; the kernel takes float32, float16 and bfloat16 on a CPU.
        activation: one whose record names a device function for it (``cpp``).
        parameters: the activation's constants.

    Returns:
        A tensor of x's shape and dtype. Differentiable any number of times: the first derivative by a kernel, further
        ones by aten. All is aten's for a tensor smaller than the record's ``least``.
    """
    if not _direct(_least(activation, x), x) or (kernel := _kernel(activation)) is None:
        return ACTIVATIONS[activation].eager(x, **parameters)
    constants = tuple(parameters.values())
    if needs_gradient(x):
        y: Tensor = _Pointwise.apply(x, kernel, activation, constants)  # type: ignore[no-untyped-call]
        return y
    return _forward(kernel, x, constants)


def gated(gate: Tensor, up: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """act(gate) · up by one kernel forward and one backward, which saves neither act(gate) nor the product.

    Args:
        gate: as x in ``pointwise``. Two halves of one tensor's last dimension are read where they lie.
        up: of the same shape and dtype.
        activation: as in ``pointwise``.
        parameters: the activation's constants.

    Returns:
        A tensor of that shape and dtype, rounded once. Differentiable as ``pointwise``.
    """
    if not _direct(_least(activation, gate, up), gate, up) or (kernel := _kernel(activation)) is None:
        return ACTIVATIONS[activation].eager(gate, **parameters) * up
    constants = tuple(parameters.values())
    if needs_gradient(gate) or needs_gradient(up):
        y: Tensor = _Gated.apply(gate, up, kernel, activation, constants)  # type: ignore[no-untyped-call]
        return y
    return _gated_forward(kernel, gate, up, constants)


def after_linear(linear: nn.Module, x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """act(linear(x)), the activation written over the linear layer's output, which nobody else holds, where autograd
    does not keep that."""
    y: Tensor = linear(x)
    if needs_gradient(y) or not _direct(_least(activation, y), y) or not y.is_contiguous():
        return pointwise(y, activation=activation, **parameters)
    if (kernel := _kernel(activation)) is None:
        return ACTIVATIONS[activation].eager(y, **parameters)
    _run(kernel, _FORWARD, (y, y), tuple(parameters.values()))
    return y


# The kernels. Tensors of one shape are rows of columns that lie side by side: one row, where all of them are dense and
# lie alike.


_LEAST_WITH_GRADIENT = 65_536
"""As ``least`` of a record, where autograd follows: a function of Python costs it much more than torch's own op."""


def _least(activation: str, *tensors: Tensor) -> int:
    """Of how many elements on the kernel is called."""
    compiled = ACTIVATIONS[activation].cpp
    assert compiled is not None
    for x in tensors:
        if needs_gradient(x):
            return max(compiled.least, _LEAST_WITH_GRADIENT)
    return compiled.least


def _direct(least: int, *tensors: Tensor) -> bool:
    """Whether these are ordinary CPU tensors that a kernel takes, all of one shape, of so many elements at least, and
    dtype, and nothing but autograd has to see what is done. What hooks on saved tensors give back may be anything."""
    if watched():
        return False
    first = tensors[0]
    if first.numel() < least:
        return False
    for x in tensors:  # at every call: a loop is faster than all()
        if x.dtype not in _DTYPES or not x.is_cpu or not nothing_but_memory(x):
            return False
        if x is not first and (x.dtype is not first.dtype or x.shape != first.shape):
            return False
    return True


@functools.cache
def _kernel(activation: str) -> cpp_build.Kernel | None:
    """The kernel; None, with a warning, where none can be had."""
    try:
        return cpp_build.kernel(activation)
    except ImplementationUnavailableError as error:
        warnings.warn(
            f"{activation} is computed by aten, slower than by the compiled kernel this model was patched with: "
            f"{first_line(error)} Or unpatch(model) and patch it here anew.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _forward(kernel: cpp_build.Kernel, x: Tensor, constants: Sequence[float]) -> Tensor:
    (x,), y = _laid_out((x,))
    _run(kernel, _FORWARD, (x, y), constants)
    return y


def _backward(kernel: cpp_build.Kernel, x: Tensor, grad_y: Tensor, constants: Sequence[float]) -> Tensor:
    (x, grad_y), grad_x = _laid_out((x, grad_y))
    _run(kernel, _BACKWARD, (x, grad_y, grad_x), constants)
    return grad_x


def _gated_forward(kernel: cpp_build.Kernel, gate: Tensor, up: Tensor, constants: Sequence[float]) -> Tensor:
    (gate, up), y = _laid_out((gate, up))
    _run(kernel, _GATED_FORWARD, (gate, up, y), constants)
    return y


def _gated_backward(
    kernel: cpp_build.Kernel, gate: Tensor, up: Tensor, grad_y: Tensor, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    (gate, up, grad_y), grad_gate = _laid_out((gate, up, grad_y))
    grad_up = torch.empty_like(grad_gate)
    _run(kernel, _GATED_BACKWARD, (gate, up, grad_y, grad_gate, grad_up), constants)
    return grad_gate, grad_up


def _laid_out(given: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor]:
    """Tensors as a kernel reads them, copies where they do not lie so; and an empty one for what it writes."""
    first = given[0]
    into = torch.empty_like(first)
    strides = into.stride()
    for x in given:
        if x.stride() != strides:
            break
    else:  # dense: no other's strides would have been kept
        return given, into
    if not into.is_contiguous():
        into = torch.empty_like(first, memory_format=torch.contiguous_format)
    return [x if _row_stride(x) is not None else x.contiguous() for x in given], into


def _row_stride(x: Tensor) -> int | None:
    """How far apart the rows of x lie, where each is a run of memory and all are evenly apart; else None. The stride of
    a dimension of one may be any, that of a contiguous tensor's too."""
    sizes, strides = x.shape, x.stride()
    if not sizes or (strides[-1] != 1 and sizes[-1] != 1):
        return None
    apart = following = None
    for dim in range(len(sizes) - 2, -1, -1):
        if sizes[dim] != 1:
            if apart is None:
                apart = strides[dim]
            elif strides[dim] != following:
                return None
            following = strides[dim] * sizes[dim]
    return sizes[-1] if apart is None else apart


def _run(kernel: cpp_build.Kernel, form: int, tensors: Sequence[Tensor], constants: Sequence[float]) -> None:
    first = tensors[0]
    if not (count := first.numel()):
        return
    rows, columns, strides = 1, count, first.stride()
    places: list[int] = []
    for x in tensors:
        places += (x.data_ptr(), 0)
        if x.stride() != strides:
            rows = 0
    if not rows:
        columns = first.shape[-1]
        rows = count // columns
        places[1::2] = [_row_stride(x) or 0 for x in tensors]
    threads = 1 if count < 2 * _PER_THREAD else min(torch.get_num_threads(), count // _PER_THREAD)
    given = (ctypes.c_float * len(constants))(*constants) if constants else None
    kernel(form, _DTYPES[first.dtype], rows, columns, _PLACES[len(tensors)](*places), given, threads)


_PLACES = [ctypes.c_int64 * (2 * count) for count in range(6)]


# Autograd. Where a graph of the backward is asked for (``create_graph``), it is aten's, differentiable without end.


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: cpp_build.Kernel, activation: str, constants: Sequence[float]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernel, ctx.activation, ctx.constants = kernel, activation, constants
        return _forward(kernel, x, constants)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        if differentiated() or not _direct(0, grad_y, x):
            return gradients_of(eager(ctx.activation, ctx.constants), (x,), grad_y)[0], None, None, None
        return _backward(ctx.kernel, x, grad_y, ctx.constants), None, None, None

    @staticmethod
    def again(ctx: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return _forward(ctx.kernel, x, ctx.constants) if _direct(0, x) else eager(ctx.activation, ctx.constants)(x)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, kernel: cpp_build.Kernel, activation: str, constants: Sequence[float]
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kernel, ctx.activation, ctx.constants = kernel, activation, constants
        return _gated_forward(kernel, gate, up, constants)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gate, up = ctx.saved_tensors
        if differentiated() or not _direct(0, grad_y, gate, up):
            grad_gate, grad_up = gradients_of(eager_gated(ctx.activation, ctx.constants), (gate, up), grad_y)
        else:
            grad_gate, grad_up = _gated_backward(ctx.kernel, gate, up, grad_y, ctx.constants)
        return grad_gate, grad_up, None, None, None

    @staticmethod
    def again(ctx: Any) -> Tensor:
        gate, up = ctx.saved_tensors
        if not _direct(0, gate, up):
            return eager_gated(ctx.activation, ctx.constants)(gate, up)
        return _gated_forward(ctx.kernel, gate, up, ctx.constants)


# The implementation


def _where_fused(function: Callable[..., Tensor], record: Activation) -> Callable[..., Tensor] | None:
    return None if record.cpp is None else functools.partial(function, activation=record.name)


def _prepare(activation: str) -> None:
    cpp_build.kernel(activation)


CPP = Implementation(
    "cpp",
    Derived(functools.partial(_where_fused, pointwise)),
    gated=Derived(functools.partial(_where_fused, gated)),
    linear=Derived(functools.partial(_where_fused, after_linear)),
    devices=frozenset({"cpu"}),
    dtypes=frozenset(_DTYPES),
    missing=cpp_build.missing,
    prepare=_prepare,
    keeps_inputs=True,
)
