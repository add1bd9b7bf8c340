"""What the models say of each example, found out by all processes together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation.drift.logits import batch_drift
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.failures import failing, not_finite
from hf_gelu_patch.evaluation.makes import arithmetic
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.run.resuming import Recording
from hf_gelu_patch.evaluation.run.together import bring_together
from hf_gelu_patch.evaluation.stored import Stored
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.variants import BEFORE

__all__ = ["Answers", "all_answers"]

Failures = dict[int, str]
"""Why the unpatched model gives nothing usable for an example."""

_PART = 2048  # examples that are looked at together, about


class Answers:
    """What the unpatched model, as "before", and each variant say of each example. It is read when it is asked for.

    Args:
        stored: where it stands.
        numbers: of each example, its number there.
        batches: the examples as they were run: they are read in this order, in which they were written.
    """

    def __init__(self, stored: Stored, numbers: np.ndarray[Any, Any], batches: Batches) -> None:
        self._stored = stored
        self._numbers = numbers
        self._batches = batches

    def parts(self) -> Iterator[list[int]]:
        """All examples, some thousands at a time."""
        part: list[int] = []
        for ids in self._batches.all_ids():
            part += ids
            if len(part) >= _PART:
                yield part
                part = []
        if part:
            yield part

    def rows(self, name: str, examples: Sequence[int]) -> list[Row]:
        """What a model says of some examples."""
        numbers = self._numbers[examples].tolist()
        return [
            row if number == example else replace(row, example=example)
            for example, number, row in zip(examples, numbers, self._stored.rows(name, numbers), strict=True)
        ]

    def outcomes(self, name: str) -> list[Outcome]:
        """What a model says of all examples, in their order."""
        return [row.outcome for row in self.rows(name, range(len(self._numbers)))]


def all_answers(comparison: Comparison, recording: Recording) -> tuple[Comparison, Answers | None]:
    """What the unpatched model and each variant say of all examples. What is recorded is taken from there; the other
    batches are run, each whole by one of the processes in turn.

    Returns:
        The comparison without the rows that the unpatched model fails on; and the answers, numbered as its task
        numbers the examples, on the main process alone.

    Raises:
        EvaluationError: a row fails and is not to be skipped, or a variant fails on one; or a process was lost.
    """
    left = [number for number, ids in enumerate(comparison.batches.all_ids()) if not recording.known[:, ids].all()]
    own_failures = _run_own(comparison, recording, left)
    failures: Failures = dict(gather_object(list(own_failures.items())))
    bring_together(recording, comparison.accelerator)
    task = comparison.task
    if comparison.accelerator.is_main_process:
        wanted = np.ones_like(recording.known)
        wanted[:, list(failures)] = False
        came = recording.stored.known
        lost = [] if (came == wanted).all() else [(int(came.sum()), int(wanted.sum()))]
    else:
        lost = []
    for count, due in gather_object(lost):
        raise EvaluationError(f"{count} results came back where {due} were due: a process was lost. Run it again.")
    usable = comparison.on(task.without(failures) if failures else task)
    if not comparison.accelerator.is_main_process:
        return usable, None
    numbers = np.flatnonzero(np.isin(task.examples.numbers, usable.task.examples.numbers))
    return usable, Answers(recording.stored, numbers, usable.batches)


def _run_own(comparison: Comparison, recording: Recording, left: Sequence[int]) -> Failures:
    """Run this process's batches, each recorded as soon as it is done."""
    accelerator = comparison.accelerator
    total = len(comparison.batches)
    failures: Failures = {}
    comparison.tell("quality", 1 - len(left) / total)
    with recording.writer:
        for turn, number in enumerate(left):
            if turn % accelerator.num_processes == accelerator.process_index:
                said, failed = _said(comparison, comparison.batches[number].to(comparison.device))
                if failed:
                    comparison.task.without(failed)  # which refuses at once, unless such rows are to be skipped
                failures |= failed
                recording.writer.append(said)
            comparison.tell("quality", 1 - (len(left) - turn - 1) / total)
    return failures


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
