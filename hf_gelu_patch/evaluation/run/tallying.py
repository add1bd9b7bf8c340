"""What all answers come to: they are read once, some thousands of examples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_gelu_patch.evaluation.drift.logits import LogitDrift, TotalDrift
from hf_gelu_patch.evaluation.metrics.gathered import Gathered
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.quality import Changes, Quality
from hf_gelu_patch.evaluation.run.answers import Answers
from hf_gelu_patch.evaluation.run.comparison import Comparison
from hf_gelu_patch.evaluation.run.verdict import first_lost
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.variants import BEFORE

__all__ = ["Tally", "all_metrics", "tally"]


@dataclass(frozen=True)
class Tally:
    """What the answers of one variant come to.

    Attributes:
        quality: beside those of the unpatched model.
        drift: of all its logits.
        lost: the first example of which it gives numbers that are not finite, where the unpatched model's are; None
            where there is none.
    """

    quality: Quality
    drift: LogitDrift
    lost: int | None


@dataclass
class _Said:
    """What one model said: what its metrics take, and, where another metric is asked for, what that takes."""

    gathered: Gathered = field(default_factory=Gathered)
    predictions: list[Any] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)

    def add(
        self, task: Task, ids: Sequence[int], outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]
    ) -> None:
        self.gathered.add(ids, task.columns(outcomes, examples))
        if task.extra is not None:
            predictions, references = task.pairs(outcomes, examples)
            self.predictions += predictions
            self.references += references

    def metrics(self, task: Task) -> dict[str, float]:
        found = self.gathered.measured()
        return found if task.extra is None else task.with_extra(found, self.predictions, self.references)


def all_metrics(comparison: Comparison, answers: Answers) -> dict[str, float]:
    """The metrics of the unpatched model. Errors as for ``Task.metrics``."""
    task, said = comparison.task, _Said()
    for ids in answers.parts():
        said.add(task, ids, [row.outcome for row in answers.rows(BEFORE, ids)], task.examples.lazily(ids))
    return said.metrics(task)


def tally(comparison: Comparison, answers: Answers) -> dict[str, Tally]:
    """What the answers of each variant come to, by its name. Errors as for ``Task.metrics``."""
    task, settings = comparison.task, comparison.settings
    said = {name: _Said() for name in (BEFORE, *comparison.names)}
    changes = {name: Changes() for name in comparison.names}
    drifts = {name: TotalDrift() for name in comparison.names}
    lost: dict[str, int] = {}
    for ids in answers.parts():
        examples = task.examples.lazily(ids)
        before: list[Outcome] = []
        for name, one in said.items():
            rows = answers.rows(name, ids)
            outcomes = [row.outcome for row in rows]
            one.add(task, ids, outcomes, examples)
            if name == BEFORE:
                before = outcomes
                continue
            changes[name].add(ids, before, outcomes)
            drifts[name].add([row.drift for row in rows if row.drift is not None])
            if (first := first_lost(rows)) is not None:
                lost[name] = min(first, lost.get(name, first))
    found = {}
    for name in comparison.names:
        drift = drifts[name].found
        quality = changes[name].quality(
            said[BEFORE].gathered,
            said[name].gathered,
            seed=settings.seed,
            margin=settings.margin,
            metrics=None if task.extra is None else (said[BEFORE].metrics(task), said[name].metrics(task)),
            logits=(drift.max_abs, drift.scale),
        )
        found[name] = Tally(quality, drift, lost.get(name))
    return found
