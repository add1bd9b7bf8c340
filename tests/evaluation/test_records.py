"""What is written down as it is found out: to the bit, whatever dies, and by however many processes."""

from __future__ import annotations

import importlib
import json
import math
import random
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import processes
import pytest
import torch
import transformers
from accelerate import Accelerator
from evaluation_worker import finish, kill_when, start, untimed, write_rows, written
from tiny_classifier import WORDS
from tokenizers import decoders, normalizers
from torch import nn

from hf_gelu_patch.evaluation.digests import code_digest, content_digest, processor_digest, rows_digest
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.records import RestartedWarning, Row, Writer, folder_name, prepare, read
from hf_gelu_patch.evaluation.run import evaluate_subject
from hf_gelu_patch.evaluation.variants import Variant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

VARIANTS = (Variant.parse("aten"), Variant.parse("activation=relu_squared"))
QUICK = Settings(variants=VARIANTS, batch_size=4, min_rounds=3, min_seconds=0.001, max_seconds=0.01)
FINGERPRINT = {"model": "some", "limit": 3}
MANY = 202


def row(example: int, variant: str = "before", loss: float = 0.1) -> Row:
    drift = None if variant == "before" else {"max_abs": math.inf, "kl_sum": 1e-17}
    return Row(example, variant, Outcome((1, "a b"), (None, "ü"), loss, 2, score=math.nan, top5=(True,)), drift)


def write(folder: Path, *rows: Row, rank: int = 0, fingerprint: dict[str, Any] | None = None) -> Path:
    writer = Writer(folder, fingerprint or FINGERPRINT, rank)
    with writer:
        writer.append(rows)
    return writer.path


def same(found: Row, expected: Row) -> bool:
    return json.dumps(found.to_json()) == json.dumps(expected.to_json())  # NaN is not equal to itself


# --------------------------------------------------------------------------------------------------------------- files


def test_what_is_written_is_read_to_the_bit(tmp_path: Path) -> None:
    rows = [row(0), row(0, "aten", loss=math.pi), row(1, loss=math.inf), row(1, "aten", loss=5e-324)]
    path = write(tmp_path, *rows)
    fingerprint, found = read(tmp_path)
    assert fingerprint == FINGERPRINT
    assert list(found) == [(0, "before"), (0, "aten"), (1, "before"), (1, "aten")]
    assert all(same(found[one.example, one.variant], one) for one in rows)
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def test_a_line_is_the_row_as_json() -> None:
    for loss in (0.1, math.inf):
        for details in ({}, {"boxes": [[0.5, 1]]}, {"scores": [math.nan]}):
            one = replace(row(3, 'a "ü"', loss), outcome=replace(row(3).outcome, loss=loss, details=details))
            for each in (one, replace(one, outcome=replace(one.outcome, score=None), drift={"max_abs": 0.5})):
                assert each.line == json.dumps(each.to_json(), separators=(",", ":")) + "\n"


def test_a_file_cut_anywhere_gives_the_whole_lines_and_goes_on_after_them(tmp_path: Path) -> None:
    rows = [row(example) for example in range(4)]
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole", *rows)
    content = whole.read_bytes()
    for length in {0, 1, len(content) - 1, len(content), *random.Random(0).sample(range(len(content)), 40)}:
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / whole.name).write_bytes(content[:length])
        kept = max(0, content[:length].count(b"\n") - 1)
        assert len(read(folder)[1]) == kept
        write(folder, *rows[kept:])
        assert (folder / whole.name).read_bytes() == content


def test_rows_of_several_processes_come_together_and_may_repeat_each_other(tmp_path: Path) -> None:
    write(tmp_path, row(0), row(2))
    write(tmp_path, row(1), row(2), rank=1)
    assert sorted(read(tmp_path)[1]) == [(0, "before"), (1, "before"), (2, "before")]
    path = write(tmp_path, row(2, loss=0.2), rank=3)
    with pytest.raises(EvaluationError, match=rf"{path.name}: line 2 says of example 2 \(before\) what another"):
        read(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, row(0), row(1), row(2))
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (b"\0" * 20 + b"\n", b"{}\n", lines[2][:30] + b"\n"):
        path.write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        with pytest.raises(EvaluationError, match="line 3 is damaged"):
            read(tmp_path)


