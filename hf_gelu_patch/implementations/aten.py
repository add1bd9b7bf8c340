"""``eager``: the model's own ops. ``aten``: one op where there is one, else the fewest passes over memory that give
the same bits.

``aten`` computes the activations whose record has an ``in_place`` form. It writes in place only on a tensor made
here, and only where autograd does not keep it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Derived
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import ordinary, stays

__all__ = ["ATEN", "EAGER", "LARGE", "after_linear", "fewer_passes", "gated"]

Function = Callable[..., Tensor]


def fewer_passes(x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The activation in fewer passes than its ``eager``, where autograd keeps nothing of it."""
    record = ACTIVATIONS[activation]
    if record.fewer_passes is None or stays(x):
        return record.eager(x, **parameters)
    return record.fewer_passes(x, **parameters)


def gated(gate: Tensor, up: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The product written over act(gate), a tensor made here. A new one of that size costs the CPU as much as the
    arithmetic: its pages are fetched from the system anew each time."""
    y = fewer_passes(gate, activation=activation, **parameters)
    return y * up if stays(y, up) else y.mul_(up)


LARGE = 32 * 2**20
"""Bytes of a linear layer's output from which on its activation is written over it. glibc hands out fresh pages for
each tensor of that size or more; below it, in place was measured to be no faster, exact GELU in fp32 slower."""


def after_linear(linear: nn.Module, x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The activation written over the linear layer's output, which nobody else holds, where that is large."""
    y: Tensor = linear(x)
    in_place = ACTIVATIONS[activation].in_place
    if in_place is not None and ordinary(y) and y.nbytes >= LARGE and not stays(y):
        return in_place(y, **parameters)
    return fewer_passes(y, activation=activation, **parameters)


def _pointwise(record: Activation) -> Function | None:
    if record.in_place is None:
        return None
    return record.eager if record.fewer_passes is None else functools.partial(fewer_passes, activation=record.name)


def _fused(function: Function, record: Activation) -> Function | None:
    return None if record.in_place is None else functools.partial(function, activation=record.name)


EAGER = Implementation(
    "eager",
    Derived(lambda record: None if record.learned else record.eager),
    identical=ACTIVATIONS,
)
ATEN = Implementation(
    "aten",
    Derived(_pointwise),
    gated=Derived(functools.partial(_fused, gated)),
    linear=Derived(functools.partial(_fused, after_linear)),
    identical=Derived(_pointwise),
)

# As pickles of an older layout name them: hf_gelu_patch.old_layout.
_quick_gelu = functools.partial(fewer_passes, activation="quick_gelu")
_relu_squared = functools.partial(fewer_passes, activation="relu_squared")
_gelu_clipped = functools.partial(fewer_passes, activation="gelu_clipped")
