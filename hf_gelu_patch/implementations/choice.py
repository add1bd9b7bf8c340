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
"""What ``auto`` takes where nothing was measured: the first that computes the activation. On a GPU that was measured,
it takes what was never slower there than the model's own ops, or leaves the site alone
(``hf_gelu_patch.implementations.measured``)."""


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
    if asked != "auto" or table is None:
        return _first(asked, kind, current, target)
    swapped = target != current.activation
    measured = table.choice(target.name, kind, dtype, None if swapped else current.aten_ops)
    if measured is None:
        chosen, reason = _first(asked, kind, current, target)
        if chosen is not None and table.choices and not swapped and current.aten_ops <= target.fewest_ops:
            return None, f"writing in place was never faster on {table.card}, whatever was measured"
        if target.name in IMPLEMENTATIONS["triton"].functions and _runs("triton", dtype):
            reason += f"; unmeasured for {kind} in {str(dtype).removeprefix('torch.')} on {table.card}"
        return chosen, reason
    if measured.implementation == "eager" and not swapped:
        return None, f"nothing was faster without ever being slower on {table.card}: {measured}"
    if measured.implementation == "eager" or not _runs(measured.implementation, dtype):
        return _first(asked, kind, current, target)
    return get_implementation(measured.implementation), f"measured on {table.card}: {measured}"


def _runs(name: str, dtype: torch.dtype) -> bool:
    """Whether an implementation runs on a GPU in this dtype, with what is installed."""
    return IMPLEMENTATIONS[name].obstacle(torch.device("cuda"), dtype) is None


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
