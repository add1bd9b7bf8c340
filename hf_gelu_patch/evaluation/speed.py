"""How fast variants of a model are, measured so that noise is not taken for a difference.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

__all__ = [
    "CONFIDENCE",
    "CudaClock",
    "Ratio",
    "Speed",
    "Timings",
    "judge",
    "measure",
    "measure_generation",
    "peak_memory",
    "percentiles",
    "ratio",
    "reach",
    "summarise",
]

CONFIDENCE = 0.99
"""Of each interval. A report holds some twenty of them, and each has to hold: at 95 % one of them would not."""

_RESAMPLES = 2000
_IN_MEMORY = 2**22  # numbers that resampling holds at a time
_FOR_P99 = 1000  # samples


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


class CudaClock:
    """Moments at which a GPU gets to where it is asked, for ``measure``: it looks at them after some rounds only, so
    that nothing waits for the GPU in between."""

    rounds = 16
    """Between two looks."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def __call__(self) -> _CudaMoment:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaMoment(event)


@dataclass(frozen=True)
class _CudaMoment:
    event: torch.cuda.Event

    def __sub__(self, earlier: _CudaMoment) -> float:
        """Seconds, once the GPU has got there."""
        self.event.synchronize()
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


def measure(
    variants: Mapping[str, Callable[[int], object]],
    units: Sequence[int],
    *,
    warm_up: Sequence[int],
    seed: int,
    min_rounds: int,
    min_seconds: float,
    max_seconds: float,
    resolution: float = 0.01,
    clock: Callable[[], Any] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> Timings:
    """Time every variant on the same batches in rounds, each in an order of its own.

    Each variant runs the batches of ``warm_up`` once beforehand. It goes on until there have been ``min_rounds``,
    every variant ran for ``min_seconds`` and the noise floor reaches no further than ``resolution``, or until all
    together ran for ``max_seconds`` (after at least three rounds). When to stop depends on the model against itself
    alone, so it favours no verdict on the others.

    Args:
        variants: by name, what runs batch ``i`` and returns when it is done; with a ``CudaClock``, when it is queued.
        units: the units of work in each batch.
        warm_up: the batches that stand for all shapes there are.
        seed: for the orders.
        resolution: how far the interval of "before" against "again" may reach to either side; where there are not
            both, it does not matter. A difference counts from about twice as much on.
        clock: moments; one less another is seconds.
        progress: told, after each round (of a ``CudaClock``, each sixteenth), the share that is done.
    """
    generator = random.Random(seed)
    for batch in warm_up:
        for run in variants.values():
            run(batch)
    timings = Timings({name: [] for name in variants}, [])
    spent = dict.fromkeys(variants, 0.0)
    order = list(variants)
    look = 0
    while True:
        moments: list[tuple[str, Any, Any]] = []
        for _ in range(clock.rounds if isinstance(clock, CudaClock) else 1):
            batch = len(timings.units) % len(units)
            generator.shuffle(order)
            for name in order:
                start = clock()
                variants[name](batch)
                moments.append((name, start, clock()))
            timings.units.append(units[batch])
        for name, start, end in moments:
            seconds = end - start
            timings.seconds[name].append(seconds)
            spent[name] += seconds
        rounds, total = len(timings.units), sum(spent.values())
        enough = min(rounds / min_rounds, min(spent.values()) / min_seconds if min_seconds else 1.0)
        share = min(total / max_seconds, rounds / 3)
        done = share >= 1
        if not done and enough >= 1 and rounds >= look:
            done = _noise(timings, seed) <= resolution
            look = math.ceil(1.1 * rounds)  # not after every round: it takes a moment
        if progress is not None:
            progress(1.0 if done else max(share, 0.95 * min(1.0, enough)))
        if done:
            return timings


def _noise(timings: Timings, seed: int) -> float:
    """How far the interval of the unpatched model against itself reaches, as a share; 0.0 where it was not timed."""
    if not {"before", "again"} <= timings.seconds.keys():
        return 0.0
    floor = ratio(timings.seconds["before"], timings.seconds["again"], seed=seed)
    return math.expm1(reach(floor))


def reach(floor: Ratio) -> float:
    """The further end of an interval around 1, as a logarithm."""
    return max(abs(math.log(floor.low)), abs(math.log(floor.high)))


def measure_generation(
    generate: Mapping[str, Callable[[int, int], object]],
    prompts: Sequence[int],
    sequences: Sequence[int],
    new_tokens: int,
    *,
    warm_up: Sequence[int],
    seed: int,
    min_rounds: int,
    min_seconds: float,
    max_seconds: float,
    clock: Callable[[], Any] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> tuple[Timings, Timings]:
    """Time generation, up to the first new token (prefill) and from there on (decode).

    In each round every variant generates twice, one token and ``new_tokens`` of them, the turns in an order of their
    own. Decode is the difference: what a user waits for the rest, with all that ``generate`` does between two forwards.
    A round in which noise swallowed the difference for one of them is left out of decode for all.

    Args:
        generate: by name, what generates so many tokens, neither more nor fewer, from batch ``i``.
        prompts: the units (tokens, examples) in each batch's prompts: those of prefill.
        sequences: how many sequences each batch has: decode counts each one's new tokens but the first.
        new_tokens: at least two.
        others: as for ``measure``.

    Returns:
        (prefill, decode); decode may have no rounds at all.

    Raises:
        ValueError: ``new_tokens`` is less than two.
    """
    if new_tokens < 2:
        raise ValueError(f"decoding is what comes after the first new token: generate at least 2; got {new_tokens}.")

    def turn(run: Callable[[int, int], object], tokens: int) -> Callable[[int], object]:
        return lambda batch: run(batch, tokens)

    turns = {(name, tokens): turn(run, tokens) for name, run in generate.items() for tokens in (1, new_tokens)}
    keys = {f"{name} {tokens}": turn for (name, tokens), turn in turns.items()}
    timed = measure(
        keys,
        range(len(prompts)),
        warm_up=warm_up,
        seed=seed,
        min_rounds=min_rounds,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        clock=clock,
        progress=progress,
    )
    batches = timed.units  # each round's batch
    first = {name: timed.seconds[f"{name} 1"] for name in generate}
    rest = {
        name: [whole - one for whole, one in zip(timed.seconds[f"{name} {new_tokens}"], first[name], strict=True)]
        for name in generate
    }
    kept = [number for number in range(len(batches)) if all(rest[name][number] > 0 for name in generate)]
    return (
        Timings(first, [prompts[batch] for batch in batches]),
        Timings(
            {name: [rest[name][number] for number in kept] for name in generate},
            [sequences[batches[number]] * (new_tokens - 1) for number in kept],
        ),
    )


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


def judge(found: Ratio, floor: Ratio) -> str:
    """A difference counts where its whole interval lies beyond the noise floor: beyond the further end of the
    interval of the model against itself, on either side."""
    noise = reach(floor)
    if math.log(found.low) > noise:
        return "faster"
    if math.log(found.high) < -noise:
        return "slower"
    return "no difference detected"


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p90 of the samples, in seconds; p99 from 1,000 samples on, of which it leaves ten out."""
    wanted = {"p50": 50, "p90": 90, **({"p99": 99} if len(seconds) >= _FOR_P99 else {})}
    return {name: float(np.percentile(seconds, percent)) for name, percent in wanted.items()}


def summarise(timings: Timings, unit: str, *, variants: Sequence[str], seed: int) -> dict[str, Speed]:
    """Draw the conclusions for each variant from samples of it, of "before" and of "again". A variant without samples
    is one in which nothing was patched."""
    seconds = timings.seconds
    floor = ratio(seconds["before"], seconds["again"], seed=seed)
    before = timings.throughput("before")
    own = {name: seconds[name] for name in ("before", "again")}
    found = {}
    for name in variants:
        if name not in seconds:
            shares = {"before": percentiles(seconds["before"])}
            samples = Timings(own, timings.units)
            found[name] = Speed(unit, before, None, None, floor, "nothing patched", shares, samples)
            continue
        against = ratio(seconds["before"], seconds[name], seed=seed)
        found[name] = Speed(
            unit=unit,
            before=before,
            after=timings.throughput(name),
            ratio=against,
            floor=floor,
            verdict=judge(against, floor),
            percentiles={"before": percentiles(seconds["before"]), "after": percentiles(seconds[name])},
            timings=Timings({**own, "after": seconds[name]}, timings.units),
        )
    return found


_PROCESS = Path("/proc/self")


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """The most memory there was in use while something ran, in bytes.

    On a GPU, what torch had allocated on it. On a CPU, what was resident of the whole process, Python, weights and all:
    Linux's high-water mark (VmHWM in proc_pid_status(5)), set back before by writing 5 to clear_refs; None where the
    system has no such mark or does not let it be set back.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    run()
    status = (_PROCESS / "status").read_text(encoding="ascii", errors="replace")
    marks = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0][1]) * 1024 if marks else None  # the kernel says kB and means KiB
