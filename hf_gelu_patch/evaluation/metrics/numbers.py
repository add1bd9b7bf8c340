"""Metrics of answers that are numbers: correlations, and the mean squared error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import mean_of, ratio, sums, sums_by_group


def _score_rows(predictions: Array, references: Array) -> dict[str, Array]:
    """Both, with their ranks. Predictions that agree up to the rounding of float32, in which they were computed, are
    one value."""
    rows = {
        "predictions": _levelled(predictions, np.finfo(np.float32).eps),
        "references": _levelled(references, np.finfo(np.float64).eps),
    }
    for name, values in list(rows.items()):
        rows[f"{name}_order"] = np.unique(values, return_inverse=True, equal_nan=False)[1]
    return rows


def _number_rows(predictions: Array, references: Array) -> dict[str, Array]:
    return {**_score_rows(predictions, references), "squares": (predictions - references) ** 2}


def _levelled(values: Array, eps: float) -> Array:
    """The same values; or one value for all of them, where they differ by no more than a few roundings. Ranks would
    make an order of these."""
    if not len(values) or not np.ptp(values) <= 4 * eps * np.abs(values).max():  # false where one is NaN
        return values
    return np.full_like(values, values[0])


_NUMBERS = {"predictions": "float64", "references": "float64"}

register_answers(Answers("score", _NUMBERS, _score_rows))  # its scale means nothing: a cosine
register_answers(Answers("number", _NUMBERS, _number_rows))  # on the scale of the right ones


def _spearman(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Pearson's correlation of the ranks, of which equals share the average."""
    ranks = []
    for name in ("predictions", "references"):
        order = rows[f"{name}_order"]
        # How many of a sample have each value, so how many stand before it, and where its share of them stands.
        many = sums_by_group(weights, order, int(order.max(initial=0)) + 1)
        rank = (many.cumsum(axis=1) - many + (many + 1) / 2)[:, order]
        ranks.append(np.where(np.isnan(rows[name]), np.nan, rank))
    return _correlation(weights, *ranks)


def _pearson(weights: Array, rows: Mapping[str, Array]) -> Array:
    return _correlation(weights, rows["predictions"], rows["references"])


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Pearson's Σ(x − x̄)(y − ȳ) / √(Σ(x − x̄)² Σ(y − ȳ)²) of each sample; NaN where x or y is constant in it: where
    what the mean leaves of it is what rounding does."""
    total = weights.sum(axis=1)
    centred = []
    for values in (x, y):
        mean = ratio(sums(weights, values), total)
        left = values - mean[:, None]
        spread = np.sqrt(sums(weights, left**2))
        constant = ~(spread > 1e-13 * np.abs(mean) * np.sqrt(total))  # the bound of scipy.stats.pearsonr
        centred.append((left, np.where(constant, np.nan, spread)))
    (left_x, spread_x), (left_y, spread_y) = centred
    return np.clip(ratio(sums(weights, left_x * left_y), spread_x * spread_y), -1.0, 1.0)


def _mse(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["squares"])


register_metric(Metric("spearman", ("score", "number"), _spearman))
register_metric(Metric("pearson", ("score", "number"), _pearson))
register_metric(Metric("mse", ("number",), _mse, lower_is_better=True, relative=True))
