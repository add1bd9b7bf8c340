"""Variants timed in rounds: in each, every variant runs the same batch once, in an order drawn anew.

One of the variants is the unpatched model a second time; what is found between the two that are the same is the noise
floor.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hf_gelu_patch.evaluation.speed.verdict import ratio, reach
from hf_gelu_patch.evaluation.variants import AGAIN, BEFORE

__all__ = ["CudaClock", "Effort", "Timings", "measure", "measure_generation"]


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


@dataclass(frozen=True)
class Effort:
    """How long to measure. It goes on until there have been ``min_rounds``, every variant ran for ``min_seconds`` and
    the noise floor reaches no further than ``resolution``; or until all together ran for ``max_seconds``, after at
    least three rounds. When to stop depends on the model against itself alone, so it favours no verdict on the others.

    Attributes:
        seed: for the orders.
        min_rounds, min_seconds, max_seconds: as above.
        resolution: how far the interval of "before" against "again" may reach to either side; where there are not
            both, it does not matter. A difference counts from about twice as much on.
        progress: told, after each round (of a ``CudaClock``, each sixteenth), the share that is done.
    """

    seed: int
    min_rounds: int
    min_seconds: float
    max_seconds: float
    resolution: float = 0.01
    progress: Callable[[float], None] | None = None

    def share(self, timings: Timings, spent: Mapping[str, float]) -> tuple[float, float]:
        """What has been done, of all that may be done and of the least that has to be: 1 or more is enough.

        Args:
            timings: so far.
            spent: seconds of each variant.
        """
        rounds = len(timings.units)
        least = min(rounds / self.min_rounds, min(spent.values()) / self.min_seconds if self.min_seconds else 1.0)
        return min(sum(spent.values()) / self.max_seconds, rounds / 3), least


def measure(
    variants: Mapping[str, Callable[[int], object]],
    units: Sequence[int],
    effort: Effort,
    *,
    warm_up: Sequence[int],
    clock: Callable[[], Any] = time.perf_counter,
    turns: Mapping[str, AbstractContextManager[object]] | None = None,
) -> Timings:
    """Time every variant on the same batches in rounds, each in an order of its own.

    Args:
        variants: by name, what runs batch ``i`` and returns when it is done; with a ``CudaClock``, when it is queued.
        units: the units of work in each batch.
        effort: how long.
        warm_up: the batches that stand for all shapes there are: each variant runs them once beforehand.
        clock: moments; one less another is seconds.
        turns: by name, within what a variant runs, each time anew; what that takes is not timed.
    """
    generator = random.Random(effort.seed)
    turn = defaultdict(nullcontext[object], turns or {})
    for batch in warm_up:
        for name, run in variants.items():
            with turn[name]:
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
                with turn[name]:
                    start = clock()
                    variants[name](batch)
                    moments.append((name, start, clock()))
            timings.units.append(units[batch])
        for name, start, end in moments:
            seconds = end - start
            timings.seconds[name].append(seconds)
            spent[name] += seconds
        share, least = effort.share(timings, spent)
        done = share >= 1
        if not done and least >= 1 and len(timings.units) >= look:
            done = _noise(timings, effort.seed) <= effort.resolution
            look = math.ceil(1.1 * len(timings.units))  # not after every round: it takes a moment
        if effort.progress is not None:
            effort.progress(1.0 if done else max(share, 0.95 * min(1.0, least)))
        if done:
            return timings


def _noise(timings: Timings, seed: int) -> float:
    """How far the interval of the unpatched model against itself reaches, as a share; 0.0 where it was not timed."""
    if not {BEFORE, AGAIN} <= timings.seconds.keys():
        return 0.0
    floor = ratio(timings.seconds[BEFORE], timings.seconds[AGAIN], seed=seed)
    return math.expm1(reach(floor))


def measure_generation(
    generate: Mapping[str, Callable[[int, int], object]],
    units: Sequence[tuple[int, int]],
    new_tokens: int,
    effort: Effort,
    *,
    warm_up: Sequence[int],
    clock: Callable[[], Any] = time.perf_counter,
    turns: Mapping[str, AbstractContextManager[object]] | None = None,
) -> tuple[Timings, Timings]:
    """Time generation, up to the first new token (prefill) and from there on (decode).

    In each round every variant generates twice, one token and ``new_tokens`` of them, the turns in an order of their
    own. Decode is the difference: what a user waits for the rest, with all that ``generate`` does between two forwards.
    A round in which noise swallowed the difference for one of them is left out of decode for all.

    Args:
        generate: by name, what generates so many tokens, neither more nor fewer, from batch ``i``.
        units: of each batch the units (tokens, examples) in its prompts, which are those of prefill; and how many
            sequences it has: decode counts each one's new tokens but the first.
        new_tokens: at least two.
        effort, warm_up, clock, turns: as for ``measure``.

    Returns:
        (prefill, decode); decode may have no rounds at all.

    Raises:
        ValueError: ``new_tokens`` is less than two.
    """
    if new_tokens < 2:
        raise ValueError(f"decoding is what comes after the first new token: generate at least 2; got {new_tokens}.")

    def one(run: Callable[[int, int], object], tokens: int) -> Callable[[int], object]:
        return lambda batch: run(batch, tokens)

    amounts = (1, new_tokens)
    timed = measure(
        {f"{name} {tokens}": one(run, tokens) for name, run in generate.items() for tokens in amounts},
        range(len(units)),
        effort,
        warm_up=warm_up,
        clock=clock,
        turns={f"{name} {tokens}": turn for name, turn in (turns or {}).items() for tokens in amounts},
    )
    batches = timed.units  # each round's batch
    first = {name: timed.seconds[f"{name} 1"] for name in generate}
    rest = {
        name: [whole - one for whole, one in zip(timed.seconds[f"{name} {new_tokens}"], first[name], strict=True)]
        for name in generate
    }
    kept = [number for number in range(len(batches)) if all(rest[name][number] > 0 for name in generate)]
    return (
        Timings(first, [units[batch][0] for batch in batches]),
        Timings(
            {name: [rest[name][number] for number in kept] for name in generate},
            [units[batches[number]][1] * (new_tokens - 1) for number in kept],
        ),
    )
