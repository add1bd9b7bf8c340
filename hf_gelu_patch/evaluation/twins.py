"""A second tree of modules over the weights of a first."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

__all__ = ["twin"]

M = TypeVar("M", bound=nn.Module)


def twin(model: M) -> M:
    """A copy of a model's modules that shares its weights: what is patched in one does not change the other."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})
