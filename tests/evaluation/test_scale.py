"""A million examples take no more memory than a few: what is on disk is read when it is asked for."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from accelerate import Accelerator
from evaluation_worker import write_rows
from transformers import AutoConfig, AutoTokenizer

from hf_gelu_patch.evaluation.data.reading import load_data
from hf_gelu_patch.evaluation.data.tables import PART, PROBLEM
from hf_gelu_patch.evaluation.digests import list_digest, text_digest
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.metrics.gathered import Gathered, merged
from hf_gelu_patch.evaluation.metrics.registry import Array, Rows, rows_of, statistics_of
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.quality import Changes, compare
from hf_gelu_patch.evaluation.run import load
from hf_gelu_patch.evaluation.run.answers import all_answers
from hf_gelu_patch.evaluation.run.comparison import Comparison
from hf_gelu_patch.evaluation.run.resuming import fingerprint, open_recording
from hf_gelu_patch.evaluation.run.tallying import all_metrics
from hf_gelu_patch.evaluation.statistics import intervals
from hf_gelu_patch.evaluation.tasks.base import Batch
from hf_gelu_patch.evaluation.tasks.classification import TextClassification
from hf_gelu_patch.evaluation.tasks.examples import Examples
from hf_gelu_patch.evaluation.tasks.heads import label_columns
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.variants import Variant


def spooled(examples: list[dict[str, Any]]) -> Examples:
    return Examples(iter(examples), lambda one: one.get("shape", ()), lambda one: len(one.get("input_ids", ())))


def test_examples_are_read_as_they_were_written_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = [{"row": row * 2, "input_ids": list(range(row % 7)), "text": "ü" * row} for row in range(3000)]
    found = spooled(made)
    assert list(found) == made
    assert len(found) == 3000
    assert [found[0], found[-1], found[1234]] == [made[0], made[-1], made[1234]]
    assert found[5:3:-1] == made[5:3:-1]
    assert found.some([7, 3]) == [made[7], made[3]]
    assert found.sizes.tolist() == [row % 7 for row in range(3000)]
    with pytest.raises(IndexError):
        found[3000]
    rest = found.without([0, 4, 5, 5998])
    assert list(rest) == [one for one in made if one["row"] not in (0, 4, 5998)]
    assert rest[0] == made[1]
    assert rest.numbers.tolist() == [1, *range(3, 2999)]
    assert rest.without([2]).rows[0] == 6
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_tensor_is_kept_without_the_rest_of_it() -> None:
    whole = torch.arange(64 * 1000.0).reshape(64, 1000)
    found = spooled([{"pixels": whole[row], "shape": (row % 2,)} for row in range(64)])
    assert all(torch.equal(one["pixels"], whole[row]) for row, one in enumerate(found))
    assert found.shapes.tolist() == [0, 1] * 32
    assert os.fstat(found._file._file.fileno()).st_size < 2 * whole.numel() * 4


def test_examples_for_which_there_is_no_room_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(EvaluationError, match=r"cannot be kept in .*missing: No such file.*TMPDIR"):
        spooled([{}])


def test_a_list_is_hashed_alike_a_part_at_a_time() -> None:
    for values in ([], [(1, 2)], [(1, 2), (3,)], ["ü", {"b": 1, "a": None}]):
        assert list_digest(iter(values)) == text_digest(values)


class Counting(TextClassification):
    """Counts what is made."""

    collated = 0

    def collate(self, ids: tuple[int, ...], examples: Any) -> Batch:
        self.collated += 1
        return super().collate(ids, examples)


@pytest.fixture
def counting(checkpoint: Path, tmp_path: Path) -> Iterator[Counting]:
    data = write_rows(tmp_path / "rows.csv", 200)
    one = subject(str(checkpoint), validation_file=str(data))
    config, tokenizer = AutoConfig.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    yield Counting(one, config, tokenizer, load_data(data, ["text", "label"]), limits=Limits())
    gc.collect()  # an unclosed file would be a warning, so an error


def test_a_batch_is_made_when_it_is_asked_for(counting: Counting) -> None:
    batches = counting.batches(16)
    assert (len(batches), len(batches[::3]), counting.collated) == (13, 5, 0)
    assert sorted(one for ids in batches.all_ids() for one in ids) == list(range(200))
    assert counting.collated == 0
    batch = batches[::3][1]
    assert (batch.ids, counting.collated) == (batches.ids(3), 1)
    sizes = [max(counting.examples.sizes[[*ids]]) for ids in batches.all_ids()]
    assert sizes == sorted(sizes, reverse=True)
    assert [len(one.ids) for one in batches] == [16] * 12 + [8]


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_many_parts_are_one_table_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the values of a column have in common shows in their last part only."""
    count, temporary = 2 * PART + 5000, tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def row(number: int) -> dict[str, Any]:
        late = number > 2 * PART
        return {
            "text": f"w{number} ü",
            "label": number % 3,
            "number": number + 0.5 if late else number,
            "mixed": "x" if number == PART + 1 else number,
            "list": [0.5] if late else [number],
            "object": {"b": str(number)} if late else {"a": number},
            "large": 2**53 + 1 if number == 0 else number + 0.5 if late else number,
        } | ({"late": True} if late else {})

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(count)))
    found = load_data(path, ["text", "label"])
    expected = pandas.DataFrame([row(number) for number in range(count)])
    assert len(found) == count
    assert found["text"][:] == expected["text"].tolist()
    assert found["label"][:] == expected["label"].tolist()
    assert found["number"][:] == expected["number"].tolist()
    assert found["list"][-1] == [0.5]
    assert found["list"][7] == [7.0]
    assert (found["object"][7], found["object"][-1]) == ({"a": 7, "b": None}, {"a": None, "b": str(count - 1)})
    assert [found["mixed"][number] for number in (0, PART + 1, count - 1)] == ["0", '"x"', str(count - 1)]
    assert [found["large"][number] for number in (0, 1, count - 1)] == [str(2**53 + 1), "1", f"{count - 0.5}"]
    assert (found["late"][0], found["late"][-1]) == (None, True)
    assert not list(temporary.iterdir())


