"""Every kernel, interpreted, over all values of fp16 and bf16, against float64."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.implementations import triton_forms, triton_ops
from scripts.benchmarking.static.coefficients import END
from scripts.benchmarking.ulp import finite_values, ulp

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SPECIAL = ("0", "−0", "least", "−least", "least normal", "largest", "−largest", "∞", "−∞", "NaN")
"""What ``special_points`` are; ``least`` is the smallest subnormal."""


def values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype; of fp32, two million on [−14, 14] and 200,000 of every magnitude."""
    if dtype == torch.float32:
        near, far = torch.linspace(-14.0, 14.0, 2_000_001), torch.logspace(-37, 38, 100_001)
        return torch.cat([near, far, -far])
    return finite_values(dtype)


def in_ulp(y: Tensor, exact: Tensor) -> Tensor:
    """|y − exact| in units in the last place of y's dtype; inf for what is not finite and should be."""
    error = (y.double() - exact).abs() / ulp(exact, y.dtype)
    error[~y.isfinite()] = math.inf
    error[exact.abs() > torch.finfo(y.dtype).max] = 0.0
    return error


def computed(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative by our kernels."""
    leaf = x.clone().requires_grad_()
    y = triton_ops.pointwise(leaf, name)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]


def by_torch(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative as transformers' own module has them."""
    record, leaf = ACTIVATIONS[name], x.clone().requires_grad_()
    y = record.bind(record.eager)(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]


def errors() -> dict[str, Any]:
    """Largest errors in ulp, by activation and dtype: [value for x ≥ −5, value, derivative], ours and torch's."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of ∞ in the interpreter: meant, where not discarded
    table: dict[str, Any] = {}
    for name in triton_forms.POINTWISE:
        record = ACTIVATIONS[name]
        for label, dtype in DTYPES.items():
            x = values(dtype)
            exact = record.bind(record.reference)(x.double()), record.bind(record.derivative)(x.double())
            near = x >= -5
            row = {}
            for who, (y, slope) in (("ours", computed(name, x)), ("torch", by_torch(name, x))):
                value = in_ulp(y, exact[0])
                row[who] = [float(e.max()) for e in (value[near], value, in_ulp(slope, exact[1]))]
            table.setdefault(name, {})[label] = row
    return {
        "errors": table,
        "special": special(torch.float32),
        "other_kind": other_kind(),
        "rounding": rounding(),
    }


def special_points(dtype: torch.dtype) -> Tensor:
    """The values that ``SPECIAL`` names."""
    limits = torch.finfo(dtype)
    least = limits.tiny * limits.eps
    return torch.tensor(
        [0.0, -0.0, least, -least, limits.tiny, limits.max, limits.min, math.inf, -math.inf, math.nan], dtype=dtype
    )


def special(dtype: torch.dtype) -> dict[str, list[list[str]]]:
    """Value and derivative at ``special_points``: ours, and torch's, each point by itself."""

    def told(pair: tuple[Tensor, Tensor]) -> str:
        return ", ".join(f"{value.item():.6g}" for value in pair)

    points = special_points(dtype).split(1)
    return {
        name: [[told(computed(name, x)), told(by_torch(name, x))] for x in points] for name in triton_forms.POINTWISE
    }


def other_kind() -> list[str]:
    """Where a 16-bit dtype has NaN or ∞ and fp32 has not, or the other way round."""

    def kinds(name: str, dtype: torch.dtype) -> list[list[str]]:
        results = computed(name, special_points(dtype))
        return [[f"{v:.0f}" if not math.isfinite(v) else "" for v in y.tolist()] for y in results]

    return [
        f"{name}, {label}: {what} at {point}"
        for name in triton_forms.POINTWISE
        for label in ("bfloat16", "float16")
        for what, single, half in zip(
            ("value", "derivative"), kinds(name, torch.float32), kinds(name, DTYPES[label]), strict=True
        )
        for point, a, b in zip(SPECIAL, single, half, strict=True)
        if a != b
    ]


def rounding() -> dict[str, Any]:
    """act(gate) · up of N(0, 1) numbers: mean and largest error in ulp; the same as a share of the value, where that is
    not subnormal; and the share of eager's bits."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(2**18, generator=generator) for _ in range(2))
    table: dict[str, Any] = {}
    for name in ("gelu", "gelu_tanh", "silu"):
        record = ACTIVATIONS[name]
        for label in ("bfloat16", "float16"):
            g, u = gate.to(DTYPES[label]), up.to(DTYPES[label])
            exact, eager = record.reference(g.double()) * u.double(), record.eager(g) * u
            ways = {
                "once": triton_ops.gated(g, u, name),
                "as eager": triton_ops.gated(g, u, name, rounded=True),
                "torch": eager,
            }
            normal = exact.abs() >= torch.finfo(g.dtype).tiny
            for way, y in ways.items():
                units, relative = in_ulp(y, exact), ((y.double() - exact) / exact).abs()[normal]
                table.setdefault(name, {}).setdefault(label, {})[way] = {
                    "ulp": [float(units.mean()), float(units.max())],
                    "relative": [float(relative.mean()), float(relative.max())],
                    "bits": float((y.view(torch.int16) == eager.view(torch.int16)).double().mean()),
                }
    return table


def on_hardware() -> dict[str, dict[str, list[float]]]:
    """Exact GELU with the errors a GPU adds: e^… and the quotient off by a factor 1 ± 2⁻²², in all four combinations
    (PTX: ex2.approx and div.approx within 2 ulp), and 0 where e^… is subnormal (.ftz). The worst, over ``values``, of
    value and derivative in ulp for x ≥ −5, in ulp, and absolutely for |x| ≤ 14."""
    from hf_gelu_patch.implementations import normal_tail

    found = {}
    record = ACTIVATIONS["gelu"]
    for label, dtype in DTYPES.items():
        x = values(dtype)
        exact = record.reference(x.double()), record.derivative(x.double())
        single = x.float()
        t = single.abs().clamp(max=END)
        shift, coefficients = normal_tail.MILLS[label]
        near, within = x >= -5, x.abs() <= 14
        worst = [0.0] * 6
        for wrong_e in (-1, 1):
            for wrong_v in (-1, 1):
                v = (t / (t + shift)) * (1 + wrong_v * 2.0**-22)
                ratio = torch.full_like(t, coefficients[-1])
                for c in reversed(coefficients[:-1]):
                    ratio = (ratio.double() * v.double() + float(np.float32(c))).float()
                e = torch.exp2(t * (-0.5 / math.log(2.0)) * t) * (1 + wrong_e * 2.0**-22)
                e[e < 2.0**-126] = 0.0
                tail = e * ratio
                value = (single.clamp(min=0).double() - t.double() * tail.double()).float()
                density = e * (1 / math.sqrt(2 * math.pi))
                slope = (tail.double() - t.double() * density.double()).float()
                slope = torch.where(single < 0, slope, 1 - slope)
                y, dy = value.to(dtype), slope.to(dtype)
                units = in_ulp(y, exact[0]), in_ulp(dy, exact[1])
                absolute = (y.double() - exact[0]).abs(), (dy.double() - exact[1]).abs()
                off = (*(error[near] for error in units), *units, *(error[within] for error in absolute))
                worst = [max(most, float(error.max())) for most, error in zip(worst, off, strict=True)]
        found[label] = worst
    return found
