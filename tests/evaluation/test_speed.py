"""The verdict on planted samples, with fixed seeds; nothing here depends on how fast this machine is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from hf_gelu_patch.evaluation.speed import Ratio, Timings, judge, measure, ratio, summarise


def planted(factor: float, *, seed: int, rounds: int = 60, noise: float = 0.03) -> Timings:
    """Samples of a machine that drifts over the rounds and has outliers; "after" takes ``factor`` times as long."""
    generator = np.random.default_rng(seed)
    drift = np.exp(0.3 * np.sin(np.arange(rounds) / 7))

    def variant(factor: float) -> list[float]:
        jitter = np.exp(generator.normal(0, noise, rounds))
        jitter[generator.random(rounds) < 0.05] *= 3
        return list(0.01 * factor * drift * jitter)

    return Timings({"before": variant(1), "again": variant(1), "after": variant(factor)}, [32] * rounds)


def test_the_same_model_twice_is_no_difference() -> None:
    verdicts = Counter(summarise(planted(1.0, seed=seed), "examples", seed=0).verdict for seed in range(100))
    assert verdicts["no difference detected"] >= 98, verdicts


@pytest.mark.parametrize(("factor", "verdict"), [(1.06, "slower"), (1 / 1.06, "faster")])
def test_a_planted_difference_is_found(factor: float, verdict: str) -> None:
    verdicts = Counter(summarise(planted(factor, seed=seed), "examples", seed=0).verdict for seed in range(100))
    assert verdicts[verdict] >= 98, verdicts


def test_the_interval_covers_the_truth() -> None:
    found = [ratio(p.seconds["before"], p.seconds["after"], seed=0) for p in (planted(0.8, seed=s) for s in range(100))]
    assert sum(one.low <= 1.25 <= one.high for one in found) >= 88
    assert all(one.low <= one.value <= one.high for one in found)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Ratio(1.10, 1.06, 1.14), "faster"),
        (Ratio(1.10, 1.04, 1.16), "no difference detected"),  # its interval reaches into the noise
        (Ratio(0.90, 0.86, 0.94), "slower"),
        (Ratio(0.90, 0.86, 0.96), "no difference detected"),
    ],
)
def test_the_whole_interval_has_to_lie_beyond_the_noise(found: Ratio, verdict: str) -> None:
    assert judge(found, Ratio(1.0, 0.99, 1.05)) == verdict
    assert judge(found, Ratio(1.0, 1 / 1.05, 1.01)) == verdict


def test_nothing_patched_is_said() -> None:
    timings = planted(1.0, seed=0)
    del timings.seconds["after"]
    found = summarise(timings, "tokens", seed=0)
    assert (found.verdict, found.after, found.ratio) == ("nothing patched", None, None)


class Machine:
    """A clock that only runs while a variant does, and a record of what ran."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.now = 0.0
        self.ran: list[tuple[str, int]] = []
        self.variants = {name: self.variant(name, each) for name, each in seconds.items()}

    def variant(self, name: str, seconds: float) -> Callable[[int], None]:
        def run(batch: int) -> None:
            self.now += seconds
            self.ran.append((name, batch))

        return run

    def measure(self, **options: float) -> Timings:
        limits = {"min_rounds": 30, "min_seconds": 1.0, "max_seconds": 1e9, **options}
        return measure(self.variants, [8, 4, 2], warm_up=[0, 2], seed=3, clock=lambda: self.now, **limits)


def test_rounds_are_paired_and_their_order_is_drawn() -> None:
    machine = Machine({"before": 0.5, "again": 0.5, "after": 0.25})
    timings = machine.measure()
    assert machine.ran[:6] == [(name, batch) for batch in (0, 2) for name in machine.variants]
    rounds = [machine.ran[start : start + 3] for start in range(6, len(machine.ran), 3)]
    assert len(rounds) == len(timings.units) == 30
    orders = Counter(tuple(name for name, _ in one) for one in rounds)
    assert len(orders) == 6, "every order should occur in thirty rounds"
    first = Counter(
        "before" if order.index("before") < order.index("after") else "after" for order in orders.elements()
    )
    assert min(first.values()) >= 8
    for number, one in enumerate(rounds):
        assert {batch for _, batch in one} == {number % 3}
    assert timings.units == [8, 4, 2] * 10
    assert timings.seconds["after"] == pytest.approx([0.25] * 30)
    assert timings.throughput("before") == 8.0


def test_it_goes_on_until_there_is_enough_of_both() -> None:
    assert len(Machine({"a": 0.1, "b": 0.5}).measure(min_seconds=10).units) == 100  # the fast one has to run 10 s too
    assert len(Machine({"a": 5.0, "b": 5.0}).measure(min_seconds=10).units) == 30
    assert len(Machine({"a": 5.0, "b": 5.0}).measure(max_seconds=100).units) == 10
    assert len(Machine({"a": 500.0, "b": 5.0}).measure(max_seconds=1).units) == 3
