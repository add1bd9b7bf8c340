"""Claims 1 and 2: GELU by itself, element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional

from hf_gelu_patch.activations import ACTIVATIONS, max_difference
from scripts.benchmarking.ulp import finite_values, ulp

__all__ = ["DTYPES", "distances", "underflow"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_LEAST = 40.0  # below −40 the value is smaller than float64's least
_STEP = 2**10  # bit patterns of float32 from one that is looked at to the next
_DRAWN = 200_001  # numbers that stand for a normal distribution
_FORMS = ("gelu", "gelu_tanh")


def underflow() -> dict[str, Any]:
    """Where GELU and its derivative are 0 though they should not be.

    GELU(x) = x·Φ(x), and its derivative is Φ(x) + x·φ(x).

    Returns:
        ``zero_of_derivative``: the one x at which the derivative is 0. ``minimum``: GELU there. For each dtype and each
        of ``value`` and ``gradient``: ``rounded``, from which x on, going down, the exact result is 0 once it is
        rounded to the dtype; and for each form ``torch``'s own: the x from which on, going down, it computes 0.
    """
    root = float(brentq(lambda x: float(_derivative(_at(x))), -1.5, -0.1, xtol=1e-15))
    found: dict[str, Any] = {"zero_of_derivative": root, "minimum": float(_reference(_at(root))), "dtypes": {}}
    for name, dtype in DTYPES.items():
        x = _negative(dtype)
        exact = x.double()
        parts: dict[str, Any] = {}
        for part, function in (("value", _reference), ("gradient", _derivative)):
            parts[part] = {
                "rounded": _zero_from(x, function(exact).to(dtype)),
                **{form: _zero_from(x, _by_torch(x, form, part)) for form in _FORMS},
            }
        found["dtypes"][name] = parts
    return found


def distances() -> dict[str, Any]:
    """How far the tanh form is from the exact one.

    Returns:
        ``largest``: max |tanh form − exact| over all x, and ``at``, an x where it is. For each 16-bit dtype and each
        sign: of all its finite numbers between −8 and 8, ``told_apart``, the share whose two results differ once they
        are rounded, and ``units``, the largest distance of the exact results in units in the last place. ``normal``:
        the same share for numbers drawn from a standard normal distribution.
    """
    both = minimize_scalar(
        lambda x: -abs(float(_reference_tanh(_at(x)) - _reference(_at(x)))), bounds=(1.5, 3.5), method="bounded"
    )
    found: dict[str, Any] = {
        "largest": max_difference(ACTIVATIONS["gelu"], ACTIVATIONS["gelu_tanh"]),
        "at": float(both.x),
        "dtypes": {},
    }
    drawn = torch.from_numpy(ndtri((np.arange(_DRAWN) + 0.5) / _DRAWN))
    for name, dtype in DTYPES.items():
        if name == "float32":
            continue
        values = finite_values(dtype)
        values = values[(values.abs() <= 8) & (values != 0)].unique()
        signs = {"negative": values[values < 0], "positive": values[values > 0]}
        found["dtypes"][name] = {
            **{sign: {"numbers": len(some), **_apart(some, dtype)} for sign, some in signs.items()},
            "normal": _apart(drawn.to(dtype), dtype)["told_apart"],
        }
    return found


def _apart(x: Tensor, dtype: torch.dtype) -> dict[str, float]:
    exact, other = (form(x.double()) for form in (_reference, _reference_tanh))
    differ = exact.to(dtype) != other.to(dtype)
    return {
        "told_apart": float(differ.double().mean()),
        "units": float(((exact - other).abs() / ulp(exact, dtype)).max()),
    }


def _negative(dtype: torch.dtype) -> Tensor:
    """Numbers between −40 and 0, those nearest 0 first: all of a 16-bit dtype."""
    if dtype == torch.float32:
        ends = [int(torch.tensor(x, dtype=dtype).view(torch.int32)) for x in (-0.01, -_LEAST)]
        return torch.arange(ends[0], ends[1], _STEP, dtype=torch.int32).view(dtype)
    x = finite_values(dtype)
    return x[(x < -0.01) & (x >= -_LEAST)].unique().flip(0)


def _zero_from(x: Tensor, y: Tensor) -> float | None:
    """The x from which on all that follow give 0."""
    zero = x[int(y.nonzero()[-1]) + 1 :]
    return float(zero[0]) if len(zero) else None


def _by_torch(x: Tensor, form: str, part: str) -> Tensor:
    x = x.clone().requires_grad_(part == "gradient")
    y = functional.gelu(x, approximate="tanh" if form == "gelu_tanh" else "none")
    if part == "value":
        return y
    [slope] = torch.autograd.grad(y.sum(), x)
    return slope


def _reference(x: Tensor) -> Tensor:
    return ACTIVATIONS["gelu"].reference(x)


def _reference_tanh(x: Tensor) -> Tensor:
    return ACTIVATIONS["gelu_tanh"].reference(x)


def _derivative(x: Tensor) -> Tensor:
    """Φ(x) + x·φ(x). Far below 0 the two nearly cancel: x·φ(x) is larger by a factor of x², so that no more than a few
    bits of float64 are lost."""
    return 0.5 * torch.erfc(-x / math.sqrt(2)) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _at(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)
