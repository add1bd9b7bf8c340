"""What the Triton kernels compute: the activations that have a device function, and the gated products.

A gated product is act(gate) · up with one of those activations; or act(gate) · f(up), as ``GatedForm`` says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Derived
from hf_gelu_patch.errors import UnknownNameError

__all__ = ["GATED_FORMS", "POINTWISE", "GatedForm", "constants_of", "eager", "eager_gated", "gradients"]


@dataclass(frozen=True)
class GatedForm:
    """The gated product act(gate) · f(up), both of the same constants.

    Attributes:
        act: what is applied to the gate. It is no entry of ``ACTIVATIONS``: no model applies it alone.
        up: f(up, **constants).
        up_slope: its derivative, likewise.
        up_kernel: the device function of f, ``"package.module:function"``: (up, P) → (value, derivative).
    """

    act: Activation
    up: Callable[..., Tensor]
    up_slope: Callable[..., Tensor]
    up_kernel: str


_KERNELS = "hf_gelu_patch.implementations.triton_kernels"


def _swiglu_oai(gate: Tensor, alpha: float, limit: float) -> Tensor:
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(gate * alpha)


def _d_swiglu_oai(gate: Tensor, alpha: float, limit: float) -> Tensor:
    inside = gate.clamp(max=limit)
    s = torch.sigmoid(alpha * inside)
    return torch.where(gate > limit, 0.0, s + alpha * inside * s * (1.0 - s))


def _swiglu_oai_up(up: Tensor, alpha: float, limit: float) -> Tensor:  # noqa: ARG001
    return up.clamp(min=-limit, max=limit) + 1


def _d_swiglu_oai_up(up: Tensor, alpha: float, limit: float) -> Tensor:  # noqa: ARG001
    return torch.where(up.abs() > limit, 0.0, torch.ones_like(up))


GATED_FORMS: Mapping[str, GatedForm] = {
    "swiglu_oai": GatedForm(
        Activation(
            "swiglu_oai",
            "σ(alpha·g)·g with g = min(x, limit)",
            _swiglu_oai,
            _swiglu_oai,
            _d_swiglu_oai,
            parameters=(("alpha", 1.702), ("limit", 7.0)),
            positive=frozenset({"alpha"}),
            kernel=f"{_KERNELS}:swiglu_oai",
        ),
        _swiglu_oai_up,
        _d_swiglu_oai_up,
        f"{_KERNELS}:swiglu_oai_up",
    )
}
"""Those whose f is not the identity."""

POINTWISE: Collection[str] = Derived(lambda record: record.kernel)
"""The activations the kernels compute: those whose record names a device function."""


def constants_of(activation: str, given: Mapping[str, float], *, gated: bool = False) -> tuple[float, ...]:
    """The constants of an activation, or of a gated product, in the order of its record.

    Args:
        activation: one of ``POINTWISE``; where ``gated``, or of ``GATED_FORMS``.
        given: those that are not the usual ones.

    Raises:
        UnknownNameError: there is no such kernel; the message lists the valid names.
        TypeError: one that is given is not the activation's.
        ValueError: one is NaN, or not positive and has to be.
    """
    record = GATED_FORMS[activation].act if gated and activation in GATED_FORMS else ACTIVATIONS.get(activation)
    if record is None or record.kernel is None:
        raise UnknownNameError("activation", activation, [*POINTWISE, *(GATED_FORMS if gated else ())])
    if not given and not record.parameters:
        return ()
    usual = dict(record.parameters)
    if not given.keys() <= usual.keys():
        raise TypeError(f"{activation} takes {', '.join(usual) or 'no constants'}; got {', '.join(given)}")
    values = {name: float(value) for name, value in {**usual, **given}.items()}
    for name, value in values.items():
        positive = name in record.positive
        if math.isnan(value) or (positive and not 0.0 < value < math.inf):
            raise ValueError(
                f"{activation} takes {'a positive number' if positive else 'a number'} as {name}; got {value}"
            )
    return tuple(values.values())


# The plain aten expressions


def eager(activation: str, constants: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """act(x) as the model's own ops compute it."""
    return _bound(ACTIVATIONS[activation].eager, activation, constants)


def eager_gated(activation: str, constants: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """act(gate) · f(up), likewise."""
    if activation not in GATED_FORMS:
        act = eager(activation, constants)
        return lambda gate, up: act(gate) * up
    form = GATED_FORMS[activation]
    act, f = (_bound(function, activation, constants) for function in (form.act.eager, form.up))
    return lambda gate, up: act(gate) * f(up)


def gradients(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up in float64, rounded once. Below autograd, where aten's own cannot be asked for."""
    form = GATED_FORMS.get(activation)
    act = ACTIVATIONS[activation] if form is None else form.act
    g, u, dy = gate.double(), up.double(), grad_y.double()
    value, slope = (_bound(one, activation, constants)(g) for one in (act.reference, act.derivative))
    factor, factor_slope = u, torch.ones_like(u)
    if form is not None:
        factor, factor_slope = (_bound(one, activation, constants)(u) for one in (form.up, form.up_slope))
    grads = dy * factor * slope, dy * value * factor_slope
    return torch.empty_like(gate).copy_(grads[0]), torch.empty_like(gate).copy_(grads[1])


def _bound(function: Callable[..., Tensor], activation: str, constants: Sequence[float]) -> Callable[[Tensor], Tensor]:
    if not constants:
        return function
    act = GATED_FORMS[activation].act if activation in GATED_FORMS else ACTIVATIONS[activation]
    return functools.partial(function, **dict(zip(dict(act.parameters), constants, strict=True)))
