"""What became of the answers: outcomes, paired statistics against scipy and formulas of their own, verdicts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm, pearsonr, ttest_1samp
from sklearn.metrics import f1_score

from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.quality import Flip, Quality, compare, judge
from hf_gelu_patch.evaluation.statistics import Interval, exact_mcnemar, paired_p

SCALES: dict[str, Any] = {"logits": (0.5, 2.0)}


def labels(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    said, right = [outcome.answers[0] for outcome in outcomes], [outcome.targets[0] for outcome in outcomes]
    return {"label": {"predictions": np.array(said), "references": np.array(right)}}


def text(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    tokens = {
        "losses": np.array([outcome.loss for outcome in outcomes]),
        "tokens": np.array([outcome.tokens for outcome in outcomes]),
        "hits": np.array([sum(a == b for a, b in zip(o.answers, o.targets, strict=True)) for o in outcomes]),
    }
    return {"tokens": tokens}


def classified(before: Sequence[int], after: Sequence[int], right: Sequence[int], **options: Any) -> Quality:
    old, new = ([Outcome((a,), (r,), 0.0, 1) for a, r in zip(said, right, strict=True)] for said in (before, after))
    return compare(old, new, labels, **{"seed": 0, **SCALES, **options})


def similar(before: Sequence[float], after: Sequence[float], right: Sequence[float], **options: Any) -> Quality:
    old, new = ([Outcome((), (), 0.0, 0, score=score) for score in scores] for scores in (before, after))

    def columns(outcomes: Sequence[Outcome]) -> dict[str, Any]:
        return {"score": {"predictions": np.array([o.score for o in outcomes]), "references": np.array(right)}}

    return compare(old, new, columns, **{"seed": 0, **SCALES, **options})


# ------------------------------------------------------------------------------------------------------------ outcomes


def test_an_outcome_comes_back_from_json_to_the_bit() -> None:
    generator = random.Random(0)
    outcomes = [
        Outcome((1, 2, 3), (1, 2, -7), generator.random() * 10**power, 3, top5=(True, False, True))
        for power in range(-300, 300, 7)
    ]
    outcomes += [
        Outcome(("K AE T", "\u2028 \x00 ü"), ("K AE T", ""), 0.1 + 0.2, 2),
        Outcome((), (), 0.0, 0, score=math.nextafter(0.1, 1)),
        Outcome((True, None, 1.5), (1, 0, 2), math.inf, 1, score=-math.inf),
    ]
    for outcome in outcomes:
        line = json.dumps(outcome.to_json(), allow_nan=False)
        back = Outcome.from_json(json.loads(line))
        assert back == outcome
        assert [type(answer) for answer in back.answers] == [type(answer) for answer in outcome.answers]
        assert "\n" not in line
    lost = Outcome.from_json(json.loads(json.dumps(Outcome((), (), math.nan, 1, score=math.nan).to_json())))
    assert math.isnan(lost.loss)
    assert lost.score is not None
    assert math.isnan(lost.score)
    with pytest.raises(KeyError):
        Outcome.from_json({"answers": []})


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 6), (3, 3), (12, 3), (40, 55), (700, 810)])
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert exact_mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1))
    exact = min(Fraction(1), Fraction(2 * tail, 2 ** (lost + gained)))
    assert exact_mcnemar(lost, gained) == pytest.approx(float(exact), rel=1e-12)


def test_mcnemar_of_very_many_answers() -> None:
    assert exact_mcnemar(500_000, 500_000) == 1.0
    assert exact_mcnemar(10**7, 10**7 + 10_000) == pytest.approx(
        2 * norm.sf(9_999 / math.sqrt(2 * 10**7 + 10**4)), rel=1e-3
    )
    assert exact_mcnemar(0, 5000) == 0.0


def test_paired_p_is_mcnemars_where_examples_have_one_answer() -> None:
    assert paired_p(np.array([1] * 3 + [-1] * 12 + [0] * 100), 12, 3) == exact_mcnemar(12, 3)
    assert paired_p(np.zeros(5, dtype=int), 0, 0) == 1.0
    assert paired_p(np.array([], dtype=int), 0, 0) == 1.0


def test_paired_p_is_students_where_positions_depend_on_each_other() -> None:
    gains = np.array([-5, -3, -4, 2, -1, 0, -6, -2, 3])
    assert paired_p(gains, 40, 24) == pytest.approx(ttest_1samp(gains, 0).pvalue, rel=1e-9)
    assert ttest_1samp(gains, 0).pvalue > exact_mcnemar(40, 24)
    # Two texts with two losses each differ from nothing by as much, but that is chance by McNemar's count.
    assert paired_p(np.array([-2, -2]), 4, 0) == exact_mcnemar(4, 0) == 0.125
    assert paired_p(np.array([-2, -2, -2, -2, -2, -3]), 13, 0) == exact_mcnemar(13, 0)
    assert paired_p(np.array([-120, -118]), 150, 30) == pytest.approx(ttest_1samp([-120, -118], 0).pvalue, rel=1e-9)
    assert paired_p(np.array([-100]), 100, 0) == 1.0  # one text


def test_one_text_that_went_wrong_does_not_make_a_model_worse() -> None:
    """Fifty positions lost, all in one of twenty blocks: McNemar's test takes them for fifty independent losses."""
    right = [Outcome((1,) * 100, (1,) * 100, 1.0, 100) for _ in range(20)]
    wrong = [Outcome((0,) * 50 + (1,) * 50, (1,) * 100, 1.0, 100), *right[1:]]
    found = compare(right, wrong, text, seed=0, **SCALES)
    assert found.mcnemar_p < 1e-12
    assert found.p == pytest.approx(ttest_1samp([-50] + [0] * 19, 0).pvalue)
    assert judge(found) == "answers changed, none the worse as far as can be told"
    assert found.differences["token_accuracy"].low < 0 <= found.differences["token_accuracy"].high
    spread = [Outcome((0,) * 3 + (1,) * 97, (1,) * 100, 1.0, 100) for _ in range(20)]
    assert judge(compare(right, spread, text, seed=0, **SCALES)) == "answers worse"
    assert judge(compare(right[:1], spread[:1], text, seed=0, **SCALES)) != "answers worse"
    assert judge(compare(right[:1] * 2, spread[:1] * 2, text, seed=0, **SCALES)) == "answers worse"


