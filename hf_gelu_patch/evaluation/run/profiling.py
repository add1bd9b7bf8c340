"""A model profiled on a task's examples, by all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.failures import failing
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.run import load
from hf_gelu_patch.evaluation.run.comparison import Comparison, Progress
from hf_gelu_patch.profiling import Profile, watching
from hf_gelu_patch.selection import Selector

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["STAGES", "profiled"]

STAGES = ("load", "profile")
SCHEMA = 1
"""Of the data; it grows when what was written before cannot be read any more."""


def profiled(
    subject: Subject,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    include: Selector = None,
    exclude: Selector = None,
    activations: Sequence[str] | None = None,
) -> tuple[Profile, dict[str, Any]]:
    """Load a model with its data, and profile it in one pass. Each process takes whole batches in turn. The figures are
    the same with two processes as with one, with the same number of threads.

    Args:
        subject, settings, accelerator, progress: as for ``run.evaluate_subject``.
        include, exclude, activations: as for ``profile``.

    Returns:
        The profile, and the same as plain data with what it is of. Neither says how many processes there were.

    Raises:
        EvaluationError: as for the loading; or the model fails on a row.
        PatchError: as for ``profile``.
    """
    tell = progress if progress is not None and accelerator.is_main_process else _silence
    tell("load", 0.0)
    model, task, _ = load(subject, settings, accelerator)
    comparison = Comparison.unpatched(model, task, settings, accelerator)
    total = len(comparison.batches)
    with torch.inference_mode(), watching(model, include, exclude, activations) as watched:
        for number in range(accelerator.process_index, total, accelerator.num_processes):
            tell("profile", number / total)
            there = comparison.batches[number].to(comparison.device)
            watched.batch(there.inputs)
            try:
                task.forward(model, there)
            except Exception as error:  # each model has its own
                watched.batch(None)
                [(example, reason), *_] = failing(task, model, there, error).items()
                raise EvaluationError(f"{task.place(example)} {reason}. Mend the row or remove it.") from error
        own = watched.profile()
    tell("profile", 1.0)
    found = Profile.together(gather_object([own]))
    described = {
        "schema": SCHEMA,
        "subject": {"name": subject.name, "task": subject.task, "data": str(subject.data)},
        "examples": len(task.examples),
        "rows_left_out": len(task.skipped),
        "batch_size": comparison.batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return found, described | found.to_dict()


def _silence(stage: str, share: float) -> None:
    del stage, share
