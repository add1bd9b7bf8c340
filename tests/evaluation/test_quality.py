"""Metrics and paired statistics against scikit-learn, scipy and formulas of their own."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from hf_gelu_patch.evaluation.quality import (
    ClassificationMetric,
    LanguageModelMetric,
    Outcome,
    SequenceMetric,
    compare,
    edit_distance,
    exact_mcnemar,
    judge,
)


@pytest.mark.parametrize("labels", [2, 7])
def test_classification_is_scikit_learns(labels: int) -> None:
    generator = random.Random(labels)
    truth = [generator.randrange(labels) for _ in range(211)]
    said = [t if generator.random() < 0.6 else generator.randrange(labels) for t in truth]
    found = ClassificationMetric.measure(predictions=said, references=truth)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)


def test_macro_f1_counts_a_label_that_was_never_right() -> None:
    said, truth = [0, 0, 2, 0], [0, 0, 1, 1]
    found = ClassificationMetric.measure(predictions=said, references=truth)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))


def test_perplexity_is_per_token_not_per_example() -> None:
    found = LanguageModelMetric.measure(losses=[math.log(2) * 10, math.log(8) * 30], tokens=[10, 30], hits=[5, 6])
    assert found == {"perplexity": pytest.approx(2 ** ((10 + 90) / 40)), "token_accuracy": 11 / 40}


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert LanguageModelMetric.measure(losses=[1e6], tokens=[1], hits=[0])["perplexity"] == math.inf


def test_sequences() -> None:
    found = SequenceMetric.measure(
        predictions=["K AE T", "D AO", ""],
        references=["K AE T", "D AO G", "AH"],
        losses=[1.0, 2.0, 3.0],
        tokens=[3, 3, 2],
    )
    assert found == {"exact_match": 1 / 3, "edit_error_rate": 2 / 7, "loss": 6 / 8}


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("flaw", "lawn", 2),
        ("same", "same", 0),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(left: str, right: str, edits: int) -> None:
    assert edit_distance(left, right) == edits


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 6), (3, 3), (12, 3), (40, 55), (700, 810)])
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert exact_mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_changed_answers_are_counted_by_what_became_of_them() -> None:
    def outcomes(*answers: tuple[int, ...]) -> list[Outcome]:
        return [Outcome(one, (1,) * len(one), 0.0, len(one)) for one in answers]

    before = outcomes((1, 1, 0, 0), (2, 1))
    after = outcomes((1, 0, 1, 2), (1, 1))  # kept, lost, gained, changed and still wrong; gained, kept
    found = compare(before, after, ({}, {}), max_abs_logit_change=0.5, max_abs_logit=2.0)
    assert (found.examples, found.answers, found.flips) == (2, 6, 4)
    assert (found.right_to_wrong, found.wrong_to_right) == (1, 2)
    assert found.mcnemar_p == exact_mcnemar(1, 2)
    with pytest.raises(ValueError, match="zip"):
        compare(before, after[:1], ({}, {}), max_abs_logit_change=0.0, max_abs_logit=0.0)


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
    kinds = [(0, 1)] * lost + [(1, 0)] * gained + [(1, 2)] * also_flipped + [(0, 0)] * 50
    old, new = ([Outcome((pair[side],), (0,), 0.0, 1) for pair in kinds] for side in (0, 1))
    quality = compare(old, new, ({}, {}), max_abs_logit_change=0.0, max_abs_logit=1.0)
    assert judge(quality) == verdict
