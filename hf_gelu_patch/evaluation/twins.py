"""A second tree of modules over the weights of a first; or why there is none, and the first serves in turn."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from hf_gelu_patch.errors import first_line
from hf_gelu_patch.evaluation.makes import is_quantized, moves_weights

__all__ = ["obstacle", "twin"]

M = TypeVar("M", bound=nn.Module)


def twin(model: M) -> M:
    """A copy of a model's modules that shares its weights: what is patched in one does not change the other."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def obstacle(model: nn.Module) -> str:
    """Why a model is to have no twin, in words; "" where it may have one.

    Layers with quantized weights keep what they made of these beside them, and the hooks of accelerate keep weights of
    their own: a copy would take their memory again, or lack what the first one has.
    """
    if moves_weights(model):
        return "its weights are moved by hooks, from memory or disk to where they are needed"
    if is_quantized(model):
        return "its weights are quantized"
    try:
        twin(model)
    except Exception as error:  # whatever a part of it says to being copied
        return f"its modules cannot be copied ({first_line(error)})"
    return ""