def test_the_false_alarms_of_the_verdict_on_running_text() -> None:
    """Blocks whose positions gain and lose together, neither more than the other: at most one in twenty is judged."""
    generator = np.random.default_rng(0)
    for blocks in (2, 4, 30):
        alarms = 0
        for _ in range(400):
            gains = np.rint(generator.normal(0, 30, blocks)).astype(int)
            lost, gained = int(-gains[gains < 0].sum()) + 20, int(gains[gains > 0].sum()) + 20
            alarms += paired_p(gains, lost, gained) < 0.05
        assert alarms <= 0.08 * 400, blocks


def test_the_interval_is_the_bootstrap_of_the_paired_difference() -> None:
    """Of accuracy, whose difference is a mean: against the normal approximation, and against a plain loop."""
    generator = np.random.default_rng(1)
    right = generator.integers(0, 3, 400)
    before = np.where(generator.random(400) < 0.8, right, generator.integers(0, 3, 400))
    after = np.where(generator.random(400) < 0.9, before, generator.integers(0, 3, 400))
    found = classified(before.tolist(), after.tolist(), right.tolist()).differences
    change = (after == right).astype(float) - (before == right)
    assert found["accuracy"].value == pytest.approx(change.mean(), abs=1e-12)
    half = 1.96 * change.std(ddof=1) / math.sqrt(400)
    assert found["accuracy"].low == pytest.approx(change.mean() - half, abs=0.004)
    assert found["accuracy"].high == pytest.approx(change.mean() + half, abs=0.004)

    drawn = [generator.integers(0, 400, 400) for _ in range(600)]
    differences = [
        f1_score(right[i], after[i], average="macro") - f1_score(right[i], before[i], average="macro") for i in drawn
    ]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found["macro_f1"].low == pytest.approx(low, abs=0.006)
    assert found["macro_f1"].high == pytest.approx(high, abs=0.006)


