"""Ways to compute one thing, timed in rounds: in each, every way is taken once, in an order drawn anew.

One way is there twice. What is found between the two is the noise floor.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hf_gelu_patch.verdicts import Ratio, judge, median_ratio, reach

__all__ = ["AGAIN", "OWN", "Rounds", "Samples", "fixed", "searched"]

OWN = "own"
"""The model's own ops; of a swap, the other function by the same kind of ops."""
AGAIN = "own again"

SEARCH, CONFIRM = 0.95, 0.99
"""How sure an interval is by which a way is called faster: while looking for one, and in the rounds that confirm it.
Both that interval and the one of the noise have to be cleared, so even noise that comes in waves hardly passes once."""

_LEAST_GAIN = 0.005  # a smaller one is not worth a rewritten forward
_FEWEST, _MOST = 16, 60  # rounds of a search
_LONGER = 4  # times as long, where something looks faster and the noise hides whether it is
_PROMISING = 1.02  # times as fast
_LOSING = 6  # rounds after which a way that lost all of them is dropped
_LOST = 0.9  # times as fast, or less: it lost

Sample = Callable[[str], float]
"""Takes a way once, by its name, and says how many seconds that took."""


@dataclass
class Samples:
    """The seconds that each way took, by round, and how sure what follows from them has to be."""

    seconds: dict[str, list[float]]
    confidence: float

    @property
    def own(self) -> list[float]:
        """The seconds of the model's own ops in each round, the geometric mean of both times that they were timed."""
        return [math.sqrt(one * other) for one, other in zip(self.seconds[OWN], self.seconds[AGAIN], strict=True)]

    def ratio(self, name: str, against: str | None = None) -> Ratio:
        """How many times as fast a way is as another (None: as the model's own ops), over the rounds both were in."""
        after = self.seconds[name]
        before = (self.own if against is None else self.seconds[against])[: len(after)]
        return median_ratio(before, after[: len(before)], confidence=self.confidence)

    @property
    def floor(self) -> Ratio:
        """The model's own ops against themselves."""
        return self.ratio(AGAIN, OWN)

    def verdict(self, name: str) -> str:
        """ "faster" only beyond the noise, and by enough to matter."""
        found = self.ratio(name)
        verdict = judge(found, self.floor)
        little = verdict == "faster" and math.log(found.low) < _LEAST_GAIN
        return "no difference detected" if little else verdict


def searched(names: Collection[str], sample: Sample, seconds: float, generator: random.Random) -> Samples:
    """Rounds until each way is seen to be faster or not to be, or the time is over. A way that loses each of the first
    rounds is left out from there on.

    Args:
        names: of the ways, beside the model's own ops.
        sample: takes one of them.
        seconds: how long, if that is enough for the fewest rounds; more where something looks faster.
        generator: of the orders.
    """
    samples = Samples({name: [] for name in (OWN, AGAIN, *names)}, SEARCH)
    running = list(samples.seconds)
    start, number, look = time.perf_counter(), 0, _FEWEST
    while len(running) > 2:
        _round(running, sample, samples, generator)
        number += 1
        running = [name for name in running if name in (OWN, AGAIN) or not _lost(samples, name)]
        if number < look:
            continue
        look = math.ceil(1.1 * number)  # the oftener, the likelier noise is taken for a gain
        unseen = [name for name in running[2:] if not _seen(samples, name)]
        longer = _LONGER if any(samples.ratio(name).value > _PROMISING for name in unseen) else 1
        if not unseen or number >= longer * _MOST or time.perf_counter() - start > longer * seconds:
            break
    return samples


@dataclass(frozen=True)
class Rounds:
    """How many rounds are made, whatever they say of the ways: what decides is the noise.

    Attributes:
        fewest, most: of them.
        seconds: beyond the fewest, no longer.
        reach: beyond the fewest, until the interval of the noise reaches no further (a logarithm).
    """

    fewest: int
    most: int
    seconds: float
    reach: float = 0.0


def fixed(name: str, sample: Sample, rounds: Rounds, generator: random.Random, confidence: float = CONFIRM) -> Samples:
    """One way against the model's own ops."""
    samples = Samples({one: [] for one in (OWN, AGAIN, name)}, confidence)
    start = time.perf_counter()
    for number in range(1, rounds.most + 1):
        _round(list(samples.seconds), sample, samples, generator)
        enough = time.perf_counter() - start > rounds.seconds or reach(samples.floor) <= rounds.reach
        if number >= rounds.fewest and enough:
            break
    return samples


def _round(running: Sequence[str], sample: Sample, samples: Samples, generator: random.Random) -> None:
    for name in generator.sample(running, len(running)):
        samples.seconds[name].append(sample(name))


def _lost(samples: Samples, name: str) -> bool:
    pairs = list(zip(samples.seconds[OWN], samples.seconds[name], strict=False))
    return len(pairs) >= _LOSING and all(own < _LOST * other for own, other in pairs)


def _seen(samples: Samples, name: str) -> bool:
    """Whether a way is faster, or cannot be by enough to matter."""
    return samples.verdict(name) == "faster" or samples.ratio(name).high < math.exp(_LEAST_GAIN)
