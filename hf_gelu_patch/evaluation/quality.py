"""How good answers are, and which of them a patch changed: from per-example outcomes, in float64.

Everything is paired: the same examples before and after. An example is what is drawn at random; the positions of one
text are not independent of each other, so whatever is said beyond these examples (intervals, the verdict) is said from
examples as wholes.
"""

from __future__ import annotations

import functools
import math
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

__all__ = [
    "LOWER_IS_BETTER",
    "ClassificationMetric",
    "Flip",
    "Interval",
    "LanguageModelMetric",
    "MultiLabelMetric",
    "Outcome",
    "Quality",
    "RegressionMetric",
    "SequenceMetric",
    "SimilarityMetric",
    "compare",
    "edit_distance",
    "exact_mcnemar",
    "judge",
    "margin_of",
    "paired_p",
    "plain_number",
]

Array = np.ndarray[Any, Any]
Answer = str | int | float | bool | None

LOWER_IS_BETTER = frozenset({"perplexity", "bits_per_byte", "edit_error_rate", "loss", "mse"})
"""Metrics of which less is better; of all others more is."""

_RELATIVE = frozenset({"perplexity", "bits_per_byte", "mse"})  # metrics whose margin is a share of their value before
_OF_RIGHT_ANSWERS = (
    "accuracy",
    "macro_f1",
    "token_accuracy",
    "exact_match",
    "subset_accuracy",
)  # what ``p`` is asked about
_CONFIDENCE = 0.95
_RESAMPLES = 2000
_IN_MEMORY = 2**22  # numbers that resampling holds at a time, in each of a few arrays
_LISTED = 100  # flips
_VISIBLE = 1e-4  # what a report's four decimals still show


