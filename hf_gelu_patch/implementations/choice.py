"""Which implementation is taken at a site, and why.

One asked for by name never falls back to another in silence. Only ``auto`` chooses.
"""

from __future__ import annotations

import torch

from hf_gelu_patch.activations import Activation, Resolved
from hf_gelu_patch.implementations.measured import Table
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, get_implementation

__all__ = ["AUTO", "choose"]

AUTO = ("aten", "eager")
"""What ``auto`` takes on every device: the first that computes the activation. On a GPU that was measured, Triton's
kernels come before them where they won there (``hf_gelu_patch.implementations.measured``).
The epilogue, and Triton's kernels anywhere else, are taken only where they are asked for."""


def choose(
    name: str, kind: str, current: Resolved, target: Activation, dtype: torch.dtype, table: Table | None
) -> tuple[str | None, str]:
    """Which implementation computes ``target`` at a site that computes ``current`` now, and why.

    Args:
        name: the implementation asked for, or ``"auto"``.
        kind: what can be fused there: ``pointwise``, ``gated`` or ``linear``.
        dtype: of what the site is given.
        table: what was measured on the GPU that the site runs on; None where it runs on none.

    Returns:
        (implementation, why it), or (None, why the site is left alone).
    """
    if name != "auto" or table is None or not _could_be_triton(target, dtype):
        return _first(name, kind, current, target)
    run = kind if IMPLEMENTATIONS["triton"].fuses(kind, target) else "pointwise"  # what Triton has for such a site
    measured = table.choice(target.name, run, dtype)
    if measured is None:
        chosen, reason = _first(name, kind, current, target)
        return chosen, f"{reason}; triton unmeasured for {run} in {str(dtype).removeprefix('torch.')} on {table.card}"
    if measured.implementation == "triton":
        alone = "" if run == kind else "the activation alone, "
        return "triton", f"measured on {table.card}: {alone}{measured}"
    return _first(name, kind, current, target)


def _could_be_triton(activation: Activation, dtype: torch.dtype) -> bool:
    """Whether Triton computes it on a GPU, with what this machine has."""
    triton = IMPLEMENTATIONS["triton"]
    return activation.name in triton.functions and triton.obstacle(torch.device("cuda"), dtype) is None


def _first(name: str, kind: str, current: Resolved, target: Activation) -> tuple[str | None, str]:
    """``choose`` without measurements."""
    for candidate in AUTO if name == "auto" else (name,):
        implementation = get_implementation(candidate)
        if target.name not in implementation.functions:
            continue
        fuses = implementation.fuses(kind, target)
        reasons = []
        if target != current.activation:
            reasons.append("auto" if name == "auto" else "asked for")
        elif candidate == "eager":
            return None, "eager is what the model has"
        elif candidate != "aten":
            reasons.append("asked for")
        elif current.aten_ops > (ops := _OPS.get(target.name, 1)):
            reasons.append(f"{current.aten_ops} aten ops become {'one' if ops == 1 else ops}")
        elif ops > 1:
            reasons.append(f"{ops} aten ops, in place where no gradient is needed")
        elif not fuses:
            return None, f"{current.spelling} is one aten op already"
        if candidate == "aten" and fuses:
            reasons.append(_IN_PLACE_REASONS[kind])
        return candidate, ", ".join(reasons)
    return None, f"{name} does not compute {target.name}"


_OPS = {"quick_gelu": 3, "relu_squared": 2, "gelu_clipped": 2}  # aten's own, where more than one
_IN_PLACE_REASONS = {
    "gated": "the product in place where no gradient is needed",
    "linear": "in place on the linear layer's output where that is large and no gradient is needed",
}