def test_a_bad_row_of_a_later_part_is_named_or_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "label": 1})] * (PART + 10)
    lines[PART + 3] = json.dumps({"text": 5, "label": 1})
    lines[PART + 7] = "no json"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(EvaluationError, match=rf"row {PART + 8} \(line {PART + 8}\) is not JSON"):
        load_data(path, ["text", "label"])
    found = load_data(path, ["text", "label"], skip_bad_rows=True)
    assert {row: why for row, why in enumerate(found[PROBLEM][:]) if why} == {
        PART + 3: "is bad in the column 'text': it holds a number, where others hold a text",
        PART + 7: f"(line {PART + 8}) is not JSON: Expecting value: line 1 column 1 (char 0)",
    }
    lines[PART + 7] = lines[0]
    path.write_text("\n".join(lines))
    with pytest.raises(EvaluationError, match=rf"row {PART + 4} is bad in the column 'text'"):
        load_data(path, ["text", "label"])


def test_parquet_of_many_rows_is_read_a_part_at_a_time(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": [f"w{number}" for number in range(PART + 10)]})
    frame["label"] = pandas.Categorical([("no", "yes")[number % 2] for number in range(PART + 10)])
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=4000)
    found = load_data(tmp_path / "rows.parquet", ["text", "label"])
    assert found["text"][:] == frame["text"].tolist()
    assert found["label"][:] == frame["label"].tolist()


def test_some_examples_are_read_whenever_they_are_asked_for() -> None:
    made = Examples(({"row": row, "input_ids": [row]} for row in range(5)), lambda _: (), lambda _: 1)
    some = made.lazily([3, 0, 4])
    assert [one["row"] for one in some] == [3, 0, 4]
    assert [one["row"] for one in some[1:]] == [0, 4]
    assert some[0] is not some[0]  # none is kept
    assert len(some) == 3


# ------------------------------------------------------------------------------------------------------------- answers


