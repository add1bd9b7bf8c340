"""Whether each candidate is right: held against float64, over all values of a 16-bit dtype, before it is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from scripts.benchmarking.kernels.candidates import (
    COLUMNS,
    CandidateError,
    Function,
    WrongCandidateError,
    prepared,
    swiglu_oai,
)
from scripts.benchmarking.ulp import finite_values, ulp

MUCH = 4.0
"""A candidate this many times further off than eager, and than one ulp, is wrong."""
_FLOOR = 1 / 64
"""Results below it are held to the ulp it has: eager loses the small ones, and at a zero all do."""
_FAR = 32.0
"""Beyond, where eager loses values (bf16's far end is ∞), each value is compared with eager's own."""


def values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype; of fp32, a dense grid and every magnitude."""
    if dtype == torch.float32:
        far = torch.logspace(-37, 38, 2**15)
        return torch.cat([torch.linspace(-_FAR, _FAR, 2**20), far, -far])
    return finite_values(dtype)


def exact(activation: str, form: str, gate: Tensor, up: Tensor, grad_y: Tensor) -> tuple[Tensor, ...]:
    """The results in float64."""
    g, u, dy = gate.double(), up.double(), grad_y.double()
    if activation == "swiglu_oai":
        g, u = g.requires_grad_(), u.requires_grad_()
        y = swiglu_oai(g, u)
        return torch.autograd.grad(y, (g, u), dy) if "backward" in form else (y.detach(),)
    record = ACTIVATIONS[activation]
    value, slope = record.bind(record.reference)(g), record.bind(record.derivative)(g)
    return {
        "forward": (value,),
        "backward": (dy * slope,),
        "gated_forward": (value * u,),
        "gated_backward": (dy * u * slope, dy * value),
    }[form]


def errors(results: Sequence[Tensor], expected: Sequence[Tensor], floor: float = 0.0) -> Tensor:
    """A row for each result: how far off each value is, in ulp, those below ``floor`` in its ulp; ∞ if not finite."""
    rows = []
    for y, truth in zip(results, expected, strict=True):
        off = torch.where(y.isfinite(), (y.double() - truth).abs(), math.inf)
        rows.append(off / ulp(truth.abs().clamp(min=floor), y.dtype))
    return torch.stack(rows)


def check(
    functions: Mapping[str, Function], activation: str, form: str, dtype: torch.dtype, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Each candidate's largest errors over all values of the dtype, against float64; "eager" has to be one of them.

    Returns:
        By candidate, in ulp: "ulp" on [−5, 32], and "judged" on [−32, 32], where results below 1/64 count in its ulp.

    Raises:
        WrongCandidateError: one is much further off than eager and than one ulp.
        CandidateError: one raises whatever it may.
    """
    x = values(dtype)
    generator = torch.Generator().manual_seed(seed)
    up, grad_y = ((torch.rand(len(x), generator=generator) * 2 - 1).to(dtype) for _ in range(2))
    expected = exact(activation, form, x, up, grad_y)
    shape = (-1, math.gcd(len(x), COLUMNS))
    inputs = [t.view(shape).to(device) for t in ((x, up) if form.startswith("gated") else (x,))]
    inside, near = x.abs() <= _FAR, (x >= -5) & (x <= _FAR)
    judged: dict[str, Tensor] = {}
    found: dict[str, dict[str, float]] = {}
    for name, function in functions.items():
        try:
            result = prepared(function, form, inputs, grad_y.view(shape).to(device))()
        except Exception as error:  # no compiler, no driver: that is the candidate's own
            raise CandidateError(name, f"{name} failed: {' '.join(str(error).split()[:40])}") from error
        results = [y.cpu().flatten() for y in ((result,) if isinstance(result, Tensor) else result)]
        judged[name] = errors(results, expected, _FLOOR)
        strict = errors(results, expected)[:, near]
        found[name] = {"ulp": float(strict.max()), "judged": float(judged[name][:, inside].max())}
    allowed = torch.where(inside, found["eager"]["judged"], judged["eager"]).clamp(min=1.0) * MUCH
    for name, own in judged.items():
        beyond = (own / allowed).nan_to_num(nan=0.0, posinf=math.inf)  # ∞/∞: eager is no better
        if float(beyond.max()) > 1:
            row, at = divmod(int(beyond.argmax()), len(x))
            raise WrongCandidateError(
                name,
                f"{name} is wrong: {activation}, {form}, {str(dtype).removeprefix('torch.')}: "
                f"off by {own[row, at]:.3g} ulp at x = {x[at]:.6g}, and {allowed[row, at]:.3g} would be {MUCH:g} times "
                "eager's error or one ulp",
            )
    return found
