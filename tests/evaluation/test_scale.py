"""A million examples take no more memory than a few: what is on disk is read when it is asked for."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_worker import write_rows
from transformers import AutoConfig, AutoTokenizer

from hf_gelu_patch.evaluation.data.reading import load_data
from hf_gelu_patch.evaluation.digests import list_digest, text_digest
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.tasks.base import Batch
from hf_gelu_patch.evaluation.tasks.classification import TextClassification
from hf_gelu_patch.evaluation.tasks.examples import Examples
from hf_gelu_patch.evaluation.tasks.limits import Limits


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
