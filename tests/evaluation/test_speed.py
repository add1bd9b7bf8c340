"""The verdict on planted samples, with fixed seeds; nothing here depends on how fast this machine is."""

from __future__ import annotations

import math
import mmap
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from hf_gelu_patch.evaluation.speed.memory import peak_memory
from hf_gelu_patch.evaluation.speed.rounds import CudaClock, Effort, Timings, measure, measure_generation
from hf_gelu_patch.evaluation.speed.summary import Speed, percentiles, summarise
from hf_gelu_patch.evaluation.speed.verdict import CONFIDENCE, Ratio, _tails, judge, ratio

pytestmark = pytest.mark.slow


def planted(factor: float, *, seed: int, rounds: int = 60, noise: float = 0.01) -> Timings:
    """Samples of a machine that drifts over the rounds and has outliers; "after" takes ``factor`` times as long."""
    generator = np.random.default_rng(seed)
    drift = np.exp(0.3 * np.sin(np.arange(rounds) / 7))

    def variant(factor: float) -> list[float]:
        jitter = np.exp(generator.normal(0, noise, rounds))
        jitter[generator.random(rounds) < 0.05] *= 3
        return list(0.01 * factor * drift * jitter)

    return Timings({"before": variant(1), "again": variant(1), "after": variant(factor)}, [32] * rounds)


def speed(timings: Timings, unit: str = "examples") -> Speed:
    return summarise(timings, unit, variants=["after"], seed=0)["after"]


class Machine:
    """A clock that only runs while a variant does, and a record of what ran.

    With noise it behaves as a CPU under load was measured to: each run differs by a log-normal percent, the whole
    machine gets slower and faster over the rounds, and one run in twenty is interrupted.
    """

    def __init__(self, seconds: dict[str, float], *, noise: float = 0.0, seed: int = 0) -> None:
        self.now = 0.0
        self.ran: list[tuple[str, int]] = []
        self.noise = noise
        self.generator = np.random.default_rng(seed)
        self.variants = {name: self.variant(name, each) for name, each in seconds.items()}

    def variant(self, name: str, seconds: float) -> Callable[[int], None]:
        def run(batch: int) -> None:
            self.ran.append((name, batch))
            factor = 1.0
            if self.noise:
                factor = math.exp(self.generator.normal(0, self.noise) + 0.2 * math.sin(len(self.ran) / 50))
                factor *= 1 + self.generator.exponential() * (self.generator.random() < 0.05)
            self.now += seconds * factor

        return run

    def measure(self, **options: float) -> Timings:
        limits = {"min_rounds": 30, "min_seconds": 1.0, "max_seconds": 1e9, **options}
        effort = Effort(seed=3, **limits)
        return measure(self.variants, [8, 4, 2], effort, warm_up=[0, 2], clock=lambda: self.now)


# ------------------------------------------------------------------------------------------------------- the verdicts


def test_the_same_model_twice_is_no_difference() -> None:
    found = [speed(planted(1.0, seed=seed)) for seed in range(200)]
    assert Counter(one.verdict for one in found)["no difference detected"] == 200
    assert sum(one.ratio is not None and one.ratio.low <= 1 <= one.ratio.high for one in found) >= 195


@pytest.mark.parametrize(("factor", "verdict"), [(1.03, "slower"), (1 / 1.03, "faster")])
def test_a_planted_difference_is_found(factor: float, verdict: str) -> None:
    verdicts = Counter(speed(planted(factor, seed=seed)).verdict for seed in range(100))
    assert verdicts[verdict] >= 98, verdicts


def test_whole_runs_find_no_difference_where_there_is_none_and_three_percent_where_they_are() -> None:
    """Twenty runs of ``measure`` and ``summarise`` on a noisy machine, with four variants each."""
    seconds = {"before": 0.1, "again": 0.1, "same": 0.1, "slower": 0.103, "faster": 0.1 / 1.03}
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in ("same", "slower", "faster")}
    covered = 0
    for seed in range(20):
        timings = Machine(seconds, noise=0.01, seed=seed).measure(min_seconds=3, max_seconds=60)
        found = summarise(timings, "examples", variants=list(verdicts), seed=seed)
        for name, one in found.items():
            verdicts[name][one.verdict] += 1
        assert found["same"].ratio is not None
        covered += found["same"].ratio.low <= 1 <= found["same"].ratio.high
    assert verdicts["same"]["no difference detected"] >= 19
    assert covered >= 19
    assert verdicts["slower"]["slower"] >= 19, verdicts
    assert verdicts["faster"]["faster"] >= 19, verdicts