def test_the_bootstrap_is_seeded() -> None:
    generator = random.Random(2)
    right = [generator.randrange(2) for _ in range(50)]
    before, after = ([r if generator.random() < 0.8 else 1 - r for r in right] for _ in range(2))
    assert classified(before, after, right) == classified(before, after, right)
    assert classified(before, after, right).differences != classified(before, after, right, seed=1).differences


@pytest.mark.parametrize("size", [2, 4, 25])
def test_the_interval_covers_the_truth(size: int) -> None:
    """Of a few skewed changes of loss with mean 1: the real coverage of what is said to be 95 %."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        old = [Outcome((), (), 10.0, 1)] * size
        new = [Outcome((), (), 10.0 + change, 1) for change in generator.gamma(4, 0.25, size)]
        found = compare(old, new, sequence, seed=0, **SCALES).differences["loss"]
        covered += found.low <= 1 <= found.high
    assert covered >= 0.89 * 200


def sequence(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answers = [[(str(one[0]) if one else "") for one in (o.answers, o.targets)] for o in outcomes]
    columns = {
        "predictions": np.array([said for said, _ in answers], dtype=object),
        "references": np.array([right for _, right in answers], dtype=object),
        "losses": np.array([o.loss for o in outcomes]),
        "tokens": np.array([o.tokens for o in outcomes]),
    }
    return {"sequence": columns}


def test_many_examples_are_resampled_within_bounds() -> None:
    import tracemalloc

    outcomes = [Outcome((1,), (1,), 1.0, 1)] * 40_000
    changed = [Outcome((0,), (1,), 1.0, 1)] * 400 + outcomes[400:]
    tracemalloc.start()
    found = compare(outcomes, changed, labels, seed=0, **SCALES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.differences["accuracy"].value == pytest.approx(-0.01)
    assert found.differences["accuracy"].high < -0.008
    assert peak < 600 * 2**20  # all resamples at once would take 640 MB in each of several arrays


# ---------------------------------------------------------------------------------------------------------- comparison


def test_one_stray_answer_does_not_cost_a_third_of_macro_f1() -> None:
    right = [0, 1] * 500
    found = classified(right, [2, *right[1:]], right, margin=0.01)
    assert found.after["macro_f1"] == pytest.approx(1, abs=1e-3)
    assert found.equivalent == {"accuracy": True, "macro_f1": True}


def test_bits_per_byte_are_paired_as_all_else() -> None:
    """Half a bit more on each of some texts is half a bit more, whatever their own differences."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 90, 60).astype(float)
    old = [Outcome((1,), (1,), size * math.log(2) * level, 1) for size, level in zip(sizes, generator.uniform(1, 9, 60),
                                                                                    strict=True)]  # fmt: skip
    new = [replace(one, loss=one.loss + size * math.log(2) / 2) for one, size in zip(old, sizes, strict=True)]
    found = compare(old, new, lambda given: {"text": {**text(given)["tokens"], "bytes": sizes}}, seed=0, **SCALES)
    moved = found.differences["bits_per_byte"]
    assert [moved.value, moved.low, moved.high] == pytest.approx([0.5] * 3)
    assert "bits per byte worse" in judge(found)


def test_changed_answers_are_counted_by_what_became_of_them() -> None:
    def outcomes(*answers: tuple[int, ...]) -> list[Outcome]:
        return [Outcome(one, (1,) * len(one), 0.0, len(one)) for one in answers]

    before = outcomes((1, 1, 0, 0), (2, 1))
    after = outcomes((1, 0, 1, 2), (1, 1))  # kept, lost, gained, changed and still wrong; gained, kept
    found = compare(before, after, text, seed=0, **SCALES)
    assert (found.examples, found.answers, found.flips) == (2, 6, 4)
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 2)
    assert found.mcnemar_p == exact_mcnemar(1, 2)
    assert found.flipped == (
        Flip(0, "1", "0", "1"),
        Flip(0, "0", "1", "1"),
        Flip(0, "0", "2", "1"),
        Flip(1, "2", "1", "1"),
    )
    assert (found.max_abs_logit_change, found.max_abs_logit) == (0.5, 2.0)
    assert found.before == {"perplexity": 1.0, "token_accuracy": 0.5}
    assert found.differences["token_accuracy"].value == pytest.approx(1 / 6)
    assert found.equivalent is None
    with pytest.raises(ValueError, match="zip"):
        compare(before, after[:1], text, seed=0, **SCALES)


