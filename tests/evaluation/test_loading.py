"""What a name means is told by its form, without the network; data come as they stand in the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas
import pytest
import torch
from tiny_classifier import write_checkpoint, write_data

from hf_gelu_patch import PatchError, find_sites
from hf_gelu_patch.evaluation.loading import (
    EvaluationError,
    load_data,
    load_model,
    load_processor,
    locate,
    skeleton,
    subject,
)
from hf_gelu_patch.evaluation.reference import REFERENCES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def test_a_reference_brings_everything() -> None:
    found = subject("gpt2")
    reference = REFERENCES["gpt2"]
    assert (found.task, found.data, found.max_length) == (reference.task, reference.data_path(), reference.max_length)
    assert Path(found.model) == reference.model_path()


def test_the_task_is_read_off_the_config(checkpoint: Path, tmp_path: Path) -> None:
    found = subject(str(checkpoint), validation_file=str(write_data(tmp_path / "data.csv")))
    assert (found.name, found.task, found.input_column, found.target_column) == (
        "tiny",
        "text-classification",
        "text",
        "label",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "no model folder"),
        ("/nowhere/at/all", "no model folder"),
        ("a/b/c", "no model folder"),
        ("someone/never-heard-of", "not in the hub's cache"),
        ("gpt", "Did you mean 'gpt2'"),
    ],
)
def test_a_model_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        locate(name)


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no config\.json"):
        locate(str(tmp_path))


def test_no_task_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    with pytest.raises(EvaluationError, match=r"BertForMaskedLM.*--task"):
        subject(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"config\.json of .* cannot be read"):
        subject(str(tmp_path))


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "NA", "label": 1}, {"text": "null", "label": 0}, {"text": 'a, "b"\nc', "label": 1}]
    path = tmp_path / f"data.{suffix}"
    frame = pandas.DataFrame(rows)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_data(path, ("text", "label")).to_list() == rows


def test_running_text_is_one_row_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\n two\n", encoding="utf-8")
    assert load_data(path, ("text",)).to_list() == [{"text": "one\n\n two\n"}]


def test_data_that_changed_are_read_anew(tmp_path: Path) -> None:
    """However alike the files look: datasets' own cache goes by name, size and time."""
    path = tmp_path / "data.csv"
    for value in ("a", "b"):
        path.write_text(f"text\n{value}\n")
        os.utime(path, (1, 1))
        assert load_data(path, ("text",))["text"][:] == [value]


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("texte,label\na,1\n")
    with pytest.raises(EvaluationError, match=r"no column 'text'; it has: texte, label"):
        load_data(path, ("text", "label"))
    path.write_text("text,label\n")
    with pytest.raises(EvaluationError, match=r"no rows|cannot be read"):
        load_data(path, ("text", "label"))
    (tmp_path / "data.parquet").write_bytes(b"not parquet")
    with pytest.raises(EvaluationError, match="cannot be read as parquet"):
        load_data(tmp_path / "data.parquet", ("text",))


def test_a_checkpoint_without_the_tasks_head_is_refused(checkpoint: Path) -> None:
    """transformers would draw the missing weights at random and go on."""
    with pytest.raises(EvaluationError, match="has no weights for"):
        load_model(str(checkpoint), "causal-lm")
    assert not load_model(str(checkpoint), "text-classification").training
    with pytest.raises(EvaluationError, match="image processor"):
        load_processor(str(checkpoint), "image-classification")


def test_a_skeleton_has_the_sites_and_no_weights(checkpoint: Path) -> None:
    model = skeleton(str(checkpoint))
    assert {weight.device for weight in model.parameters()} == {torch.device("meta")}
    assert len(find_sites(model).changed) == 3
    assert not issubclass(EvaluationError, PatchError)  # nothing was wrong with a patch