def test_the_interval_covers_the_truth() -> None:
    found = [ratio(p.seconds["before"], p.seconds["after"], seed=0) for p in (planted(0.8, seed=s) for s in range(200))]
    assert sum(one.low <= 1.25 <= one.high for one in found) >= 0.97 * 200
    assert all(one.low <= one.value <= one.high for one in found)
    assert CONFIDENCE == 0.99


def test_a_ratio_is_of_medians_of_pairs_and_its_interval_is_seeded() -> None:
    samples = planted(1.2, seed=4, rounds=41)
    pairs = [b / a for b, a in zip(samples.seconds["before"], samples.seconds["after"], strict=True)]
    found = ratio(samples.seconds["before"], samples.seconds["after"], seed=7)
    assert found.value == pytest.approx(statistics.median(pairs), rel=1e-12)
    assert found == ratio(samples.seconds["before"], samples.seconds["after"], seed=7)
    assert len({ratio(samples.seconds["before"], samples.seconds["after"], seed=seed) for seed in range(20)}) > 1
    # The distribution-free interval of a median, from the ranks of the binomial distribution, is about as wide.
    ordered = sorted(pairs)
    assert ordered[10] <= found.low <= ordered[16]
    assert ordered[-17] <= found.high <= ordered[-11]


@pytest.mark.parametrize("size", [2, 3, 10, 30, 1000])
def test_few_rounds_are_read_further_out(size: int) -> None:
    """The interval's ends are the quantiles of all 2,000 resampled medians; of few rounds, further out by this much."""
    low, high = _tails(size)
    assert low == pytest.approx(norm.cdf(math.sqrt(size / (size - 1)) * t.ppf(0.005, size - 1)), rel=1e-6)
    assert high == 1 - low
    assert low < 0.005
    assert _tails(1) == (0.0, 1.0)


def test_few_rounds_and_many() -> None:
    found = ratio([1.0, 1.0, 1.0], [1.0, 0.9, 1.1], seed=0)
    assert (found.low, found.high) == (pytest.approx(1 / 1.1), pytest.approx(1 / 0.9))  # as far as there are any
    many = planted(1.0, seed=0, rounds=30_000)
    found = ratio(many.seconds["before"], many.seconds["again"], seed=0)
    assert 0.999 < found.low < found.high < 1.001


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
    found = summarise(timings, "tokens", variants=["other"], seed=0)["other"]
    assert (found.verdict, found.after, found.ratio) == ("nothing patched", None, None)
    assert found.timings.seconds.keys() == {"before", "again"}
    assert found.percentiles.keys() == {"before"}


def test_each_variant_has_its_own_summary() -> None:
    seconds = {"before": [0.2] * 30, "again": [0.2] * 30, "aten": [0.1] * 30, "activation=silu": [0.4] * 30}
    found = summarise(
        Timings(seconds, [8] * 30), "examples", variants=["aten", "activation=silu", "nothing=here"], seed=0
    )
    assert [one.verdict for one in found.values()] == ["faster", "slower", "nothing patched"]
    assert [one.after for one in found.values()] == [pytest.approx(80), pytest.approx(20), None]
    assert found["aten"].ratio == Ratio(*[pytest.approx(2.0)] * 3)
    assert found["aten"].timings.seconds == {"before": [0.2] * 30, "again": [0.2] * 30, "after": [0.1] * 30}
    assert found["aten"].floor == Ratio(1.0, 1.0, 1.0)
    assert replace(found["aten"], end_to_end=found["activation=silu"]).end_to_end is found["activation=silu"]


# --------------------------------------------------------------------------------------------------------- the rounds


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


def test_it_goes_on_until_the_noise_is_small_enough() -> None:
    def rounds(resolution: float, **options: float) -> int:
        machine = Machine({"before": 0.1, "again": 0.1}, noise=0.03, seed=1)
        timings = machine.measure(resolution=resolution, **options)
        floor = ratio(timings.seconds["before"], timings.seconds["again"], seed=3)
        if "max_seconds" not in options:
            assert 1 / (1 + resolution) <= floor.low <= floor.high <= 1 + resolution
        return len(timings.units)

    assert rounds(0.5) == 30
    assert 200 < rounds(0.01) < rounds(0.005)
    assert 230 < rounds(0.005, max_seconds=60) < 330


def test_progress_never_goes_back_and_ends_at_one() -> None:
    for options in ({"max_seconds": 5.0}, {"resolution": 0.5}, {"resolution": 0.01}):
        told: list[float] = []
        Machine({"before": 0.1, "again": 0.1}, noise=0.03).measure(progress=told.append, **options)
        assert told == sorted(told)
        assert told[-1] == 1.0
        assert all(share < 1 for share in told[:-1])


# --------------------------------------------------------------------------------------------------------- generation


