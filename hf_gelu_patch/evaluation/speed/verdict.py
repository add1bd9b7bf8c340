"""How many times as fast one variant is as another, by a bootstrap over the rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from hf_gelu_patch.verdicts import Ratio, judge, reach

__all__ = ["CONFIDENCE", "Ratio", "judge", "ratio", "reach"]

CONFIDENCE = 0.99
"""Of each interval. A report holds some twenty of them, and each has to hold: at 95 % one of them would not."""

_RESAMPLES = 2000
_IN_MEMORY = 2**22  # numbers that resampling holds at a time


def ratio(before: Sequence[float], after: Sequence[float], *, seed: int) -> Ratio:
    """How many times as fast ``after`` is, from seconds paired by round: exp of the median log-ratio, with the
    percentile bootstrap interval of ``CONFIDENCE`` over the rounds, expanded for few of them."""
    logs = np.log(np.asarray(before, dtype=np.float64) / np.asarray(after, dtype=np.float64))
    generator = np.random.default_rng(seed)
    step = max(1, _IN_MEMORY // len(logs))
    resampled = [
        np.median(logs[generator.integers(0, len(logs), (min(step, _RESAMPLES - start), len(logs)))], axis=1)
        for start in range(0, _RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(resampled), _tails(len(logs)))
    return Ratio(*(math.exp(float(value)) for value in (np.median(logs), low, high)))


def _tails(size: int) -> tuple[float, float]:
    """The quantiles at which a bootstrap of ``size`` values is read: Φ(±√(n / (n − 1)) · t), since its spread is that
    of the values by n and its tails are normal, where n − 1 and Student's t are right (Hesterberg 2015, "What Teachers
    Should Know About the Bootstrap", expanded percentile interval)."""
    t = math.sqrt(size / (size - 1)) * float(stdtrit(size - 1, (1 + CONFIDENCE) / 2)) if size > 1 else math.inf
    tail = statistics.NormalDist().cdf(-t)
    return tail, 1 - tail
