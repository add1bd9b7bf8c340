"""Whether an answer depends on what stands beside it in a batch: one padded row is compared with itself alone.

Rows of several lengths are filled up to one length, and the model has to leave out what was filled in. Some models do
not. One with absolute positions counts them from the padding, if that is on the left. A decoder's classifier reads the
last token that is not the config's padding token, even if the tokenizer pads with another one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.drift.logits import batch_drift
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.failures import batch_remedy, failing
from hf_gelu_patch.evaluation.makes import arithmetic, device_of, is_quantized
from hf_gelu_patch.evaluation.tasks.base import Batch, Task
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.verification import exact_copy, in_double

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_padding"]

_TRIED = 3  # batches, should rows in the first ones fail by themselves
_COARSE = 1e-4  # ε of half precision is more, of float32 less


def check_padding(task: Task, model: PreTrainedModel, batches: Batches) -> None:
    """Run the batch in which lengths differ most, and the row of it that is filled up most by itself. Its logits may
    differ by √ε of their dtype, relative to their scale, as ``VariantResult.wrong`` has it; those of half precision are
    looked at in a float64 copy too, where there is memory for one: its rounding would hide what padding does. Nothing
    is run where each batch has one example.

    Args:
        batches: all of the run's.

    Raises:
        EvaluationError: they differ by more, or the model cannot run the batch at all; the message names the remedy.
    """
    for batch in map(batches.__getitem__, _most_padded(task, batches)):
        place, alone = min(enumerate(map(task.alone, batch.ids)), key=lambda pair: _elements(pair[1]))
        together, alone = batch.to(device_of(model)), alone.to(device_of(model))
        try:
            moved = _moved(task, together, place, alone, model)
        except EvaluationError:
            raise
        except Exception as error:  # each model has its own
            failing(task, model, together, error)
            continue  # of rows that fail by themselves, whoever runs them all says which
        if moved is not None:
            example = batch.ids[place]
            row = f"row {task.examples[example]['row'] + 1}" if "row" in task.examples[example] else "the text"
            raise EvaluationError(
                f"{task.subject.name} gives other logits for {row} ({task.describe(example)}) in a batch of "
                f"{len(batch.ids)} than alone: they move by {moved}. The figures would depend on the batch size. "
                f"{batch_remedy(task)}"
            )
        return


def _most_padded(task: Task, batches: Batches) -> list[int]:
    """The batches in which lengths differ most, by their numbers; where lengths are not known, the longest."""
    sizes, shapes = task.examples.sizes, task.examples.shapes
    spreads: dict[int, list[tuple[int, int]]] = {}
    for number, ids in enumerate(batches.all_ids()):
        if len(ids) > 1:
            spreads.setdefault(int(shapes[ids[0]]), []).append((-int(np.ptp(sizes[[*ids]])), number))
    best = [one for some in spreads.values() for one in sorted(some)[:_TRIED]]
    long = {number: _elements(task.alone(batches.ids(number)[0])) for _, number in best}
    return [number for _, number in sorted(best, key=lambda one: (one[0], -long[one[1]], one[1]))[:_TRIED]]


def _elements(batch: Batch) -> int:
    return sum(value.numel() for value in batch.inputs.values())


def _counted(logits: Tensor, batch: Batch, place: int) -> Tensor | None:
    """[1, positions that count, classes] of one row; None where logits and right answers are not of one shape."""
    if logits.shape[:2] != batch.targets.shape:
        return None
    return logits[place][batch.targets[place].to(logits.device) != IGNORED][None]


def _moved(task: Task, batch: Batch, place: int, alone: Batch, model: PreTrainedModel) -> str | None:
    """How far the logits of one row of a batch are from those of the row alone, in words, if that is more than
    rounding."""
    epsilon = arithmetic(model).epsilon
    own, among = task.forward(model, alone), task.forward(model, batch)
    moved = _apart(_counted(own, alone, 0), _counted(among, batch, place), epsilon if is_quantized(model) else None)
    if moved is not None or not epsilon > _COARSE:
        return moved
    exact = exact_copy(model, batch, task.forward)
    if exact.model is None or exact.output is None:
        return None
    own = task.forward(cast("PreTrainedModel", exact.model), in_double(alone))
    return _apart(_counted(own, alone, 0), _counted(exact.output, batch, place))


def _apart(own: Tensor | None, among: Tensor | None, epsilon: float | None = None) -> str | None:
    """Logits that stand in other places are not compared: ``predict`` says what is wrong with them."""
    if own is None or among is None or own.shape != among.shape:
        return None
    [drift] = batch_drift(own, among)
    least = torch.finfo(torch.float32).eps  # it is used inside
    margin = math.sqrt(max(epsilon or torch.finfo(own.dtype).eps, least))
    if drift["max_abs"] <= margin * drift["scale"]:
        return None
    return f"{drift['max_abs']:.2g}, more than {margin:.2g} of their largest, {drift['scale']:.3g}"
