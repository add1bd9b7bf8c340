"""How fast two variants of a model are, measured so that noise is not taken for a difference.

Rounds: in each, every variant runs the same batch once, in an order drawn anew. One of the variants is the unpatched
model a second time; what is found between the two that are the same is the noise floor.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CONFIDENCE", "Ratio", "Speed", "Timings", "judge", "measure", "ratio"]

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Timings:
    """Raw samples: ``seconds[variant][round]``, with the units of work (examples, tokens) that the round's batch
    has."""

    seconds: dict[str, list[float]]
    units: list[int]

    def throughput(self, variant: str) -> float:
        """Units per second: the median over the rounds."""
        pairs = zip(self.units, self.seconds[variant], strict=True)
        return statistics.median(units / seconds for units, seconds in pairs)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the second variant is: the median of the paired ratios, and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """What was measured, and what follows.

    Attributes:
        unit: what throughput counts.
        before, after: units per second of the model unpatched and patched; ``after`` is None where nothing was
            patched.
        ratio: patched against unpatched; above 1 is faster. None likewise.
        floor: the unpatched model against itself, in the same rounds.
        verdict: "faster", "slower" or "no difference detected"; "nothing patched".
        timings: the raw samples, by variant: "before", "again" (the unpatched model once more) and "after".
    """

    unit: str
    before: float
    after: float | None
    ratio: Ratio | None
    floor: Ratio
    verdict: str
    timings: Timings


def measure(
    variants: Mapping[str, Callable[[int], None]],
    units: Sequence[int],
    *,
    warm_up: Sequence[int],
    seed: int,
    min_rounds: int,
    min_seconds: float,
    max_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> Timings:
    """Time every variant on the same batches in rounds, each in an order of its own.

    Each variant runs the batches of ``warm_up`` once beforehand. It goes on until there have been ``min_rounds`` and
    every variant ran for ``min_seconds``, or all together for ``max_seconds`` (after at least three rounds).

    Args:
        variants: by name, what runs batch ``i`` and returns when it is done.
        units: the units of work in each batch.
        warm_up: the batches that stand for all shapes there are.
        seed: for the orders.
        clock: seconds.
        progress: told, after each round, the share that is done.
    """
    generator = random.Random(seed)
    for batch in warm_up:
        for run in variants.values():
            run(batch)
    timings = Timings({name: [] for name in variants}, [])
    spent = dict.fromkeys(variants, 0.0)
    order = list(variants)
    while True:
        batch = len(timings.units) % len(units)
        generator.shuffle(order)
        for name in order:
            start = clock()
            variants[name](batch)
            seconds = clock() - start
            timings.seconds[name].append(seconds)
            spent[name] += seconds
        timings.units.append(units[batch])
        rounds, total = len(timings.units), sum(spent.values())
        enough = min(rounds / min_rounds, min(spent.values()) / min_seconds if min_seconds else 1.0)
        share = max(enough, min(total / max_seconds, rounds / 3))
        if progress is not None:
            progress(min(1.0, share))
        if share >= 1:
            return timings


def ratio(before: Sequence[float], after: Sequence[float], *, seed: int) -> Ratio:
    """How many times as fast ``after`` is, from seconds paired by round: exp of the median log-ratio, with the
    percentile bootstrap interval of ``CONFIDENCE`` over the rounds."""
    logs = np.log(np.asarray(before, dtype=np.float64) / np.asarray(after, dtype=np.float64))
    generator = np.random.default_rng(seed)
    resampled = np.median(logs[generator.integers(0, len(logs), (_RESAMPLES, len(logs)))], axis=1)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(*(math.exp(float(value)) for value in (np.median(logs), low, high)))


def judge(found: Ratio, floor: Ratio) -> str:
    """A difference counts where its whole interval lies beyond the noise floor: beyond the further end of the
    interval of the model against itself, on either side."""
    noise = max(abs(math.log(floor.low)), abs(math.log(floor.high)))
    if math.log(found.low) > noise:
        return "faster"
    if math.log(found.high) < -noise:
        return "slower"
    return "no difference detected"


def summarise(timings: Timings, unit: str, *, seed: int) -> Speed:
    """Draw the conclusions from samples of "before", "again" and, where something was patched, "after"."""
    seconds = timings.seconds
    floor = ratio(seconds["before"], seconds["again"], seed=seed)
    before = timings.throughput("before")
    if "after" not in seconds:
        return Speed(unit, before, None, None, floor, "nothing patched", timings)
    found = ratio(seconds["before"], seconds["after"], seed=seed)
    return Speed(unit, before, timings.throughput("after"), found, floor, judge(found, floor), timings)