@dataclass(frozen=True)
class Outcome:
    """What one model said of one example.

    Attributes:
        answers: the predicted label; or the set of predicted labels, a text of 0 and 1 with a digit for each; or the
            most likely next token at each position; or the generated sequence, its tokens joined by spaces.
        targets: the right answers, one for each.
        loss: the negative log-likelihood of the targets, summed, in nats.
        tokens: how many terms the loss sums.
        score: the answer, where it is a number: a similarity, or what a regression head gives.
        top5: for each answer, whether the target is among the five likeliest; () where that was not asked.
    """

    answers: tuple[Answer, ...]
    targets: tuple[Answer, ...]
    loss: float
    tokens: int
    score: float | None = None
    top5: tuple[bool, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data that ``json.dumps`` writes as valid JSON and ``from_json`` reads back to the bit: Python writes a
        float so that it is read as the same, and what is not finite becomes its name ("nan", "inf", "-inf")."""
        return {
            "answers": list(self.answers),
            "targets": list(self.targets),
            "loss": plain_number(self.loss),
            "tokens": self.tokens,
            "score": None if self.score is None else plain_number(self.score),
            "top5": list(self.top5),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The outcome that ``to_json`` made ``data`` of.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        score = data["score"]
        return cls(
            answers=tuple(data["answers"]),
            targets=tuple(data["targets"]),
            loss=float(data["loss"]),
            tokens=int(data["tokens"]),
            score=None if score is None else float(score),
            top5=tuple(data["top5"]),
        )


def plain_number(number: float) -> float | str:
    """As JSON has it: what is not finite by its name."""
    return number if math.isfinite(number) else repr(float(number))


@dataclass(frozen=True)
class Interval:
    """A difference, after − before, and between which bounds it lies with 95 % confidence.

    value ± t · √(n / (n − 1)) · s, where s is the standard deviation of the difference over 2,000 samples of n
    examples, drawn with replacement and the same for before and after (the paired bootstrap, Efron 1979), and t is
    Student's quantile with n − 1 degrees of freedom: percentiles of the samples themselves would be far too narrow for
    a few long texts (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). One example gives (−∞, ∞).
    Draws in which the metric is undefined are left out; all NaN where it is undefined on the examples themselves. What
    never changed among n examples has the interval (0, 0), though it may be up to 3/n of all others.
    """

    value: float
    low: float
    high: float


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


def judge(quality: Quality, significance: float = 0.05) -> str:
    """What became of the answers, in words; the first of these that holds.

    - "no answers to compare": the task asks for none.
    - "answers unchanged": not one flipped, and no other metric is worse (below).
    - "equivalent within ±0.01": a margin was declared, and every metric keeps to it.
    - "answers worse", "answers better": more answers lost correctness than gained it, or fewer, beyond chance: ``p`` is
      below ``significance``.
    - "answers changed, perplexity worse", or "unchanged": right answers do not decide it, but the whole interval of
      another metric lies on the worse side, and it moved by more than 1e-4 of its value before.
    - "answers changed, none the worse as far as can be told".
    """
    if quality.answers == 0:
        return "no answers to compare"
    worse = [name for name in quality.differences if name not in _OF_RIGHT_ANSWERS and _is_worse(quality, name)]
    if quality.flips == 0 and not worse:
        return "answers unchanged"
    if quality.equivalent and all(quality.equivalent.values()):
        return f"equivalent within ±{quality.margin:g}"
    if quality.p < significance:
        return "answers worse" if quality.right_to_wrong > quality.wrong_to_right else "answers better"
    changed = "answers changed" if quality.flips else "answers unchanged"
    if worse:
        return f"{changed}, {' and '.join(name.replace('_', ' ') for name in worse)} worse"
    return f"{changed}, none the worse as far as can be told"


def _is_worse(quality: Quality, name: str) -> bool:
    difference, before = quality.differences[name], quality.before[name]
    harm, least = difference.value, difference.low
    if name not in LOWER_IS_BETTER:
        harm, least = -difference.value, -difference.high
    return least > 0 and harm > _VISIBLE * abs(before)


# ------------------------------------------------------------------------------------------------------------- metrics


class _OfflineMetric(evaluate.Metric):  # type: ignore[misc]
    """Loaded from here, not from the hub; everything stays in memory.

    A subclass says what it takes, an entry an example (``columns``, and ``optional`` ones), how one example counts
    (``rows``), and what a sample of examples comes to (``statistics``).
    """

    columns: ClassVar[dict[str, str]]
    optional: ClassVar[dict[str, str]] = {}
    summary: ClassVar[str]

    @classmethod
    def measure(cls, **inputs: Any) -> dict[str, float]:
        """``compute`` of a fresh metric, in a folder that is gone afterwards."""
        given = "-".join(name for name in cls.optional if name in inputs)
        with tempfile.TemporaryDirectory() as folder:
            metric = cls(config_name=given or None, keep_in_memory=True, cache_dir=folder, seed=0)
            result: dict[str, float] = metric.compute(**inputs)
        return result

    @classmethod
    def values(cls, **columns: Array) -> dict[str, float]:
        """The metrics of arrays, one entry an example. NaN where they are undefined, as without examples."""
        rows = cls.rows(**columns)
        found = cls.statistics(np.ones((1, len(next(iter(rows.values()))))), **rows)
        return {name: float(value[0]) for name, value in found.items()}

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        """What there is to count about each example, as numbers; computed once, however often they are resampled."""
        return columns

    @classmethod
    @abstractmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        """The metrics of several samples: ``weights[sample, example]`` is how many times an example is in one."""

    def _info(self) -> evaluate.MetricInfo:
        extra = {name: kind for name, kind in self.optional.items() if name in self.config_name.split("-")}
        columns = {**self.columns, **extra}
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description=f"Keyword arguments, one list each: {', '.join(columns)}.",
            features=datasets.Features({name: datasets.Value(kind) for name, kind in columns.items()}),
        )

    def _compute(self, **inputs: Sequence[Any]) -> dict[str, float]:
        kinds = {**self.columns, **self.optional}
        return self.values(
            **{
                name: np.array(values, dtype=object if kinds[name] == "string" else kinds[name])
                for name, values in inputs.items()
            }
        )


def _sums(weights: Array, row: Array) -> Array:
    """Σ weight · row for each sample; in an order that does not depend on the number of threads, as BLAS's does."""
    if not np.isfinite(row).all():
        row = np.where(weights > 0, row, 0.0)  # what is not in a sample does not make its sum undefined
    sums: Array = (weights * row).sum(axis=1)
    return sums


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator / denominator)


