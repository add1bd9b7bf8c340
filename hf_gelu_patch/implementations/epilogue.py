"""``epilogue``: the activation in the epilogue of the linear layer's GEMM, on NVIDIA's GPUs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from hf_gelu_patch.implementations.aten import ATEN, after_linear
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import stays

__all__ = ["EPILOGUE"]


def in_epilogue(linear: nn.Module, x: Tensor, *, activation: str) -> Tensor:
    """act(x·W + b) as one GEMM, cuBLASLt applying the activation as it writes. Linear and Conv1D with a bias, where
    nothing needs a gradient; anything else as ``aten`` does it."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(bias, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return after_linear(linear, x, activation=activation)
    if stays(x, weight, bias) or torch.is_autocast_enabled(x.device.type):
        return after_linear(linear, x, activation=activation)
    matrix = weight.t() if isinstance(linear, nn.Linear) else weight  # transformers' Conv1D keeps it transposed
    y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), matrix, use_gelu=activation == "gelu_tanh")
    return y.view(*x.shape[:-1], matrix.shape[1])


_COMPUTED = ("gelu_tanh", "relu")

EPILOGUE = Implementation(
    "epilogue",
    {name: ATEN.functions[name] for name in _COMPUTED},
    linear={name: functools.partial(in_epilogue, activation=name) for name in _COMPUTED},
    devices=frozenset({"cuda"}),
)
