"""Whether a variant's implementation is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from hf_gelu_patch import Report
from hf_gelu_patch.evaluation.drift.logits import LogitDrift
from hf_gelu_patch.evaluation.makes import Arithmetic
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.verification import Drift, half_the_digits

__all__ = ["first_lost", "wrong"]


def first_lost(rows: Sequence[Row]) -> int | None:
    """The first example of which a variant gives numbers that are not finite where the unpatched model's are."""
    return min((row.example for row in rows if row.drift is not None and row.drift["lost"]), default=None)


def wrong(patched: Report, lost: int | None, drift: LogitDrift, judged: Drift | None, own: Arithmetic) -> str | None:
    """Why a variant's implementation is wrong, in words; None where nothing says so: see ``VariantResult.wrong``.

    Args:
        patched: what its patch did.
        lost: from ``first_lost`` of all that it says.
        drift: of its logits, over all examples.
        judged: the same on one batch, beside the model's own error; None where there is nothing to judge it by.
        own: the model's arithmetic.
    """
    if lost is not None:
        return f"it gives numbers that are not finite where the unpatched model's are, first in example {lost}"
    if not patched.changed or any(site.equivalence not in ("identical", "rounding") for site in patched.changed):
        return None
    said = "it is said to compute the same function, and moves logits by"
    margin = half_the_digits(own.epsilon)
    if drift.positions and not drift.relative <= margin:
        return (
            f"{said} {drift.max_abs:.2g} (the largest is {drift.scale:.3g}): more than {margin:.2g} (√ε of {own.name}) "
            "of what they usually are"
        )
    return f"{said} more than they are off by themselves: {judged}" if judged is not None and judged.exceeded else None