def _sums_by_group(weights: Array, groups: Array, count: int) -> Array:
    """[sample, group]: Σ of the weights of each group's examples."""
    samples = len(weights)
    cells = (np.arange(samples)[:, None] * count + groups).ravel()
    sums = np.bincount(cells, weights=weights.ravel(), minlength=samples * count)
    return sums.astype(np.float64, copy=False).reshape(samples, count)


class ClassificationMetric(_OfflineMetric):
    """Accuracy, and macro F1: the mean of 2·TP / (2·TP + FP + FN) over the labels that the references have; and top-5
    accuracy where ``top5`` is given. A label that only predictions have takes no part in the mean: one stray answer
    would move it by a whole label's share.

    Takes ``predictions`` and ``references``, label ids; ``top5``, whether the right one is among the five likeliest.
    """

    columns: ClassVar = {"predictions": "int64", "references": "int64"}
    optional: ClassVar = {"top5": "bool"}
    summary = "Accuracy and macro F1."

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        said, right = columns["predictions"], columns["references"]
        codes = np.unique(np.concatenate([said, right]), return_inverse=True)[1]
        first, second = codes[: len(said)], codes[len(said) :]
        rows = {"said": first, "right": second, "hits": first == second}
        return {**rows, "top5": columns["top5"]} if "top5" in columns else rows

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        count = 1 + max(int(rows["said"].max(initial=0)), int(rows["right"].max(initial=0)))
        hits = _sums_by_group(weights * rows["hits"], rows["right"], count)
        said, right = (_sums_by_group(weights, rows[name], count) for name in ("said", "right"))
        total = weights.sum(axis=1)
        found = {
            "accuracy": _ratio(_sums(weights, rows["hits"]), total),
            "macro_f1": _macro_f1(hits, said, right),
        }
        return {**found, "top5_accuracy": _ratio(_sums(weights, rows["top5"]), total)} if "top5" in rows else found


def _macro_f1(hits: Array, said: Array, right: Array) -> Array:
    """The mean of 2·TP / (2·TP + FP + FN) over the labels that occur among the right answers, of [sample, label]."""
    present = right > 0
    scores = np.divide(2 * hits, said + right, out=np.zeros_like(right), where=present)
    return _ratio(scores.sum(axis=1), present.sum(axis=1))


class MultiLabelMetric(_OfflineMetric):
    """Of sets of labels: the share that is right to the last label; micro F1, 2·TP / (2·TP + FP + FN) of all labels
    counted together; and macro F1, its mean over the labels that the references have. NaN where there are none.

    Takes ``predictions`` and ``references``: texts of 0 and 1, with a digit for each label.
    """

    columns: ClassVar = {"predictions": "string", "references": "string"}
    summary = "Subset accuracy, micro and macro F1."

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        said, right = (_bits(columns[name]) for name in ("predictions", "references"))
        return {"exact": (said == right).all(axis=1), "hits": said * right, "said": said, "right": right}

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        # Whole numbers, of which float64 has the exact sums in any order.
        hits, said, right = (weights @ rows[name] for name in ("hits", "said", "right"))
        return {
            "subset_accuracy": _ratio(_sums(weights, rows["exact"]), weights.sum(axis=1)),
            "micro_f1": _ratio(2 * hits.sum(axis=1), (said + right).sum(axis=1)),
            "macro_f1": _macro_f1(hits, said, right),
        }


def _bits(texts: Array) -> Array:
    """[example, label]: 1.0 and 0.0."""
    width = len(texts[0]) if len(texts) else 0
    return np.array([[bit == "1" for bit in text] for text in texts], dtype=np.float64).reshape(len(texts), width)


