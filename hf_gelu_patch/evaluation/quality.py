"""What became of the answers under a patch: which changed, how far each metric moved, and what that comes to.

Everything is paired: the same examples before and after. An example is what is drawn at random; the positions of one
text are not independent of each other, so whatever is said beyond these examples (intervals, the verdict) is said from
examples as wholes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_gelu_patch.evaluation.metrics import METRICS
from hf_gelu_patch.evaluation.metrics.gathered import Gathered, merged
from hf_gelu_patch.evaluation.metrics.registry import Array, Columns, Rows, measured, statistics_of
from hf_gelu_patch.evaluation.outcomes import Answer, Outcome
from hf_gelu_patch.evaluation.statistics import Interval, exact_mcnemar, intervals, paired_p

_LISTED = 100  # flips
_MERGED_FROM = 2**15  # examples from which on the bootstrap counts kinds of examples rather than examples
_ALIKE = 64  # examples of a kind, at least and on average, that make it worth while
_VISIBLE = 1e-4  # what a report's four decimals still show


@dataclass(frozen=True)
class Flip:
    """An answer that changed: in which example, from what to what, and what is right ("" where nothing is)."""

    example: int
    before: str
    after: str
    target: str


@dataclass(frozen=True)
class Quality:
    """The same examples before and after a patch.

    Attributes:
        before, after: the task's metrics by name; fractions, never percentages.
        examples: how many there were.
        answers: how many answers they have: one each, or one for each position of running text.
        flips: answers that changed; of numbers, those that moved by more than 1e-4, which four decimals would show.
        right_to_wrong, wrong_to_right: those of them that lost or gained correctness.
        mcnemar_p: the exact two-sided McNemar test on these two: the chance of a split as uneven as this if losing
            and gaining were equally likely; 1.0 where neither occurred. Takes all answers for independent.
        p: the same question asked of whole examples, ``paired_p``: what the verdict rests on. It is ``mcnemar_p``
            where each example has one answer.
        differences: after − before of each metric, with its interval.
        margin: what was declared to count as equivalent; None where nothing was.
        equivalent: of each metric, whether its whole interval lies within ±margin (of perplexity, bits per byte and
            the mean squared error, which know no bounds: within ±margin of its value before); None without one.
        flipped: the first 100 answers that changed.
        max_abs_logit_change: max |logit after − logit before| over all positions that count.
        max_abs_logit: max |logit before|, the scale to see it against.
        lower_is_better, counts_right, relative: the metrics of ``differences`` of which that is so, as ``Metric`` has
            it.
    """

    before: dict[str, float]
    after: dict[str, float]
    examples: int
    answers: int
    flips: int
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float
    p: float
    differences: dict[str, Interval]
    margin: float | None
    equivalent: dict[str, bool] | None
    flipped: tuple[Flip, ...]
    max_abs_logit_change: float
    max_abs_logit: float
    lower_is_better: tuple[str, ...] = ()
    counts_right: tuple[str, ...] = ()
    relative: tuple[str, ...] = ()

    @property
    def margins(self) -> dict[str, float]:
        """How far each metric may move: by the margin; one that knows no bounds, such as perplexity, by that share of
        its value before. Nothing without a margin."""
        if self.margin is None:
            return {}
        return {name: margin_of(self.margin, self.before[name], name in self.relative) for name in self.differences}


def judge(quality: Quality, significance: float = 0.05) -> str:
    """What became of the answers, in words; the first of these that holds.

    - "no answers to compare": the task asks for none, and measures nothing.
    - "scores unchanged", "perplexity worse", "equivalent within …" or "no score the worse as far as can be told": of a
      task that measures how likely texts are, and asks for no answers.
    - "answers unchanged": not one flipped, and no other metric is worse (below).
    - "equivalent within ±0.01": a margin was declared, and every metric keeps to it.
    - "answers worse", "answers better": more answers lost correctness than gained it, or fewer, beyond chance: ``p`` is
      below ``significance``.
    - "answers changed, perplexity worse", or "unchanged": right answers do not decide it, but the whole interval of
      another metric lies on the worse side, and it moved by more than 1e-4 of its value before.
    - "answers changed, none the worse as far as can be told".
    """
    if quality.answers == 0 and not quality.differences:
        return "no answers to compare"
    worse = [name for name in quality.differences if name not in quality.counts_right and _is_worse(quality, name)]
    if quality.answers == 0 and not any(one.value for one in quality.differences.values()):
        return "scores unchanged"
    if quality.answers and quality.flips == 0 and not worse:
        return "answers unchanged"
    if quality.equivalent and all(quality.equivalent.values()):
        return f"equivalent within ±{quality.margin:g}"
    if quality.answers == 0:
        return f"{_listed(worse)} worse" if worse else "no score the worse as far as can be told"
    if quality.p < significance:
        return "answers worse" if quality.right_to_wrong > quality.wrong_to_right else "answers better"
    changed = "answers changed" if quality.flips else "answers unchanged"
    if worse:
        return f"{changed}, {_listed(worse)} worse"
    return f"{changed}, none the worse as far as can be told"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names)


def _is_worse(quality: Quality, name: str) -> bool:
    difference, before = quality.differences[name], quality.before[name]
    harm, least = difference.value, difference.low
    if name not in quality.lower_is_better:
        harm, least = -difference.value, -difference.high
    return least > 0 and harm > _VISIBLE * abs(before)


def compare(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    columns: Callable[[Sequence[Outcome]], Columns],
    *,
    seed: int,
    margin: float | None = None,
    metrics: tuple[dict[str, float], dict[str, float]] | None = None,
    logits: tuple[float, float] = (0.0, 0.0),
) -> Quality:
    """What a patch did to the answers.

    Args:
        before, after: of the same examples, all of them, in the same order.
        columns: what the metrics take, from outcomes: ``Task.columns``.
        seed: for the bootstrap.
        margin: how far a metric may move and still count as equivalent: see ``Quality.equivalent``.
        metrics: the task's metrics before and after, where there are more of them than those of its answers.
        logits: ``max_abs_logit_change`` and ``max_abs_logit``, as in ``Quality``.

    Raises:
        ValueError: ``before`` and ``after`` are not of the same examples, or the margin is not a positive number.
    """
    changes, sides = Changes(), (Gathered(), Gathered())
    examples = range(len(before))
    changes.add(examples, before, after)
    for side, outcomes in zip(sides, (before, after), strict=True):
        side.add(examples, columns(outcomes))
    return changes.quality(*sides, seed=seed, margin=margin, metrics=metrics, logits=logits)


class Changes:
    """Which answers a patch changed. Examples are added a part at a time, in any order."""

    def __init__(self) -> None:
        self._answers = self._lost = self._gained = self._flips = 0
        self._examples: list[Array] = []
        self._gains: list[Array] = []
        self._flipped: list[tuple[int, int, Flip]] = []

    def add(self, examples: Sequence[int], before: Sequence[Outcome], after: Sequence[Outcome]) -> None:
        """Add some examples, by their numbers.

        Raises:
            ValueError: ``before`` and ``after`` are not of the same examples.
        """
        gains = np.zeros(len(examples), dtype=np.int32)
        for place, (example, old, new) in enumerate(zip(examples, before, after, strict=True)):
            for number, (a, b, target) in enumerate(_answers(old, new)):
                self._answers += 1
                if a == b:
                    continue
                self._flips += 1
                self._lost += a == target
                self._gained += b == target
                gains[place] += int(b == target) - int(a == target)
                self._note(example, number, Flip(example, str(a), str(b), "" if target is None else str(target)))
        self._examples.append(np.asarray(examples, dtype=np.int64))
        self._gains.append(gains)

    def _note(self, example: int, number: int, flip: Flip) -> None:
        """Keep it, if it may be among the first."""
        self._flipped.append((example, number, flip))
        if len(self._flipped) > 10 * _LISTED:
            self._flipped = sorted(self._flipped, key=lambda one: one[:2])[:_LISTED]

    def quality(
        self,
        before: Gathered,
        after: Gathered,
        *,
        seed: int,
        margin: float | None = None,
        metrics: tuple[dict[str, float], dict[str, float]] | None = None,
        logits: tuple[float, float] = (0.0, 0.0),
    ) -> Quality:
        """What that comes to.

        Args:
            before, after: what the metrics take, of the examples that were added.
            seed, margin, metrics, logits: as for ``compare``, which has the errors too.
        """
        if margin is not None and not margin > 0:
            raise ValueError(f"a margin is a positive number; got {margin}.")
        rows = before.rows(), after.rows()
        values = measured(rows[0]), measured(rows[1])
        nothing = np.zeros(0, dtype=np.int64)
        order = np.argsort(np.concatenate([nothing, *self._examples]), kind="stable")
        gains = np.concatenate([nothing, *self._gains])[order]
        differences = _differences(*rows, len(gains), seed)
        return Quality(
            *(values if metrics is None else metrics),
            examples=len(gains),
            answers=self._answers,
            flips=self._flips,
            right_to_wrong=self._lost,
            wrong_to_right=self._gained,
            mcnemar_p=exact_mcnemar(self._lost, self._gained),
            p=paired_p(gains, self._lost, self._gained),
            differences=differences,
            margin=margin,
            equivalent=(
                None if margin is None else within(differences, values[0], margin, _those(differences, "relative"))
            ),
            flipped=tuple(flip for *_, flip in sorted(self._flipped, key=lambda one: one[:2])[:_LISTED]),
            max_abs_logit_change=logits[0],
            max_abs_logit=logits[1],
            lower_is_better=_those(differences, "lower_is_better"),
            counts_right=_those(differences, "counts_right"),
            relative=_those(differences, "relative"),
        )


def _differences(before: Rows, after: Rows, size: int, seed: int) -> dict[str, Interval]:
    alike = merged(before, after, size // _ALIKE) if size >= _MERGED_FROM else None
    if alike is None:
        return intervals(statistics_of, before, after, size, seed=seed)
    old, new, counts = alike
    return intervals(statistics_of, old, new, size, seed=seed, counts=counts)


def _those(metrics: Iterable[str], kind: str) -> tuple[str, ...]:
    """The metrics of which something is so, by the name of the field of ``Metric`` that says it."""
    return tuple(name for name in metrics if getattr(METRICS[name], kind))


def _answers(old: Outcome, new: Outcome) -> Iterator[tuple[Answer, Answer, Answer]]:
    """(before, after, right) of each answer of an example. Where these are scores, those that differ by less than
    anyone sees are the same; there is no right one among them."""
    yield from zip(old.answers, new.answers, old.targets, strict=True)
    if not old.answers and old.score is not None and new.score is not None:
        moved = not (abs(new.score - old.score) <= _VISIBLE or (math.isnan(old.score) and math.isnan(new.score)))
        yield f"{old.score:.4f}", f"{new.score:.4f}" if moved else f"{old.score:.4f}", None


def margin_of(margin: float, before: float, relative: bool) -> float:
    """How far a metric may move: by the margin, or by that share of its value."""
    return margin * abs(before) if relative else margin


def within(
    differences: Mapping[str, Interval], before: Mapping[str, float], margin: float, relative: Iterable[str]
) -> dict[str, bool]:
    """Of each metric, whether its whole interval lies within its margin.

    Args:
        differences: after − before, by metric.
        before: the values before.
        margin: what counts as equivalent.
        relative: the metrics of which it is a share of their value.
    """
    shares = set(relative)
    found = {}
    for name, difference in differences.items():
        most = margin_of(margin, before[name], name in shares)
        found[name] = -most <= difference.low and difference.high <= most
    return found
