"""What activations give, seen from an implementation that computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from hf_gelu_patch import ACTIVATIONS, Implementation

__all__ = ["observing"]


def observing(see: Callable[[Tensor], object], names: Sequence[str]) -> Implementation:
    """An implementation for ``patch``: the models' own operations, whose results ``see`` is shown, call by call.

    Args:
        names: of the activations.
    """

    def alone(name: str) -> Callable[..., Tensor]:
        def function(x: Tensor, **parameters: float) -> Tensor:
            see(y := ACTIVATIONS[name].eager(x, **parameters))
            return y

        return function

    def product(name: str) -> Callable[..., Tensor]:
        def function(gate: Tensor, up: Tensor, **parameters: float) -> Tensor:
            see(y := ACTIVATIONS[name].eager(gate, **parameters) * up)
            return y

        return function

    return Implementation("kept", {name: alone(name) for name in names}, gated={name: product(name) for name in names})
