"""The conclusions for each variant, from the raw samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_gelu_patch.evaluation.speed.rounds import Timings
from hf_gelu_patch.evaluation.speed.verdict import Ratio, judge, ratio
from hf_gelu_patch.evaluation.variants import AGAIN, BEFORE

__all__ = ["Speed", "percentiles", "summarise"]

_FOR_P99 = 1000  # samples


@dataclass(frozen=True)
class Speed:
    """What was measured of one variant, and what follows.

    Attributes:
        unit: what throughput counts.
        before, after: units per second of the model unpatched and patched; ``after`` is None where nothing was
            patched.
        ratio: patched against unpatched; above 1 is faster. None likewise.
        floor: the unpatched model against itself, in the same rounds.
        verdict: "faster", "slower" or "no difference detected"; "nothing patched".
        percentiles: of the seconds that a batch takes, "before" and "after": see ``percentiles``.
        timings: the raw samples: "before", "again" (the unpatched model once more) and "after".
        end_to_end: the same with collating and tokenising; None where that was not measured.
        prefill, decode: of generation, up to the first new token, and from there on; None where nothing is generated.
        peak_memory: bytes: see ``peak_memory``; None where the system does not tell.
    """

    unit: str
    before: float
    after: float | None
    ratio: Ratio | None
    floor: Ratio
    verdict: str
    percentiles: dict[str, dict[str, float]]
    timings: Timings
    end_to_end: Speed | None = None
    prefill: Speed | None = None
    decode: Speed | None = None
    peak_memory: int | None = None


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p90 of the samples, in seconds; p99 from 1,000 samples on, of which it leaves ten out."""
    wanted = {"p50": 50, "p90": 90, **({"p99": 99} if len(seconds) >= _FOR_P99 else {})}
    return {name: float(np.percentile(seconds, percent)) for name, percent in wanted.items()}


def summarise(timings: Timings, unit: str, *, variants: Sequence[str], seed: int) -> dict[str, Speed]:
    """Draw the conclusions for each variant from samples of it, of "before" and of "again". A variant without samples
    is one in which nothing was patched."""
    seconds = timings.seconds
    floor = ratio(seconds[BEFORE], seconds[AGAIN], seed=seed)
    before = timings.throughput(BEFORE)
    own = {name: seconds[name] for name in (BEFORE, AGAIN)}
    found = {}
    for name in variants:
        if name not in seconds:
            shares = {"before": percentiles(seconds[BEFORE])}
            samples = Timings(own, timings.units)
            found[name] = Speed(unit, before, None, None, floor, "nothing patched", shares, samples)
            continue
        against = ratio(seconds[BEFORE], seconds[name], seed=seed)
        found[name] = Speed(
            unit=unit,
            before=before,
            after=timings.throughput(name),
            ratio=against,
            floor=floor,
            verdict=judge(against, floor),
            percentiles={"before": percentiles(seconds[BEFORE]), "after": percentiles(seconds[name])},
            timings=Timings({**own, "after": seconds[name]}, timings.units),
        )
    return found
