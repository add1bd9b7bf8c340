"""How good answers are, and which of them a patch changed: from per-example outcomes, in float64."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import evaluate

__all__ = [
    "ClassificationMetric",
    "LanguageModelMetric",
    "Outcome",
    "Quality",
    "SequenceMetric",
    "compare",
    "edit_distance",
    "exact_mcnemar",
    "judge",
]


@dataclass(frozen=True)
class Outcome:
    """What one model said of one example.

    Attributes:
        answers: the predicted label; or the most likely next token at each position; or the generated sequence, its
            tokens joined by spaces.
        targets: the right answers, one for each.
        loss: the negative log-likelihood of the targets, summed, in nats.
        tokens: how many terms the loss sums.
    """

    answers: tuple[Hashable, ...]
    targets: tuple[Hashable, ...]
    loss: float
    tokens: int


@dataclass(frozen=True)
class Quality:
    """The same examples before and after a patch.

    Attributes:
        before, after: the task's metrics by name; fractions, never percentages.
        examples: how many there were.
        answers: how many answers they have: one each, or one for each position of running text.
        flips: answers that changed.
        right_to_wrong, wrong_to_right: those of them that lost or gained correctness.
        mcnemar_p: the exact two-sided McNemar test on these two: the chance of a split as uneven as this if losing
            and gaining were equally likely; 1.0 where neither occurred.
        max_abs_logit_change: max |logit after − logit before| over all positions that count.
        max_abs_logit: max |logit before|, the scale to see it against.
    """

    before: dict[str, float]
    after: dict[str, float]
    examples: int
    answers: int
    flips: int
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float
    max_abs_logit_change: float
    max_abs_logit: float


def judge(quality: Quality, significance: float = 0.05) -> str:
    """In words: whether answers changed, and whether that made them worse or better beyond chance (exact McNemar)."""
    if quality.flips == 0:
        return "answers unchanged"
    if quality.mcnemar_p >= significance:
        return "answers changed, none the worse as far as can be told"
    return "answers worse" if quality.right_to_wrong > quality.wrong_to_right else "answers better"


class _OfflineMetric(evaluate.Metric):  # type: ignore[misc]
    """Loaded from here, not from the hub; everything stays in memory."""

    columns: ClassVar[dict[str, str]]
    summary: ClassVar[str]

    @classmethod
    def measure(cls, **inputs: Any) -> dict[str, float]:
        """``compute`` of a fresh metric, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            result: dict[str, float] = cls(keep_in_memory=True, cache_dir=folder, seed=0).compute(**inputs)
        return result

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description=f"Keyword arguments, one list each: {', '.join(self.columns)}.",
            features=datasets.Features({name: datasets.Value(kind) for name, kind in self.columns.items()}),
        )


class ClassificationMetric(_OfflineMetric):
    """Accuracy, and macro F1: the mean over the labels that occur of 2·TP / (2·TP + FP + FN).

    Takes ``predictions`` and ``references``, label ids.
    """

    columns: ClassVar = {"predictions": "int64", "references": "int64"}
    summary = "Accuracy and macro F1."

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        scores = []
        for label in sorted({*predictions, *references}):
            hits = sum(p == r == label for p, r in pairs)
            named = sum((p == label) + (r == label) for p, r in pairs)
            scores.append(2 * hits / named)
        return {
            "accuracy": sum(p == r for p, r in pairs) / len(pairs),
            "macro_f1": math.fsum(scores) / len(scores),
        }


class LanguageModelMetric(_OfflineMetric):
    """Perplexity, exp of the mean negative log-likelihood per token, and the share of tokens predicted right.

    Takes, an entry an example: ``losses`` (summed, in nats), ``tokens`` and ``hits`` (how many).
    """

    columns: ClassVar = {"losses": "float64", "tokens": "int64", "hits": "int64"}
    summary = "Perplexity and token accuracy."

    def _compute(self, losses: Sequence[float], tokens: Sequence[int], hits: Sequence[int]) -> dict[str, float]:
        mean = math.fsum(losses) / sum(tokens)
        return {
            "perplexity": math.exp(mean) if mean < 700 else math.inf,
            "token_accuracy": sum(hits) / sum(tokens),
        }


class SequenceMetric(_OfflineMetric):
    """Exact match; the edit error rate, edits per token of the right answer; and the loss per token in nats.

    Takes, an entry an example: ``predictions`` and ``references`` (tokens separated by spaces), ``losses`` (summed)
    and ``tokens``.
    """

    columns: ClassVar = {
        "predictions": "string",
        "references": "string",
        "losses": "float64",
        "tokens": "int64",
    }
    summary = "Exact match, edit error rate and loss."

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], losses: Sequence[float], tokens: Sequence[int]
    ) -> dict[str, float]:
        pairs = [(p.split(), r.split()) for p, r in zip(predictions, references, strict=True)]
        return {
            "exact_match": sum(p == r for p, r in pairs) / len(pairs),
            "edit_error_rate": sum(edit_distance(p, r) for p, r in pairs) / max(1, sum(len(r) for _, r in pairs)),
            "loss": math.fsum(losses) / sum(tokens),
        }


def edit_distance(left: Sequence[object], right: Sequence[object]) -> int:
    """The fewest insertions, deletions and replacements that make one sequence the other."""
    row = list(range(len(right) + 1))
    for i, item in enumerate(left, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (item != other))
    return row[-1]


def exact_mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of McNemar's test: of ``lost + gained`` fair coins, a split at least as uneven. Without
    any, 1.0: there is nothing to tell the two apart by."""
    trials, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    p: float = 2 * tail / 2**trials
    return min(1.0, p)


def compare(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    metrics: tuple[dict[str, float], dict[str, float]],
    *,
    max_abs_logit_change: float,
    max_abs_logit: float,
) -> Quality:
    """Count the answers that changed. ``before`` and ``after`` are of the same examples, in the same order."""
    flips = lost = gained = answers = 0
    for old, new in zip(before, after, strict=True):
        for a, b, target in zip(old.answers, new.answers, old.targets, strict=True):
            answers += 1
            flips += a != b
            lost += a == target != b
            gained += a != target == b
    return Quality(
        *metrics,
        examples=len(before),
        answers=answers,
        flips=flips,
        right_to_wrong=lost,
        wrong_to_right=gained,
        mcnemar_p=exact_mcnemar(lost, gained),
        max_abs_logit_change=max_abs_logit_change,
        max_abs_logit=max_abs_logit,
    )
