"""What the models say of each example, found out by all processes together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation.drift.logits import batch_drift
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.failures import failing, not_finite
from hf_gelu_patch.evaluation.makes import arithmetic
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.run.resuming import Recording
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.variants import BEFORE

__all__ = ["all_answers"]

Answers = dict[str, list[Row]]
"""A row for each example, in their order, by the variant's name; those of the unpatched model as "before"."""

Failures = dict[int, str]
"""Why the unpatched model gives nothing usable for an example."""


def all_answers(comparison: Comparison, recording: Recording) -> tuple[Comparison, Answers]:
    """What the unpatched model and each variant say of all examples. What is recorded is taken from there; the other
    batches are run, each whole by one of the processes in turn.

    Returns:
        The comparison without the rows that the unpatched model fails on; and the answers, numbered as its task
        numbers the examples.

    Raises:
        EvaluationError: a row fails and is not to be skipped, or a variant fails on one; or a process was lost.
    """
    everyone = (BEFORE, *comparison.names)
    found = dict(recording.known)
    left = [
        number
        for number, ids in enumerate(comparison.batches.all_ids())
        if any((example, name) not in found for example in ids for name in everyone)
    ]
    own, own_failures = _run_own(comparison, recording, left)
    gathered: list[Row] = gather_object(own)
    failures: Failures = dict(gather_object(list(own_failures.items())))
    found.update({(row.example, row.variant): row for row in gathered})
    task = comparison.task
    wanted = {(example, name) for example in range(len(task.examples)) if example not in failures for name in everyone}
    due = (sum(len(comparison.batches.ids(number)) for number in left) - len(failures)) * len(everyone)
    if found.keys() != wanted or due != len(gathered):
        raise EvaluationError(
            f"{len(found)} results came back where {len(wanted)} were due: a process was lost. Run it again."
        )
    usable = comparison.on(task.without(failures) if failures else task)
    kept = np.flatnonzero(np.isin(task.examples.numbers, usable.task.examples.numbers)).tolist()
    return usable, {
        name: [replace(found[example, name], example=number) for number, example in enumerate(kept)]
        for name in everyone
    }


def _run_own(comparison: Comparison, recording: Recording, left: Sequence[int]) -> tuple[list[Row], Failures]:
    """What this process finds out, each batch recorded as soon as it is done."""
    accelerator = comparison.accelerator
    total = len(comparison.batches)
    rows: list[Row] = []
    failures: Failures = {}
    comparison.tell("quality", 1 - len(left) / total)
    with recording.writer or nullcontext():
        for turn, number in enumerate(left):
            if turn % accelerator.num_processes == accelerator.process_index:
                said, failed = _said(comparison, comparison.batches[number].to(comparison.device))
                if failed:
                    comparison.task.without(failed)  # which refuses at once, unless such rows are to be skipped
                rows += said
                failures |= failed
                if recording.writer is not None:
                    recording.writer.append(said)
            comparison.tell("quality", 1 - (len(left) - turn - 1) / total)
    return rows, failures


def _said(comparison: Comparison, batch: Batch) -> tuple[list[Row], Failures]:
    """What all models say of one batch; and of which of its examples nothing, because the unpatched model fails on
    them or gives numbers that are not finite. Only two models' logits are held at a time."""
    task, model = comparison.task, comparison.model
    try:
        old = task.predict(model, batch)
    except EvaluationError:
        raise
    except Exception as error:  # each model has its own
        failed = failing(task, model, batch, error)
    else:
        failed = not_finite(task, batch, old.logits)
    if failed:
        if not (ids := tuple(example for example in batch.ids if example not in failed)):
            return [], failed
        rest = task.collate(ids, task.examples.some(ids))
        rows, more = _said(comparison, rest.to(comparison.device))
        return rows, {**failed, **more}
    rows = [Row(example, BEFORE, outcome, None) for example, outcome in zip(batch.ids, old.outcomes, strict=True)]
    for name in comparison.names:
        side = comparison.running.get(name)
        new = old if side is None else _patched(task, side, name, batch)
        moved = _moved(comparison, batch, old, new)
        rows += [
            Row(example, name, outcome, row)
            for example, outcome, row in zip(batch.ids, new.outcomes, moved, strict=True)
        ]
    return rows, {}


def _moved(comparison: Comparison, batch: Batch, old: Prediction, new: Prediction) -> list[Mapping[str, float]]:
    """How far each example's logits moved, and how many numbers were lost: finite before, and not finite since."""
    counts, epsilon = batch.targets != IGNORED, arithmetic(comparison.model).epsilon
    found = batch_drift(old.logits, new.logits, counts, softmax=comparison.task.softmax, epsilon=epsilon)
    moved: list[Mapping[str, float]] = []
    for place, row in enumerate(found):
        lost = 0.0
        if not math.isfinite(row["max_abs"]):
            was, is_ = old.logits[place][counts[place]], new.logits[place][counts[place]]
            lost = float((was.isfinite() & ~is_.isfinite()).sum())
        moved.append(row | {"lost": lost})
    return moved


def _patched(task: Task, side: Side, variant: str, batch: Batch) -> Prediction:
    """What a variant says of a batch that the unpatched model runs on."""
    with side as model:
        try:
            return task.predict(model, batch)
        except EvaluationError:
            raise
        except Exception as error:  # it is an implementation's fault
            [(example, reason), *_] = failing(task, model, batch, error).items()
            raise EvaluationError(
                f"{task.place(example)} {reason}. That is the variant {variant!r}: the unpatched model runs on it. "
                "Leave the site out with exclude=, or mend the implementation."
            ) from error
