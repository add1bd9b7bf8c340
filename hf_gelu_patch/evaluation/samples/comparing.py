"""What changed between two runs on the same documents: answers, scores, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics import METRICS
from hf_gelu_patch.evaluation.metrics.registry import Columns, rows_of
from hf_gelu_patch.evaluation.quality import Flip
from hf_gelu_patch.evaluation.samples.aggregating import Aggregation, find_aggregation
from hf_gelu_patch.evaluation.samples.documents import Document, Measure, Samples
from hf_gelu_patch.evaluation.samples.pairing import Unpaired, pair
from hf_gelu_patch.evaluation.statistics import Interval, exact_mcnemar, intervals, paired_p

__all__ = ["Scores", "TaskComparison", "compare_runs", "compare_samples", "conclusion"]

_LISTED = 100  # changed answers
_SIGNIFICANT = 0.05
_MEANS = ("mean", "nanmean")
HITS = "share"
"""The aggregation of values that say of each of a document's answers whether it is right."""


@dataclass(frozen=True)
class Scores:
    """One metric of one task, in two runs.

    Attributes:
        metric: its name.
        documents: how many have a value in both runs; all else is of these.
        before, after: the scores.
        difference: after − before, with its interval from the paired bootstrap over documents.
        lower_is_better: None where that is not known.
        aggregation: what makes a score of values, by its name.
        lost, gained: of a metric that says right or wrong, how many answers went from right to wrong, and back; None of
            any other.
        p: McNemar's exact test on these two, or ``paired_p`` where documents have several answers; None likewise.
    """

    metric: str
    documents: int
    before: float
    after: float
    difference: Interval
    lower_is_better: bool | None
    aggregation: str
    lost: int | None = None
    gained: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class TaskComparison:
    """One task in two runs.

    Attributes:
        task, filter: whose documents they are, as in ``Samples``.
        documents: how many were paired.
        answers, changed: how many answers these have, and how many of them are not the same.
        scores: of each metric.
        left_out: each metric that has no scores here, and why.
        unpaired: the documents that could not be paired, and why.
        flipped: the first 100 answers that changed; ``example`` is the place among the paired documents.
        described: the beginning of each document in ``flipped``, by that place.
        notes: what else there is to know.
    """

    task: str
    filter: str
    documents: int
    answers: int
    changed: int
    scores: tuple[Scores, ...]
    left_out: Mapping[str, str]
    unpaired: tuple[Unpaired, ...]
    flipped: tuple[Flip, ...]
    described: Mapping[int, str]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The task with its filter, as reports call it."""
        return f"{self.task} ({self.filter})" if self.filter else self.task

    def plain(self) -> dict[str, Any]:
        """Everything as plain data, with what became of each metric in words."""
        conclusions = {scores.metric: conclusion(scores) for scores in self.scores}
        return {**asdict(self), "title": self.title, "conclusions": conclusions}


def conclusion(scores: Scores) -> str:
    """What became of a metric, in words: "better" or "worse" beyond chance, "higher" or "lower" where nobody knows
    which is better, "the same", or "no difference shown"."""
    value, low, high = scores.difference.value, scores.difference.low, scores.difference.high
    if scores.lost == scores.gained == 0 or (scores.p is None and value == low == high == 0):
        return "the same"
    shown = scores.p < _SIGNIFICANT if scores.p is not None else low > 0 or high < 0
    if not shown or value == 0:
        return "no difference shown"
    if scores.lower_is_better is None:
        return "higher" if value > 0 else "lower"
    return "worse" if (value > 0) == scores.lower_is_better else "better"


def compare_runs(before: Sequence[Samples], after: Sequence[Samples], *, seed: int = 0) -> list[TaskComparison]:
    """Each task that two runs have in common, in the order of the first.

    Args:
        before, after: the tasks of each run, each task once.
        seed: for the bootstrap.

    Raises:
        EvaluationError: they have no task in common, or none of a task's documents.
    """
    theirs = {(one.task, one.filter): one for one in after}
    both = [(one, theirs[one.task, one.filter]) for one in before if (one.task, one.filter) in theirs]
    if not both:
        mine, others = (", ".join(sorted({one.title for one in run})) for run in (before, after))
        raise EvaluationError(
            f"the runs have no task in common: {_places(before)} has {mine}, and {_places(after)} has {others}. Name "
            "two runs of the same task."
        )
    return [compare_samples(one, other, seed=seed) for one, other in both]


def _places(run: Sequence[Samples]) -> str:
    return next((one.place for one in run), "it")


def compare_samples(before: Samples, after: Samples, *, seed: int = 0) -> TaskComparison:
    """One task in two runs: its documents paired, each metric before and after.

    A metric whose values are all 0 or 1, and whose score is their mean, is tested by McNemar's exact test; the interval
    of every metric's difference is from the paired bootstrap, with the metric's own aggregation.

    Args:
        before, after: the same task's documents.
        seed: for the bootstrap.

    Raises:
        EvaluationError: they have no document in common.
    """
    paired = pair(before, after)
    if not paired.before:
        why = "; ".join(f"document {one.number} {one.why}" for one in paired.unpaired[:3])
        raise EvaluationError(
            f"{before.title}: no document of {before.place} could be paired with one of {after.place}: {why}. Name two "
            "runs on the same documents."
        )
    scores, left_out = [], {}
    for metric in _metrics(paired.before):
        measure = before.measures.get(metric, Measure())
        found = _scores(metric, measure, paired.before, paired.after, seed)
        if isinstance(found, str):
            left_out[metric] = found
        else:
            scores.append(found)
    answers, changed, flipped = _flips(paired.before, paired.after)
    notes = [*before.notes, *(note for note in after.notes if note not in before.notes)]
    if paired.prompts_differ:
        notes.append(
            f"{paired.prompts_differ} of {len(paired.before)} documents were asked about in other words, or made other "
            "inputs of: other few-shot examples, another chat template, tokenizer or size of images"
        )
    return TaskComparison(
        task=before.task,
        filter=before.filter,
        documents=len(paired.before),
        answers=answers,
        changed=changed,
        scores=tuple(scores),
        left_out=left_out,
        unpaired=paired.unpaired,
        flipped=flipped,
        described={flip.example: paired.before[flip.example].text for flip in flipped},
        notes=tuple(notes),
    )


def _metrics(documents: Sequence[Document]) -> list[str]:
    return list(dict.fromkeys(name for document in documents for name in document.values))


def _scores(
    metric: str, measure: Measure, before: Sequence[Document], after: Sequence[Document], seed: int
) -> Scores | str:
    """A metric before and after; or why it cannot be told."""
    there = [
        (old.values[metric], new.values[metric])
        for old, new in zip(before, after, strict=True)
        if _is_value(old.values.get(metric)) and _is_value(new.values.get(metric))
    ]
    if not there:
        return "it has no value that both runs have for some document"
    old, new = ([pair[side] for pair in there] for side in (0, 1))
    if measure.aggregation == HITS:
        return _hits(metric, measure, old, new, seed)
    if measure.columns is not None:
        return _of_ours(measure, measure.columns(old), measure.columns(new), len(there), seed)
    aggregation = find_aggregation(measure.aggregation, measure.call)
    if aggregation is None:
        return (
            f"its aggregation {measure.aggregation!r} is not known here: those of lm-evaluation-harness come with pip "
            "install 'hf-gelu-patch[lm-eval]', and a task's own runs within 'evaluate --task lm_eval:…' alone"
        )
    if aggregation.numbers is not None and not all(_has_numbers(value, aggregation.numbers) for value in (*old, *new)):
        return f"its values are not what the aggregation {aggregation.name!r} takes"
    try:
        scores = aggregation.score(old), aggregation.score(new)
    except Exception as error:  # it is someone else's function
        return f"its aggregation {aggregation.name!r} fails: {type(error).__name__}: {error}"
    difference = _interval(aggregation, old, new, seed)
    if aggregation.name not in _MEANS or not all(map(_is_bit, (*old, *new))):
        return Scores(metric, len(there), *scores, difference, measure.lower_is_better, aggregation.name)
    lost = sum(bool(a > b) for a, b in zip(old, new, strict=True))
    gained = sum(bool(a < b) for a, b in zip(old, new, strict=True))
    p = exact_mcnemar(lost, gained)
    return Scores(metric, len(there), *scores, difference, measure.lower_is_better, aggregation.name, lost, gained, p)


def _interval(aggregation: Aggregation, old: Sequence[Any], new: Sequence[Any], seed: int) -> Interval:
    [found] = intervals(
        lambda weights, values: {"": aggregation.statistic(weights, values)},
        old,
        new,
        len(old),
        seed=seed,
        resamples=aggregation.resamples,
    ).values()
    return found


def _of_ours(measure: Measure, before: Columns, after: Columns, documents: int, seed: int) -> Scores:
    """A metric of the evaluation, as it computes it."""
    [(kind, old)], [(_, new)] = rows_of(before).items(), rows_of(after).items()
    metric = METRICS[measure.aggregation]
    whole = np.ones((1, documents))
    [difference] = intervals(
        lambda weights, rows: {"": metric.statistic(weights, rows)}, old, new, documents, seed=seed
    ).values()
    values = float(metric.statistic(whole, old)[0]), float(metric.statistic(whole, new)[0])
    return Scores(metric.name, documents, *values, difference, metric.lower_is_better, f"{metric.name} of {kind}")


def _hits(metric: str, measure: Measure, old: list[Any], new: list[Any], seed: int) -> Scores:
    """Of documents with several answers each: the share that is right, and ``paired_p``."""
    gains = np.array([sum(after) - sum(before) for before, after in zip(old, new, strict=True)], dtype=np.int64)
    pairs = [(a, b) for before, after in zip(old, new, strict=True) for a, b in zip(before, after, strict=True)]
    lost, gained = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    shares = [[(sum(one), len(one)) for one in values] for values in (old, new)]
    share = find_aggregation("weighted_mean")
    assert share is not None
    return Scores(
        metric,
        len(old),
        share.score(shares[0]),
        share.score(shares[1]),
        _interval(share, shares[0], shares[1], seed),
        measure.lower_is_better,
        HITS,
        lost,
        gained,
        paired_p(gains, lost, gained),
    )


def _flips(before: Sequence[Document], after: Sequence[Document]) -> tuple[int, int, tuple[Flip, ...]]:
    answers = changed = 0
    flipped: list[Flip] = []
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        targets = old.targets if len(old.targets) == len(old.answers) else ("",) * len(old.answers)
        for a, b, target in zip(old.answers, new.answers, targets, strict=False):
            answers += 1
            if a == b:
                continue
            changed += 1
            if len(flipped) < _LISTED:
                flipped.append(Flip(place, str(a), str(b), "" if target is None else str(target)))
    return answers, changed, tuple(flipped)


def _is_value(value: Any) -> bool:
    return value is not None


def _has_numbers(value: Any, count: int) -> bool:
    if count == 1:
        return isinstance(value, int | float | np.number | np.bool_)
    return isinstance(value, list | tuple) and len(value) == count and all(_has_numbers(one, 1) for one in value)


def _is_bit(value: Any) -> bool:
    """Whether a number says right or wrong."""
    return float(value) in (0.0, 1.0)
