"""Which implementation is taken at a site, and why.

One asked for by name never falls back to another in silence. Only ``auto`` chooses.
"""

from __future__ import annotations

import torch

from hf_gelu_patch.activations import Activation, Resolved
from hf_gelu_patch.implementations.measured import Table
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Implementation, get_implementation

__all__ = ["AUTO", "choose"]

AUTO = ("aten", "eager")
"""What ``auto`` takes on every device: the first that computes the activation. On a GPU that was measured, Triton's
kernels come before them where they won there (``hf_gelu_patch.implementations.measured``).
The epilogue, and Triton's kernels anywhere else, are taken only where they are asked for."""


def choose(
    asked: str | Implementation,
    kind: str,
    current: Resolved,
    target: Activation,
    dtype: torch.dtype,
    table: Table | None,
) -> tuple[Implementation | None, str]:
    """Which implementation computes ``target`` at a site that computes ``current`` now, and why.

    Args:
        asked: the implementation asked for, by name or itself, or ``"auto"``.
        kind: what can be fused there: ``pointwise``, ``gated`` or ``linear``.
        dtype: of what the site is given.
        table: what was measured on the GPU that the site runs on; None where it runs on none.

    Returns:
        (implementation, why it), or (None, why the site is left alone).
    """
    triton = IMPLEMENTATIONS["triton"]
    could_be = target.name in triton.functions and triton.obstacle(torch.device("cuda"), dtype) is None
    if asked != "auto" or table is None or not could_be:
        return _first(asked, kind, current, target)
    run = kind if triton.fuses(kind, target) else "pointwise"  # what Triton has for such a site
    measured = table.choice(target.name, run, dtype)
    if measured is None:
        chosen, reason = _first(asked, kind, current, target)
        return chosen, f"{reason}; triton unmeasured for {run} in {str(dtype).removeprefix('torch.')} on {table.card}"
    if measured.implementation == "triton":
        alone = "" if run == kind else "the activation alone, "
        return triton, f"measured on {table.card}: {alone}{measured}"
    return _first(asked, kind, current, target)


def _first(
    asked: str | Implementation, kind: str, current: Resolved, target: Activation
) -> tuple[Implementation | None, str]:
    """``choose`` without measurements."""
    for candidate in AUTO if asked == "auto" else (asked,):
        implementation = get_implementation(candidate)
        if target.name not in implementation.functions:
            continue
        fuses = implementation.fuses(kind, target)
        reasons = []
        if target != current.activation:
            reasons.append("auto" if asked == "auto" else "asked for")
        elif implementation.name == "eager":
            return None, "eager is what the model has"
        elif implementation.name != "aten":
            reasons.append("asked for")
        elif current.aten_ops > (ops := target.fewest_ops):
            reasons.append(f"{current.aten_ops} aten ops become {'one' if ops == 1 else ops}")
        elif ops > 1:
            reasons.append(f"{ops} aten ops, in place where no gradient is needed")
        elif not fuses:
            return None, f"{current.spelling} is one aten op already"
        if implementation.name == "aten" and fuses:
            reasons.append(_IN_PLACE_REASONS[kind])
        return implementation, ", ".join(reasons)
    return None, f"{asked if isinstance(asked, str) else asked.name} does not compute {target.name}"


_IN_PLACE_REASONS = {
    "gated": "the product in place where no gradient is needed",
    "linear": "in place on the linear layer's output where that is large and no gradient is needed",
}
