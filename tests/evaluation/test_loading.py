"""What a name means is told by its form, without the network; data come as they stand in the file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pandas
import processes
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from hub_stand_in import serve
from PIL import Image
from tiny_classifier import write_data

from hf_gelu_patch import PatchError, find_sites
from hf_gelu_patch.evaluation.data.paths import data_file
from hf_gelu_patch.evaluation.data.reading import load_data
from hf_gelu_patch.evaluation.data.tables import PROBLEM
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.checkpoints import locate
from hf_gelu_patch.evaluation.loading.models import load_model, skeleton
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.metrics.user_metric import load_metric
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.tasks.registry import task_info

pytestmark = pytest.mark.slow


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
    for name in ("checkpoint-500", "checkpoint-1000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"Name a folder in it: .*checkpoint-1000, .*checkpoint-500\."):
        locate(str(tmp_path))


@pytest.mark.parametrize("beside", [(), ("config.json",), ("config.json", "model.safetensors", "tokenizer.json")])
def test_an_adapter_needs_its_model(beside: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    """Beside a model too, for that need not be the one that it is for."""
    for name in beside:
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    with pytest.raises(EvaluationError, match=rf"PEFT adapter for some/base, which .*\n.*--adapter {tmp_path}"):
        locate(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="does not say for which model"):
        locate(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(EvaluationError, match="cannot be read"):
        locate(str(tmp_path))


def test_no_task_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertForPreTraining"]}')
    with pytest.raises(EvaluationError, match=r"BertForPreTraining.*--task"):
        subject(str(tmp_path))
    for broken in ("{", "[]", "\ufffe", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(EvaluationError, match=r"config\.json of .* cannot be read.*fetch the checkpoint again"):
            subject(str(tmp_path))
    for named in ('["BertForMultipleChoice"]', '["MusicgenModel"]', "null", '["A", "B"]'):
        (tmp_path / "config.json").write_text(f'{{"architectures": {named}, "auto_map": null}}')
        with pytest.raises(EvaluationError, match=r"belongs to no task here: text-classification, .*--task FILE\.py"):
            subject(str(tmp_path))


@pytest.mark.parametrize(
    ("auto_map", "task"),
    [
        ({"AutoConfig": "a.C", "AutoModelForSequenceClassification": "a.Mine"}, "text-classification"),
        ({"AutoModel": "a.Base", "AutoModelForCausalLM": "a.Mine"}, "causal-lm"),
        ({"AutoModelForImageClassification": "other/repository--a.Mine"}, "image-classification"),
        ({"AutoModelForCausalLM": "a.Mine", "AutoModelForMaskedLM": "a.Other"}, None),
        ({"AutoModel": "a.Mine"}, None),
    ],
)
def test_code_of_its_own_says_what_a_model_is_for(auto_map: dict[str, str], task: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Mine"], "auto_map": auto_map}))
    columns = "text,label,image\nw1,yes,a.png\n"
    (tmp_path / "a.csv").write_text(columns)
    if task is None:
        with pytest.raises(EvaluationError, match=r"Mine.* belongs to no task here"):
            subject(str(tmp_path), validation_file=str(tmp_path / "a.csv"))
    else:
        assert subject(str(tmp_path), validation_file=str(tmp_path / "a.csv")).task == task


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text-clasification", r"Did you mean 'text-classification'\?"),
        ("Image_Classification", r"Did you mean 'image-classification'\?"),
        ("sentence-similarty", r"Did you mean 'sentence-similarity'\?"),
        ("fill-mask", "It is called 'masked-lm' here"),
        ("text-generation", "It is called 'causal-lm' here"),
        ("text2text-generation", "It is called 'seq2seq' here"),
        ("table-classification", None),
        ("video-classification", None),
        ("image-matting", None),
        ("text-to-speech", None),
        ("masked-autoencoding", None),
        ("", None),
    ],
)
def test_a_near_task_is_named_only_if_it_does_the_same(name: str, said: str | None) -> None:
    with pytest.raises(EvaluationError, match=r"Tasks: text-classification, .*, or a Python file") as raised:
        task_info(name)
    assert re.search(said or rf"^unknown task '{name}'\. Tasks: ", str(raised.value))


ROWS = [{"text": "NA", "label": 1}, {"text": "null", "label": 0}, {"text": 'a, "b"\nc é', "label": 1}]


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "json", "json lines", "jsonl", "parquet", "arrow", "arrow file", "saved"]
)
def test_every_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind.split()[0]}"
    table = pyarrow.Table.from_pylist(ROWS)
    rows: list[dict[str, object]] = [dict(row) for row in ROWS]
    if kind in ("csv", "tsv"):
        pandas.DataFrame(ROWS).to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
        rows = [{**row, "label": str(row["label"])} for row in ROWS]  # a cell may be anything, and is left as it is
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("jsonl", "json lines"):
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    else:
        writer = pyarrow.ipc.new_file if kind == "arrow file" else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as file:
            file.write_table(table)
    assert data_file(str(path)) == path
    assert load_data(path, ("text", "label")).to_list() == rows


def test_a_category_of_pandas_is_its_values(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "label": pandas.Categorical(["no", "yes"])})
    frame.to_parquet(tmp_path / "data.parquet")
    assert load_data(tmp_path / "data.parquet", ("label",))["label"][:] == ["no", "yes"]


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


def test_of_several_splits_the_one_to_evaluate_on_is_taken(tmp_path: Path) -> None:
    def saved(*names: str) -> Path:
        path = tmp_path / "-".join(names)
        datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": [name]}) for name in names}).save_to_disk(path)
        return path

    three = saved("train", "test", "validation")
    assert load_data(three, ("text",))["text"][:] == ["validation"]
    assert load_data(three, ("text",), split="train")["text"][:] == ["train"]
    assert load_data(saved("train", "test"), ("text",))["text"][:] == ["test"]
    assert load_data(saved("odd"), ("text",))["text"][:] == ["odd"]
    with pytest.raises(EvaluationError, match=r"several splits \(one, two\).*--split"):
        load_data(saved("one", "two"), ("text",))
    with pytest.raises(EvaluationError, match=r"no split 'dev'; it has: train, test, validation"):
        load_data(three, ("text",), split="dev")
    one = tmp_path / "one.csv"
    one.write_text("text\na\n")
    with pytest.raises(EvaluationError, match="drop --split"):
        load_data(one, ("text",), split="test")
    with pytest.raises(EvaluationError, match="drop --config_name"):
        load_data(one, ("text",), config_name="en")


def test_a_folder_of_images_has_a_folder_for_each_class(tmp_path: Path) -> None:
    for place, colour in [("test/dog/a", 10), ("test/cat/b", 20), ("test/cat/a", 30), ("train/cat/a", 40)]:
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), colour).save(path)
    (tmp_path / "test" / "cat" / "notes.md").write_text("no image")
    for found in (load_data(tmp_path / "test", ("image", "label")), load_data(tmp_path, ("image", "label"))):
        assert [(row["image"].getpixel((0, 0)), row["label"]) for row in found] == [(30, 0), (20, 0), (10, 1)]
        assert found.features["label"].names == ["cat", "dog"]
    assert len(load_data(tmp_path, ("image",), split="train")) == 1


def described(folder: Path, kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A folder of images with a metadata file, and what datasets makes of it."""
    for number, row in enumerate(rows):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * number).save(path)
    file, frame = folder / f"metadata.{kind}", pandas.DataFrame(rows)
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_parquet(file, index=False)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder / ".cache"))
    return theirs.to_list()


