"""Finished runs compared: what is paired, what is said of the rest, and that a planted difference is found."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from scipy.stats import binomtest
from sklearn.metrics import matthews_corrcoef

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation import records
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.quality import compare
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.evaluation.samples.comparing import Scores, compare_runs, compare_samples, conclusion
from hf_gelu_patch.evaluation.samples.documents import Document, Measure, Samples
from hf_gelu_patch.evaluation.samples.finished import read_run
from hf_gelu_patch.evaluation.samples.tables import said
from hf_gelu_patch.evaluation.tasks.heads import recorded_columns
from hf_gelu_patch.evaluation.tasks.registry import TASKS

DATE = "2026-11-28T07-41-30.915015"


def sample(number: int, right: bool, *, gold: int = 0, task: str = "facts") -> dict[str, Any]:
    """A sample of a multiple-choice task as lm-evaluation-harness gives it: of three choices, the second is wrong."""
    likelihoods = [-1.0, -2.0, -3.0] if right else [-2.0, -1.0, -3.0]
    predicted = gold if right else (gold + 1) % 2
    doc = {"question": f"{task} {number}?", "label": gold}
    return {
        "doc_id": number,
        "doc": doc,
        "target": gold,
        "arguments": [(f"{task} {number}?", f" {choice}") for choice in "abc"],
        "resps": [[(value, False)] for value in likelihoods],
        "filtered_resps": [(value, False) for value in likelihoods],
        "filter": "none",
        "metrics": ["acc", "mcc"],
        "doc_hash": f"hash of {doc}",
        "prompt_hash": f"asked {number}",
        "target_hash": str(gold),
        "acc": float(right),
        "mcc": (gold, predicted),
    }


def write(folder: Path, samples: Sequence[dict[str, Any]], task: str = "facts", **results: Any) -> Path:
    """What lm-evaluation-harness itself writes of samples, and beside it the part of its results that counts."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "model"
    tracker.date_id = DATE
    tracker.save_results_samples(task_name=task, samples=[dict(one) for one in samples])
    config = {"metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "mcc"}]}
    found = {"configs": {task: config}, "higher_is_better": {task: {"acc": True, "mcc": True}}, **results}
    (folder / "model" / f"results_{DATE}.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def scores_of(comparison: Any, metric: str) -> Scores:
    [found] = [one for one in comparison.scores if one.metric == metric]
    assert isinstance(found, Scores)
    return found


# ------------------------------------------------------------------------------------------- a difference that is there


def planted(
    lost: int, gained: int, size: int = 2000, metrics: Sequence[str] = ("acc",)
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two runs that differ in so many answers; three documents in five are right."""
    generator = random.Random(0)
    right = [generator.random() < 0.6 for _ in range(size)]
    changed = {
        *generator.sample([number for number in range(size) if right[number]], lost),
        *generator.sample([number for number in range(size) if not right[number]], gained),
    }
    now = [is_right != (number in changed) for number, is_right in enumerate(right)]
    before, after = (
        [{**sample(number, one, gold=number % 2), "metrics": [*metrics]} for number, one in enumerate(some)]
        for some in (right, now)
    )
    return before, after


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "gained", "found"), [(20, 0, "worse"), (3, 17, "better"), (11, 9, None)])
def test_one_per_cent_of_changed_answers_is_found(tmp_path: Path, lost: int, gained: int, found: str | None) -> None:
    before, after = planted(lost, gained)
    folders = write(tmp_path / "before", before), write(tmp_path / "after", after)
    assert main(["compare", *map(str, folders), "--output_dir", str(tmp_path / "out")]) == 0
    [task] = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["tasks"]
    [acc] = [one for one in task["scores"] if one["metric"] == "acc"]
    assert (task["documents"], task["answers"], task["changed"]) == (2000, 2000, 20)
    assert (acc["lost"], acc["gained"]) == (lost, gained)
    assert acc["p"] == binomtest(lost, 20).pvalue
    assert acc["before"] == sum(one["acc"] for one in before) / 2000
    assert acc["after"] - acc["before"] == pytest.approx((gained - lost) / 2000)
    assert task["conclusions"]["acc"] == (found or "no difference shown")
    assert (acc["difference"]["low"] > 0 or acc["difference"]["high"] < 0) == (found is not None)

    # the same from the library, of what lm-evaluation-harness gives rather than of what it writes
    from hf_gelu_patch.evaluation.samples.lm_eval_samples import document_of

    runs = [Samples("facts", "", tuple(map(document_of, some))) for some in (before, after)]
    direct = compare_samples(*runs)
    assert scores_of(direct, "acc").p == acc["p"]
    assert direct.changed == 20


@pytest.mark.slow
def test_a_metric_that_is_no_mean_is_aggregated_by_its_own_function(tmp_path: Path) -> None:
    before, after = planted(20, 0, size=120, metrics=["mcc"])
    [facts] = compare_runs(
        read_run(write(tmp_path / "before", before)), read_run(write(tmp_path / "after", after)), seed=1
    )
    mcc = scores_of(facts, "mcc")
    assert mcc.before == matthews_corrcoef(*zip(*(one["mcc"] for one in before), strict=True))
    assert mcc.after == matthews_corrcoef(*zip(*(one["mcc"] for one in after), strict=True))
    assert mcc.p is None
    assert mcc.lower_is_better is False
    assert mcc.difference.value == pytest.approx(mcc.after - mcc.before)
    told = [np.array([one["mcc"] for one in some]) for some in (before, after)]
    draws = np.random.default_rng(7).integers(0, 120, (1000, 120))
    moved = [np.corrcoef(*told[1][draw].T)[0, 1] - np.corrcoef(*told[0][draw].T)[0, 1] for draw in draws]
    assert mcc.difference.high - mcc.difference.low == pytest.approx(2 * 1.98 * np.std(moved), rel=0.2)
    assert conclusion(mcc) == "worse"


def documents(values: Sequence[Any], metric: str = "m") -> tuple[Document, ...]:
    return tuple(Document(str(n), f"content {n}", "", (), (), "", {metric: value}) for n, value in enumerate(values))


@pytest.mark.parametrize(
    ("aggregation", "pairs", "score"),
    [
        ("mean", False, lambda v: sum(v) / len(v)),
        ("perplexity", False, lambda v: float(np.exp(-np.mean(v)))),
        ("weighted_perplexity", True, lambda v: float(np.exp(-sum(a for a, _ in v) / sum(b for _, b in v)))),
        ("bits_per_byte", True, lambda v: -sum(a for a, _ in v) / sum(b for _, b in v) / np.log(2)),
    ],
)
def test_intervals_of_sums_are_those_of_resampled_scores(
    aggregation: str, pairs: bool, score: Callable[[Any], float]
) -> None:
    """What is computed for all resamples at once, against the score of each by itself; and to the last digit what
    lm-evaluation-harness makes of the values."""
    from lm_eval.api.registry import get_aggregation

    generator = np.random.default_rng(3)
    old = [(float(x), int(n)) if pairs else float(x) for x, n in zip(-generator.random(60), range(1, 61), strict=True)]
    new = [(value[0] - 0.05, value[1]) if pairs else value - 0.05 for value in old]  # type: ignore[index, operator]
    measures = {"m": Measure(aggregation, aggregation != "mean")}
    found = compare_samples(
        Samples("t", "", documents(old), measures), Samples("t", "", documents(new), measures)
    ).scores[0]
    assert found.before == get_aggregation(aggregation)(old)
    assert found.after == get_aggregation(aggregation)(new)
    assert found.before == pytest.approx(score(old))
    draws = generator.integers(0, 60, (4000, 60))
    moved = [score([new[n] for n in draw]) - score([old[n] for n in draw]) for draw in draws]
    half = 2.001 * np.sqrt(60 / 59) * np.std(moved)
    assert found.difference.high - found.difference.value == pytest.approx(half, rel=0.08, abs=1e-9)
    assert conclusion(found) == "worse"


# -------------------------------------------------------------------------------------------------------------- pairing


def test_documents_are_paired_by_content_and_the_rest_is_told(tmp_path: Path) -> None:
    before = [sample(number, True) for number in range(8)]
    after = [sample(number, True) for number in range(8)]
    after[1], after[2] = ({**after[2], "doc_id": 1}, {**after[1], "doc_id": 2})  # another order
    after[3] = {**after[3], "doc": {"question": "changed"}, "doc_hash": "another"}
    after[4]["prompt_hash"] = "with other examples"
    del after[5]
    after += [{**sample(20, True)}, {**after[0], "acc": 0.0}]
    [facts] = compare_runs(read_run(write(tmp_path / "a", before)), read_run(write(tmp_path / "b", after)))
    assert facts.documents == 5  # 1, 2, 4, 6, 7
    assert {(one.number, one.why) for one in facts.unpaired} == {
        ("0", "stands 2 times in the second run"),
        ("3", "is another document in the second run"),
        ("5", "is missing in the second run"),
        ("20", "is missing in the first run"),
    }
    assert facts.changed == 0
    assert any("1 of 5 documents were asked about in other words" in note for note in facts.notes)
    assert any("not paired: 1 × is missing in the first run (document 20)" in line for line in said(facts))


def test_values_that_one_run_lacks_are_left_out_of_that_metric_alone() -> None:
    old, new = documents([1.0, 0.0, 1.0, 1.0]), documents([1.0, 1.0, None, 1.0])
    [found] = compare_samples(Samples("t", "", old), Samples("t", "", new)).scores
    assert (found.documents, found.before, found.after, found.gained) == (3, 2 / 3, 1.0, 1)


def test_filters_are_compared_apart(tmp_path: Path) -> None:
    both = [
        {**sample(number, right), "filter": name, "metrics": ["acc"]}
        for name, right in (("strict", False), ("flexible", True))
        for number in range(4)
    ]
    found = compare_runs(read_run(write(tmp_path / "a", both)), read_run(write(tmp_path / "b", both)))
    assert [(one.title, one.scores[0].before) for one in found] == [("facts (strict)", 0.0), ("facts (flexible)", 1.0)]


def test_what_a_finished_run_told_is_held_to_its_lines(tmp_path: Path) -> None:
    samples = [sample(number, number > 0) for number in range(4)]
    told = write(tmp_path / "a", samples, results={"facts": {"acc,none": 0.75}})
    assert not [note for one in read_run(told) for note in one.notes]
    [facts] = read_run(write(tmp_path / "b", samples[1:], results={"facts": {"acc,none": 0.75}}))
    assert any("acc is 1 of its lines, and was 0.75" in note for note in facts.notes)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_text(path.read_text() + "{\n"), r"line 4 is no sample .*JSONDecodeError"),
        (lambda path: path.write_text('{"doc_id": 1}\n' + path.read_text()), r"line 1 is no sample .*'doc'"),
        (lambda path: path.write_text(""), "are empty"),
        (lambda path: path.unlink(), "has no samples: name a folder"),
        (lambda path: path.rename(path.with_name(path.name.replace("facts", "other"))), "no task in common: .*other"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], expected: str
) -> None:
    samples = [sample(number, True) for number in range(3)]
    folders = [write(tmp_path / name, samples) for name in "ab"]
    spoil(next(folders[1].rglob("samples_*.jsonl")))
    assert main(["compare", *map(str, folders)]) == 1
    assert re.search(expected, capsys.readouterr().err)


def test_other_documents_and_too_many_or_few_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", [sample(number, True) for number in range(3)])
    b = write(tmp_path / "b", [sample(number, True) for number in range(5, 8)])
    for arguments, expected in (
        ([a, b], "no document of .* could be paired .*document 0 is missing in the second run"),
        ([a], "1 run was named: name two"),
        ([a, b, a], "3 runs were named"),
        ([a, tmp_path / "nowhere"], "there is no .*nowhere"),
    ):
        assert main(["compare", *map(str, arguments)]) == 1
        assert re.search(expected, capsys.readouterr().err), arguments


def test_several_models_below_one_folder_and_several_dates(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [sample(number, True) for number in range(3)])
    [path] = folder.rglob("samples_*.jsonl")
    later = path.with_name(path.name.replace("2026-11-28", "2026-11-29"))
    later.write_text(path.read_text().replace('"acc": 1.0', '"acc": 0.0'))
    [newest] = read_run(folder)
    assert [document.values["acc"] for document in newest.documents] == [0.0] * 3
    assert any("of 2 files of the task 'facts' the newest is read" in note for note in newest.notes)
    assert any("there is no results_2026-11-29" in note for note in newest.notes)
    [one] = read_run(path)
    assert one.documents[0].values["acc"] == 1.0
    other = folder / "another"
    other.mkdir()
    path.rename(other / path.name)
    with pytest.raises(EvaluationError, match=r"in several folders: .*another.*model"):
        read_run(folder)


# ------------------------------------------------------------------------------------------------------------ lighteval


def detail(number: int, right: bool, form: str) -> dict[str, Any]:
    """A row as lighteval 0.13 has it (``doc``), as its documentation up to 0.12 says (``__doc__``), or flat, as up to
    0.9; "text" is the first where a structure could not be stored."""
    query, choices = f"question {number}", [" a", " b"]
    logprobs = [-1.0, -2.0] if right else [-2.0, -1.0]
    if form == "flat":
        return {
            "example": query,
            "full_prompt": f"asked: {query}",
            "choices": choices,
            "gold_index": [0],
            "predictions": [[value, False] for value in logprobs],
            "metrics": {"acc": int(right), "loglikelihood": logprobs[0]},
        }
    doc = {"query": query, "choices": choices, "gold_index": 0, "id": str(number), "task_name": "facts"}
    response = {"input": f"asked: {query}", "text": [], "logprobs": logprobs, "text_post_processed": None}
    metric = {"acc": int(right), "loglikelihood": logprobs[0]}
    row = {"doc": doc, "metric": metric, "model_response": response}
    if form == "dunder":
        return {f"__{name}__": value for name, value in row.items()}
    return {name: str(value) for name, value in row.items()} if form == "text" else row


def write_details(folder: Path, rights: Sequence[bool], form: str) -> Path:
    place = folder / "details" / "org" / "model" / DATE
    place.mkdir(parents=True)
    rows: list[Mapping[str, Any]] = [detail(number, right, form) for number, right in enumerate(rights)]
    if form == "flat":  # a list of a number and a bool has no type of its own: such columns became texts
        rows = [{**row, "predictions": str(row["predictions"])} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), place / f"details_facts|0_{DATE}.parquet")
    results = folder / "results" / "org" / "model"
    results.mkdir(parents=True)
    metrics = [
        {"metric_name": "acc", "higher_is_better": True, "corpus_level_fn": "mean"},
        {"metric_name": "loglikelihood", "higher_is_better": True, "corpus_level_fn": "mean"},
    ]
    config = {"config_tasks": {"facts|0": {"name": "facts", "metrics": metrics}}}
    (results / f"results_{DATE}.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["plain", "dunder", "flat", "text"])
def test_details_of_lighteval(tmp_path: Path, form: str) -> None:
    before = write_details(tmp_path / "a", [True] * 12, form)
    after = write_details(tmp_path / "b", [number >= 8 for number in range(12)], form)
    [facts] = compare_runs(read_run(before), read_run(after))
    acc = scores_of(facts, "acc")
    assert (facts.title, facts.documents, facts.answers, facts.changed) == ("facts|0", 12, 12, 8)
    assert (acc.before, acc.after, acc.lost, acc.gained) == (1.0, 1 / 3, 8, 0)
    assert acc.p == binomtest(0, 8).pvalue
    assert conclusion(acc) == "worse"
    assert scores_of(facts, "loglikelihood").lower_is_better is False
    assert (facts.flipped[0].before, facts.flipped[0].after) == ("0", "1")
    assert facts.described[0] == "question 0"


def test_details_that_are_none(tmp_path: Path) -> None:
    place = tmp_path / f"details_facts|0_{DATE}.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([detail(0, True, "plain"), {"doc": None}]), place)
    with pytest.raises(EvaluationError, match="row 2 is no detail of lighteval"):
        read_run(place)
    place.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_run(place)


# ---------------------------------------------------------------------------------------------------------- our records


def write_records(folder: Path, outcomes: Mapping[str, Sequence[Outcome]], **changes: Any) -> Path:
    fingerprint = {"task": "text-classification", "rows": "the same", "data": "tokens", **changes}
    place = folder / "records" / "model"
    place.mkdir(parents=True)
    with records.Writer(place, fingerprint, 0) as writer:
        for variant, some in outcomes.items():
            writer.append(Row(number, variant, outcome, None) for number, outcome in enumerate(some))
    return folder


def columns(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    said, right = ([getattr(one, side)[0] for one in outcomes] for side in ("answers", "targets"))
    return {"label": {"predictions": said, "references": right}}


def test_records_of_ours_give_the_p_of_the_evaluation(tmp_path: Path) -> None:
    generator = random.Random(1)
    old = [Outcome((generator.randrange(2),), (number % 2,), 0.5 + number / 100, 1) for number in range(60)]
    new = [replace(one, answers=(1,), loss=one.loss + 0.1) if n % 3 == 0 else one for n, one in enumerate(old)]
    a = write_records(tmp_path / "a", {"before": old, "aten": old})
    b = write_records(tmp_path / "b", {"before": old, "aten": new})
    found = {one.filter: one for one in compare_runs(read_run(a), read_run(b / "records" / "model"))}
    quality = compare(old, new, columns, seed=0)
    accuracy = scores_of(found["aten"], "accuracy")
    assert (accuracy.p, accuracy.lost, accuracy.gained) == (quality.p, quality.right_to_wrong, quality.wrong_to_right)
    assert found["aten"].changed == quality.flips > 0
    assert accuracy.before == pytest.approx(quality.before["accuracy"])
    assert accuracy.difference.low == pytest.approx(quality.differences["accuracy"].low)
    f1 = scores_of(found["aten"], "macro_f1")
    assert (f1.before, f1.after) == pytest.approx((quality.before["macro_f1"], quality.after["macro_f1"]))
    assert f1.difference.low == pytest.approx(quality.differences["macro_f1"].low)
    assert {one.metric for one in found["aten"].scores} == {"accuracy", "macro_f1"}
    assert {conclusion(one) for one in found["before"].scores} == {"the same"}


def test_several_answers_an_example_are_no_independent_ones(tmp_path: Path) -> None:
    tokens = [Outcome(tuple(range(20)), tuple(range(20)), 1.0, 20) for _ in range(6)]
    wrong = [replace(one, answers=(*[99] * 10, *range(10, 20))) if n == 0 else one for n, one in enumerate(tokens)]
    a, b = (write_records(tmp_path / name, {"before": some}) for name, some in (("a", tokens), ("b", wrong)))
    [found] = compare_runs(read_run(a), read_run(b))
    accuracy = scores_of(found, "accuracy")
    assert (accuracy.lost, found.answers, found.changed) == (10, 120, 10)
    assert (accuracy.before, accuracy.after) == (1.0, 110 / 120)
    assert accuracy.difference.value == pytest.approx(-10 / 120)
    assert accuracy.p is not None
    assert accuracy.p > 0.3 > binomtest(0, 10).pvalue


def span(said: str) -> Outcome:
    return Outcome((said,), ("w1 w2",), 0.0, 0, details={"text": said, "references": ["w1 w2"]})


def ranked(*scores: float) -> Outcome:
    answer = " ".join(str(1 + place) for place in sorted(range(3), key=lambda one: -scores[one]))
    details = {"scores": list(map(float, scores)), "relevance": [2.0, 0.0, 1.0]}
    return Outcome((answer,), (None,), 0.0, 0, details=details)


def regions(hits: int) -> Outcome:
    counts = {"labels": [0, 4], "hits": [hits, 3], "said": [hits, 13 - hits], "right": [10, 3]}
    return Outcome((), (), 0.0, 0, score=(hits + 3) / 13, details=counts)


TAGS = "token-classification"
OF_TASKS = {
    "question-answering": ([span("w1"), span("w1 w2"), span("w9")], [span("w1 w2"), span("w1 w2"), span("w2")]),
    "reranking": ([ranked(1, 2, 3), ranked(3, 2, 1)], [ranked(3, 1, 2), ranked(3, 1, 2)]),
    "semantic-segmentation": ([regions(10), regions(9)], [regions(4), regions(10)]),
    "translation": (
        [Outcome(("a b c d e",), ("a b c d f",), 2.0, 6), Outcome(("g",), ("g h i j k",), 3.0, 6)],
        [Outcome(("a b c d f",), ("a b c d f",), 1.0, 6), Outcome(("g h i j",), ("g h i j k",), 3.5, 6)],
    ),
}


@pytest.mark.parametrize("task", OF_TASKS)
def test_records_of_a_task_are_compared_by_its_own_metrics(tmp_path: Path, task: str) -> None:
    old, new = OF_TASKS[task]
    runs = [write_records(tmp_path / name, {"before": some}, task=task) for name, some in (("a", old), ("b", new))]
    [found] = compare_runs(*map(read_run, runs))
    quality = compare(old, new, TASKS[task].load().recorded, seed=0)
    assert {one.metric: one.after for one in found.scores} == pytest.approx(quality.after)
    assert set(quality.after) == set(TASKS[task].metrics)
    for one in found.scores:
        expected = quality.differences[one.metric]
        assert (one.before, one.difference.value) == pytest.approx((quality.before[one.metric], expected.value))
        assert (one.difference.low, one.difference.high) == pytest.approx((expected.low, expected.high), nan_ok=True)
        assert one.lower_is_better == (one.metric in quality.lower_is_better)
    assert found.notes == ()


def chosen(said: str | int, right: str | int, **more: Any) -> Outcome:
    return Outcome((said,), (right,), 0.5, 1, **more)


@pytest.mark.parametrize(
    ("old", "new", "metrics", "notes"),
    [
        ([chosen("110", "010"), chosen("001", "001")], [chosen("010", "010"), chosen("011", "001")],
         {"subset_accuracy", "micro_f1", "macro_f1"}, 0),
        ([chosen(7, 1, top5=(False,)), chosen(2, 2, top5=(True,))], [chosen(1, 1, top5=(True,))] * 2,
         {"accuracy", "macro_f1", "top5_accuracy"}, 0),
        ([chosen(1, 1, score=0.9), chosen(0, 1, score=0.1)], [chosen(1, 1, score=0.8)] * 2,
         {"accuracy", "macro_f1"}, 1),
        ([Outcome((), (), 0.0, 0, score=0.5)] * 2, [Outcome((), (), 0.0, 0, score=0.75)] * 2, {"score"}, 1),
    ],
)  # fmt: skip
def test_records_of_a_classifier_tell_what_its_head_is_measured_by(
    tmp_path: Path, old: list[Outcome], new: list[Outcome], metrics: set[str], notes: int
) -> None:
    new = [replace(one, targets=before.targets) for one, before in zip(new, old, strict=True)]
    runs = [write_records(tmp_path / name, {"before": some}) for name, some in (("a", old), ("b", new))]
    [found] = compare_runs(*map(read_run, runs))
    assert {one.metric for one in found.scores} == metrics
    assert len(found.notes) == notes
    assert all("spearman, pearson, mse. Each run's evaluation.json has them" in note for note in found.notes)
    if metrics != {"score"}:
        quality = compare(old, new, recorded_columns, seed=0)
        assert {one.metric: (one.before, one.after) for one in found.scores} == {
            name: pytest.approx((quality.before[name], quality.after[name])) for name in metrics
        }


def test_metrics_that_records_do_not_tell_are_named(tmp_path: Path) -> None:
    tags = [Outcome((1, 0), (1, 1), 0.5, 2)] * 3
    [found] = compare_runs(*[read_run(write_records(tmp_path / n, {"before": tags}, task=TAGS)) for n in "ab"])
    assert {one.metric for one in found.scores} == {"tag_accuracy", "perplexity"}
    assert scores_of(found, "tag_accuracy").before == 0.5
    [note] = found.notes
    assert "entity f1, entity precision, entity recall. Each run's evaluation.json has them" in note


def test_records_of_other_rows_are_not_paired(tmp_path: Path) -> None:
    some = [Outcome((1,), (1,), 0.1, 1)] * 3
    a = write_records(tmp_path / "a", {"before": some})
    b = write_records(tmp_path / "b", {"before": some}, rows="others")
    with pytest.raises(EvaluationError, match="document 0 is another document in the second run"):
        compare_runs(read_run(a), read_run(b))


def test_lm_eval_writes_texts_and_gives_numbers_and_both_are_read_alike(tmp_path: Path) -> None:
    """Of each kind of request: choices, one continuation, a text, running text."""
    from hf_gelu_patch.evaluation.samples.lm_eval_samples import document_of

    kinds: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        (sample(0, False), ("1",)),
        (sample(0, True) | {"arguments": [("q", " a")], "filtered_resps": [(-1.5, True)]}, ("True",)),
        (sample(0, True) | {"arguments": [("q", {"until": []})], "filtered_resps": [" 42 "]}, (" 42 ",)),
        (sample(0, True) | {"arguments": [("running",)], "filtered_resps": [-12.5]}, ()),
    ]
    for number, (given, expected) in enumerate(kinds):
        folder = write(tmp_path / str(number), [given])
        line = json.loads(next(folder.rglob("samples_*.jsonl")).read_text())
        assert document_of(given).answers == document_of(line).answers == expected
        assert document_of(line).content == document_of(given).content
    assert ast.literal_eval(line["filtered_resps"][0]) == -12.5
