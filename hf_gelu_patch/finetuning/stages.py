"""What a model says of the data at each stage of a run: as it came, patched, and trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.padding import check_padding
from hf_gelu_patch.evaluation.quality import Quality, compare
from hf_gelu_patch.evaluation.run.answers import Answers, all_answers
from hf_gelu_patch.evaluation.run.comparison import Comparison, Progress
from hf_gelu_patch.evaluation.run.resuming import Recording
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.variants import BEFORE

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Measuring"]


@dataclass(frozen=True)
class Measuring:
    """The data to measure a model on, and how.

    Attributes:
        task: the data, the same at each stage.
        settings: how; no variant of theirs is run.
        accelerator: the processes, which share the work.
    """

    task: Task
    settings: Settings
    accelerator: Accelerator

    def first(self, model: PreTrainedModel, tell: Progress) -> tuple[Measuring, list[Outcome]]:
        """What a model says as it came, and how others are measured from then on: without the rows that it fails on.

        Raises:
            EvaluationError: it fails on a row, which is not to be left out, or answers depend on the batch.
        """
        comparison = Comparison.unpatched(model, self.task, self.settings, self.accelerator, tell)
        with torch.no_grad():
            check_padding(self.task, model, comparison.batches)
            usable, answers = all_answers(comparison, Recording.temporary(comparison))
        return Measuring(usable.task, self.settings, self.accelerator), _everyones(answers)

    def again(self, model: PreTrainedModel, tell: Progress) -> list[Outcome]:
        """What a model says later: of the same rows, in evaluation mode.

        Raises:
            EvaluationError: it fails on a row that it did not fail on before.
        """
        model.train(False)
        comparison = Comparison.unpatched(model, self.task, self.settings, self.accelerator, tell)
        with torch.no_grad():
            usable, answers = all_answers(comparison, Recording.temporary(comparison))
        if usable.task is not self.task:
            [(row, why), *_] = sorted(set(usable.task.skipped) - set(self.task.skipped))
            raise EvaluationError(
                f"{self.task.subject.name}: row {row} {why}. The model as it came has an answer: take a smaller "
                "--learning_rate, or leave sites out of the swap with --exclude."
            )
        return _everyones(answers)

    def metrics(self, outcomes: list[Outcome]) -> dict[str, float]:
        """The task's metrics by name."""
        return self.task.metrics(outcomes)

    def compared(self, before: list[Outcome], after: list[Outcome]) -> Quality:
        """The same rows at two stages."""
        both = (self.metrics(before), self.metrics(after))
        settings = self.settings
        columns = partial(self.task.columns, examples=self.task.examples)
        return compare(before, after, columns, seed=settings.seed, margin=settings.margin, metrics=both)


def _everyones(answers: Answers | None) -> list[Outcome]:
    """What the main process can read, on all of them."""
    [found] = gather_object([] if answers is None else [answers.outcomes(BEFORE)])
    outcomes: list[Outcome] = found
    return outcomes


def written(outcomes: list[Outcome]) -> bytes:
    """What was said, as JSON to the bit."""
    return json.dumps([one.to_json() for one in outcomes], allow_nan=False).encode()


def read(content: bytes) -> list[Outcome]:
    """What ``written`` wrote."""
    return [Outcome.from_json(one) for one in json.loads(content)]


def plain(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as JSON takes them."""
    found: dict[str, Any] = as_json(metrics)
    return found