def test_the_first_hundred_flips_are_listed() -> None:
    found = classified([0] * 300, [0, 1, 1] * 100, [0] * 300)
    assert found.flips == 200
    assert len(found.flipped) == 100
    assert [flip.example for flip in found.flipped[:4]] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("lost", "gained", "also_flipped", "verdict"),
    [
        (0, 0, 0, "answers unchanged"),
        (0, 0, 4, "answers changed, none the worse as far as can be told"),
        (3, 2, 0, "answers changed, none the worse as far as can be told"),
        (12, 1, 0, "answers worse"),
        (1, 12, 0, "answers better"),
    ],
)
def test_the_verdict_on_answers(lost: int, gained: int, also_flipped: int, verdict: str) -> None:
    kinds = [(0, 1)] * lost + [(1, 0)] * gained + [(1, 1)] * 10 + [(1, 2)] * also_flipped + [(0, 0)] * 50
    found = classified([old for old, _ in kinds], [new for _, new in kinds], [0] * len(kinds))
    assert judge(found) == verdict


def test_one_percent_of_flipped_answers_is_detected() -> None:
    generator = random.Random(5)
    right = [generator.randrange(4) for _ in range(2000)]
    before = [r if generator.random() < 0.9 else (r + 1) % 4 for r in right]
    hit = generator.sample([i for i in range(2000) if before[i] == right[i]], 20)
    after = [(one + 2) % 4 if i in hit else one for i, one in enumerate(before)]
    found = classified(before, after, right)
    assert (found.flips, found.right_to_wrong, judge(found)) == (20, 20, "answers worse")
    assert [flip.example for flip in found.flipped] == sorted(hit)
    assert found.differences["accuracy"].value == pytest.approx(-0.01)
    assert -0.02 < found.differences["accuracy"].low < found.differences["accuracy"].high < -0.004
    back = classified(after, before, right)
    assert judge(back) == "answers better"
    same = classified(before, before, right)
    assert judge(same) == "answers unchanged"
    assert set(same.differences.values()) == {Interval(0.0, 0.0, 0.0)}


def test_equivalent_is_every_whole_interval_within_the_margin() -> None:
    right = [0, 1] * 1000
    after = [1, 0, *right[2:]]
    wide = classified(right, after, right, margin=0.01)
    assert wide.equivalent == {"accuracy": True, "macro_f1": True}
    assert judge(wide) == "equivalent within ±0.01"
    narrow = classified(right, after, right, margin=0.0015)
    assert abs(narrow.differences["accuracy"].value) < 0.0015 < abs(narrow.differences["accuracy"].low)
    assert narrow.equivalent == {"accuracy": False, "macro_f1": False}
    assert judge(narrow) == "answers changed, none the worse as far as can be told"
    # A loss beyond chance can be too small to matter.
    lost = [1, 0] * 10 + right[20:]
    assert judge(classified(right, lost, right)) == "answers worse"
    assert judge(classified(right, lost, right, margin=0.02)) == "equivalent within ±0.02"
    assert judge(classified(right, lost, right, margin=0.01)) == "answers worse"
    assert judge(classified(right, right, right, margin=0.01)) == "answers unchanged"
    for margin in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive"):
            classified(right, right, right, margin=margin)


def test_the_margin_of_perplexity_is_a_share_of_it() -> None:
    generator = np.random.default_rng(0)
    old = [Outcome((1,) * 10, (1,) * 10, 40.0, 10) for _ in range(200)]  # perplexity 54.6
    new = [Outcome(o.answers, o.targets, 40.0 + generator.normal(0.02, 0.02), 10) for o in old]
    found = compare(old, new, text, seed=0, margin=0.01, **SCALES)
    assert found.differences["perplexity"].low > 0.08
    assert found.equivalent == {"perplexity": True, "token_accuracy": True}
    assert judge(found) == "equivalent within ±0.01"
    found = compare(old, new, text, seed=0, margin=0.002, **SCALES)
    assert found.equivalent == {"perplexity": False, "token_accuracy": True}
    assert judge(found) == "answers unchanged, perplexity worse"


