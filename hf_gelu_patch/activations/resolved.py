"""What was found at a place in a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hf_gelu_patch.activations.registry import Activation

__all__ = ["Resolved", "Unresolved"]


@dataclass(frozen=True)
class Resolved:
    """A place whose function is known.

    Attributes:
        activation: the function.
        spelling: how transformers spells this way of computing it (``"gelu_new"``).
        aten_ops: how many aten operations it runs.
        formula: the function that runs them. None where that is the activation's ``eager``, or is not known.
        in_place: whether it writes over its input.
    """

    activation: Activation
    spelling: str
    aten_ops: int
    formula: Callable[[Tensor], Tensor] | None = None
    in_place: bool = False

    @property
    def as_eager(self) -> bool:
        """Whether it runs the very ops of the activation's ``eager``."""
        name = self.spelling.partition("(")[0]
        return name in (self.activation.name, self.activation.config_name)


@dataclass(frozen=True)
class Unresolved:
    """A place that is, or looks like, an activation, and is left as it is.

    Attributes:
        reason: why. Mostly, the patcher cannot tell the function.
        spelling: what the place is called in a report.
    """

    reason: str
    spelling: str = "unknown"
