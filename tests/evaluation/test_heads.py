"""Heads that give one label, several, or a number: each scored as what it is, against scikit-learn and scipy."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error
from tiny_classifier import WORDS, write_checkpoint

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.report.document import sections, summary
from hf_gelu_patch.evaluation.report.markdown import markdown
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.run import evaluate_subject
from hf_gelu_patch.evaluation.run.result import Result
from hf_gelu_patch.evaluation.statistics import exact_mcnemar
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant

pytestmark = pytest.mark.slow

KINDS = ["red", "green", "dark blue"]
FAST: dict[str, Any] = {"min_rounds": 3, "min_seconds": 0.01, "max_seconds": 0.05}


def texts(count: int) -> list[str]:
    draw = random.Random(5)
    return [" ".join(draw.choices(WORDS[2:], k=1 + (7 * number) % 12)) for number in range(count)]


def checkpoint(folder: Path, names: Sequence[str] = (), *, outputs: int | None = None, **config: Any) -> Path:
    """The tiny classifier with another head."""
    write_checkpoint(folder)
    known = transformers.AutoConfig.from_pretrained(folder)
    if outputs is not None:
        known.num_labels = outputs
    else:
        known.id2label = dict(enumerate(names))
        known.label2id = {name: index for index, name in enumerate(names)}
    for key, value in config.items():
        setattr(known, key, value)
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(known)
    for weight in model.parameters():
        weight.data.mul_(6.0) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "several"
    return checkpoint(folder, KINDS, problem_type="multi_label_classification")


@pytest.fixture(scope="module")
def number(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "number", outputs=1)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "single", KINDS)


def write_lines(path: Path, labels: Sequence[Any]) -> str:
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts(len(labels)), labels, strict=True)]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def load(model: Path, data: str, *, skip: bool = False, **options: Any) -> tuple[Any, Task]:
    one = subject(str(model), validation_file=data, **options)
    loaded, processor = load_model(one.model, one.task), load_processor(one.model, one.task)
    rows = load_rows(one, skip_bad_rows=skip)
    return loaded, make_task(one, loaded.config, processor, rows, skip_bad_rows=skip)


@torch.inference_mode()
def measure(model: Any, task: Task, size: int) -> dict[str, float]:
    found = {}
    for batch in task.batches(size):
        found.update(zip(batch.ids, task.predict(model, batch).outcomes, strict=True))
    return task.metrics([found[example] for example in range(len(task.examples))])


@torch.inference_mode()
def logits(folder: Path, count: int) -> np.ndarray[Any, Any]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [model(**tokenizer([text], return_tensors="pt")).logits[0] for text in texts(count)]
    return torch.stack(rows).double().numpy()


def evaluate(model: Path, data: str, folder: Path | None = None, *, resume: bool = False, **options: Any) -> Result:
    one = subject(str(model), validation_file=data, **options)
    settings = Settings((Variant("auto", activation="relu"),), margin=0.01, resume=resume, **FAST)
    return evaluate_subject(one, settings, Accelerator(cpu=True), folder=folder)


# -------------------------------------------------------------------------------------------------------- one number


@pytest.mark.parametrize(
    "labels",
    [
        [number % 2 for number in range(30)],
        [number / 7 for number in range(30)],
        [str(number % 5) for number in range(30)],
        [bool(number % 3) for number in range(30)],
    ],
)
def test_one_output_is_a_number(labels: list[Any], number: Path, tmp_path: Path) -> None:
    model, task = load(number, write_lines(tmp_path / "a.jsonl", labels))
    right = [float(label) for label in labels]
    said = logits(number, 30)[:, 0]
    for size in (1, 8):
        found = measure(model, task, size)
        assert found.keys() == {"spearman", "pearson", "mse"}
        assert found["spearman"] == pytest.approx(spearmanr(said, right).statistic, abs=1e-3)
        assert found["pearson"] == pytest.approx(pearsonr(said, right).statistic, abs=1e-5)
        assert found["mse"] == pytest.approx(mean_squared_error(right, said), rel=1e-5)


def test_a_threshold_is_measured_where_it_is_asked_for(number: Path, tmp_path: Path) -> None:
    said = logits(number, 30)[:, 0]
    middle = float(np.median(said))
    right = [float(value) for value in np.roll(said, 3)]
    data = write_lines(tmp_path / "a.jsonl", right)
    found = measure(*load(number, data, threshold=middle), 8)
    sides = np.array(right) > middle, said > middle
    assert found["accuracy"] == pytest.approx(accuracy_score(*sides))
    assert found["macro_f1"] == pytest.approx(f1_score(*sides, average="macro"))
    result = evaluate(number, data, threshold=middle)
    quality = result.variants[0].quality
    assert quality.answers == 30
    assert quality.p == exact_mcnemar(quality.right_to_wrong, quality.wrong_to_right)
    assert result.named["1"] == f"above {middle:g}"
    with pytest.raises(EvaluationError, match="one side of the threshold 7000"):
        load(number, data, threshold=7000.0)


@pytest.mark.parametrize("label", ["", "much", None, "nan", "1_0"])
def test_a_number_that_is_none_is_named_or_skipped(label: Any, number: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", ["1", label, "0.5"])
    with pytest.raises(EvaluationError, match="row 2 has no score that is a number"):
        load(number, data)
    assert [row for row, _ in load(number, data, skip=True)[1].skipped] == [2]


def test_classes_are_numbers_only_by_their_names(number: Path, tmp_path: Path) -> None:
    for names, right in ((["5", "3"], [5.0, 3.0]), (["entailment", "not_entailment"], None)):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        place = tmp_path / names[0]
        datasets.Dataset.from_dict({"text": texts(2), "label": [0, 1]}, features=features).save_to_disk(str(place))
        if right is None:
            with pytest.raises(EvaluationError, match=r"'entailment', 'not_entailment'.*write numbers"):
                load(number, str(place))
        else:
            assert [example["label"] for example in load(number, str(place))[1].examples] == right


def test_an_image_can_be_given_a_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=1)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    draw = np.random.default_rng(0)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number in range(6):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", number / 2])
    model, task = load(tmp_path / "vit", str(tmp_path / "a.csv"))
    assert measure(model, task, 1) == pytest.approx(measure(model, task, 4), abs=1e-5)


# ------------------------------------------------------------------------------------------------------ several labels


def sets(count: int) -> list[list[int]]:
    draw = random.Random(2)
    return [[index for index in range(3) if draw.random() < 0.5] for _ in range(count)]


@pytest.mark.parametrize(
    "written",
    [
        lambda held: [KINDS[index] for index in held],
        lambda held: held,
        lambda held: [int(index in held) for index in range(3)],
        lambda held: [float(index in held) for index in range(3)],
        lambda held: str([KINDS[index] for index in held]),
        lambda held: json.dumps(held),
        lambda held: " ".join(str(int(index in held)) for index in range(3)),
    ],
    ids=["names", "ids", "0/1", "floats", "text of names", "text of ids", "text of 0/1"],
)
def test_several_labels_are_scikit_learns(written: Any, several: Path, tmp_path: Path) -> None:
    held = sets(30)
    model, task = load(several, write_lines(tmp_path / "a.jsonl", [written(one) for one in held]))
    right = np.array([[index in one for index in range(3)] for one in held])
    said = logits(several, 30) > 0
    for size in (1, 8):
        found = measure(model, task, size)
        assert found["subset_accuracy"] == pytest.approx(accuracy_score(right, said))
        assert found["micro_f1"] == pytest.approx(f1_score(right, said, average="micro"))
        assert found["macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))


def test_the_threshold_of_several_labels_is_a_logit(several: Path, tmp_path: Path) -> None:
    held = sets(30)
    model, task = load(several, write_lines(tmp_path / "a.jsonl", held), threshold=1.5)
    right = np.array([[index in one for index in range(3)] for one in held])
    expected = f1_score(right, logits(several, 30) > 1.5, average="micro")
    assert measure(model, task, 8)["micro_f1"] == pytest.approx(expected)


def test_lists_of_classes_have_names(several: Path, tmp_path: Path) -> None:
    kind = datasets.List(datasets.ClassLabel(names=["Dark Blue", "Green", "Red"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    rows = {"text": texts(3), "label": [[0, 2], [], [1]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "a"))
    _, task = load(several, str(tmp_path / "a"))
    assert [example["label"] for example in task.examples] == ["101", "000", "010"]


def test_sets_before_and_after_are_compared_as_wholes(several: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [[KINDS[index] for index in held] for held in sets(40)])
    result = evaluate(several, data, tmp_path / "out")
    quality = result.variants[0].quality
    assert quality.answers == quality.examples == 40
    assert quality.flips > 0
    assert quality.p == quality.mcnemar_p == exact_mcnemar(quality.right_to_wrong, quality.wrong_to_right)
    assert set(quality.differences) == {"subset_accuracy", "micro_f1", "macro_f1"}
    assert set(result.named.values()) <= {"none", "red", "red, green", "red, dark blue", "green", "dark blue"} | {
        "green, dark blue",
        "red, green, dark blue",
    }
    resumed = evaluate(several, data, tmp_path / "out", resume=True)
    assert resumed.variants[0].quality == quality
    shown = plain([result], Settings((Variant("auto", activation="relu"),), margin=0.01), {})
    assert any("subset accuracy" in line for row in summary(shown).rows for cell in row for line in cell)
    [flips] = [section for section in sections(shown) if section.title == "Changed answers"]
    assert flips.blocks
    assert result.named[quality.flipped[0].before] in markdown(shown)


def test_numbers_before_and_after_are_compared(number: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [number / 7 for number in range(40)])
    quality = evaluate(number, data, tmp_path / "out").variants[0].quality
    assert (quality.answers, quality.right_to_wrong, quality.p) == (40, 0, 1.0)
    assert quality.flips > 0
    assert set(quality.differences) == {"spearman", "pearson", "mse"}
    assert evaluate(number, data, tmp_path / "out", resume=True).variants[0].quality == quality


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("label", [[1, 0], ["red"], [0.0, 1.0, 0.0]])
def test_lists_for_a_single_label_are_refused(label: list[Any], single: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [label] * 3)
    with pytest.raises(EvaluationError, match=r"row 1 has .* one label an example"):
        load(single, data)
    with pytest.raises(EvaluationError, match="no row can be used"):
        load(single, data, skip=True)


def test_which_way_labels_are_written_can_be_said(tmp_path: Path) -> None:
    stars = checkpoint(tmp_path / "stars", ["1", "2", "3"])
    data = write_lines(tmp_path / "a.jsonl", [1, 2, 1])
    with pytest.raises(EvaluationError, match=r"stars: .*a\.jsonl, column 'label'.*--labels names or --labels ids"):
        load(stars, data)
    for asked, ids in (("names", [0, 1, 0]), ("ids", [1, 2, 1])):
        assert [example["label"] for example in load(stars, data, labels=asked)[1].examples] == ids


def test_a_limit_does_not_change_how_labels_are_read(tmp_path: Path) -> None:
    stars = checkpoint(tmp_path / "stars", ["1", "2", "3"])
    one = subject(str(stars), validation_file=write_lines(tmp_path / "a.jsonl", [1, 2, 3]))
    config, processor = transformers.AutoConfig.from_pretrained(stars), load_processor(str(stars), one.task)
    task = make_task(one, config, processor, load_rows(one), limit=2)
    assert [example["label"] for example in task.examples] == [0, 1]
    assert next(iter(task.encode(load_rows(one).select([0]), None)))["label"] == 0  # a part of the data, as when timing


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ({"outputs": 3, "problem_type": "regression"}, {}, "3 numbers for an example"),
        ({"outputs": 1}, {"labels": "ids"}, "drop --labels"),
        ({"names": KINDS}, {"threshold": 0.5}, "drop --threshold"),
        ({"names": KINDS}, {"labels": "vector"}, "names or ids"),
        (
            {"names": KINDS, "label2id": {"red": 2, "green": 1, "dark blue": 0}},
            {},
            "contradict each other: 'dark blue' is 2 in one and 0",
        ),
    ],
)
def test_what_a_head_has_no_use_for_is_refused(
    config: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", **config)
    with pytest.raises(EvaluationError, match=said):
        load(folder, write_lines(tmp_path / "a.jsonl", [0, 1]), **options)


def test_ids_that_are_no_outputs_are_refused(single: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(single)
    config.id2label = {1: "red", 2: "green", 3: "dark blue"}
    one = subject(str(single), validation_file=write_lines(tmp_path / "a.jsonl", ["red"]))
    with pytest.raises(EvaluationError, match="names the ids '1', '2', '3'"):
        make_task(one, config, load_processor(str(single), one.task), load_rows(one))


def test_other_tasks_have_no_labels(several: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "a.jsonl", [1])
    for option, value in (("labels", "ids"), ("threshold", 0.5)):
        with pytest.raises(EvaluationError, match=f"drop --{option}"):
            subject(str(several), task="feature-drift", validation_file=data, **{option: value})  # type: ignore[arg-type]
