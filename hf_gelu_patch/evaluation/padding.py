"""Whether an answer depends on what stands beside it in a batch: one padded row is held against itself alone.

Rows of several lengths are filled up to one length, and the model has to leave out what was filled in. Some models do
not: one with absolute positions counts them from the padding where that is on the left; a decoder's classifier takes
the last token that is not the config's padding token, whichever the tokenizer fills up with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.data import EvaluationError
from hf_gelu_patch.evaluation.drift import batch_drift
from hf_gelu_patch.evaluation.failures import batch_remedy, failing
from hf_gelu_patch.evaluation.tasks import Batch, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_padding"]


def check_padding(task: Task, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Run the batch in which lengths differ most, and the row of it that is filled up most by itself. Its logits may
    differ by √ε of their dtype, relative to their scale, as ``VariantResult.wrong`` has it. Nothing is run where each
    batch has one example.

    Args:
        batches: all of the run's.

    Raises:
        EvaluationError: they differ by more, or the model cannot run the batch at all; the message names the remedy.
    """
    several = [batch for batch in batches if len(batch.ids) > 1]
    if not several:
        return
    batch = max(several, key=lambda one: _spread(task, one))
    place, alone = min(enumerate(map(task.alone, batch.ids)), key=lambda pair: _elements(pair[1]))
    try:
        among = task.forward(model, batch.to(model.device))
        own = task.forward(model, alone.to(model.device))
    except EvaluationError:
        raise
    except Exception as error:  # each model has its own
        failing(task, model, batch.to(model.device), error)
        return  # of rows that fail by themselves, whoever runs them all says which
    moved = _moved(_counted(own, alone, 0), _counted(among, batch, place))
    if moved is not None:
        raise EvaluationError(
            f"{task.subject.name} gives other logits for the row {task.describe(batch.ids[place])!r} in a batch of "
            f"{len(batch.ids)} than for that row alone: they move by {moved}. The figures would depend on the batch "
            f"size. {batch_remedy(task)}"
        )


def _spread(task: Task, batch: Batch) -> tuple[int, float]:
    """How far lengths differ in a batch; where they are not known, how long it is."""
    sizes = [task.size(task.examples[example]) for example in batch.ids]
    return max(sizes) - min(sizes), _elements(batch) / len(batch.ids)


def _elements(batch: Batch) -> int:
    return sum(value.numel() for value in batch.inputs.values())


def _counted(logits: Tensor, batch: Batch, place: int) -> Tensor | None:
    """[1, positions that count, classes] of one row; None where logits and right answers are not of one shape."""
    if logits.shape[:2] != batch.targets.shape:
        return None
    return logits[place][batch.targets[place].to(logits.device) != -100][None]


def _moved(own: Tensor | None, among: Tensor | None) -> str | None:
    """How far logits moved, in words, if that is more than rounding. Those that stand in other places are not compared:
    ``predict`` says what is wrong with them."""
    if own is None or among is None or own.shape != among.shape:
        return None
    [drift] = batch_drift(own, among)
    margin = math.sqrt(torch.finfo(own.dtype).eps)
    if drift["max_abs"] <= margin * drift["scale"]:
        return None
    return f"{drift['max_abs']:.2g}, more than {margin:.2g} of their largest, {drift['scale']:.3g}"