@pytest.mark.filterwarnings("ignore:.*metadata.csv.*:pytest.PytestUnraisableExceptionWarning")  # datasets' own
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_of_images_with_metadata_is_what_datasets_makes_of_it(kind: str, tmp_path: Path) -> None:
    names = ["cat/a.png", "dog/a.png", "cat/b.png"]
    rows = [
        {"file_name": name, "mask_file_name": names[0], "label": name[:3], "text": f"a {name}, seen"} for name in names
    ]
    theirs = described(tmp_path / "test", kind, rows)
    for found in (
        load_data(data_file(str(tmp_path / "test")), ("image", "label")),
        load_data(data_file(str(tmp_path)), ("image", "mask", "text")),
        load_data(tmp_path, ("image",), split="test"),
    ):
        shown = [{**row, "image": row["image"].getpixel((0, 0)), "mask": row["mask"].filename} for row in found]
        assert [row["image"] for row in shown] == [0, 10, 20]
        assert shown[1]["mask"] == str(tmp_path / "test" / "cat" / "a.png")
        plain = found.cast_column("image", datasets.Image(decode=False)).cast_column(
            "mask", datasets.Image(decode=False)
        )
        assert plain.to_list() == theirs
    with pytest.raises(EvaluationError, match="has a metadata file, and none for splits: drop --split"):
        load_data(tmp_path / "test", ("image",), split="train")


