"""Metrics against scikit-learn, scipy and formulas of their own."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, ndcg_score
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

from hf_gelu_patch.evaluation.metrics import ANSWERS, METRICS
from hf_gelu_patch.evaluation.metrics.language import edit_distance
from hf_gelu_patch.evaluation.metrics.registry import measured, rows_of, statistics_of
from hf_gelu_patch.evaluation.tasks.lists import array_of


def measure(kind: str, **columns: Any) -> dict[str, float]:
    """The metrics of one kind of answer."""
    return measured(rows_of({kind: columns}))


@pytest.mark.parametrize("count", [2, 7])
def test_classification_is_scikit_learns(count: int) -> None:
    generator = random.Random(count)
    truth = [generator.randrange(count) for _ in range(211)]
    said = [t if generator.random() < 0.6 else generator.randrange(count) for t in truth]
    found = measure("label", predictions=said, references=truth)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, said), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-12)
    assert found.keys() == {"accuracy", "macro_f1"}


def test_macro_f1_counts_a_label_that_was_never_right() -> None:
    said, truth = [0, 0, 2, 0], [0, 0, 1, 1]
    found = measure("label", predictions=said, references=truth)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro", labels=[0, 1], zero_division=0))


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        ([2, *[0, 1] * 50], [0, *[0, 1] * 50]),  # one stray answer
        ([7, 9, 1, 1, 0], [0, 0, 1, 1, 1]),  # several labels that the references lack
        ([5, 5, 5], [3, 3, 3]),  # none is right
        ([3, 1, 2], [3, 3, 3]),
    ],
)
def test_macro_f1_is_over_the_labels_of_the_references(said: list[int], truth: list[int]) -> None:
    found = measure("label", predictions=said, references=truth)
    expected = f1_score(truth, said, average="macro", labels=sorted(set(truth)), zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected, abs=1e-12)


def test_labels_that_no_reference_has_do_not_count_among_several() -> None:
    found = measure("label set", predictions=["101", "010", "111"], references=["100", "010", "110"])
    assert found == {"subset_accuracy": 1 / 3, "micro_f1": 2 * 4 / (6 + 4), "macro_f1": 1.0}
    none = measure("label set", predictions=["00"], references=["00"])
    assert none["subset_accuracy"] == 1.0
    assert math.isnan(none["micro_f1"])
    assert math.isnan(none["macro_f1"])


def test_top_five_is_measured_where_it_is_given() -> None:
    found = measure("ranked label", predictions=[1, 2, 3, 4], references=[1, 1, 3, 9], top5=[True, True, True, False])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1) / 3), "top5_accuracy": 0.75}


def test_perplexity_is_per_token_not_per_example() -> None:
    found = measure("tokens", losses=[math.log(2) * 10, math.log(8) * 30], tokens=[10, 30], hits=[5, 6])
    assert found == {"perplexity": pytest.approx(2 ** ((10 + 90) / 40)), "token_accuracy": 11 / 40}


def test_bits_are_per_byte_not_per_example() -> None:
    found = measure("text", losses=[math.log(2) * 10, math.log(8) * 30], tokens=[10, 30], hits=[5, 6],
                                        bytes=[20.0, 60.0])  # fmt: skip
    assert found["bits_per_byte"] == pytest.approx((10 + 90) / 80)
    assert "bits_per_byte" not in measure("tokens", losses=[1.0], tokens=[1], hits=[0])


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    assert measure("tokens", losses=[1e6], tokens=[1], hits=[0])["perplexity"] == math.inf


def test_sequences() -> None:
    found = measure(
        "sequence",
        predictions=["K AE T", "D AO", ""],
        references=["K AE T", "D AO G", "AH"],
        losses=[1.0, 2.0, 3.0],
        tokens=[3, 3, 2],
    )
    assert found == {"exact_match": 1 / 3, "edit_error_rate": 2 / 7, "loss": 6 / 8}


@pytest.mark.parametrize("step", [0.001, 0.2, 0.5])  # the coarser, the more scores are equal
def test_similarity_is_scipys(step: float) -> None:
    generator = np.random.default_rng(0)
    right = np.round(generator.normal(size=97) / step) * step
    said = np.round((right + generator.normal(size=97)) / step) * step
    found = measure("score", predictions=said.tolist(), references=right.tolist())
    assert found["spearman"] == pytest.approx(spearmanr(said, right).statistic, abs=1e-12)
    assert found["pearson"] == pytest.approx(pearsonr(said, right).statistic, abs=1e-12)


def test_similarity_of_constant_or_missing_scores_is_undefined() -> None:
    # The mean of three times 0.1 is not 0.1 in float64.
    for said in ([0.1] * 5, *([0.1] * size for size in range(3, 60)), [0.1, 0.2, math.nan, 0.3, 0.4]):
        found = measure("score", predictions=np.array(said), references=np.arange(float(len(said))))
        assert all(math.isnan(value) for value in found.values())
    one = measure("score", predictions=np.array([0.5]), references=np.array([1.0]))
    assert all(math.isnan(value) for value in one.values())
    exact = measure("score", predictions=np.arange(5.0), references=-np.arange(5.0))
    assert exact == {"spearman": pytest.approx(-1.0), "pearson": pytest.approx(-1.0)}


@pytest.mark.parametrize(
    "said",
    [
        [1.0, 1.0 - 1e-16, 1.0 + 2e-16, 1.0],  # cosines of equal vectors, in float64
        [1.0, 1.0 - 1.2e-7, 1.0, 1.0 + 1.2e-7],  # a few roundings of float32
        [-3e4, -3e4 - 0.002, -3e4, -3e4],
        [1e-20, 1e-20 + 1e-28, 1e-20, 1e-20],
        [0.0, 0.0, 0.0, 0.0],
    ],
)
def test_scores_that_agree_up_to_rounding_have_no_order(said: list[float]) -> None:
    found = measure("score", predictions=np.array(said), references=np.array([1.0, 2.0, 3.0, 4.0]))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("said", [[1.0, 1.00001, 1.00002, 1.00003], [-1e-8, 0.0, 1e-8, 2e-8], [0.0, 1.0, 2.0, 3.0]])
def test_scores_that_differ_have_one(said: list[float]) -> None:
    found = measure("score", predictions=np.array(said), references=np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == {"spearman": pytest.approx(1.0), "pearson": pytest.approx(1.0)}


NUMBERS = {"predictions": [0.1, 0.3, 0.2, 0.3], "references": [1.0, 2.0, 2.0, 5.0]}

TOKENS = {"losses": [1.5, 2.5, 0.1, 4.0], "tokens": [3, 4, 1, 2], "hits": [1, 4, 0, 1]}

RANKED = {"predictions": [1, 0, 1, 2], "references": [1, 0, 0, 2], "top5": [True, True, True, False]}

SEQUENCES = {
    "predictions": ["a b", "", "c", "d e"],
    "references": ["a b", "b", "a c", "d f"],
    "losses": [0.1, 0.2, 0.3, 0.4],
    "tokens": [2, 1, 2, 2],
}

SETS = {"predictions": ["110", "000", "011", "100"], "references": ["100", "010", "011", "010"]}

TAGS = {
    "predictions": [["B-A", "I-A", "O"], ["O"], ["B-B"], ["B-A", "B-A"]],
    "references": [["B-A", "I-A", "O"], ["B-A"], ["B-A"], ["B-A", "O"]],
}

SPANS = {"predictions": ["The cat", "a dog!", "", "two words"], "references": [["cat", "dogs"], ["big dog"], [], ["x"]]}

RANKINGS = {
    "scores": [[0.1, 0.3], [1.0, 1.0, 0.5], [3.0, 2.0], [0.0, 1.0, 2.0]],
    "relevance": [[1, 0], [0, 1, 0], [2, 1], [1, 0, 3]],
}

TEXTS = {
    "predictions": ["the cat sat on the mat", "a dog ran away quickly", "", "no word in common here"],
    "references": [
        ["the cat sat on a mat", "a cat sat on the mat today"],
        ["the dog ran away quickly"],
        ["x"],
        ["y z"],
    ],
    "losses": [0.1, 0.2, 0.3, 0.4],
    "tokens": [2, 1, 2, 2],
}

SIDES = {"predictions": [0, 1, 0, 1], "references": [0, 0, 0, 1]}

TRANSCRIPTS = {"predictions": ["a b", "", "c d", "d e f"], "references": ["a b", "b", "a c", "d f"]}

BOX = [[10.0, 10.0, 20.0, 20.0], [12.0, 10.0, 20.0, 20.0], [60.0, 60.0, 20.0, 20.0]]

BOXES: dict[str, list[Any]] = {
    "predictions": [
        {"boxes": BOX, "labels": [0, 1, 0], "scores": [0.9, 0.8, 0.3]},
        {"boxes": [BOX[1]], "labels": [0], "scores": [0.7]},
        {"boxes": [], "labels": [], "scores": []},
        {"boxes": BOX[1:], "labels": [1, 1], "scores": [0.6, 0.2]},
    ],
    "references": [
        {"boxes": BOX[:2], "labels": [0, 1], "crowds": [0, 0]},
        {"boxes": [BOX[0]], "labels": [0], "crowds": [0]},
        {"boxes": [BOX[2]], "labels": [1], "crowds": [0]},
        {"boxes": [], "labels": [], "crowds": []},
    ],
}

REGIONS = {
    "hits": [*np.array([[4.0, 1.0, 0.0], [0.0, 2.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 0.0]])],
    "said": [*np.array([[5.0, 2.0, 0.0], [1.0, 3.0, 0.0], [4.0, 4.0, 1.0], [0.0, 0.0, 5.0]])],
    "right": [*np.array([[5.0, 2.0, 0.0], [2.0, 2.0, 0.0], [5.0, 4.0, 0.0], [0.0, 5.0, 0.0]])],
}

RANKS = {"text_rank": [1, 7, 2, 1], "image_rank": [3, 1, 9, 6], "of_image": [0.5, 0.5, 1.0, 1.0], "of_text": [1.0] * 4}

COLUMNS: list[dict[str, dict[str, list[Any]]]] = [
    {"ranked label": RANKED},
    {"label": {name: RANKED[name] for name in ("predictions", "references")}},
    {"label set": SETS},
    {"tokens": TOKENS},
    {"text": {**TOKENS, "bytes": [9.0, 14.0, 2.0, 7.0]}},
    {"sequence": SEQUENCES},
    {"score": NUMBERS},
    {"number": NUMBERS, "label": SIDES},
    {"transcript": TRANSCRIPTS},
    {"tags": TAGS},
    {"entities": TAGS},
    {"span": SPANS},
    {"ranking": RANKINGS},
    {"boxes": BOXES},
    {"regions": REGIONS},
    {"reconstruction": {"errors": [1.5, 2.5, 0.1, 4.0], "values": [3, 4, 1, 2]}},
    {"ranks": RANKS},
    {"summary": TEXTS},
    {"translation": TEXTS},
]


def test_each_kind_of_answer_is_tried() -> None:
    assert {kind for columns in COLUMNS for kind in columns} == ANSWERS.keys()
    assert {name for columns in COLUMNS for name in measured(rows_of(columns))} == METRICS.keys()


@pytest.mark.parametrize("columns", COLUMNS, ids=" ".join)
def test_a_weighted_sample_measures_as_if_each_example_stood_in_it_so_often(
    columns: dict[str, dict[str, list[Any]]],
) -> None:
    arrays = {
        kind: {
            name: array_of(values) if isinstance(values[0], list | str) else np.array(values)
            for name, values in some.items()
        }
        for kind, some in columns.items()
    }
    assert measured(rows_of(arrays)) == measured(rows_of(columns))
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 3, 1, 0], [1, 0, 2, 1]])
    found = statistics_of(weights.astype(float), rows_of(arrays))
    for sample, counts in enumerate(weights):
        drawn = {
            k: {name: np.repeat(values, counts, axis=0) for name, values in some.items()} for k, some in arrays.items()
        }
        expected = measured(rows_of(drawn))
        assert {name: values[sample] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)
    empty = measured(rows_of({k: {name: values[:0] for name, values in some.items()} for k, some in arrays.items()}))
    assert empty.keys() == found.keys()
    assert all(math.isnan(value) for name, value in empty.items() if name != "edit_error_rate")


def test_equals_stand_in_every_order() -> None:
    """nDCG is scikit-learn's. The reciprocal rank is torchmetrics', averaged over all orders of equal scores."""
    generator = np.random.default_rng(1)
    for size in (2, 5, 7, 14):
        scores = generator.integers(1, 5, size).astype(float)
        relevance = generator.integers(0, 2, size)
        relevance[generator.integers(size)] = 1
        found = measure("ranking", scores=array_of([scores.tolist()]), relevance=array_of([relevance.tolist()]))
        assert found["ndcg_at_10"] == pytest.approx(ndcg_score([relevance], [scores], k=10), abs=1e-12)
        ranks = []
        for _ in range(1000):
            shuffled = generator.permutation(size)
            right = torch.from_numpy(relevance[shuffled]) > 0
            ranks.append(float(retrieval_reciprocal_rank(torch.from_numpy(scores[shuffled]), right, top_k=10)))
        assert found["mrr_at_10"] == pytest.approx(np.mean(ranks), abs=0.06)


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("flaw", "lawn", 2),
        ("same", "same", 0),
        ("ab", "ba", 2),
        ("aaa", "aa", 1),
        ("abcab", "abab", 1),
    ],
)
def test_edit_distance(left: str, right: str, edits: int) -> None:
    assert edit_distance(left, right) == edits


def test_edit_distance_is_the_recursive_definition() -> None:
    def plain(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(plain(a[1:], b) + 1, plain(a, b[1:]) + 1, plain(a[1:], b[1:]) + (a[0] != b[0]))

    words = ["".join(letters) for size in range(5) for letters in itertools.product("ab", repeat=size)]
    for a, b in itertools.product(words, words):
        assert edit_distance(a, b) == plain(a, b), (a, b)