class LanguageModelMetric(_OfflineMetric):
    """Perplexity, exp of the mean negative log-likelihood per token, and the share of tokens predicted right; where
    ``bytes`` is given, bits per byte too: Σ negative log-likelihood / (ln 2 · Σ bytes), which depends on no tokenizer.

    Takes, an entry an example: ``losses`` (summed, in nats), ``tokens`` and ``hits`` (how many); ``bytes``, how many
    the tokens' text has in UTF-8.
    """

    columns: ClassVar = {"losses": "float64", "tokens": "int64", "hits": "int64"}
    optional: ClassVar = {"bytes": "float64"}
    summary = "Perplexity, token accuracy and bits per byte."

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        losses, tokens = _sums(weights, rows["losses"]), _sums(weights, rows["tokens"])
        with np.errstate(over="ignore"):  # a hopeless model's perplexity is infinite
            perplexity = np.exp(_ratio(losses, tokens))
        found = {"perplexity": perplexity, "token_accuracy": _ratio(_sums(weights, rows["hits"]), tokens)}
        if "bytes" in rows:
            found["bits_per_byte"] = _ratio(losses, math.log(2) * _sums(weights, rows["bytes"]))
        return found


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

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        counted = [_edits(*pair) for pair in zip(columns["predictions"], columns["references"], strict=True)]
        edits, lengths, exact = np.array(counted, dtype=np.int64).reshape(-1, 3).T
        return {
            "edits": edits,
            "lengths": lengths,
            "exact": exact,
            "losses": columns["losses"],
            "tokens": columns["tokens"],
        }

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        return {
            "exact_match": _ratio(_sums(weights, rows["exact"]), weights.sum(axis=1)),
            "edit_error_rate": _ratio(_sums(weights, rows["edits"]), np.maximum(1, _sums(weights, rows["lengths"]))),
            "loss": _ratio(_sums(weights, rows["losses"]), _sums(weights, rows["tokens"])),
        }


class SimilarityMetric(_OfflineMetric):
    """Spearman's and Pearson's correlation of the scores with the right ones. Spearman's is Pearson's of the ranks, of
    which equals share the average. NaN where either side is constant: of predictions, where they agree up to the
    rounding of float32, in which they were computed.

    Takes ``predictions`` and ``references``, a number an example.
    """

    columns: ClassVar = {"predictions": "float64", "references": "float64"}
    summary = "Spearman's and Pearson's correlation."

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        rows = {
            "predictions": _levelled(columns["predictions"], np.finfo(np.float32).eps),
            "references": _levelled(columns["references"], np.finfo(np.float64).eps),
        }
        for name, values in list(rows.items()):
            rows[f"{name}_order"] = np.unique(values, return_inverse=True, equal_nan=False)[1]
        return rows

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        ranks = []
        for name in ("predictions", "references"):
            order = rows[f"{name}_order"]
            # How many of a sample have each value, so how many stand before it, and where its share of them stands.
            many = _sums_by_group(weights, order, int(order.max(initial=0)) + 1)
            rank = (many.cumsum(axis=1) - many + (many + 1) / 2)[:, order]
            ranks.append(np.where(np.isnan(rows[name]), np.nan, rank))
        return {
            "spearman": _correlation(weights, *ranks),
            "pearson": _correlation(weights, rows["predictions"], rows["references"]),
        }


class RegressionMetric(SimilarityMetric):
    """The correlations of ``SimilarityMetric``; the mean squared error; and, of answers and targets that are 0 or 1
    where they are given, accuracy and macro F1."""

    optional: ClassVar = {"answers": "int64", "targets": "int64"}
    summary = "Correlations and mean squared error."

    @classmethod
    def rows(cls, **columns: Array) -> dict[str, Array]:
        said, right = columns["predictions"], columns["references"]
        rows = {**super().rows(predictions=said, references=right), "squares": (said - right) ** 2}
        if "answers" in columns:
            rows |= ClassificationMetric.rows(predictions=columns["answers"], references=columns["targets"])
        return rows

    @classmethod
    def statistics(cls, weights: Array, **rows: Array) -> dict[str, Array]:
        found = super().statistics(weights, **rows)
        found["mse"] = _ratio(_sums(weights, rows["squares"]), weights.sum(axis=1))
        return {**found, **ClassificationMetric.statistics(weights, **rows)} if "hits" in rows else found


