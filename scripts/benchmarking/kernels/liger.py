"""Liger-Kernel's gated products, as a candidate and as an implementation to patch models with.

It takes no part unless it can be imported.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F

from hf_gelu_patch import IMPLEMENTATIONS, Implementation, register_implementation

FUSED = ("gelu_tanh", "silu")
"""The activations that it has act(gate) · up for."""
NAME = "liger"


@functools.cache
def _imported() -> dict[str, Any] | str:
    """Its functions by activation, or why there are none."""
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except Exception as error:  # of another triton, say
        return f"Liger-Kernel cannot be imported (pip install liger-kernel): {error}"
    return {"gelu_tanh": LigerGELUMulFunction.apply, "silu": LigerSiLUMulFunction.apply}


def missing(device: str) -> str | None:
    """Why it cannot run there, or None where it can."""
    functions = _imported()
    if isinstance(functions, str):
        return functions
    return "Liger-Kernel runs on CUDA" if device == "cpu" else None


def fused(activation: str) -> Any:
    """function(gate, up) = act(gate) · up."""
    functions = _imported()
    assert not isinstance(functions, str)
    return functions[activation]


def register() -> None:
    """Make it an implementation that a model can be patched with; by itself, an activation is aten's."""
    if NAME not in IMPLEMENTATIONS:
        alone = {"gelu_tanh": functools.partial(F.gelu, approximate="tanh"), "silu": F.silu}
        gated = {name: fused(name) for name in FUSED}
        register_implementation(Implementation(NAME, alone, gated=gated, devices=frozenset({"cuda"})))
