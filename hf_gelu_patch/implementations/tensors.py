"""What an implementation is given: whether it is an ordinary tensor, and whether autograd keeps it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ORDINARY", "in_memory", "needs_gradient", "ordinary", "stays"]

ORDINARY = frozenset({Tensor, nn.Parameter})
"""The types of ordinary tensors."""


def ordinary(x: object) -> bool:
    """Whether x is a tensor of floating-point numbers in strided memory: no subclass of Tensor, nothing that stands
    for a tensor while torch.fx traces, and neither nested, sparse, quantized nor in MKL-DNN's layout."""
    return type(x) in ORDINARY and in_memory(x) and x.is_floating_point()  # type: ignore[arg-type, attr-defined]


def in_memory(x: Tensor) -> bool:
    """Whether x has sizes and strides. A nested tensor of the older kind says that its layout is strided, too."""
    return x.layout is torch.strided and not x.is_nested


def needs_gradient(x: Tensor) -> bool:
    """Whether autograd follows what is computed from x."""
    return torch.is_grad_enabled() and x.requires_grad


def stays(*tensors: Tensor) -> bool:
    """Whether nothing may be written over what was computed from these: autograd keeps it, or a transform (vmap, grad)
    or a trace goes through here, which record each op."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing()
