"""What a training step keeps for backward and takes at most, before and after each patch, on one batch."""

from __future__ import annotations

from dataclasses import replace

from accelerate.utils import gather_object

from hf_gelu_patch import PatchError
from hf_gelu_patch.errors import first_line
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.twins import twin
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.memory import Meter
from hf_gelu_patch.report import Memory

__all__ = ["with_memory"]


def with_memory(comparison: Comparison) -> Comparison:
    """The same, with what was measured in each variant's report. The main process measures, and all have its figures.

    Raises:
        EvaluationError: on every process: the model has no gradients, or cannot run forward and backward on the batch.
    """
    found: list[list[Memory] | str] = []
    if comparison.accelerator.is_main_process:
        try:
            found.append([_measured(comparison, variant) for variant in comparison.settings.variants])
        except (PatchError, RuntimeError, MemoryError) as error:
            found.append(
                f"what a training step of {type(comparison.model).__name__} keeps cannot be measured "
                f"({first_line(error)}): leave out --memory, or evaluate fewer rows at once with "
                "--per_device_eval_batch_size."
            )
    [told] = gather_object(found)
    if isinstance(told, str):
        raise EvaluationError(told)
    memories = dict(zip(comparison.names, told, strict=True))
    patches = {name: replace(report, memory=memories[name]) for name, report in comparison.patches.items()}
    return replace(comparison, patches=patches)


def _measured(comparison: Comparison, variant: Variant) -> Memory:
    """On the batch in the middle, which is neither the longest nor the shortest."""
    model = comparison.model if comparison.in_turn else twin(comparison.model)
    task, batch = comparison.task, comparison.batches[len(comparison.batches) // 2].to(comparison.device)
    meter = Meter(model, batch, lambda one, rows: task.forward(one, rows))  # type: ignore[arg-type]
    patched = comparison.patches[variant.name]
    with Side(model, variant if patched.changed or patched.in_tiles else None):
        return meter.after(model)
