"""How sure a difference is: McNemar's test, Student's, and the paired bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtr, stdtrit

__all__ = ["Interval", "exact_mcnemar", "intervals", "paired_p"]

Array = np.ndarray[Any, Any]
T = TypeVar("T")


_CONFIDENCE = 0.95
_RESAMPLES = 2000
_IN_MEMORY = 2**22  # numbers that resampling holds at a time, in each of a few arrays


@dataclass(frozen=True)
class Interval:
    """A difference, after − before, and between which bounds it lies with 95 % confidence.

    value ± t · √(n / (n − 1)) · s, where s is the standard deviation of the difference over 2,000 samples of n
    examples, drawn with replacement and the same for before and after (the paired bootstrap, Efron 1979), and t is
    Student's quantile with n − 1 degrees of freedom: percentiles of the samples themselves would be far too narrow for
    a few long texts (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). One example gives (−∞, ∞).
    Draws in which the metric is undefined are left out; all NaN where it is undefined on the examples themselves. What
    never changed among n examples has the interval (0, 0), though it may be up to 3/n of all others.

    Attributes:
        value, low, high: the difference, and its bounds.
        p: how likely a difference at least as far from 0 is if there is none, by the same t with the same spread,
            two-sided. 1.0 where it is 0, or where one example says nothing about others; NaN where it is undefined.
    """

    value: float
    low: float
    high: float
    p: float = field(default=math.nan, compare=False)


def exact_mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p of McNemar's test: of ``lost + gained`` fair coins, a split at least as uneven. Without
    any, 1.0: there is nothing to tell the two apart by."""
    from scipy.stats import binomtest  # takes a second to import

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


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


def intervals(
    statistics: Callable[[Array, T], dict[str, Array]],
    before: T,
    after: T,
    size: int,
    *,
    seed: int,
    resamples: int | None = None,
    counts: Array | None = None,
) -> dict[str, Interval]:
    """after − before of each figure.

    Args:
        statistics: the figures by name of several samples, from their weights [sample, example] and from ``before`` or
            ``after``.
        before, after: what there is to count about each example.
        size: how many examples there are.
        seed: for the samples.
        resamples: how many samples to draw, where a figure takes long; None for 2,000.
        counts: how many examples each entry of ``before`` and ``after`` stands for; None where each is one. The samples
            are then drawn as such counts, from the multinomial distribution that they have.
    """
    samples = _samples(size, resamples or _RESAMPLES, counts, np.random.default_rng(seed))
    resampled = _bootstrap(statistics, before, after, samples) if size > 1 else {}
    whole = np.ones((1, size)) if counts is None else counts[None].astype(np.float64)
    values = statistics(whole, before), statistics(whole, after)
    found = {}
    for name, first in values[0].items():
        value = float(_difference(first[0], values[1][name][0]))
        if math.isnan(value):
            found[name] = Interval(math.nan, math.nan, math.nan)
        elif size < 2 or math.isinf(value):
            found[name] = Interval(value, -math.inf, math.inf, 1.0)
        else:
            defined = resampled[name][np.isfinite(resampled[name])]
            spread = float(defined.std(ddof=1)) if len(defined) > 1 else math.inf
            found[name] = _interval(value, math.sqrt(size / (size - 1)) * spread, size - 1)
    return found


def _interval(value: float, error: float, freedom: int) -> Interval:
    """Around a value with a standard error, by Student's t with so many degrees of freedom."""
    reach = error * float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
    far = abs(value) / error if error else math.inf
    return Interval(value, value - reach, value + reach, 2 * float(stdtr(freedom, -far)) if value else 1.0)


def _bootstrap(
    statistics: Callable[[Array, T], dict[str, Array]], before: T, after: T, samples: Iterable[Array]
) -> dict[str, Array]:
    """after − before of each figure, for samples by their weights."""
    found: dict[str, list[Array]] = {}
    for weights in samples:
        old, new = statistics(weights, before), statistics(weights, after)
        for name, values in old.items():
            found.setdefault(name, []).append(_difference(values, new[name]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _samples(size: int, resamples: int, counts: Array | None, generator: np.random.Generator) -> Iterator[Array]:
    """How often each entry is in samples of ``size`` examples: [sample, entry], some samples at a time."""
    for draws in _chunks(resamples, size if counts is None else len(counts)):
        if counts is not None:
            yield generator.multinomial(size, counts / size, draws).astype(np.float64)
            continue
        drawn = generator.integers(0, size, (draws, size))
        cells = (drawn + np.arange(draws)[:, None] * size).ravel()
        yield np.bincount(cells, minlength=draws * size).reshape(draws, size).astype(np.float64)


def _chunks(resamples: int, size: int) -> Iterator[int]:
    """How many resamples of ``size`` to hold at a time."""
    step = max(1, _IN_MEMORY // max(1, size))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _difference(before: Any, after: Any) -> Array:
    """after − before; 0 where both are infinite alike."""
    with np.errstate(invalid="ignore"):
        return np.where(before == after, 0.0, after - before)