def test_a_folder_of_sounds_with_metadata_names_them_by_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.wav,one\na.flac,two\n")
    found = load_data(tmp_path, ("audio", "text"))
    assert found.to_list() == [
        {"text": "one", "audio": str(tmp_path / "b.wav")},
        {"text": "two", "audio": str(tmp_path / "a.flac")},
    ]


def test_metadata_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "metadata.csv"
    file.write_text("image,label\na.png,cat\n")
    with pytest.raises(EvaluationError, match=r"metadata.csv has no column 'file_name', .*; it has: image, label"):
        load_data(tmp_path, ("image", "label"))
    file.write_text("file_name,label\na.png,cat\nb.png\n")
    with pytest.raises(EvaluationError, match=r"metadata.csv: row 2 \(line 3\) has 1 cells, where the header names 2"):
        load_data(tmp_path, ("image", "label"))
    skipped = load_data(tmp_path, ("image", "label"), skip_bad_rows=True)
    assert skipped["label"][:] == ["cat", None]
    assert [row["image"] and row["image"]["path"] for row in skipped.to_list()] == [str(tmp_path / "a.png"), None]
    file.write_text("file_name\na.png\n")
    with pytest.raises(EvaluationError, match=r"no column 'label'; it has: image\. Name the right ones"):
        load_data(tmp_path, ("image", "label"))


def test_fields_of_objects_are_columns_of_every_format(tmp_path: Path) -> None:
    pairs = [{"de": f"Satz {n}", "en": f"sentence {n}"} for n in range(3)]
    typed = datasets.Features({"translation": datasets.Translation(languages=("de", "en"))})
    datasets.Dataset.from_dict({"translation": pairs}, features=typed).save_to_disk(tmp_path / "typed")
    rows = [{"translation": pair} for pair in pairs]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "plain")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("typed", "plain", "rows.jsonl", "rows.parquet"):
        found = load_data(tmp_path / name, ("translation.de", "translation.en"))
        assert found["translation.de"][:] == [pair["de"] for pair in pairs]
        assert found["translation.en"][:] == [pair["en"] for pair in pairs]
        with pytest.raises(EvaluationError, match=r"it has: translation \(translation\.de, translation\.en\)\. Name"):
            load_data(tmp_path / name, ("source",))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.csv", "no data file nowhere.csv"),
        ("data/nowhere.parquet", "no data file"),
        ("./some/folder", "no data file"),
        ("nowhere", "no data file"),
        ("someone/data-never-heard-of", "not in its cache.*--allow_download"),
    ],
)
def test_data_that_are_not_there(name: str, said: str) -> None:
    start = time.perf_counter()
    with pytest.raises(EvaluationError, match=said):
        data_file(name)
    assert time.perf_counter() - start < 2


