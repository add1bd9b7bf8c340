"""One batch looked at closely: how far each variant moves each layer, beside the model's own rounding error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hf_gelu_patch.evaluation.drift.layers import LayerDrift, layer_drift
from hf_gelu_patch.evaluation.drift.logits import LogitDrift, against_exact
from hf_gelu_patch.evaluation.makes import arithmetic
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.run.compiling import uncompiled
from hf_gelu_patch.evaluation.tasks.base import Batch
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.variants import BEFORE
from hf_gelu_patch.verification import Drift, Exact, drifts, exact_copy

__all__ = ["CloseLook", "look_closely"]


@dataclass(frozen=True)
class CloseLook:
    """What one batch shows.

    Attributes:
        layers: the drift of each layer, by variant.
        errors: how far each model's logits are from a float64 copy's, by variant, and the unpatched model's as
            "before"; empty where there is no such copy.
        judged: the drift of each variant that was run as ``patch(verify=)`` judges it; empty likewise.
        reason: why there is no such copy; "" where there is one.
    """

    layers: Mapping[str, tuple[LayerDrift, ...]]
    errors: Mapping[str, LogitDrift]
    judged: Mapping[str, Drift]
    reason: str


def look_closely(comparison: Comparison) -> CloseLook:
    """Look at the batch in the middle, which is neither the longest nor the shortest."""
    comparison.tell("layers", 0.0)
    model, task = comparison.model, comparison.task
    batch = comparison.batches[len(comparison.batches) // 2].to(comparison.device)
    exact = exact_copy(model, batch, task.forward)
    comparison.tell("layers", 0.3)
    models = {name: comparison.running.get(name, Side(model)) for name in comparison.names}
    with uncompiled():
        layers = layer_drift(model, models, batch, task.forward, exact=exact, output=task.output)
    comparison.tell("layers", 0.7)
    errors, judged = _beside_exact(comparison, batch, exact)
    comparison.tell("layers", 1.0)
    return CloseLook({name: tuple(found) for name, found in layers.items()}, errors, judged, exact.reason)


def _beside_exact(
    comparison: Comparison, batch: Batch, exact: Exact[Tensor]
) -> tuple[dict[str, LogitDrift], dict[str, Drift]]:
    """``CloseLook.errors`` and ``CloseLook.judged``, for which each model runs the batch once."""
    if exact.output is None:
        return {}, {}
    task, what = comparison.task, comparison.task.output
    counts, epsilon = batch.targets != IGNORED, arithmetic(comparison.model).epsilon
    old = task.forward(comparison.model, batch)
    own = against_exact(old, exact.output, counts, softmax=task.softmax)
    errors = {BEFORE: own} | dict.fromkeys(comparison.names, own)  # what is not run says what the unpatched model says
    judged = {}
    for name, side in comparison.running.items():
        with side as model:
            new = task.forward(model, batch)
        errors[name] = against_exact(new, exact.output, counts, softmax=task.softmax)
        [judged[name]] = drifts(
            {what: old[counts]}, {what: new[counts]}, {what: exact.output[counts]}, None, epsilon=epsilon
        )
    return errors, judged
