"""Units in the last place, and all the values of a 16-bit dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype, in the order of their bits."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def ulp(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of ``dtype`` at |y|, of a float64 tensor; below the normal numbers, theirs."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(y.abs().clamp(min=limits.tiny))
    return torch.ldexp(torch.full_like(y, limits.eps), exponent - 1)