def peak(checkpoint: Path, data: Path) -> int:
    """Bytes that Python and numpy hold at most while all rows are asked for and all answers are read. Resampling, which
    holds the same whatever there is, is not among it."""
    tracemalloc.start()
    try:
        settings = Settings(variants=(Variant.parse("activation=relu_squared"),), batch_size=512)
        accelerator = Accelerator(cpu=True)
        model, task, _ = load(subject(str(checkpoint), validation_file=str(data)), settings, accelerator)
        comparison = Comparison.unpatched(model, task, settings, accelerator).patched(settings.variants)
        with torch.inference_mode():
            known = fingerprint(comparison)
            recording = open_recording(data.parent / f"records {data.stem}", known, comparison)
            usable, answers = all_answers(comparison, recording)
            assert answers is not None
            assert 0.3 < all_metrics(usable, answers)["accuracy"] < 0.7
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_an_example_more_takes_its_numbers_and_no_more(checkpoint: Path, tmp_path: Path) -> None:
    """A part of some thousands is in memory, and of each example where it stands and what is counted about it."""
    few, many = 4500, 10000
    peaks = [peak(checkpoint, write_rows(tmp_path / f"{count}.csv", count)) for count in (few, many)]
    assert peaks[1] - peaks[0] < 200 * (many - few), "an example is more than 1,000 bytes, and so is an answer"


# ---------------------------------------------------------------------------------------------------------- statistics


def labels(count: int, seed: int, agree: float) -> Rows:
    draw = np.random.default_rng(seed)
    right = draw.integers(0, 3, count)
    other = draw.integers(0, 3, count)
    told = np.where(draw.random(count) < agree, right, other)
    return rows_of({"label": {"predictions": told, "references": right}})


@pytest.mark.slow
def test_kinds_of_examples_are_drawn_as_examples_are() -> None:
    count = 40_000
    before, after = labels(count, 0, 0.80), labels(count, 0, 0.81)
    alike = merged(before, after, count // 64)
    assert alike is not None
    old, new, counts = alike
    assert len(counts) <= 3 * 3 * 3
    assert counts.sum() == count
    by_kind = intervals(statistics_of, old, new, count, seed=0, counts=counts)
    one_by_one = intervals(statistics_of, before, after, count, seed=0)
    for name, interval in one_by_one.items():
        assert by_kind[name].value == interval.value
        width, expected = by_kind[name].high - by_kind[name].low, interval.high - interval.low
        assert width == pytest.approx(expected, rel=0.1), "each is known to 1.6 %, from 2,000 samples"
        assert by_kind[name].p == pytest.approx(interval.p, rel=1.0)


def test_numbers_that_are_all_different_are_not_merged() -> None:
    numbers = np.random.default_rng(0).normal(size=1000)
    rows = rows_of({"score": {"predictions": numbers, "references": numbers}})
    assert merged(rows, rows, 500) is None
    texts = rows_of({"label": {"predictions": [0, 1], "references": [0, 1]}})
    assert merged({"x": {"y": np.array(["a", "b"], dtype=object)}}, texts, 2) is None


def test_the_p_of_an_interval_is_that_of_the_paired_t_test() -> None:
    draw = np.random.default_rng(3)
    before, after = draw.normal(size=200), draw.normal(0.15, size=200)

    def mean(weights: Array, values: Array) -> dict[str, Array]:
        return {"mean": (weights * values).sum(axis=1) / weights.sum(axis=1)}

    found = intervals(mean, before, after, 200, seed=0)["mean"]
    expected = scipy.stats.ttest_rel(after, before)
    assert found.p == pytest.approx(expected.pvalue, rel=0.2)
    assert (found.p < 0.05) == (found.low > 0)
    assert intervals(mean, before, before, 200, seed=0)["mean"].p == 1.0
    assert intervals(mean, before[:1], after[:1], 1, seed=0)["mean"].p == 1.0


def test_examples_may_come_in_any_order_and_in_parts() -> None:
    draw = np.random.default_rng(0)
    before = [Outcome((int(draw.integers(3)),), (int(draw.integers(3)),), 0.0, 1) for _ in range(2000)]
    after = [replace(one, answers=(int(draw.integers(3)),)) for one in before]
    whole = compare(before, after, label_columns, seed=0)
    changes, sides = Changes(), (Gathered(), Gathered())
    order = draw.permutation(2000)
    for part in np.array_split(order, 7):
        changes.add(part.tolist(), [before[one] for one in part], [after[one] for one in part])
        for side, outcomes in zip(sides, (before, after), strict=True):
            side.add(part.tolist(), label_columns([outcomes[one] for one in part]))
    assert changes.quality(*sides, seed=0) == whole
    assert len(whole.flipped) == 100
    assert [flip.example for flip in whole.flipped] == sorted(flip.example for flip in whole.flipped)
