"""What reports show of two runs of lm-evaluation-harness on the same documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.harness.asking import Told
from hf_gelu_patch.evaluation.harness.tasks import Asked
from hf_gelu_patch.evaluation.quality import Flip, Quality, within
from hf_gelu_patch.evaluation.samples.comparing import Scores, TaskComparison, compare_samples
from hf_gelu_patch.evaluation.samples.documents import Samples
from hf_gelu_patch.evaluation.samples.lm_eval_samples import by_filter, document_of, measures_of
from hf_gelu_patch.evaluation.statistics import Interval, exact_mcnemar

__all__ = ["Compared", "samples_of"]

_MEANS = ("mean", "nanmean")
_LISTED = 100  # changed answers


def samples_of(told: Told, asked: Asked) -> list[Samples]:
    """A run's samples of each task, by filter, with the tasks' own aggregations."""
    found = []
    for name, task in asked.tasks.items():
        aggregations, better = dict(task.aggregation()), dict(task.higher_is_better())
        for filter_, samples in by_filter(told.samples[name]).items():
            documents = tuple(map(document_of, samples))
            metrics = dict.fromkeys(metric for document in documents for metric in document.values)
            found.append(Samples(name, filter_, documents, measures_of(metrics, {}, better, aggregations), name))
    return found


@dataclass(frozen=True)
class _Figure:
    """A score as a report shows it: of a task, or what a group makes of its tasks'."""

    name: str
    before: float
    after: float
    difference: Interval
    lower_is_better: bool
    counts_right: bool
    relative: bool


@dataclass(frozen=True)
class Compared:
    """A task, or a group of tasks, before and after a patch.

    Attributes:
        asked: the task or group.
        before, after: what the models said.
        tasks: each task's comparison; several of a task that reads answers by several filters.
    """

    asked: Asked
    before: Told
    after: Told
    tasks: tuple[TaskComparison, ...]

    @classmethod
    def of(cls, asked: Asked, before: Told, after: Told, *, seed: int) -> Compared:
        """Two runs held against each other.

        Args:
            seed: for the bootstrap.

        Raises:
            EvaluationError: the two were not asked the same.
        """
        found = []
        for old, new in zip(samples_of(before, asked), samples_of(after, asked), strict=True):
            one = compare_samples(old, new, seed=seed)
            if one.unpaired or one.notes:
                raise EvaluationError(
                    f"{old.title}: the models were not asked the same ({'; '.join(one.notes) or 'other documents'}): "
                    "the task draws something without a seed. Give its documents and few-shot examples a fixed order."
                )
            found.append(one)
        return cls(asked, before, after, tuple(found))

    def quality(self, margin: float | None) -> Quality:
        """As any other task is shown.

        A task's metrics have the names that lm-evaluation-harness gives them, with the filter behind a comma where it
        names one. A group's are those that it aggregates; without any, those of its tasks, with the task before a
        colon. Which answers changed is counted by the first filter of each task. Right → wrong and back are those of
        the first metric that says right or wrong, over all tasks together.
        """
        figures = list(self._of_group() or self._of_tasks())
        differences = {one.name: one.difference for one in figures}
        before = {one.name: one.before for one in figures}
        relative = tuple(one.name for one in figures if one.relative)
        lost, gained = self._counted()
        p = exact_mcnemar(lost, gained)
        first = self._first_filters
        return Quality(
            before=before,
            after={one.name: one.after for one in figures},
            examples=sum(one.documents for one in first),
            answers=sum(one.answers for one in first),
            flips=sum(one.changed for one in first),
            right_to_wrong=lost,
            wrong_to_right=gained,
            mcnemar_p=p,
            p=p,
            differences=differences,
            margin=margin,
            equivalent=None if margin is None else within(differences, before, margin, relative),
            flipped=tuple(flip for flip, _ in self._flips())[:_LISTED],
            max_abs_logit_change=math.nan,
            max_abs_logit=math.nan,
            lower_is_better=tuple(one.name for one in figures if one.lower_is_better),
            counts_right=tuple(one.name for one in figures if one.counts_right),
            relative=relative,
        )

    def described(self) -> dict[int, str]:
        """The beginning of each document in ``quality(…).flipped``, by the number that it has there."""
        return {flip.example: text for flip, text in self._flips()}

    @property
    def _first_filters(self) -> list[TaskComparison]:
        found: dict[str, TaskComparison] = {}
        for one in self.tasks:
            found.setdefault(one.task, one)
        return list(found.values())

    def _flips(self) -> Iterator[tuple[Flip, str]]:
        """The answers that changed, numbered through all tasks, with the beginning of each document."""
        start = 0
        for one in self._first_filters:
            for flip in one.flipped:
                yield replace(flip, example=start + flip.example), one.described.get(flip.example, "")
            start += one.documents

    def _counted(self) -> tuple[int, int]:
        """How many answers were lost and gained, by the first metric that says right or wrong."""
        scores = [one for task in self._first_filters for one in task.scores if one.p is not None]
        found = [one for one in scores if one.metric == scores[0].metric]
        return sum(one.lost or 0 for one in found), sum(one.gained or 0 for one in found)

    def _of_tasks(self) -> Iterator[_Figure]:
        for one in self.tasks:
            head = f"{one.task}: " if len(self.asked.tasks) > 1 else ""
            tail = f",{one.filter}" if one.filter else ""
            for scores in one.scores:
                yield _Figure(
                    f"{head}{scores.metric}{tail}",
                    scores.before,
                    scores.after,
                    scores.difference,
                    bool(scores.lower_is_better),
                    scores.p is not None,
                    scores.aggregation not in _MEANS,
                )

    def _of_group(self) -> list[_Figure]:
        """What a group aggregates. Its tasks' documents are drawn apart from each other, so that the squares of what
        their intervals reach add up, each by its task's weight. Nothing where no group was asked for, or one that
        aggregates nothing."""
        group = self.asked.groups.get(self.asked.name)
        if group is None or not group.has_aggregation:
            return []
        scores: Mapping[str, Any] = self.before.results["results"][group.name]
        later: Mapping[str, Any] = self.after.results["results"][group.name]
        found = []
        for config in group.aggregate_metric_list:
            for key in scores:
                metric, comma, filter_ = key.partition(",")
                if metric != config.metric or not comma:
                    continue
                old, new = float(scores[key]), float(later[key])
                parts = self._parts(metric, "" if filter_ == "none" else filter_)
                reach = _reach(parts, by_size=config.weight_by_size)
                found.append(
                    _Figure(
                        metric if filter_ == "none" else key,
                        old,
                        new,
                        Interval(new - old, new - old - reach, new - old + reach),
                        any(one.lower_is_better for one in parts),
                        all(one.p is not None for one in parts),
                        False,
                    )
                )
        return found

    def _parts(self, metric: str, filter_: str) -> list[Scores]:
        tasks = [one for one in self.tasks if one.filter == filter_]
        return [scores for one in tasks for scores in one.scores if scores.metric == metric]


def _reach(parts: Sequence[Scores], *, by_size: bool) -> float:
    """How far the interval of a weighted mean of scores reaches to either side."""
    sizes = [one.documents if by_size else 1 for one in parts]
    reaches = [(one.difference.high - one.difference.low) / 2 for one in parts]
    return math.sqrt(sum((size * reach / sum(sizes)) ** 2 for size, reach in zip(sizes, reaches, strict=True)))