def test_earlier_records_are_kept_aside(tmp_path: Path) -> None:
    for run in range(3):
        prepare(tmp_path, FINGERPRINT, resume=False)
        assert read(tmp_path) == (None, {})
        write(tmp_path, row(run))
    assert [key for folder in ("1", "2", ".") for key in read(tmp_path / folder)[1]] == [
        (0, "before"),
        (1, "before"),
        (2, "before"),
    ]


def test_records_of_another_run_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, FINGERPRINT, resume=True)  # none yet, so there is nothing to go on with
    write(tmp_path, row(0))
    prepare(tmp_path, FINGERPRINT, resume=True)
    other = {"model": "some", "limit": 4, "stride": None}
    with pytest.raises(EvaluationError, match=r"limit 3 there, 4 now.*--resume.*--output_dir"):
        prepare(tmp_path, other, resume=True)
    assert list(read(tmp_path)[1]) == [(0, "before")]


def test_what_is_hashed() -> None:
    one = torch.arange(100_000, dtype=torch.float32)
    last, first = one.clone(), one.clone()
    last[-1], first[0] = 0.5, 0.5
    different = [[("a", one)], [("b", one)], [("a", last)], [("a", first)], [("a", one.half())], [("a", one[None])], []]
    assert len({content_digest(tensors) for tensors in different}) == len(different)
    assert content_digest([("a", one)]) == content_digest([("a", one.clone())])
    assert content_digest([("a", torch.ones(0)), ("b", torch.ones(()))])
    kinds = (torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.complex64)
    for dtype in (*kinds, torch.complex128):
        every = torch.arange(12).to(dtype)
        for apart in (every[::2], every.view(3, 4).t(), every.expand(2, 12)):
            assert content_digest([("a", apart)]) == content_digest([("a", apart.clone().contiguous())])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_signs_and_places_are_hashed_beyond_the_first_numbers(dtype: torch.dtype) -> None:
    one = torch.randn(70_000 if dtype != torch.bool else 1_000_000, generator=torch.Generator().manual_seed(0))
    one = (3 * one > 0) if dtype == torch.bool else (3 * one).to(dtype)
    changed = [one.clone() for _ in range(3)]
    changed[0][-1000:] = ~one[-1000:] if dtype == torch.bool else -one[-1000:]
    changed[1][-1000:] = one[-1000:].flip(0)
    changed[2][-1000:-500], changed[2][-500:] = one[-500:], one[-1000:-500]
    assert len({content_digest([("a", tensor)]) for tensor in (one, *changed)}) == 4


MODEL = """
import torch
from beside_it import more
from torch import nn


class Own(nn.Module):
    def forward(self, x):
        return more(x)
"""


