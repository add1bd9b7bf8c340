"""``eager``: the model's own ops. ``aten``: one op where there is one, else the fewest passes over memory that give
the same bits.

``aten`` writes in place only on a tensor made here, and only where autograd does not keep it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import ordinary, stays

__all__ = ["ATEN", "EAGER", "LARGE", "after_linear", "gated"]

Function = Callable[..., Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    if stays(x):
        return ACTIVATIONS["quick_gelu"].eager(x)
    return (1.702 * x).sigmoid_().mul_(x)


def _relu_squared(x: Tensor) -> Tensor:
    if stays(x):
        return ACTIVATIONS["relu_squared"].eager(x)
    return F.relu(x).square_()


def _gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    if stays(x):
        return ACTIVATIONS["gelu_clipped"].eager(x, min, max)
    return F.gelu(x).clamp_(min, max)


_FEWER_PASSES: Mapping[str, Function] = {
    "quick_gelu": _quick_gelu,
    "relu_squared": _relu_squared,
    "gelu_clipped": _gelu_clipped,
}

# In place on a tensor that nobody else holds.


def _quick_gelu_(y: Tensor) -> Tensor:
    return y.mul_((1.702 * y).sigmoid_())


def _relu_squared_(y: Tensor) -> Tensor:
    return y.relu_().square_()


def _gelu_clipped_(y: Tensor, min: float, max: float) -> Tensor:
    gelu_: Tensor = torch.ops.aten.gelu_(y)
    return gelu_.clamp_(min, max)


def _gelu_tanh_(y: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_(y, approximate="tanh")
    return result


_IN_PLACE: Mapping[str, Function] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": _gelu_tanh_,
    "silu": functools.partial(F.silu, inplace=True),
    "relu": torch.relu_,
    "relu6": functools.partial(F.relu6, inplace=True),
    "leaky_relu": functools.partial(F.leaky_relu, inplace=True),
    "elu": functools.partial(F.elu, inplace=True),
    "mish": functools.partial(F.mish, inplace=True),
    "hardswish": functools.partial(F.hardswish, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "quick_gelu": _quick_gelu_,
    "relu_squared": _relu_squared_,
    "gelu_clipped": _gelu_clipped_,
}
_ATEN: Mapping[str, Function] = {name: _FEWER_PASSES.get(name, ACTIVATIONS[name].eager) for name in _IN_PLACE}


def gated(gate: Tensor, up: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The product written over act(gate), a tensor made here. A new one of that size costs the CPU as much as the
    arithmetic: its pages are fetched from the system anew each time."""
    y: Tensor = _ATEN[activation](gate, **parameters)
    return y * up if stays(y, up) else y.mul_(up)


LARGE = 32 * 2**20
"""Bytes of a linear layer's output from which on its activation is written over it. glibc hands out fresh pages for
each tensor of that size or more; below it, in place was measured to be no faster, exact GELU in fp32 slower."""


def after_linear(linear: nn.Module, x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The activation written over the linear layer's output, which nobody else holds, where that is large."""
    y: Tensor = linear(x)
    over = ordinary(y) and y.nbytes >= LARGE and not stays(y)
    result: Tensor = (_IN_PLACE if over else _ATEN)[activation](y, **parameters)
    return result


def _each(function: Function, names: Iterable[str]) -> dict[str, Function]:
    return {name: functools.partial(function, activation=name) for name in names}


EAGER = Implementation(
    "eager",
    {name: record.eager for name, record in ACTIVATIONS.items() if not record.learned},
    identical=frozenset(ACTIVATIONS),
)
ATEN = Implementation(
    "aten",
    _ATEN,
    gated=_each(gated, _ATEN),
    linear=_each(after_linear, _ATEN),
    identical=frozenset(_ATEN),
)
