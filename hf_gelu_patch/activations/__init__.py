"""What is computed: every activation once, with its formula, float64 reference, derivative and spellings.

An activation is a mathematical function, however many classes and config spellings mean it. Which one a live module
computes is for ``recognition`` to tell. ``ACTIVATIONS`` holds every record by name; ``register_activation`` adds one.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations.records import KNOWN
from hf_gelu_patch.activations.registry import (
    ACTIVATIONS,
    Activation,
    Call,
    Compiled,
    Derived,
    Module,
    PostOp,
    get_activation,
    of_records,
    register_activation,
)
from hf_gelu_patch.activations.resolved import Resolved, Unresolved
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.old_layout import moved_from

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Call",
    "Compiled",
    "Derived",
    "Module",
    "PostOp",
    "Resolved",
    "Unresolved",
    "get_activation",
    "max_difference",
    "module_of",
    "of_records",
    "register_activation",
]

for _record in KNOWN:
    register_activation(_record)


_TORCH_MODULES: list[Any] = [getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__]


def module_of(activation: Activation, like: nn.Module) -> nn.Module:
    """A new module that computes an activation without learned parameters, as the field has it: one of torch's in the
    place of one of torch's, which others save and load by the class's name.

    Raises:
        PatchError: transformers has no module for it.
    """
    torchs = next((cls for cls in _TORCH_MODULES if cls.__name__.lower() == activation.name), None)
    if torchs is not None and (activation.config_name is None or type(like) in _TORCH_MODULES):
        made: nn.Module = torchs()
        return made
    from transformers.activations import ACT2FN

    if activation.config_name not in ACT2FN:
        raise PatchError(
            f"no module of transformers computes {activation.name}, and a swap puts one in the model: register it with "
            "a config_name, and put its class there: transformers.activations.ACT2FN[config_name] = YourClass"
        )
    module: nn.Module = ACT2FN[activation.config_name]
    return module


@functools.lru_cache(maxsize=256)
def max_difference(a: Activation, b: Activation) -> float:
    """max |a(x) − b(x)| over the real line in float64; inf where the two grow apart.

    Found on a grid of step 1e-4 over [−20, 20], beyond which every activation is its asymptote.
    """
    x = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64, device="cpu")
    far = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float64, device="cpu")

    def difference(points: Tensor) -> float:
        return float((a.bind(a.reference)(points) - b.bind(b.reference)(points)).abs().max())

    with torch.no_grad():
        near = difference(x)
        return near if difference(far) <= near * (1 + 1e-6) + 1e-12 else math.inf


if not TYPE_CHECKING:  # which would take every name for one of this module's
    __getattr__ = moved_from(__name__)
