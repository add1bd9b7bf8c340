"""metrics"""

from __future__ import annotations

import functools
import math
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

Array = np.ndarray[Any, Any]


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
