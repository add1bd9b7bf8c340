"""Weighted sums over the examples of several samples at once, as metrics need them."""

from __future__ import annotations

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Array

__all__ = ["mean_of", "ratio", "sums", "sums_by_group"]


def sums(weights: Array, row: Array) -> Array:
    """Σ weight · row for each sample; in an order that does not depend on the number of threads, as BLAS's does."""
    if not np.isfinite(row).all():
        row = np.where(weights > 0, row, 0.0)  # what is not in a sample does not make its sum undefined
    found: Array = (weights * row).sum(axis=1)
    return found


def ratio(numerator: Array, denominator: Array) -> Array:
    """Their quotient; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator / denominator)


def mean_of(weights: Array, row: Array) -> Array:
    """The mean of a row in each sample."""
    return ratio(sums(weights, row), weights.sum(axis=1))


def sums_by_group(weights: Array, groups: Array, count: int) -> Array:
    """[sample, group]: Σ of the weights of each group's examples."""
    samples = len(weights)
    cells = (np.arange(samples)[:, None] * count + groups).ravel()
    found = np.bincount(cells, weights=weights.ravel(), minlength=samples * count)
    return found.astype(np.float64, copy=False).reshape(samples, count)
