"""The backward of a kernel that is differentiated itself: aten's, differentiable without end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_gelu_patch.implementations.tensors import transformed

__all__ = ["differentiated", "gradients_of"]


def gradients_of(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    """The gradients of function(*inputs), as a function of inputs and grad_y that autograd and torch.func's transforms
    can differentiate."""
    pullback = torch.func.vjp(function, *inputs)[1]
    grads: tuple[Tensor, ...] = pullback(grad_y)
    return grads


def differentiated() -> bool:
    """Whether the backward that runs is differentiated itself: by a further backward, or by a transform."""
    return torch.is_grad_enabled() or transformed()