def test_the_code_of_a_model_is_hashed_and_what_it_imports_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = [code_digest(nn.Linear(2, 2))]
    for own, beside in ((MODEL, "return x"), (MODEL, "return -x"), (MODEL.replace("more(x)", "-more(x)"), "return -x")):
        (tmp_path / "own_model.py").write_text(own)
        (tmp_path / "beside_it.py").write_text(f"def more(x):\n    {beside}\n")
        for name in ("own_model", "beside_it"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        model = nn.Sequential(importlib.import_module("own_model").Own())
        found.append(code_digest(model))
        assert code_digest(model) == found[-1]
    assert len(set(found)) == 4


def test_a_tokenizer_is_hashed_as_it_decodes_and_not_as_it_was_called_last(checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    before = processor_digest(tokenizer)
    tokenizer(["w1", "w2 w3"], padding=True, truncation=True, max_length=2)
    assert processor_digest(tokenizer) == before
    tokenizer.backend_tokenizer.decoder = decoders.Replace("w", "v")
    assert processor_digest(tokenizer) != before


@pytest.mark.parametrize(("name", "folder"), [("tiny", "tiny"), ("owner/tiny", "owner--tiny"), ("../x", "--x")])
def test_a_name_is_a_folder(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system takes a part of a write, then none."""
    code = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from test_records import FINGERPRINT, Path, Writer, row
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
try:
    with Writer(Path({str(tmp_path)!r}), FINGERPRINT, 0) as writer:
        for example in range(100):
            writer.append([row(example)])
finally:  # there is room for what the test itself says
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
"""
    done = processes.run("-c", code)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "EvaluationError" in last
    assert ".rank0.jsonl cannot be written: File too large" in last
    assert "--resume" in last
    [path] = tmp_path.glob("*.jsonl")
    assert path.stat().st_size == 1000, "the last line is torn"
    found = read(tmp_path)[1]
    assert 3 < len(found) < 20
    assert all(same(one, row(example)) for (example, _), one in found.items())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "many.csv", MANY)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "few.csv", 37)


@pytest.fixture(scope="module")
def uninterrupted(checkpoint: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    found = evaluate_subject(subject(str(checkpoint), validation_file=str(many)), QUICK, Accelerator(cpu=True),
                             folder=folder)  # fmt: skip
    assert written(folder) == MANY * 3
    assert found.variants[1].quality.flips > 0, "or else there would be little to compare"
    return untimed(found)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("worlds", [(1, 1, 1, 1, 1, 1), (2, 1, 2, 2, 3, 1)], ids=["one", "several"])
def test_killed_at_any_moment_it_goes_on_to_the_same_end(
    worlds: tuple[int, ...],
    seed: int,
    checkpoint: Path,
    many: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Each run is killed five times; the last one finishes. In all, twenty times."""
    *killed, last = worlds
    total = MANY * 3
    moments = sorted(random.Random(seed).randrange(total - 100) for _ in killed)
    for world, lines in zip(killed, moments, strict=True):
        running = start(checkpoint, many, tmp_path, replace(QUICK, resume=True), world)
        assert kill_when(running, tmp_path, lines), "killed too late"
    before = written(tmp_path)
    assert moments[-1] <= before < total
    found = finish(start(checkpoint, many, tmp_path, replace(QUICK, resume=True), last), tmp_path)
    assert found == uninterrupted
    assert total <= written(tmp_path) < total + 12 * 5 * 3, "no more than a batch of each process is run again"


@pytest.mark.parametrize("world", [2, 3])
def test_37_examples_are_the_same_for_any_number_of_processes(
    world: int, checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    """In ten batches of four, the last one of one."""
    one = subject(str(checkpoint), validation_file=str(few))
    alone = evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path / "alone")
    (tmp_path / "together").mkdir()
    found = finish(start(checkpoint, few, tmp_path / "together", QUICK, world), tmp_path / "together")
    assert found == untimed(alone)
    rows = [read(tmp_path / folder / "records" / "tiny")[1] for folder in ("alone", "together")]
    assert sorted(rows[0]) == sorted((example, name) for example in range(37) for name in
                                     ("before", *(variant.name for variant in VARIANTS)))  # fmt: skip
    assert rows[0] == rows[1]
    files = sorted((tmp_path / "together" / "records" / "tiny").iterdir())
    assert len(files) == world
    assert {len(path.read_text().splitlines()) for path in files} - {1}, "each had its share"


def test_machines_that_share_no_disk_put_together_what_each_has(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    one = subject(str(checkpoint), validation_file=str(few))
    alone = untimed(evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    assert finish(start(checkpoint, few, folders, QUICK, 2), folders) == alone
    rows = [read(folder / "records" / "tiny")[1] for folder in folders]
    assert not rows[0].keys() & rows[1].keys()
    assert len(rows[0]) + len(rows[1]) == 37 * 3
    [path] = (folders[1] / "records" / "tiny").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]))
    assert finish(start(checkpoint, few, folders, replace(QUICK, resume=True), 2), folders) == alone
    again = [read(folder / "records" / "tiny")[1] for folder in folders]
    assert {**again[0], **again[1]} == {**rows[0], **rows[1]}
    assert again[0].keys() >= rows[0].keys()


def test_a_complete_run_asks_the_model_nothing_again(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    one = subject(str(checkpoint), validation_file=str(few))
    first = evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path)
    [path] = (tmp_path / "records" / "tiny").iterdir()
    content = path.read_bytes()
    again = evaluate_subject(one, replace(QUICK, resume=True), Accelerator(cpu=True), folder=tmp_path)
    assert path.read_bytes() == content
    assert untimed(again) == untimed(first)


def test_only_what_is_missing_is_run(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    """Answers that were recorded are believed, so a planted one stands out, and stays."""
    one = subject(str(checkpoint), validation_file=str(few))
    evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path)
    [path] = (tmp_path / "records" / "tiny").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    planted = json.loads(lines[5])  # of the first batch
    planted["outcome"]["answers"] = [1 - planted["outcome"]["answers"][0]]
    lines[5] = json.dumps(planted) + "\n"
    path.write_text("".join(lines[:40]) + lines[40][:17])
    again = evaluate_subject(one, replace(QUICK, resume=True), Accelerator(cpu=True), folder=tmp_path)
    flips = {(flip.example, variant.variant.name) for variant in again.variants for flip in variant.quality.flipped}
    assert (planted["example"], planted["variant"]) in flips
    assert len(read(tmp_path / "records" / "tiny")[1]) == 37 * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 20}, "limit none there, 20 now"),
        ({"batch_size": 5}, "batch_size 4 there, 5 now"),
        ({"variants": VARIANTS[:1]}, r"variants \[aten, activation=relu_squared\] there, \[aten\] now"),
        ({"loading": Loading(dtype="bfloat16")}, "dtype float32 there, bfloat16 now"),
    ],
)
def test_another_run_is_not_gone_on_with(
    change: dict[str, Any], said: str, checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    one = subject(str(checkpoint), validation_file=str(few))
    evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path)
    other = replace(QUICK, resume=True, **change)
    with pytest.raises(EvaluationError, match=said):
        evaluate_subject(one, other, Accelerator(cpu=True), folder=tmp_path)
    assert written(tmp_path) == 37 * 3
    evaluate_subject(one, replace(other, resume=False), Accelerator(cpu=True), folder=tmp_path)
    assert len(read(tmp_path / "records" / "tiny" / "1")[1]) == 37 * 3


def test_another_tokenizer_is_not_gone_on_with(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    own = shutil.copytree(checkpoint, tmp_path / "tiny")
    one = subject(str(own), validation_file=str(few))
    evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(own)
    tokenizer.backend_tokenizer.decoder = decoders.Replace("w", "v")
    tokenizer.save_pretrained(own)
    with pytest.raises(EvaluationError, match="are of another run: processor"):
        evaluate_subject(one, replace(QUICK, resume=True), Accelerator(cpu=True), folder=tmp_path)


def test_another_model_under_the_same_name_is_not_gone_on_with(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    model, data = tmp_path / "tiny", tmp_path / "few.csv"
    shutil.copytree(checkpoint, model)
    shutil.copy(few, data)
    one = subject(str(model), validation_file=str(data))
    evaluate_subject(one, QUICK, Accelerator(cpu=True), folder=tmp_path)
    resumed = replace(QUICK, resume=True)
    moved = replace(one, model=str(checkpoint), data=few)  # the same, elsewhere
    evaluate_subject(moved, resumed, Accelerator(cpu=True), folder=tmp_path)

    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["classifier.bias"][0] += 1e-6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match=r"weights \w+ there, \w+ now"):
        evaluate_subject(one, resumed, Accelerator(cpu=True), folder=tmp_path)


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": len(WORDS)}
OWN = """
AUTO_CLASS = "AutoModelForSequenceClassification"


def batch(rows, processor, config):
    inputs = processor([row["text"].lower() for row in rows], padding=True, return_tensors="pt")
    return inputs, [int(row["label"].strip() == "yes") for row in rows]
"""


@pytest.fixture(scope="module")
def uncased(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence to sequence model whose tokenizer makes no difference between small letters and capitals."""
    place = tmp_path_factory.mktemp("uncased") / "t5"
    torch.manual_seed(0)
    config = transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize(
    ("kind", "options", "header", "row", "mended"),
    [
        ("t5", {}, "source,target", "w1 w2,W3", "w1 w2,w3"),
        ("t5", {}, "source,target", "w1 w2,w3 what", "w1 w2,w3 when"),  # both unknown to the tokenizer
        ("t5", {"max_length": 2}, "source,target", "w1 w2,w3 w4 w5", "w1 w2,w3 w4 w6"),
        ("tiny", {"max_length": 2}, "text,label", "w1 w2 w3,yes", "w1 w2 w4,yes"),
        ("tiny", {}, "text,label", "w1 w2,yes", "w1 w3,yes"),
        ("own", {}, "text,label,note", "w1,yes,a", "w1,yes,b"),
    ],
)
def test_after_mended_data_a_run_starts_anew_and_says_so(
    kind: str,
    options: dict[str, Any],
    header: str,
    row: str,
    mended: str,
    checkpoint: Path,
    uncased: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data.csv"
    data.write_text(f"{header}\n{row}\n{row}\n")
    if kind == "own":
        (tmp_path / "own_model.py").write_text(OWN)
        options = {"task": str(tmp_path / "own_model.py")}
    one = subject(str(uncased if kind == "t5" else checkpoint), validation_file=str(data), **options)
    quick = replace(QUICK, variants=VARIANTS[:1])
    evaluate_subject(one, quick, Accelerator(cpu=True), folder=tmp_path)
    resumed = replace(quick, resume=True)
    same = evaluate_subject(one, resumed, Accelerator(cpu=True), folder=tmp_path)
    data.write_text(f"{header}\n{row}\n{mended}\n")
    with pytest.warns(RestartedWarning, match=r"data were changed since .* kept in .*1, and everything"):
        found = evaluate_subject(one, resumed, Accelerator(cpu=True), folder=tmp_path)
    fresh = evaluate_subject(one, quick, Accelerator(cpu=True), folder=tmp_path / "fresh")
    assert found.fingerprint["rows"] == fresh.fingerprint["rows"] != same.fingerprint["rows"]
    assert untimed(found)["variants"] == untimed(fresh)["variants"]
    assert len(read(tmp_path / str(found.records))[1]) == len(read(tmp_path / str(found.records) / "1")[1]) == 4


def test_a_task_of_ones_own_that_was_changed_is_asked_anew(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text(OWN)
    one = subject(str(checkpoint), task=str(tmp_path / "own_model.py"), validation_file=str(few))
    quick = replace(QUICK, variants=VARIANTS[:1], limit=3)
    evaluate_subject(one, quick, Accelerator(cpu=True), folder=tmp_path)
    (tmp_path / "own_model.py").write_text(OWN.replace(".lower()", ""))
    with pytest.warns(RestartedWarning, match="data were changed"):
        evaluate_subject(one, replace(quick, resume=True), Accelerator(cpu=True), folder=tmp_path)


def test_rows_are_hashed_as_they_stand(tmp_path: Path) -> None:
    def digest(columns: dict[str, list[Any]], features: datasets.Features | None = None) -> str:
        rows = datasets.Dataset.from_dict(columns, features=features)
        return rows_digest(rows, list(columns), lambda name: file if (file := tmp_path / name).is_file() else None)

    def classes(*names: str) -> datasets.Features:
        return datasets.Features({"label": datasets.ClassLabel(names=names)})

    (tmp_path / "a.wav").write_bytes(b"first")
    (tmp_path / "b.wav").write_bytes(b"second")
    sound = datasets.Features({"sound": datasets.Value("string")})
    image = datasets.Features({"image": datasets.Image(decode=False)})
    stored = [{"bytes": b"first", "path": "x"}], [{"bytes": b"second", "path": "x"}]
    different = [
        digest({"text": ["a", "b"]}),
        digest({"text": ["b", "a"]}),
        digest({"text": ["a", "B"]}),
        digest({"other": ["a", "b"]}),
        digest({"text": [1, 2]}),
        digest({"text": [1.0, None]}),
        digest({"text": [["a"], ["b"]]}),
        digest({"text": [{"a": "b"}, {"a": "c"}]}),
        digest({"label": [0, 1]}, classes("no", "yes")),
        digest({"label": [0, 1]}, classes("yes", "no")),
        digest({"label": [0, 1]}, classes("No", "yes")),
        digest({"sound": ["a.wav", "b.wav"]}, sound),
        digest({"sound": ["b.wav", "a.wav"]}, sound),
        digest({"image": stored[0]}, image),
        digest({"image": stored[1]}, image),
    ]
    assert len(set(different)) == len(different)
    assert digest({"image": [str(tmp_path / "a.wav")]}, image) == digest({"image": stored[0]}, image)
    (tmp_path / "a.wav").write_bytes(b"mended")
    assert digest({"sound": ["a.wav", "b.wav"]}, sound) not in different
    assert digest({"text": ["a", "b"]}) == different[0]


def test_records_that_cannot_be_written_are_told_by_every_process(checkpoint: Path, few: Path, tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file where the folder should be")
    for process in start(checkpoint, few, tmp_path, QUICK, 2):
        process.join(60)
        assert process.exitcode == 1
