"""How many times as fast one thing is as another, and whether that is more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "judge", "median_ratio", "reach"]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the second variant is: the median of the paired ratios, and its interval."""

    value: float
    low: float
    high: float


def reach(floor: Ratio) -> float:
    """The further end of an interval around 1, as a logarithm."""
    return max(abs(_log(floor.low)), abs(_log(floor.high)))


def judge(found: Ratio, floor: Ratio) -> str:
    """A difference counts where its whole interval lies beyond the noise floor: beyond the further end of the
    interval of the model against itself, on either side."""
    noise = reach(floor)
    if _log(found.low) > noise:
        return "faster"
    if _log(found.high) < -noise:
        return "slower"
    return "no difference detected"


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf


def median_ratio(before: Sequence[float], after: Sequence[float], *, confidence: float) -> Ratio:
    """How many times as fast ``after`` is, from seconds paired by round: exp of the median log-ratio, with the interval
    between two of the ratios in their order that holds the median however they are spread (a sign test turned around).

    Args:
        before, after: seconds, one of each a round.
        confidence: how often the interval holds the median at least. With fewer rounds than that takes (eight for
            0.99, eleven for 0.999) it reaches from 0 to infinity.
    """
    logs = sorted(math.log(one / other) for one, other in zip(before, after, strict=True))
    left_out = _left_out(len(logs), 1 - confidence)
    value = math.exp(statistics.median(logs))
    if left_out is None:
        return Ratio(value, 0.0, math.inf)
    return Ratio(value, math.exp(logs[left_out]), math.exp(logs[-1 - left_out]))


def _left_out(size: int, most: float) -> int | None:
    """How many values may be left out at each end, so that the median lies outside at most that often; None where it
    may do so with all of them."""
    outside = 2 / 2**size
    if outside > most:
        return None
    found = 0
    while (outside := outside + 2 * math.comb(size, found + 1) / 2**size) <= most:
        found += 1
    return found
