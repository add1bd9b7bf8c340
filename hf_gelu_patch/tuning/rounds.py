"""Ways to compute one thing, timed in rounds: in each, every way is taken once, in an order drawn anew.

One way is there twice. What is found between the two is the noise floor.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hf_gelu_patch.verdicts import Ratio, judge, median_ratio

__all__ = ["AGAIN", "OWN", "Samples", "fixed", "searched"]

OWN = "own"
"""The model's own ops; of a swap, the other function by the same kind of ops."""
AGAIN = "own again"

SEARCH, CONFIRM = 0.95, 0.999
"""How sure an interval is by which a way is called faster: while looking for one, and in the rounds that confirm it.
Several ways are compared, at several places, and hardly one may be taken by mistake."""

_LEAST_GAIN = 0.005  # a smaller one is not worth a rewritten forward
_FEWEST, _MOST = 16, 60  # rounds of a search
_LOSING = 6  # rounds after which a way that lost all of them is dropped
_LOST = 0.9  # times as fast, or less: it lost

Sample = Callable[[str], float]
"""Takes a way once, by its name, and says how many seconds that took."""


@dataclass
class Samples:
    """The seconds that each way took, by round, and how sure what follows from them has to be."""

    seconds: dict[str, list[float]]
    confidence: float

    def ratio(self, name: str, against: str = OWN) -> Ratio:
        """How many times as fast a way is as another, over the rounds that both were in."""
        after = self.seconds[name]
        before = self.seconds[against][: len(after)]
        return median_ratio(before, after[: len(before)], confidence=self.confidence)

    @property
    def floor(self) -> Ratio:
        """The model's own ops against themselves."""
        return self.ratio(AGAIN)

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
        seconds: how long, if that is enough for the fewest rounds.
        generator: of the orders.
    """
    samples = Samples({name: [] for name in (OWN, AGAIN, *names)}, SEARCH)
    running = list(samples.seconds)
    end = time.perf_counter() + seconds
    for number in range(1, _MOST + 1):
        _round(running, sample, samples, generator)
        running = [name for name in running if name in (OWN, AGAIN) or not _lost(samples, name)]
        if len(running) == 2:
            break
        if number >= _FEWEST and (time.perf_counter() > end or all(_seen(samples, name) for name in running[2:])):
            break
    return samples


def fixed(
    names: Collection[str], sample: Sample, rounds: int, generator: random.Random, confidence: float = CONFIRM
) -> Samples:
    """So many rounds, whatever they say: nothing that is found has a say in when to stop."""
    samples = Samples({name: [] for name in (OWN, AGAIN, *names)}, confidence)
    running = list(samples.seconds)
    for _ in range(rounds):
        _round(running, sample, samples, generator)
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
