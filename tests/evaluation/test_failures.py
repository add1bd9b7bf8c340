"""A model that fails on some rows: which they are is found by running them alone, and the others are evaluated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import evaluation_worker
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from test_tasks import SIZES, VOCABULARY, save, sentences, write_rows, write_tokenizer
from tiny_classifier import write_checkpoint, write_data
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.run import evaluate_subject, unpatched_metrics
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Implementation, register_implementation

pytestmark = pytest.mark.slow

QUICK = Settings(min_rounds=3, min_seconds=0.01, max_seconds=0.1, skip_bad_rows=True)
STRICT = Settings(min_rounds=3, min_seconds=0.01, max_seconds=0.1)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    """Takes images of 8 × 8, and its image processor leaves them at their own sizes."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=2, hidden_act="gelu_new")
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(folder / "vit")
    return save(transformers.ViTForImageClassification(config), folder / "vit")


def pictures(place: Path, sizes: list[tuple[int, int]]) -> str:
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        path = place / f"LABEL_{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return str(place)


GOOD, WIDE, TALL = (8, 8), (12, 8), (8, 16)


def test_the_rows_that_a_model_fails_on_are_left_out_of_every_batch(
    vit: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    sizes = [GOOD, WIDE, GOOD, GOOD, TALL, GOOD, WIDE, GOOD]
    one = subject(str(vit), validation_file=pictures(tmp_path / "all", sizes))
    rest = subject(str(vit), validation_file=pictures(tmp_path / "rest", sizes))
    for path in sorted((tmp_path / "rest").glob("*/*.png")):
        if sizes[int(path.stem)] != GOOD:
            path.unlink()
    expected = unpatched_metrics(rest, STRICT, accelerator)
    with pytest.raises(
        EvaluationError, match=r"vit: .*all: row 4 \(.*06\.png\) makes vit fail: ValueError: Input image"
    ):
        unpatched_metrics(one, STRICT, accelerator)
    for size in (1, 2, 8):
        settings = Settings(**{**vars(QUICK), "batch_size": size, "variants": (Variant("aten"), Variant("eager"))})
        found = evaluate_subject(one, settings, accelerator, folder=tmp_path / "out")
        assert found.unpatched == expected
        assert [row for row, _ in found.skipped] == [3, 4, 5]  # in the order of the classes' folders
        assert [variant.quality.examples for variant in found.variants] == [5, 5]
        again = evaluate_subject(
            one, Settings(**{**vars(settings), "resume": True}), accelerator, folder=tmp_path / "out"
        )
        assert (again.unpatched, again.skipped) == (found.unpatched, found.skipped)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_leave_out_the_same_rows(vit: Path, tmp_path: Path) -> None:
    data = Path(pictures(tmp_path / "data", [GOOD, WIDE, GOOD, GOOD, TALL, GOOD, WIDE, GOOD, GOOD]))
    settings = Settings(**{**vars(QUICK), "batch_size": 2})
    found = []
    for world in (1, 2):
        place = tmp_path / str(world)
        place.mkdir()
        found.append(evaluation_worker.finish(evaluation_worker.start(vit, data, place, settings, world), place))
    assert found[0] == found[1]
    assert found[0]["variants"][0]["quality"]["examples"] == 6


def test_where_every_row_fails_that_is_said(vit: Path, accelerator: Accelerator, tmp_path: Path) -> None:
    one = subject(str(vit), validation_file=pictures(tmp_path, [WIDE] * 4))
    with pytest.raises(EvaluationError, match=r"row 1 .* makes vit fail: .*; and so does every other row in its batch"):
        unpatched_metrics(one, STRICT, accelerator)
    with pytest.raises(EvaluationError, match=r"vit: .*: no row can be used; row 1 .* makes vit fail"):
        unpatched_metrics(one, QUICK, accelerator)


def shorter(place: Path, model: transformers.PreTrainedModel) -> Path:
    """A checkpoint whose config promises more positions than there are."""
    write_tokenizer(save(model, place))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(place)
    return place


BERT = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 24}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 24, "vocab_size": len(VOCABULARY)}
OWN = """
import torch
AUTO_CLASS = "AutoModelForSequenceClassification"


def batch(rows, processor, config):
    inputs = processor([row["text"] for row in rows], padding=True, return_tensors="pt")
    inputs["input_ids"] += torch.tensor([[int(row["more"])] for row in rows])
    return inputs, [int(row["label"]) for row in rows]
"""


