"""Which implementation is taken at a site, and why.

One asked for by name never falls back to another in silence. Only ``auto`` chooses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from hf_gelu_patch.activations import Activation, Resolved
from hf_gelu_patch.implementations.measured import DTYPES, Table
from hf_gelu_patch.implementations.registry import (
    ALWAYS,
    IMPLEMENTATIONS,
    Implementation,
    Least,
    get_implementation,
)

__all__ = ["AUTO", "Chosen", "choose"]

AUTO = ("aten", "eager")
"""What ``auto`` takes where nothing was measured: the first that computes the activation. On a GPU or CPU that was
measured, it takes what was never slower there than the model's own ops, or leaves the site alone
(``hf_gelu_patch.implementations.measured``)."""


class Chosen(NamedTuple):
    """What is taken at a site.

    Attributes:
        implementation: None: nothing, the site is left alone.
        reason: why.
        least: from how many numbers on it computes there.
    """

    implementation: Implementation | None
    reason: str
    least: Least = ALWAYS


def choose(
    asked: str | Implementation,
    kind: str,
    current: Resolved,
    target: Activation,
    where: tuple[torch.device, torch.dtype],
    table: Table | None,
    layer: nn.Module | None = None,
) -> Chosen:
    """Which implementation computes ``target`` at a site that computes ``current`` now, and why.

    Args:
        asked: the implementation asked for, by name or itself, or ``"auto"``.
        kind: what can be fused there: ``pointwise``, ``gated`` or ``linear``.
        where: the device that the site runs on, and the dtype of what it is given.
        table: what was measured on the GPU or CPU that the site runs on; None where it runs on neither.
        layer: the linear layer before a ``linear`` site, where it is known.
    """
    device, dtype = where
    if asked != "auto" or table is None or (table.device == "cpu" and not table.choices):
        return _first(asked, kind, current, target, device)
    swapped = target != current.activation
    measured = table.choice(target.name, kind, dtype, None if swapped else current.aten_ops)
    if measured is None:
        chosen, reason, _ = _first(asked, kind, current, target, device)
        in_place_alone = chosen is not None and not swapped and current.aten_ops <= target.fewest_ops
        if table.choices and in_place_alone and not table.in_place_pays:
            return Chosen(None, f"writing in place was never faster on {table.processor}, whatever was measured")
        named = str(dtype).removeprefix("torch.")
        others = (one for name, one in IMPLEMENTATIONS.items() if name not in AUTO)
        if named in DTYPES and any(one.computes(target.name, device) and _runs(one, table, dtype) for one in others):
            reason += f"; that was not measured as {kind} in {named} on {table.processor}"
        return Chosen(chosen, reason)
    unknown, weights = [], _weights(layer)
    for candidate in measured.able:
        if candidate.least != ALWAYS and weights < table.weights:
            unknown.append(candidate)
            continue
        implementation = get_implementation(candidate.implementation)
        declined = layer is not None and implementation.declines(layer, device)
        if not declined and _runs(implementation, table, dtype):
            return Chosen(implementation, f"measured on {table.processor}: {candidate.brief}", candidate.least)
    if swapped:
        return _first(asked, kind, current, target, device)
    if unknown:
        named = f"{unknown[0].brief}, in layers of {table.weights:,} weights"
        why = f"this one has {weights:,}, and was not measured"
        return Chosen(None, f"on {table.processor} {named}; {why}")
    if measured.able:
        names = " and ".join(one.implementation for one in measured.able)
        return Chosen(None, f"on {table.processor} only {names} gained something, and cannot run here")
    why = f"nothing was faster without ever being slower on {table.processor}: {measured.fastest.brief}"
    return Chosen(None, why)


def _weights(layer: nn.Module | None) -> float:
    """How many weights a linear layer has, its bias aside; ∞ where there is none, or it does not tell."""
    weight = getattr(layer, "weight", None)
    return weight.numel() if isinstance(weight, torch.Tensor) else math.inf


def _runs(implementation: Implementation, table: Table, dtype: torch.dtype) -> bool:
    """Whether an implementation runs on what was measured in this dtype, with what is installed."""
    return implementation.obstacle(torch.device(table.device), dtype) is None


def _first(
    asked: str | Implementation, kind: str, current: Resolved, target: Activation, device: torch.device
) -> Chosen:
    """``choose`` without measurements."""
    for candidate in AUTO if asked == "auto" else (asked,):
        implementation = get_implementation(candidate)
        if not implementation.computes(target.name, device):
            continue
        fuses = implementation.fuses(kind, target)
        reasons = []
        if target != current.activation:
            reasons.append("chosen by auto" if asked == "auto" else "asked for")
        elif implementation.name == "eager":
            return Chosen(None, "eager is what the model has already")
        elif implementation.name != "aten":
            reasons.append("asked for")
        elif current.aten_ops > (ops := target.fewest_ops):
            reasons.append(f"{current.aten_ops} aten ops become {'one' if ops == 1 else ops}")
        elif ops > 1:
            reasons.append(f"{ops} aten ops, in place where no gradient is needed")
        elif not fuses:
            return Chosen(None, f"{current.spelling} is one aten op already")
        if implementation.name == "aten" and fuses:
            reasons.append(_IN_PLACE_REASONS[kind])
        return Chosen(implementation, ", ".join(reasons))
    if isinstance(asked, str) and asked == "auto":
        return Chosen(None, f"nothing computes {target.name} here")
    named = get_implementation(asked)
    elsewhere = f" on {device.type}" if target.name in named.functions else ""
    return Chosen(None, f"{named.name} does not compute {target.name}{elsewhere}")


_IN_PLACE_REASONS = {
    "gated": "the product in place where no gradient is needed",
    "linear": "in place on the linear layer's output where that is large and no gradient is needed",
}