def _levelled(values: Array, eps: float) -> Array:
    """The same values; or one value for all of them, where they differ by no more than a few roundings. Ranks would
    make an order of these."""
    if not len(values) or not np.ptp(values) <= 4 * eps * np.abs(values).max():  # false where one is NaN
        return values
    return np.full_like(values, values[0])


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Pearson's Σ(x − x̄)(y − ȳ) / √(Σ(x − x̄)² Σ(y − ȳ)²) of each sample; NaN where x or y is constant in it: where
    what the mean leaves of it is what rounding does."""
    total = weights.sum(axis=1)
    centred = []
    for values in (x, y):
        mean = _ratio(_sums(weights, values), total)
        left = values - mean[:, None]
        spread = np.sqrt(_sums(weights, left**2))
        constant = ~(spread > 1e-13 * np.abs(mean) * np.sqrt(total))  # the bound of scipy.stats.pearsonr
        centred.append((left, np.where(constant, np.nan, spread)))
    (left_x, spread_x), (left_y, spread_y) = centred
    return np.clip(_ratio(_sums(weights, left_x * left_y), spread_x * spread_y), -1.0, 1.0)


@functools.lru_cache(maxsize=2**16)  # a good patch leaves most answers as they were
def _edits(prediction: str, reference: str) -> tuple[int, int, bool]:
    """(edits, tokens of the reference, whether they are the same)."""
    said, right = prediction.split(), reference.split()
    return edit_distance(said, right), len(right), said == right


def edit_distance(left: Sequence[object], right: Sequence[object]) -> int:
    """The fewest insertions, deletions and replacements that make one sequence the other."""
    start, end = 0, 0  # how much they begin and end with in common
    shorter = min(len(left), len(right))
    while start < shorter and left[start] == right[start]:
        start += 1
    while end < shorter - start and left[-1 - end] == right[-1 - end]:
        end += 1
    left, right = left[start : len(left) - end], right[start : len(right) - end]
    row = list(range(len(right) + 1))
    for i, item in enumerate(left, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (item != other))
    return row[-1]


# ---------------------------------------------------------------------------------------------------------- statistics


def exact_mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of McNemar's test: of ``lost + gained`` fair coins, a split at least as uneven. Without
    any, 1.0: there is nothing to tell the two apart by."""
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def paired_p(gains: Array, lost: int, gained: int) -> float:
    """McNemar's question, asked of examples: how likely such a difference between answers lost and gained is by chance.

    With one changed answer an example at most, ``exact_mcnemar``. Else the larger of that, which takes the positions of
    a text for independent, and of Student's t over the examples' differences, which lets them depend on each other as
    they may, but would take it for certain that two texts with one loss each are worse.

    Args:
        gains: for each example, wrong → right minus right → wrong.
        lost, gained: right → wrong, wrong → right, in all.
    """
    independent = exact_mcnemar(lost, gained)
    size = len(gains)
    if np.count_nonzero(gains) == lost + gained:
        return independent
    if size < 2:
        return 1.0
    error = float(gains.std(ddof=1)) / math.sqrt(size)
    if error == 0:
        return independent
    return max(independent, 2 * float(stdtr(size - 1, -abs(float(gains.mean())) / error)))