def test_folders_and_files_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no data"):
        data_file(str(tmp_path))
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(EvaluationError, match=r"name one of them, such as .*a\.csv"):
        data_file(str(tmp_path))
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(EvaluationError, match="data come as csv"):
        data_file(str(tmp_path / "a.xlsx"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"texte,label\na,1\n", "no column 'text'; it has: texte, label"),
        ("a.csv", b"text;label\na;1\n", "Its cells are separated by ';': separate them by commas"),
        (
            "a.csv",
            b'text;label\n"a, b"; 1\n',
            "one column, 'text;label'. Its cells are separated by ';': separate them by commas",
        ),
        ("a.csv", b"text\tlabel\na\t1\n", r"separated by tabs: call it FILE\.tsv"),
        ("a.tsv", b"text,label\na,1\n", r"separated by commas: call it FILE\.csv"),
        ("a.tsv", b'text\tlabel\n"a" b\t1\n', r"row 1 \(line 2\) is no tsv: "),
        ("a.csv", b"text|label\na|1\n", r"separated by '\|'"),
        ("a.csv", b"text, label\na, 1\n", "spaces around the names"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "header is not UTF-8: convert"),
        ("a.csv", "text,label,größe\na,1,2\n".encode("latin-1"), "header is not UTF-8: convert"),
        ("a.csv", b"text\na;b\n", "no column 'label'; it has: text. Name the right ones"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,text\na,1\n", "names a column twice"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"[{]", "not JSON"),
        ("a.jsonl", b"", "no rows"),
        ("a.txt", b"", "no rows"),
        ("a.txt", b"one\ntwo \xff\n", "line 2 is not UTF-8"),
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.parquet", b"", "cannot be read as parquet"),
        ("a.arrow", b"not arrow", "cannot be read as arrow"),
        ("a.jsonl", b"1\n2\n", "row 1 .*no JSON object"),
    ],
)
def test_data_that_cannot_be_used(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=said) as raised:
        load_data(tmp_path / name, ("text", "label") if name.endswith("sv") else ("text",))
    assert name in str(raised.value)


LONG = b"x" * 100_000_000


@pytest.mark.parametrize(
    ("name", "content", "row", "said"),
    [
        ("a.csv", b"text,label\na,1\nb \xff\xfe,1\nc,0\n", 2, "not UTF-8"),
        ("a.csv", b"text,label\na,1\nb\nc,0\n", 2, "1 cells"),
        ("a.csv", b'text,label\n"a\nb",1\n"b"x,1\nc,0\n', 2, r"\(line 4\) is no csv"),
        ("a.csv", b"text,label\na,1\n" + LONG + b",1\nc,0\n", 2, "16 MiB"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n{"text": "c"}\n', 2, "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n{"text": "c"}\n', 2, r"\(line 2\) is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}\n{"text": "c"}\n', 2, "it has no value there"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n{"text": "c"}\n', 2, "holds a number, where others hold a text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "' + LONG + b'"}\n{"text": "c"}\n', 2, "16 MiB"),
        ("a.json", b'[{"text": "a"}, {"text": "\xff"}, {"text": "c"}]', 2, "not UTF-8"),
        ("a.json", b'[{"text": "a"}, 7, {"text": "c"}]', 2, "no JSON object"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_a_row_that_cannot_be_read_is_named_or_skipped(
    name: str, content: bytes, row: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(EvaluationError, match=rf"{name}: row {row} .*{said}.*--skip_bad_rows"):
            load_data(path, ("text",))
        found = load_data(path, ("text",), skip_bad_rows=True)
        assert tracemalloc.get_traced_memory()[1] < 300_000_000
    finally:
        tracemalloc.stop()
    texts = found["text"][:]
    assert (texts[0][0], texts[1], texts[2]) == ("a", None, "c")
    assert [number + 1 for number, reason in enumerate(found[PROBLEM][:]) if reason] == [row]
    assert re.search(said, found[PROBLEM][row - 1])


def test_arrow_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    values = pyarrow.array([b"a", b"\xff", b"c"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(EvaluationError, match=r"row 2 .*not UTF-8"):
        load_data(tmp_path / "a.parquet", ("text",))
    found = load_data(tmp_path / "a.parquet", ("text",), skip_bad_rows=True)
    assert found["text"][:] == ["a", None, "c"]


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "more": 1}\n{"text": "b", "more": [2]}\n')
    assert load_data(path, ("text",)).to_list() == [{"text": "a", "more": "1"}, {"text": "b", "more": "[2]"}]


def test_no_row_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n[]\n")
    with pytest.raises(EvaluationError, match=r"no row can be read; row 1 .*not JSON"):
        load_data(tmp_path / "a.jsonl", ("text",), skip_bad_rows=True)


HUB = """
import sys, time
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
for words in sys.argv[1:]:
    start = time.perf_counter()
    source, data = words.split(" ")
    try:
        one = subject("someone/t5", validation_file=data or None, allow_download=source == "download")
        model = load_model(one.model, one.task, allow_download=one.allow_download)
        processor = load_processor(one.model, one.task, allow_download=one.allow_download)
        print(type(model).__name__, processor("a").input_ids, load_rows(one).to_list())
    except EvaluationError as error:
        print(f"{time.perf_counter() - start:.1f}", *str(error).splitlines())
"""


def test_models_and_data_come_from_the_hub_if_allowed_and_then_from_its_cache(tmp_path: Path) -> None:
    """The hub is a stand-in on this machine that serves a reference model and a data set."""
    words = tmp_path / "words"
    (words / "data").mkdir(parents=True)
    (words / "data" / "train.csv").write_text("source,target\nax,A X\n")
    (words / "data" / "test.csv").write_text("source,target\nabba,A B A\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "HF_HUB_OFFLINE")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments: str, endpoint: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", HUB, *arguments],
            env={**environment, "HF_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    with serve(models={"someone/t5": REFERENCES["t5"].model_path()}, datasets={"someone/words": words}) as hub:
        *refused, fetched = run("cache ", "cache someone/words", "download someone/words", endpoint=hub)
    assert len(refused) == 2
    for one in refused:
        seconds, said = one.split(" ", 1)
        assert float(seconds) < 2
        assert "not in" in said
        assert "--allow_download" in said
    assert fetched.startswith("T5ForConditionalGeneration [")
    assert fetched.endswith("[{'source': 'abba', 'target': 'A B A'}]")
    cached, away = run("cache someone/words", "download someone/words", endpoint="http://127.0.0.1:9")
    assert cached == fetched
    seconds, said = away.split(" ", 1)
    assert float(seconds) < 2
    assert "cannot be reached at http://127.0.0.1:9" in said


@pytest.mark.usefixtures("modules_cache")
def test_a_metric_that_is_not_here_is_refused_at_once(tmp_path: Path, checkpoint: Path) -> None:
    start = time.perf_counter()
    for name, said in [
        ("rouge-never-heard-of", "--metric path/to/metric.py, or add --allow_download"),
        ("someone/never-heard-of", "--allow_download"),
        ("./nowhere.py", "no metric's script"),
        (str(tmp_path), "no metric's script"),
        ("not a name", "no name on the hub"),
    ]:
        with pytest.raises(EvaluationError, match=said):
            load_metric(name)
        with pytest.raises(EvaluationError, match=said):
            subject(str(checkpoint), metric=name)
    assert time.perf_counter() - start < 2
    (tmp_path / "broken.py").write_text("import evaluate\n1 / 0\n")
    with pytest.raises(EvaluationError, match=r"broken\.py cannot be loaded"):
        load_metric(str(tmp_path / "broken.py"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "nowhere.py"}, "no file nowhere.py"),
        ({"stride": 4}, "drop --stride"),
        ({"task": "masked-lm", "second_column": "b"}, "drop --second_column"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.csv")
    with pytest.raises(EvaluationError, match=said):
        subject(str(checkpoint), validation_file=str(data), **options)


def test_a_reference_may_do_another_task_on_other_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Call me Ishmael.")
    found = subject("gpt2", task="feature-drift", validation_file=str(tmp_path / "a.txt"))
    assert (found.task, found.target_column, Path(found.model)) == (
        "feature-drift",
        None,
        REFERENCES["gpt2"].model_path(),
    )
    with pytest.raises(EvaluationError, match="--validation_file"):
        subject("gpt2", task="feature-drift")


def test_a_checkpoint_without_the_tasks_head_is_refused(checkpoint: Path) -> None:
    """transformers would draw the missing weights at random and go on."""
    with pytest.raises(EvaluationError, match="has no weights for"):
        load_model(str(checkpoint), "causal-lm")
    assert not load_model(str(checkpoint), "text-classification").training
    with pytest.raises(EvaluationError, match="image processor"):
        load_processor(str(checkpoint), "image-classification")


@pytest.mark.parametrize("task", ["text-classification", "feature-drift"])
def test_a_checkpoint_with_more_layers_than_its_config_is_refused(task: str, checkpoint: Path, tmp_path: Path) -> None:
    """transformers would leave the last layers out without a word."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        EvaluationError, match=r"weights for more layers than its config says, .*layer\.\d.* among them"
    ):
        load_model(str(folder), task)


@pytest.mark.parametrize("task", ["text-classification", "feature-drift", "causal-lm", "own"])
@pytest.mark.parametrize(
    "config",
    [transformers.BertConfig(), transformers.GPT2Config(), transformers.T5Config()],
    ids=["bert", "gpt2", "t5"],
)
def test_an_empty_tokenizer_is_none(config: transformers.PretrainedConfig, task: str, tmp_path: Path) -> None:
    """transformers makes one where there are no files: every word is unknown, or nothing at all."""
    config.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("def batch(rows, processor, config): ...")
    with pytest.raises(EvaluationError, match=rf"{tmp_path} has no tokenizer.*save_pretrained\('{tmp_path}'\)"):
        load_processor(str(tmp_path), task if task != "own" else str(tmp_path / "own.py"))


def test_a_tokenizer_may_do_without_files(tmp_path: Path) -> None:
    """Of bytes, and of characters."""
    for tokenizer, config in [
        (transformers.ByT5Tokenizer(), transformers.T5Config()),
        (transformers.PerceiverTokenizer(), transformers.PerceiverConfig()),
    ]:
        place = tmp_path / type(tokenizer).__name__
        tokenizer.save_pretrained(place)
        config.save_pretrained(place)
        assert len(load_processor(str(place), "text-classification")("ab")["input_ids"]) >= 2


def test_a_checkpoint_that_is_incomplete_or_of_another_kind(checkpoint: Path, tmp_path: Path) -> None:
    def folder(name: str, *files: str, **changes: Any) -> str:
        place = tmp_path / name
        place.mkdir()
        for file in files:
            (place / file).write_bytes((checkpoint / file).read_bytes())
        config = json.loads((checkpoint / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, **changes}))
        return str(place)

    without = folder("without")
    sharded = folder("sharded")
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (Path(sharded) / "model.safetensors.index.json").write_text(json.dumps(index))
    for place, task, said in [
        (without, "text-classification", "no file named model.safetensors.*fetch the checkpoint again"),
        (sharded, "text-classification", "model-00001-of-00002.safetensors.*fetch the checkpoint again"),
        (
            folder("other", "model.safetensors", intermediate_size=40),
            "text-classification",
            r"other shapes for .*bias: \[48\] instead of \[40\].*fetch the checkpoint again",
        ),
        (folder("new", model_type="never-heard-of"), "text-classification", "never-heard-of.*--task"),
        (str(checkpoint), "image-classification", r"no AutoModelForImageClassification for models of its type.*--task"),
        (str(checkpoint), "seq2seq", r"no AutoModelForSeq2SeqLM for models of its type.*--task"),
        (str(checkpoint), "masked-lm", r"no weights for .*at random.*names BertForSequenceClassification"),
    ]:
        with pytest.raises(EvaluationError, match=re.compile(said, re.DOTALL)) as raised:
            load_model(place, task)
        assert place in str(raised.value)
    with pytest.raises(EvaluationError, match=re.compile("FlashAttention2.*leave out", re.DOTALL)):
        load_model(str(checkpoint), "text-classification", Loading(attn_implementation="flash_attention_2"))


def test_an_encoder_without_its_decoder_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": 45}
    for kind in ("T5", "MT5", "UMT5", "LongT5"):
        config = getattr(transformers, f"{kind}Config")(**sizes, encoder_attention_type="local", local_radius=8)
        getattr(transformers, f"{kind}EncoderModel")(config).save_pretrained(tmp_path / kind)
        for task in ("sentence-similarity", "feature-drift"):
            assert type(load_model(str(tmp_path / kind), task)).__name__ == f"{kind}EncoderModel"
        with pytest.raises(EvaluationError, match=r"has no weights for .*EncoderModel"):
            load_model(str(tmp_path / kind), "seq2seq")


CUSTOM = """
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast


class MyConfig(BertConfig):
    model_type = "mine"


class Mine(BertForSequenceClassification):
    config_class = MyConfig


class Words(PreTrainedTokenizerFast):
    pass
"""


def custom(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint whose code comes with it."""
    shutil.copytree(checkpoint, folder)
    (folder / "mine.py").write_text(CUSTOM)
    auto = {"AutoConfig": "mine.MyConfig", "AutoModelForSequenceClassification": "mine.Mine"}
    for file, own in (
        ("config.json", {"model_type": "mine", "architectures": ["Mine"], "auto_map": auto}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "mine.Words"]}, "tokenizer_class": "Words"}),
    ):
        there = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**there, **own}))
    return folder


def test_code_of_its_own_is_run_if_it_may_be(checkpoint: Path, tmp_path: Path) -> None:
    place = custom(checkpoint, tmp_path / "custom")
    for refused in (
        lambda: skeleton(str(place)),
        lambda: load_model(str(place), "text-classification"),
        lambda: load_processor(str(place), "text-classification"),
    ):
        with pytest.raises(EvaluationError, match=re.compile(rf"{place}.*add --trust_remote_code", re.DOTALL)):
            refused()
    code = (
        "import sys; place, modules = sys.argv[1:]\n"
        "from transformers import dynamic_module_utils\n"
        "from hf_gelu_patch.evaluation.loading.models import load_model, skeleton\n"
        "from hf_gelu_patch.evaluation.loading.processors import load_processor\n"
        "dynamic_module_utils.HF_MODULES_CACHE = modules\n"
        "from hf_gelu_patch.evaluation.options.loading import Loading\n"
        "trusted = Loading(trust_remote_code=True)\n"
        "print(type(skeleton(place, trusted)).__name__)\n"
        "print(type(load_model(place, 'text-classification', trusted)).__name__)\n"
        "print(type(load_processor(place, 'text-classification', trusted)).__name__)\n"
    )
    done = processes.run("-c", code, place, tmp_path / "modules")
    assert done.stdout.split() == ["Mine", "Mine", "Words"], done.stderr


def test_a_skeleton_has_the_sites_and_no_weights(checkpoint: Path) -> None:
    model = skeleton(str(checkpoint))
    assert {weight.device for weight in model.parameters()} == {torch.device("meta")}
    assert len(find_sites(model).changed) == 3
    assert not issubclass(EvaluationError, PatchError)  # nothing was wrong with a patch
