"""What was found out about each variant, and about the model as it ran, put together: the same whoever asked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.makes import arithmetic, devices_of
from hf_gelu_patch.evaluation.run.comparison import Comparison
from hf_gelu_patch.evaluation.run.layers import CloseLook
from hf_gelu_patch.evaluation.run.result import VariantResult
from hf_gelu_patch.evaluation.run.tallying import Tally
from hf_gelu_patch.evaluation.run.timings import TimedRun
from hf_gelu_patch.evaluation.run.verdict import wrong
from hf_gelu_patch.evaluation.variants import BEFORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["as_it_ran", "variant_results"]


def variant_results(
    comparison: Comparison, tallies: Mapping[str, Tally], look: CloseLook, timed: TimedRun
) -> tuple[VariantResult, ...]:
    """Each variant against the unpatched model, in their order."""
    found = []
    for variant in comparison.settings.variants:
        name, told = variant.name, tallies[variant.name]
        drift = replace(told.drift, own=look.errors.get(BEFORE), exact=look.errors.get(name))
        patched = comparison.patches[name]
        found.append(
            VariantResult(
                variant=variant,
                patch=patched,
                quality=told.quality,
                drift=drift,
                layers=look.layers[name],
                speed=timed.speeds[name],
                wrong=wrong(patched, told.lost, drift, look.judged.get(name), arithmetic(comparison.model)),
            )
        )
    return tuple(found)


def as_it_ran(model: PreTrainedModel, comparison: Comparison, look: CloseLook, timed: TimedRun) -> dict[str, Any]:
    """What ``Result`` says of the unpatched model and of how it ran.

    Args:
        model: as it was loaded. That of the comparison may be a compiled twin.
        comparison, look, timed: of it.
    """
    return {
        "activation_share": timed.activation_share,
        "peak_memory": timed.peak_memory,
        "exact_reason": look.reason,
        "in_turn": comparison.in_turn,
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": ", ".join(map(str, devices_of(model))),
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "batch_size": comparison.batch_size,
    }