def test_prefill_and_decode_are_told_apart() -> None:
    """Prefill takes 0.3 s; each further token 0.02 s, or 0.01 s in the faster variant, whose prefill is slower."""
    now = 0.0
    ran: Counter[tuple[str, int]] = Counter()

    def generate(name: str, first: float, each: float) -> Callable[[int, int], None]:
        def run(batch: int, tokens: int) -> None:
            nonlocal now
            now += (first + each * (tokens - 1)) * (batch + 1)
            ran[name, tokens] += 1

        return run

    plain, patched = (0.3, 0.02), (0.4, 0.01)
    models = {"before": plain, "again": plain, "after": patched}
    prefill, decode = measure_generation(
        {name: generate(name, *cost) for name, cost in models.items()},
        units=[(100, 4), (60, 3)],
        new_tokens=11,
        effort=Effort(seed=0, min_rounds=30, min_seconds=0, max_seconds=1e9),
        warm_up=[0],
        clock=lambda: now,
    )
    assert set(ran.values()) == {31}
    assert prefill.units == [100, 60] * 15
    assert decode.units == [40, 30] * 15
    assert prefill.seconds["after"] == pytest.approx([0.4, 0.8] * 15)
    assert decode.seconds["before"] == pytest.approx([0.2, 0.4] * 15)
    first, rest = (summarise(one, "tokens", variants=["after"], seed=0)["after"] for one in (prefill, decode))
    assert (first.verdict, rest.verdict) == ("slower", "faster")
    assert rest.ratio is not None
    assert rest.ratio.value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="at least 2; got 1"):
        measure_generation({}, [(1, 1)], 1, Effort(0, min_rounds=1, min_seconds=0, max_seconds=1), warm_up=[])


def test_a_round_whose_decode_is_lost_in_noise_is_left_out_for_all() -> None:
    now, calls = 0.0, 0

    def run(batch: int, tokens: int) -> None:
        nonlocal now, calls
        calls += tokens == 1
        now += 0.1 * tokens + (1.0 if tokens == 1 and calls == 3 else 0.0)  # an interruption of one prefill
        del batch

    prefill, decode = measure_generation(
        {"before": run, "again": run},
        [(5, 2)],
        4,
        Effort(seed=0, min_rounds=10, min_seconds=0, max_seconds=1e9),
        warm_up=[],
        clock=lambda: now,
    )
    assert len(prefill.units) == 10
    assert decode.units == [6] * 9
    assert all(decode.seconds[name] == pytest.approx([0.3] * 9) for name in ("before", "again"))


# ------------------------------------------------------------------------------------------------ percentiles, memory


def test_p99_is_told_from_a_thousand_samples_on() -> None:
    samples = [float(value) for value in range(1, 1001)]
    assert percentiles(samples) == {
        "p50": pytest.approx(500.5),
        "p90": pytest.approx(900.1),
        "p99": pytest.approx(990.01),
    }
    assert percentiles(samples[:-1]).keys() == {"p50", "p90"}
    found = speed(planted(2.0, seed=0, rounds=1000))
    assert found.percentiles.keys() == {"before", "after"}
    assert found.percentiles["after"]["p50"] == pytest.approx(statistics.median(found.timings.seconds["after"]))
    assert found.percentiles["after"].keys() == {"p50", "p90", "p99"}


def test_peak_memory_is_that_of_what_ran() -> None:
    """In this process, whose high-water mark is set back if the system allows it."""
    cpu = torch.device("cpu")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        assert peak_memory(lambda: None, cpu) is None
        pytest.skip("this system does not let the mark be set back")
    size = 200 * 2**20

    def use(size: int) -> None:
        """Pages of its own, given back: what an allocator has kept from earlier tests would serve a tensor."""
        with mmap.mmap(-1, size) as pages:
            for page in range(0, size, mmap.PAGESIZE):
                pages[page] = 1

    peak_memory(lambda: use(2 * size), cpu)  # a higher mark, to be set back
    little = peak_memory(lambda: None, cpu)
    much = peak_memory(lambda: use(size), cpu)
    assert little is not None
    assert much is not None
    assert 0.9 * size < much - little < 1.3 * size


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_by_events() -> None:
    device = torch.device("cuda")
    matrix = torch.ones(2048, 2048, device=device)

    def run(times: int) -> Callable[[int], None]:
        return lambda _: [matrix @ matrix for _ in range(times)] and None

    timings = measure(
        {"before": run(10), "again": run(10), "after": run(30)},
        [1],
        Effort(seed=0, min_rounds=30, min_seconds=0.0, max_seconds=10.0),
        warm_up=[0],
        clock=CudaClock(device),
    )
    assert len(timings.units) % CudaClock.rounds == 0
    assert speed(timings).verdict == "slower"
    peak = peak_memory(lambda: torch.ones(2**28, dtype=torch.uint8, device=device), device)
    assert peak is not None
    assert peak >= 2**28 + matrix.nbytes
