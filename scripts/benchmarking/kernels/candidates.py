"""What computes an activation, by the name that it is compared under."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.implementations.registry import get_implementation
from hf_gelu_patch.implementations.triton_ops import gated
from scripts.benchmarking.kernels import liger

MOVED = {"forward": 2, "backward": 3, "gated_forward": 3, "gated_backward": 5}
"""Form → the tensors that one fused kernel reads or writes."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IMPLEMENTED = ("aten", "compile", "triton", "triton_rounded", "liger")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
UNSET = "--device cuda: unset TRITON_INTERPRET, with which Triton's kernels run on the CPU."
COLUMNS = 4096

Function = Callable[..., Tensor]


class CandidateError(Exception):
    """A candidate cannot be timed.

    Attributes:
        name: which one.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class WrongCandidateError(CandidateError):
    """It does not compute what it is timed for."""


def swiglu_oai(gate: Tensor, up: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """As GptOssExperts writes it."""
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


def eager(activation: str, form: str) -> Function:
    """What transformers runs; for gelu_tanh, the eight ops of "gelu_new"."""
    if activation == "swiglu_oai":
        return swiglu_oai
    from transformers.activations import ACT2FN

    act = ACT2FN["gelu_new" if activation == "gelu_tanh" else ACTIVATIONS[activation].config_name]
    return (lambda gate, up: act(gate) * up) if form.startswith("gated") else act


def candidate(name: str, activation: str, form: str, device: str) -> Function | str:
    """What computes ``activation`` under this name, or why nothing does."""
    fused = form.startswith("gated")
    if name == "compile":
        return torch.compile(eager(activation, form), fullgraph=True, dynamic=False)
    if name == "liger":
        if not fused or activation not in liger.FUSED:
            return f"Liger-Kernel has act(gate) · up for {' and '.join(liger.FUSED)} only"
        return liger.missing(device) or liger.fused(activation)
    implementation = get_implementation(name)
    if name.startswith("triton"):
        if device == "cpu" and not INTERPRETED:
            return "Triton's kernels run on CUDA; on a CPU only interpreted, with TRITON_INTERPRET=1"
        if lack := implementation.missing():
            return lack
    if activation == "swiglu_oai":
        if name == "aten":
            return "aten does not compute swiglu_oai"
        return functools.partial(gated, activation=activation, rounded=name == "triton_rounded")
    functions = implementation.gated if fused else implementation.functions
    if activation not in functions:
        return f"{name} does not compute {activation}"
    return ACTIVATIONS[activation].bind(functions[activation])


def prepared(function: Function, form: str, inputs: Sequence[Tensor], grad_y: Tensor) -> Callable[[], Any]:
    """What is timed. A backward has leaves of its own: Liger-Kernel writes the gradients over them."""
    if "backward" not in form:
        return lambda: function(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    return lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True)
