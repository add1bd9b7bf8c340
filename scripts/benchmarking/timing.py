"""What all benchmarks share: rounds of calls on the CPU's clock and on the GPU's, what follows from the samples, and
where they were taken."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hf_gelu_patch
from hf_gelu_patch.evaluation import environment as surroundings
from hf_gelu_patch.evaluation.speed.rounds import Effort, measure
from hf_gelu_patch.evaluation.speed.verdict import Ratio, judge, ratio

Calls = Mapping[str, Callable[[], Any]]
Samples = dict[str, list[float]]

WALL, OWN = "wall", "own"
CLOCKS: Mapping[str, Callable[[], float]] = {WALL: time.perf_counter, OWN: time.process_time}
"""What a user waits for; and what the process itself computes, which on one thread is the same where nothing else runs,
and on a machine that others use too has not their time in it."""
MOST_ROUNDS = 1000
"""Medians need no more, unless they are asked for."""
_HEAD_START = 0.01
"""Seconds that the GPU waits at most: queuing a round takes longer than that only where something is compiled."""
_CYCLES = 3e9
"""In a second of waiting; at a lower clock it waits longer, which costs time alone."""


def rounds_on_cpu(calls: Calls, count: int, seed: int, *, clock: str = WALL) -> Samples:
    """``count`` rounds of every call, in seconds by call, of one of ``CLOCKS``."""
    variants = {name: (lambda _, call=call: call()) for name, call in calls.items()}
    effort = Effort(seed, min_rounds=count, min_seconds=0.0, max_seconds=math.inf)
    return measure(variants, [1], effort, warm_up=[], clock=CLOCKS[clock]).seconds


def rounds_on_cuda(
    calls: Calls, count: int, seed: int, *, flush: Tensor | None = None, with_launch: bool = False
) -> Samples:
    """The same on the GPU's clock, from an event before each call to one behind it.

    The GPU waits while Python queues a round, as long as that took for the round before: small calls would else be
    timed by how fast Python launches them. ``with_launch``, each call begins on an idle GPU instead: what Python takes
    and the GPU does not hide is in its sample, as it is in what a user waits for.
    """
    generator, order, queuing = random.Random(seed), list(calls), 0.0
    samples: Samples = {name: [] for name in calls}
    for _ in range(count):
        generator.shuffle(order)
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in order}
        start = time.perf_counter()
        if not with_launch:
            torch.cuda._sleep(int(min(queuing, _HEAD_START) * _CYCLES))
        for name in order:
            if flush is not None:
                flush.zero_()
            if with_launch:
                torch.cuda.synchronize()
            events[name][0].record()
            calls[name]()
            events[name][1].record()
        queuing = time.perf_counter() - start
        torch.cuda.synchronize()
        for name, (before, behind) in events.items():
            samples[name].append(before.elapsed_time(behind) / 1e3)
    return samples


def rounds_on(device: str, clock: str = WALL, **options: Any) -> Callable[[Calls, int, int], Samples]:
    """``rounds_on_cuda`` with these options, or ``rounds_on_cpu`` with this clock."""
    if device == "cuda":
        return functools.partial(rounds_on_cuda, **options)
    return functools.partial(rounds_on_cpu, clock=clock)


def enough(trial: Mapping[str, Sequence[float]], rounds: int, seconds: float, most: int = MOST_ROUNDS) -> int:
    """How many rounds give every call ``seconds``, within what is worth it and, for the slow ones, endurable."""
    once = [statistics.median(own) for own in trial.values()]
    wanted = max(rounds, min(most, math.ceil(seconds / min(once))))
    endured = (1.0 + 4.0 * seconds * len(once)) / sum(once)
    return max(3, min(wanted, math.ceil(endured)))


def peak(call: Callable[[], Any]) -> int:
    """The GPU memory that a call takes at most beyond what was there before it, in bytes; its results count."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def figures(samples: Samples) -> Samples:
    """The samples with the five digits that they are good for."""
    return {name: [float(f"{s:.5g}") for s in own] for name, own in samples.items()}


def compared(before: Sequence[float], after: Sequence[float], floor: Ratio, seed: int) -> dict[str, Any]:
    """How many times as fast ``after`` is, judged beside the noise floor."""
    found = ratio(before, after, seed=seed)
    return {"ratio": asdict(found), "verdict": judge(found, floor)}


def environment(device: str) -> dict[str, Any]:
    """Where and with what; the digest tells the package's code apart where there is no checkout."""
    about: dict[str, Any] = surroundings.environment(processes=1, device=device, command=sys.argv)
    return {**about, "sources": _sources()}


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    folder = Path(hf_gelu_patch.__file__).parent
    for path in sorted(path for kind in ("*.py", "*.cpp") for path in folder.rglob(kind)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def say(*words: str) -> None:
    print(*words, file=sys.stderr, flush=True)


def versions_of(about: Mapping[str, Any]) -> str:
    """The versions that matter, and where it ran, in a sentence."""
    names = ("python", "torch", "triton", "transformers")
    told = ", ".join(f"{name} {about['versions'][name]}" for name in names if name in about["versions"])
    return f"{about['gpu'] or about['cpu']}; {told}"