def _chunks(resamples: int, size: int) -> Iterator[int]:
    """How many resamples of ``size`` to hold at a time."""
    step = max(1, _IN_MEMORY // max(1, size))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _bootstrap(
    metric: type[_OfflineMetric], old: Mapping[str, Array], new: Mapping[str, Array], *, seed: int
) -> dict[str, Array]:
    """after − before of each metric, for 2,000 resamples of the examples."""
    size = len(next(iter(old.values())))
    generator = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {}
    for draws in _chunks(_RESAMPLES, size):
        drawn = generator.integers(0, size, (draws, size))
        cells = (drawn + np.arange(draws)[:, None] * size).ravel()
        weights = np.bincount(cells, minlength=draws * size).reshape(draws, size).astype(np.float64)
        before, after = metric.statistics(weights, **old), metric.statistics(weights, **new)
        for name, values in before.items():
            found.setdefault(name, []).append(_difference(values, after[name]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _difference(before: Any, after: Any) -> Array:
    """after − before; 0 where both are infinite alike."""
    with np.errstate(invalid="ignore"):
        return np.where(before == after, 0.0, after - before)


def _intervals(
    metric: type[_OfflineMetric], before: Mapping[str, Array], after: Mapping[str, Array], *, seed: int
) -> dict[str, Interval]:
    """after − before of each metric, from the columns."""
    old, new = metric.rows(**before), metric.rows(**after)
    size = len(next(iter(old.values())))
    resampled = _bootstrap(metric, old, new, seed=seed) if size > 1 else {}
    values = metric.values(**before), metric.values(**after)
    student = math.sqrt(size / (size - 1)) * float(stdtrit(size - 1, (1 + _CONFIDENCE) / 2)) if size > 1 else math.inf
    found = {}
    for name, first in values[0].items():
        value = float(_difference(np.float64(first), np.float64(values[1][name])))
        if math.isnan(value):
            found[name] = Interval(math.nan, math.nan, math.nan)
        elif size < 2 or math.isinf(value):
            found[name] = Interval(value, -math.inf, math.inf)
        else:
            defined = resampled[name][np.isfinite(resampled[name])]
            reach = student * float(defined.std(ddof=1)) if len(defined) > 1 else math.inf
            found[name] = Interval(value, value - reach, value + reach)
    return found


# ---------------------------------------------------------------------------------------------------------- comparison


def compare(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    task_columns: Callable[[Sequence[Outcome]], Mapping[str, Array]],
    metric: type[_OfflineMetric] | None,
    *,
    seed: int,
    margin: float | None = None,
    metrics: tuple[dict[str, float], dict[str, float]] | None = None,
    max_abs_logit_change: float,
    max_abs_logit: float,
) -> Quality:
    """What a patch did to the answers.

    Args:
        before, after: of the same examples, all of them, in the same order.
        task_columns: what ``metric`` takes, an entry an example, from outcomes: ``Task.columns``.
        metric: how the task is measured; None where it has no right answers.
        seed: for the bootstrap.
        margin: how far a metric may move and still count as equivalent: see ``Quality.equivalent``.
        metrics: the task's metrics before and after, where there are more of them than ``metric`` gives.
        max_abs_logit_change, max_abs_logit: as in ``Quality``.

    Raises:
        ValueError: ``before`` and ``after`` are not of the same examples, or the margin is not a positive number.
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin is a positive number; got {margin}.")
    flips = lost = gained = answers = 0
    flipped: list[Flip] = []
    gains = np.zeros(len(before), dtype=np.int64)
    for example, (old, new) in enumerate(zip(before, after, strict=True)):
        for a, b, target in _answers(old, new):
            answers += 1
            if a == b:
                continue
            flips += 1
            lost += a == target
            gained += b == target
            gains[example] += (b == target) - (a == target)
            if len(flipped) < _LISTED:
                flipped.append(Flip(example, str(a), str(b), "" if target is None else str(target)))
    values: tuple[dict[str, float], dict[str, float]] = {}, {}
    differences: dict[str, Interval] = {}
    if metric is not None:
        columns = [task_columns(outcomes) for outcomes in (before, after)]
        values = metric.values(**columns[0]), metric.values(**columns[1])
        differences = _intervals(metric, columns[0], columns[1], seed=seed)
    return Quality(
        *(values if metrics is None else metrics),
        examples=len(before),
        answers=answers,
        flips=flips,
        right_to_wrong=lost,
        wrong_to_right=gained,
        mcnemar_p=exact_mcnemar(lost, gained),
        p=paired_p(gains, lost, gained),
        differences=differences,
        margin=margin,
        equivalent=None if margin is None else _within(differences, values[0], margin),
        flipped=tuple(flipped),
        max_abs_logit_change=max_abs_logit_change,
        max_abs_logit=max_abs_logit,
    )


def _answers(old: Outcome, new: Outcome) -> Iterator[tuple[Answer, Answer, Answer]]:
    """(before, after, right) of each answer of an example. Where these are scores, those that differ by less than
    anyone sees are the same; there is no right one among them."""
    yield from zip(old.answers, new.answers, old.targets, strict=True)
    if not old.answers and old.score is not None and new.score is not None:
        moved = not (abs(new.score - old.score) <= _VISIBLE or (math.isnan(old.score) and math.isnan(new.score)))
        yield f"{old.score:.4f}", f"{new.score:.4f}" if moved else f"{old.score:.4f}", None


def margin_of(metric: str, margin: float, before: float) -> float:
    """How far a metric may move: by the margin; of perplexity, bits per byte and the mean squared error, which know no
    bounds, by that share of its value."""
    return margin * abs(before) if metric in _RELATIVE else margin


def _within(differences: Mapping[str, Interval], before: Mapping[str, float], margin: float) -> dict[str, bool]:
    found = {}
    for name, difference in differences.items():
        most = margin_of(name, margin, before[name])
        found[name] = -most <= difference.low and difference.high <= most
    return found