def test_a_task_of_ones_own_may_ask_for_too_much(accelerator: Accelerator, tmp_path: Path) -> None:
    place = save(transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)), tmp_path / "bert")
    write_tokenizer(place)
    (tmp_path / "own.py").write_text(OWN)
    rows = [(text, number % 2, 100 if number == 3 else 0) for number, text in enumerate(sentences(7))]
    data = write_rows(tmp_path / "a.csv", ["text", "label", "more"], rows)
    one = subject(str(place), task=str(tmp_path / "own.py"), validation_file=data)
    for size in (1, 2, 7):
        settings = {"batch_size": size}
        with pytest.raises(EvaluationError, match=r"bert: .*a\.csv: row 4 \(.*\) makes bert fail: IndexError"):
            unpatched_metrics(one, Settings(**{**vars(STRICT), **settings}), accelerator)
        assert unpatched_metrics(one, Settings(**{**vars(QUICK), **settings}), accelerator)


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_running_text_and_long_rows(
    kind: str, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of several examples is left out as a whole; running text has no rows, so that its block is named."""
    torch.manual_seed(0)
    own = transformers.BertForMaskedLM if kind == "masked-lm" else transformers.GPT2LMHeadModel
    config = transformers.BertConfig(**BERT) if kind == "masked-lm" else transformers.GPT2Config(**GPT2)
    place = shorter(tmp_path / "model", own(config))
    forward = own.forward

    def picky(self: Any, input_ids: Tensor, **options: Any) -> Any:
        if (input_ids == 44).any():
            raise RuntimeError("no w39 here")
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(own, "forward", picky)
    texts = [" ".join(["w1", "w2"] * 20), " ".join([*["w1"] * 30, *["w39"] * 30, *["w2"] * 30]), "w4 w5 w6"]
    data = write_rows(tmp_path / "a.csv", ["text"], [(text,) for text in texts])
    one = subject(str(place), task=kind, validation_file=data)
    if kind == "masked-lm":
        with pytest.raises(
            EvaluationError, match=r"model: .*a\.csv: row 2 .* makes model fail: RuntimeError: no w39 here"
        ):
            unpatched_metrics(one, STRICT, accelerator)
        found = evaluate_subject(one, QUICK, accelerator)
        assert [row for row, _ in found.skipped] == [2]
        assert found.variants[0].quality.examples == 2 + 1
    else:
        for settings in (STRICT, QUICK):
            with pytest.raises(
                EvaluationError, match=r"a\.csv: block 4 .* makes model fail: RuntimeError: no w39 here"
            ):
                unpatched_metrics(one, settings, accelerator)


@pytest.fixture
def tiny(tmp_path: Path) -> Subject:
    place = write_checkpoint(tmp_path / "tiny")
    return subject(str(place), validation_file=str(write_data(tmp_path / "a.csv")))


@pytest.fixture
def brittle() -> Any:
    def function(x: Tensor) -> Tensor:
        if x.shape[1] > 17:
            raise NotImplementedError("no more than 17 tokens")
        return torch.nn.functional.gelu(x, approximate="tanh")

    register_implementation(Implementation("brittle", {"gelu_tanh": function}))
    yield
    del IMPLEMENTATIONS["brittle"]


@pytest.mark.usefixtures("brittle")
@pytest.mark.parametrize("settings", [STRICT, QUICK], ids=["strict", "skip"])
def test_a_variant_that_fails_is_named_and_no_row_is_to_blame(
    settings: Settings, tiny: Subject, accelerator: Accelerator
) -> None:
    variants = (Variant.parse("aten"), Variant.parse("brittle,include=*intermediate*"))
    with pytest.raises(
        EvaluationError,
        match=r"a\.csv: row 9 .*no more than 17 tokens.* the variant 'brittle,include=\*intermediate\*': the unpatched",
    ):
        evaluate_subject(tiny, Settings(**{**vars(settings), "variants": variants}), accelerator)


def lost_word(place: Path, value: float, model: transformers.PreTrainedModel) -> Path:
    """A checkpoint whose embedding of w39, the last word, is not finite."""
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY.index("w39"), 0] = value
    return shorter(place, model)


NOT_FINITE = [
    ("text-classification", transformers.BertForSequenceClassification, {"num_labels": 2}, "logits"),
    ("text-classification", transformers.BertForSequenceClassification, {"num_labels": 1}, "logits"),
    ("sentence-similarity", transformers.BertModel, {}, "embeddings"),
    ("feature-drift", transformers.BertModel, {}, "features"),
    ("masked-lm", transformers.BertForMaskedLM, {"tie_word_embeddings": False}, "logits"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("task", "own", "more", "output"), NOT_FINITE)
def test_a_row_of_which_the_model_says_nothing_has_no_figure(
    task: str, own: Any, more: dict[str, Any], output: str, value: float, accelerator: Accelerator, tmp_path: Path
) -> None:
    """The likeliest of NaN is the first one, so that there would be an accuracy."""
    place = lost_word(tmp_path / "model", value, own(transformers.BertConfig(**BERT, **more)))
    rows = [
        ("w39 w39 w39 w39" if number in (2, 5) else text, "w1 w2", text, number % 2)
        for number, text in enumerate(text.replace("w39", "w1") for text in sentences(9))
    ]
    header = ["text1", "text2", "text", "score"] if task == "sentence-similarity" else ["text", "x", "y", "label"]
    data = write_rows(tmp_path / "a.csv", header, rows)
    rest = write_rows(tmp_path / "rest.csv", header, [row for row in rows if "w39" not in row[0]])
    expected = unpatched_metrics(subject(str(place), task=task, validation_file=rest), STRICT, accelerator)
    one = subject(str(place), task=task, validation_file=data)
    for size in (1, 9):
        with pytest.raises(EvaluationError, match=rf"a\.csv: row [36] .* makes model, unpatched, give {output} that"):
            unpatched_metrics(one, Settings(**{**vars(STRICT), "batch_size": size}), accelerator)
    found = evaluate_subject(one, QUICK, accelerator)
    assert [row for row, _ in found.skipped] == [3, 6]
    if task != "masked-lm":  # which words are masked depends on the rows before
        assert found.unpatched == pytest.approx(expected)
    assert found.variants[0].layers[-1].path == output


@pytest.mark.parametrize(("dtype", "said"), [("float32", "NaN or infinite; and"), ("float16", "in float16, which --d")])
def test_where_nothing_is_finite_the_models_files_or_its_dtype_are_to_blame(
    dtype: str, said: str, accelerator: Accelerator, tmp_path: Path
) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = math.nan if dtype == "float32" else 1e6  # more than float16 has
    place = shorter(tmp_path / "model", model)
    data = write_rows(tmp_path / "a.csv", ["text"], [(" ".join(["w1", "w2", "w3"] * 20),)])
    one = subject(str(place), task="causal-lm", validation_file=data)
    with pytest.raises(EvaluationError, match=rf"a\.csv: block 1 .* makes model, unpatched, give logits .*{said}"):
        unpatched_metrics(one, Settings(**{**vars(STRICT), "loading": Loading(dtype=dtype)}), accelerator)


@pytest.mark.parametrize("ruled_out", [[0], [0, 2]])
def test_a_class_may_be_ruled_out(ruled_out: list[int], accelerator: Accelerator, tmp_path: Path) -> None:
    """As long as one is left to be the answer."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3))
    with torch.no_grad():
        model.classifier.bias[ruled_out] = -math.inf
    place = shorter(tmp_path / "model", model)
    data = write_rows(tmp_path / "a.csv", ["text", "label"], [(text, 1) for text in sentences(4)])
    one = subject(str(place), validation_file=data)
    assert 0 <= unpatched_metrics(one, STRICT, accelerator)["accuracy"] <= 1
    with torch.no_grad():
        model.classifier.bias[:] = -math.inf
    model.save_pretrained(place)
    with pytest.raises(EvaluationError, match=r"row \d .* give logits that are NaN or infinite"):
        unpatched_metrics(one, STRICT, accelerator)