def test_a_loss_that_grew_is_said_though_no_answer_shows_it() -> None:
    old = [Outcome((1, 2), (1, 1), 2.0, 2)] * 30
    worse = [Outcome((1, 2), (1, 1), 2.1, 2)] * 30
    assert judge(compare(old, worse, text, seed=0, **SCALES)) == "answers unchanged, perplexity worse"
    flipped = [Outcome((1, 0), (1, 1), 2.1, 2)] * 30
    found = compare(old, flipped, text, seed=0, **SCALES)
    assert judge(found) == "answers changed, perplexity worse"
    rounding = [Outcome((1, 2), (1, 1), 2.0 + 1e-6, 2)] * 30
    found = compare(old, rounding, text, seed=0, **SCALES)
    assert found.differences["perplexity"].low > 0
    assert judge(found) == "answers unchanged"
    better = [Outcome((1, 2), (1, 1), 1.9, 2)] * 30
    assert judge(compare(old, better, text, seed=0, **SCALES)) == "answers unchanged"


def test_answers_that_are_numbers() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(300)
    before = (right + generator.normal(0, 0.1, 300)).tolist()
    nudged = [score + 1e-6 for score in before]
    found = similar(before, nudged, right.tolist())
    assert (found.answers, found.flips, judge(found)) == (300, 0, "answers unchanged")
    noisy = [score + generator.normal(0, 0.2) for score in before]
    found = similar(before, noisy, right.tolist())
    assert found.flips == 300
    assert (found.right_to_wrong, found.wrong_to_right, found.mcnemar_p) == (0, 0, 1.0)
    assert found.flipped[0] == Flip(0, f"{before[0]:.4f}", f"{noisy[0]:.4f}", "")
    assert judge(found) == "answers changed, spearman and pearson worse"
    assert found.differences["pearson"].value == pytest.approx(
        pearsonr(noisy, right).statistic - pearsonr(before, right).statistic, abs=1e-12
    )
    constant = similar(before, [0.5] * 300, right.tolist())
    assert math.isnan(constant.after["spearman"])
    assert math.isnan(constant.differences["spearman"].low)
    assert judge(constant) == "answers changed, none the worse as far as can be told"
    lost = similar(before, [math.nan, *before[1:]], right.tolist())
    assert lost.flips == 1
    assert similar([math.nan], [math.nan], [1.0]).flips == 0


def test_one_example_says_nothing_of_others() -> None:
    found = classified([0], [1], [0], margin=0.5)
    assert found.differences["accuracy"] == Interval(-1.0, -math.inf, math.inf)
    assert found.equivalent == {"accuracy": False, "macro_f1": False}
    assert judge(found) == "answers changed, none the worse as far as can be told"


def test_infinite_losses() -> None:
    outcomes = [Outcome((1,), (1,), math.inf, 1), Outcome((1,), (1,), 1.0, 1), Outcome((1,), (1,), 2.0, 1)]
    same = compare(outcomes, outcomes, text, seed=0, **SCALES)
    assert same.before["perplexity"] == math.inf
    assert same.differences["perplexity"] == Interval(0.0, 0.0, 0.0)
    finite = [Outcome((1,), (1,), 1.0, 1)] * 3
    grown = compare(finite, outcomes, text, seed=0, **SCALES)
    assert grown.differences["perplexity"].value == math.inf


def test_nothing_to_compare() -> None:
    none = [Outcome((), (), 0.0, 0)] * 3
    found = compare(none, none, lambda _: {}, seed=0, margin=0.1, **SCALES)
    assert (found.before, found.after, found.differences, found.equivalent) == ({}, {}, {}, {})
    assert judge(found) == "no answers to compare"
    empty = compare([], [], labels, seed=0, **SCALES)
    assert empty.examples == 0
    assert math.isnan(empty.before["accuracy"])
    assert math.isnan(empty.differences["accuracy"].value)


def test_metrics_that_are_measured_elsewhere_are_kept() -> None:
    found = classified([0, 1], [0, 1], [0, 1], metrics=({"accuracy": 1.0, "mine": 2.0}, {"accuracy": 1.0, "mine": 3.0}))
    assert found.before["mine"] == 2.0
    assert found.after["mine"] == 3.0
    assert found.differences.keys() == {"accuracy", "macro_f1"}
