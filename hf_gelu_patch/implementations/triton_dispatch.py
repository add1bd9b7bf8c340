"""Where a tensor goes: straight to a kernel, to a torch op around it, or to the plain aten expression."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from hf_gelu_patch.implementations.tensors import ORDINARY, in_memory, nothing_but_memory, transformed, watched

__all__ = ["DEVICES", "DTYPES", "INTERPRETED", "by_aten", "direct", "plain"]

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
"""The dtypes that the ops take; float64 is computed by aten."""
_KERNEL_DTYPES = DTYPES - {torch.float64}

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run interpreted, on the CPU. Triton decides it by this variable when a kernel is declared."""
DEVICES = frozenset({"cuda", "cpu"} if INTERPRETED else {"cuda"})
"""The device types the kernels run on; torch calls ROCm's ``cuda`` too."""


def plain(x: Tensor) -> bool:
    """Whether the aten expression is what x gets, decided before the dispatcher, which is slower than a small op."""
    if torch.compiler.is_compiling() or type(x) not in ORDINARY or not in_memory(x):
        return True
    return by_aten(x) or transformed()


def direct(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors that a kernel takes, and nothing but autograd has to see what is done."""
    if watched():
        return False
    for x in tensors:
        if x.dtype not in _KERNEL_DTYPES or not (x.is_cuda or (INTERPRETED and x.is_cpu)) or not nothing_but_memory(x):
            return False
    return True


def by_aten(x: Tensor) -> bool:
    """Whether x's dtype or device has no kernel."""
    return x.dtype == torch.float64 or (x.is_cpu and not INTERPRETED)
