"""Which label a value means: right, or refused with both lists shown; never another one in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets
import pytest

from hf_gelu_patch.evaluation.tasks.labels import BadLabelError, Labels, LabelsError, as_number, class_names

NLI = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
DIGITS = ["1", "2", "3", "4", "5"]
GENERIC = ["LABEL_0", "LABEL_1", "LABEL_2"]


def read(
    names: Sequence[str], values: Sequence[Any], classes: Sequence[str] | None = None, asked: str | None = None
) -> list[Any]:
    """The id of each value, or None for one that is no label."""
    reader = Labels(names, asked).reader(values, classes)
    found: list[Any] = []
    for value in values:
        try:
            found.append(reader(value))
        except BadLabelError:
            found.append(None)
    return found


def read_sets(
    names: Sequence[str], values: Sequence[Any], classes: Sequence[str] | None = None, asked: str | None = None
) -> list[Any]:
    reader = Labels(names, asked).set_reader(values, classes)
    found: list[Any] = []
    for value in values:
        try:
            found.append(set(reader(value)))
        except BadLabelError:
            found.append(None)
    return found


# ----------------------------------------------------------------------------------------------------------- one label


@pytest.mark.parametrize(
    ("names", "values", "ids"),
    [
        (NLI, ["entailment", "Neutral", " contradiction ", "NEUTRAL"], [2, 1, 0, 1]),
        (NLI, ["entailment"], [2]),  # some of the labels are enough
        (["very  good", "bad"], ["Very good", "BAD"], [0, 1]),
        (["café", "thé"], ["cafe\u0301", "THÉ"], [0, 1]),  # as macOS names a folder
        (["a", "A"], ["A", "a"], [1, 0]),  # which differ in nothing else
        (NLI, [2, 0, 1], [2, 0, 1]),
        (NLI, ["2", "0", " 1"], [2, 0, 1]),
        (NLI, [2.0, 0.0, math.nan], [2, 0, None]),  # of pandas, one missing
        (NLI, ["2.0", "0.0", ""], [2, 0, None]),
        (NLI, ["neutral", None, "  "], [1, None, None]),
        (NLI, ["neutral", "maybe", "2"], [1, None, None]),  # names and ids are not mixed
        (NLI, [1, 0, -1], [1, 0, None]),  # as many data sets write that there is none
        (DIGITS, [1, 5, 3], [0, 4, 2]),
        (DIGITS, ["1", "5"], [0, 4]),
        (DIGITS, [0, 4, 2], [0, 4, 2]),
        (DIGITS, [1.0, 5.0], [0, 4]),
        (DIGITS, [1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, None]),
        (STARS, [1, 5], [0, 4]),
        (STARS, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (STARS, ["5 Stars", "1 star"], [4, 0]),
        (["0", "1"], [0, 1, "1"], [0, 1, 1]),
        (["0", "1", "other"], [0, 1, 2], [0, 1, 2]),
        (["0.5", "1.0", "1.5"], [0.5, 1.0, 1.5], [0, 1, 2]),
        (["no", "yes"], [True, False], [1, 0]),
        (["yes", "no"], [True, False], [0, 1]),
        (["False", "True"], [True, False], [1, 0]),
        (["True", "False"], ["true", "FALSE"], [0, 1]),
        (["LABEL_0", "LABEL_1"], [True, False], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["True", "False"], [1, 0]),
        (["None", "some"], ["None", "some", None], [0, 1, None]),
        (GENERIC, ["LABEL_2", "label_0"], [2, 0]),
        (GENERIC, [1, 2], [1, 2]),
        (["I10", "E11", "J45"], [0, 1, 2], [0, 1, 2]),
        (NLI, ["neutral", [1, 0], {"a": 1}], [1, None, None]),
    ],
)
def test_a_label_is_what_the_whole_column_says(names: list[str], values: list[Any], ids: list[Any]) -> None:
    assert read(names, values) == ids


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (DIGITS, [1, 2, 3]),  # ids, or names
        (DIGITS, ["2", "3"]),
        (DIGITS, [0, 1, 5]),  # neither
        (STARS, [1, 2]),
        (["1", "0"], [0, 1]),
        (NLI, ["yes", "no"]),
        (NLI, [1, 2, 3]),  # ids that begin with 1: were 3 left out, the others would be wrong
        (NLI, [1, 7]),
        (["no", "yes"], [1, 2]),
        (["cat", "dog"], [True, False]),
        (NLI, [True, False]),
        (NLI, ["true", "false"]),
        (GENERIC, ["negative", "neutral", "positive"]),  # their order is not known
        (NLI, [0.25, 0.5]),
        (["a", "a"], ["a", "a"]),
        (DIGITS, ["1 star", "2 stars"]),
    ],
)
def test_what_fits_in_no_way_or_in_two_is_refused_with_both_lists(names: list[str], values: list[Any]) -> None:
    with pytest.raises(LabelsError) as caught:
        Labels(names).reader(values, None)
    assert f"0 ({names[0]})" in str(caught.value)
    assert str(values[0]).lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("names", "values", "asked", "ids"),
    [
        (DIGITS, [1, 2, 3], "names", [0, 1, 2]),
        (DIGITS, [1, 2, 3], "ids", [1, 2, 3]),
        (STARS, [1, 2], "names", [0, 1]),
        (["1", "0"], ["0", "1"], "ids", [0, 1]),
        (NLI, [0, 2, 3], "ids", [0, 2, None]),  # of a class that the model lacks
        (NLI, ["neutral", "1"], "names", [1, None]),
    ],
)
def test_which_way_can_be_said(names: list[str], values: list[Any], asked: str, ids: list[int]) -> None:
    assert read(names, values, asked=asked) == ids


@pytest.mark.parametrize(
    ("names", "classes", "ids"),
    [
        (NLI, ["entailment", "neutral", "contradiction"], [2, 1, 0]),
        (["dog", "cat"], ["Cat", "Dog"], [1, 0]),
        (["dog", "cat", "cow"], ["cow", "dog"], [2, 0]),  # folders for some of the classes
        (["dog", "cat"], ["bird", "cat", "dog"], [None, 1, 0]),
        (GENERIC, ["negative", "neutral", "positive"], [0, 1, 2]),
        (GENERIC, ["LABEL_2", "LABEL_0", "LABEL_1"], [2, 0, 1]),
        (GENERIC, ["1", "2", "3"], [0, 1, 2]),
        (NLI, ["0", "1", "2"], [0, 1, 2]),
        (DIGITS, ["0", "1", "2", "3", "4"], [0, 1, 2, 3, 4]),
        (DIGITS, ["1", "2", "3"], [0, 1, 2]),
        (STARS, ["5", "4", "1"], [4, 3, 0]),
        (["1", "0"], ["0", "1"], [1, 0]),
    ],
)
def test_classes_have_names(names: list[str], classes: list[str], ids: list[Any]) -> None:
    assert read(names, [*range(len(classes)), -1, None], classes) == [*ids, None, None]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (NLI, ["a", "b", "c"]),
        (["tench", "goldfish", "shark"], ["cat", "dog"]),
        (GENERIC, ["negative", "positive"]),  # two of three: which is not known
        (GENERIC, ["a", "b", "c", "d"]),
        (DIGITS, ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]),
        (["yes", "no"], ["Yes", "YES"]),
        (["no", "yes"], ["False", "True"]),
    ],
)
def test_classes_of_other_names_are_refused(names: list[str], classes: list[str]) -> None:
    with pytest.raises(LabelsError, match=rf"{classes[0]}.*0 \({names[0]}\)"):
        Labels(names).reader([0, 1], classes)


def test_the_numbers_of_classes_can_be_taken_for_ids() -> None:
    assert read(NLI, [0, 2], ["a", "b", "c"], asked="ids") == [0, 2]
    with pytest.raises(LabelsError):
        Labels(["x", "y"], "ids").reader([0], ["a", "b", "c"])


def test_a_bad_label_is_shown_with_both_lists() -> None:
    reader = Labels(["no", "yes"]).reader(["yes", "maybe"], None)
    with pytest.raises(BadLabelError, match=r"'maybe'.*0 \(no\), 1 \(yes\).*'yes', 'maybe'"):
        reader("maybe")


def test_no_message_holds_a_long_text() -> None:
    with pytest.raises(LabelsError) as caught:
        Labels(NLI).reader(["a long text " * 500] + [f"{number} " * 300 for number in range(50)], None)
    assert len(str(caught.value)) < 1000
    reader = Labels(NLI).reader(["neutral", "word " * 500], None)
    with pytest.raises(BadLabelError) as one:
        reader("word " * 500)
    assert len(str(one.value)) < 400


def test_names_of_classes_are_found_in_lists_too() -> None:
    feature = datasets.ClassLabel(names=["a", "b"])
    assert class_names(feature) == class_names(datasets.List(feature)) == ["a", "b"]
    assert class_names(datasets.Value("int64")) is None
    assert class_names(datasets.List(datasets.Value("int64"))) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (True, 1.0), ("2.5", 2.5), (" -3 ", -3.0), ("1e3", 1000.0), (0.5, 0.5)]
    + [(bad, None) for bad in ("", "much", "1_0", "nan", math.inf, None, [1.0], {"a": 1}, "1,5", 10**400)],
)
def test_a_number_is_finite(value: Any, number: float | None) -> None:
    assert as_number(value) == number


# ------------------------------------------------------------------------------------------------------ several labels

COLOURS = ["red", "green", "dark blue"]


@pytest.mark.parametrize(
    ("names", "values", "sets"),
    [
        (COLOURS, [["red", "Dark Blue"], [], ["green"]], [{0, 2}, set(), {1}]),
        (COLOURS, [[0, 2], [1], []], [{0, 2}, {1}, set()]),
        (COLOURS, [[2.0, 0.0], [1.0]], [{0, 2}, {1}]),
        (COLOURS, [[1, 0, 1], [0, 0, 0]], [{0, 2}, set()]),
        (COLOURS, [[1.0, 0.0, 1.0]], [{0, 2}]),
        (COLOURS, [[True, False, True], [False] * 3], [{0, 2}, set()]),
        (COLOURS, [[1, 0, 1], [1, 0]], [{0, 2}, None]),
        (COLOURS, ["['red', 'dark blue']", "[]", '["green"]'], [{0, 2}, set(), {1}]),
        (COLOURS, ["[0, 2]", "[1]"], [{0, 2}, {1}]),
        (COLOURS, ["[1 0 1]", "[0 0 1]"], [{0, 2}, {2}]),  # numpy's
        (COLOURS, ["[1. 0. 1.]"], [{0, 2}]),
        (COLOURS, ["1,0,1", "0,0,0"], [{0, 2}, set()]),
        (COLOURS, ["1 0 1", "0 0 0"], [{0, 2}, set()]),
        (COLOURS, ["red|dark blue", "green", ""], [{0, 2}, {1}, None]),
        (COLOURS, ["red; dark blue", "GREEN"], [{0, 2}, {1}]),
        (COLOURS, ["red, dark blue", "green, purple"], [{0, 2}, None]),
        (COLOURS, ["[red, dark blue]"], [{0, 2}]),
        (COLOURS, ["dark blue", "red"], [{2}, {0}]),
        (COLOURS, [2, 0, None], [{2}, {0}, None]),
        (COLOURS, [["red", "red"], ["purple"], [None]], [{0}, None, None]),
        (COLOURS, [["red"], [["red"]], [{"a": 1}]], [{0}, None, None]),
        (["a, b", "c"], ["a, b", "c"], [{0}, {1}]),
        (["no", "yes"], [[0, 1], [1, 1]], [{1}, {0, 1}]),
        (["no", "yes"], [[0.0, 1.0]], [{1}]),
        (["on"], [[1], [0]], [{0}, set()]),
        (["on"], [1, 0], [{0}, set()]),
        (DIGITS, [["1", "5"], ["2"]], [{0, 4}, {1}]),
        (DIGITS, [[0, 4], [1]], [{0, 4}, {1}]),
    ],
)
def test_several_labels(names: list[str], values: list[Any], sets: list[Any]) -> None:
    assert read_sets(names, values) == sets


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (["no", "yes"], [[0, 1], [1, 0]]),  # vectors, or both labels
        (["on"], [[0], [0]]),
        (COLOURS, [[0, 1], [1, 0]]),
        (COLOURS, [[0, 1, 1, 0], [1, 1, 0, 0]]),  # vectors of another width
        (COLOURS, [["purple"], ["pink"]]),
        (COLOURS, [[1, 3], [2, 3]]),
        (COLOURS, [[0.3, 0.7]]),
        (DIGITS, [[1, 2], [3]]),
        (["a", "b", "a,b"], ["a,b", "a"]),
    ],
)
def test_several_labels_that_are_not_told_are_refused(names: list[str], values: list[Any]) -> None:
    with pytest.raises(LabelsError, match=rf"0 \({names[0]}\)"):
        Labels(names).set_reader(values, None)


@pytest.mark.parametrize("bad", [[1, 0.5, 0], [1, None, 0], [1, 7, 0], [[1], 0, 0], ["pink", 0, 0]])
def test_one_bad_row_does_not_make_vectors_ids(bad: list[Any]) -> None:
    vectors = [[1, 0, 0], [1, 0, 1], [0, 1, 1]]
    assert read_sets(COLOURS, [*vectors, bad]) == [{0}, {0, 2}, {1, 2}, None]
    with pytest.raises(LabelsError, match="ids of the model's labels"):
        Labels(["no", "yes"]).set_reader([[0, 1], [1, 0], [2, 0]], None)


def test_several_labels_can_be_said_to_be_vectors_or_ids() -> None:
    assert read_sets(["no", "yes"], [[0, 1], [1, 0]], asked="vector") == [{1}, {0}]
    assert read_sets(["no", "yes"], [[0, 1], [1, 0]], asked="ids") == [{0, 1}, {0, 1}]
    assert read_sets(COLOURS, [[0, 1, 2], [1]], asked="vector") == [None, None]


@pytest.mark.parametrize("counts", [[2, 0, 0], ["2", "2"], "[1, 2, 1]"])
def test_ids_that_occur_twice_may_be_counts(counts: Any) -> None:
    assert read_sets(COLOURS, [counts, [2]]) == [None, {2}]
    assert read_sets(COLOURS, [[2, 0, 0], [2]], asked="ids") == [{0, 2}, {2}]


@pytest.mark.parametrize("names", [("other", "other", "x"), ("other", "Other", "other"), ("x", "y", "other", "other")])
def test_a_name_of_several_labels_is_told(names: Sequence[str]) -> None:
    labels = Labels(names)
    with pytest.raises(BadLabelError, match=r"'other', which is the name of several of the model's: 0 \("):
        labels.one("other", labels.meanings(["other", "x", "Other"]), ["other", "x"])


def test_several_classes_have_names() -> None:
    assert read_sets(["b", "a"], [[0, 1], [], [0], [-1], 1, -1], ["A", "B"]) == [{0, 1}, set(), {1}, None, {0}, None]
    assert read_sets(GENERIC, [[0, 2]], ["x", "y", "z"]) == [{0, 2}]
    with pytest.raises(LabelsError):
        Labels(COLOURS).set_reader([[0]], ["x", "y", "z"])


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "[1, 2", "['\\d']", "[", "()", "[,]", "[1 2 x]"])
def test_no_text_ends_in_a_traceback(text: str) -> None:
    assert len(read_sets(COLOURS, ["red", text])) == 2
