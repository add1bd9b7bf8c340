"""Values of documents made a score, for all of them at once and for many samples of them.

lm-evaluation-harness names an aggregation in a task's configuration. The ones whose sums are known are computed for all
resamples at once. Any other is called on each resample's values, with fewer resamples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Array
from hf_gelu_patch.evaluation.metrics.sums import mean_of, ratio, sums

__all__ = ["Aggregation", "find_aggregation"]

_CALLED = 200  # resamples of an aggregation that is called: the width of an interval is then off by some 5 %
_CALLED_SLOW = 100  # of sacrebleu's, as lm-evaluation-harness has it
_SLOW = ("bleu", "chrf", "chrf++", "ter")


@dataclass(frozen=True)
class Aggregation:
    """How the values of documents become a score.

    Attributes:
        name: as a task's configuration has it.
        call: the score of a list of values.
        sampled: the score of each of several samples, from their weights [sample, document] and the values as an
            array; None to call ``call`` for each.
        numbers: how many numbers a value has: 1, or 2 for a pair; None for whatever ``call`` takes.
    """

    name: str
    call: Callable[[list[Any]], float]
    sampled: Callable[[Array, Array], Array] | None = None
    numbers: int | None = None

    @property
    def resamples(self) -> int | None:
        """How many resamples it is worth; None for as many as usual."""
        if self.sampled is not None:
            return None
        return _CALLED_SLOW if self.name in _SLOW else _CALLED

    def score(self, values: Sequence[Any]) -> float:
        """Of all documents, by the function itself, whatever it warns of."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(self.call(list(values)))

    def statistic(self, weights: Array, values: Sequence[Any]) -> Array:
        """Of each of several samples: ``weights[sample, document]`` is how many times a document is in one."""
        if self.sampled is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                return self.sampled(weights, np.asarray(values, dtype=np.float64))
        return np.array([self._drawn(row.astype(np.int64), values) for row in weights])

    def _drawn(self, counts: Array, values: Sequence[Any]) -> float:
        """Of one sample; NaN where the function has none for it, as of one in which a class is missing."""
        try:
            return self.score([value for value, count in zip(values, counts, strict=True) for _ in range(count)])
        except (ArithmeticError, ValueError, IndexError):
            return math.nan


def find_aggregation(name: str, call: Callable[[list[Any]], float] | None = None) -> Aggregation | None:
    """The aggregation of a name.

    Args:
        name: as a task's configuration has it.
        call: the function, where it is known; else one of that name is looked for, here and in lm-evaluation-harness
            where that is installed.

    Returns:
        None where there is none.
    """
    if name in _KNOWN and (call is None or _is_harness(name, call)):
        return _KNOWN[name]
    found = call or _of_harness(name)
    return None if found is None else Aggregation(name, found)


def _is_harness(name: str, call: Callable[[list[Any]], float]) -> bool:
    return call is _of_harness(name)


def _of_harness(name: str) -> Callable[[list[Any]], float] | None:
    """The function that lm-evaluation-harness has registered by that name; None without one, or without it."""
    try:
        from lm_eval.api import metrics  # noqa: F401  (registers them)
        from lm_eval.api.registry import AGGREGATION_REGISTRY
    except ModuleNotFoundError:
        return None
    known: dict[str, Callable[[list[Any]], float]] = dict(AGGREGATION_REGISTRY.items())
    return known.get(name)


# ------------------------------------------------------------------------------------------------ those that are known
# The scores add up in the order of the documents, as lm-evaluation-harness does, so that the last digit is the same.


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def _nanmean(values: list[Any]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return float(np.nanmean(values)) if there else math.nan


def _weighted_mean(values: list[Any]) -> float:
    return float(sum(value for value, _ in values) / sum(weight for _, weight in values))


def _sampled_nanmean(weights: Array, values: Array) -> Array:
    there = np.isfinite(values)
    return ratio(sums(weights, np.where(there, values, 0.0)), sums(weights, there.astype(np.float64)))


def _sampled_weighted(weights: Array, pairs: Array) -> Array:
    return ratio(sums(weights, pairs[:, 0]), sums(weights, pairs[:, 1]))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


_KNOWN = {
    one.name: one
    for one in (
        Aggregation("mean", _mean, mean_of, 1),
        Aggregation("nanmean", _nanmean, _sampled_nanmean, 1),
        Aggregation("perplexity", lambda values: _exp(-_mean(values)), lambda w, v: np.exp(-mean_of(w, v)), 1),
        Aggregation("weighted_mean", _weighted_mean, _sampled_weighted, 2),
        Aggregation(
            "weighted_perplexity",
            lambda values: _exp(-_weighted_mean(values)),
            lambda w, v: np.exp(-_sampled_weighted(w, v)),
            2,
        ),
        Aggregation(
            "bits_per_byte",
            lambda values: -_weighted_mean(values) / math.log(2),
            lambda w, v: -_sampled_weighted(w, v) / math.log(2),
            2,
        ),
    )
}
