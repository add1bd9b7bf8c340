"""Evaluation of real models in this process: what is compared, that the model is left alone, and what is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_classifier import rows, write_checkpoint, write_data
from transformers import PreTrainedModel

from hf_gelu_patch import PatchError, find_sites
from hf_gelu_patch.evaluation.loading import EvaluationError, Subject, load_data, load_model, load_processor, subject
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.report import JSON_NAME, environment, markdown, save, to_dict, writable
from hf_gelu_patch.evaluation.run import Result, Settings, evaluate, evaluate_subject
from hf_gelu_patch.evaluation.tasks import Task, make_task

QUICK = Settings(min_rounds=3, min_seconds=0.01, max_seconds=0.1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("tiny")
    return subject(str(write_checkpoint(folder / "tiny")), validation_file=str(write_data(folder / "data.csv")))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def load(one: Subject) -> tuple[PreTrainedModel, Task]:
    model = load_model(one.model, one.task)
    columns = (one.input_column, *filter(None, (one.target_column,)))
    return model, make_task(one, model.config, load_processor(one.model, one.task), load_data(one.data, columns))


def test_quality_is_that_of_the_model_run_by_itself(tiny: Subject, accelerator: Accelerator) -> None:
    """Example by example, unpadded, against batches that are padded."""
    model, task = load(tiny)
    found = evaluate(model, task, replace(QUICK, batch_size=5), accelerator)
    tokenizer = load_processor(tiny.model, tiny.task)
    with torch.no_grad():
        said = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text, _ in rows()]
    right = sum(["no", "yes"][answer] == label for answer, (_, label) in zip(said, rows(), strict=True))
    assert found.quality.before["accuracy"] == right / 37
    assert 0 < len(set(said)) == 2, "a model that says one thing only would prove nothing"
    assert (found.quality.examples, found.quality.answers, found.batch_size) == (37, 37, 5)


def test_the_patch_is_measured_and_the_model_left_alone(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    modules, state = dict(model.named_modules()), {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    same = evaluate(model, task, QUICK, accelerator)
    assert len(same.patch.changed) == 3
    assert same.quality.flips == 0
    assert 0 < same.quality.max_abs_logit_change < 1e-4 * same.quality.max_abs_logit
    other = evaluate(model, task, replace(QUICK, activation="relu"), accelerator)
    assert other.quality.max_abs_logit_change > 1e-2
    assert other.quality.before == same.quality.before
    assert {len(samples) for samples in other.speed.timings.seconds.values()} == {len(other.speed.timings.units)}
    assert other.speed.timings.seconds.keys() == {"before", "again", "after"}

    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config


def test_a_swap_that_changes_answers_is_seen(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    found = evaluate(model, task, replace(QUICK, activation="relu_squared"), accelerator).quality
    assert found.flips > 0
    assert found.flips == found.right_to_wrong + found.wrong_to_right  # of two labels, one is right
    gain = found.wrong_to_right - found.right_to_wrong
    assert found.after["accuracy"] * 37 == pytest.approx(found.before["accuracy"] * 37 + gain)


def test_where_nothing_is_patched_the_model_is_timed_against_itself(accelerator: Accelerator) -> None:
    found = evaluate_subject(subject("vit"), replace(QUICK, limit=64, exclude=("*",)), accelerator)
    assert found.patch.changed == ()
    assert found.speed.verdict == "nothing patched"
    assert found.speed.timings.seconds.keys() == {"before", "again"}
    assert found.quality.before == found.quality.after


@pytest.mark.parametrize("name", ["gpt2", "t5", "vit"])
def test_the_references_have_the_quality_that_is_noted(name: str, accelerator: Accelerator) -> None:
    """Noted by another programme, written on its own."""
    found = evaluate_subject(subject(name), QUICK, accelerator).quality.after
    noted = REFERENCES[name].quality
    same = {"word_accuracy": "exact_match", "phoneme_error_rate": "edit_error_rate"}
    assert noted
    for metric, value in noted.items():
        assert found[same.get(metric, metric)] == pytest.approx(value, rel=1e-4)


def test_a_text_without_tokens_is_refused_by_its_row(tiny: Subject, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('text,label\nw1,yes\n"",no\n')
    with pytest.raises(EvaluationError, match="row 2 has no tokens"):
        load(replace(tiny, data=tmp_path / "data.csv"))


def test_a_tokenizer_that_cannot_pad_is_refused(tiny: Subject) -> None:
    tokenizer = load_processor(tiny.model, tiny.task)
    tokenizer.pad_token = None
    config = load_model(tiny.model, tiny.task).config
    with pytest.raises(EvaluationError, match="no padding token"):
        make_task(tiny, config, tokenizer, load_data(tiny.data, ("text", "label")))


@pytest.mark.parametrize("given", ["1", "yes"])
def test_labels_are_ids_or_names(given: str, tiny: Subject, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"text,label\nw1,{given}\n")
    _, task = load(replace(tiny, data=tmp_path / "data.csv"))
    assert task.batches(1)[0].targets.tolist() == [[1]]


def test_text_shorter_than_a_block_is_one_block(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Call me Ishmael.")
    one = subject("gpt2", validation_file=str(tmp_path / "short.txt"))
    _, task = load(one)
    [batch] = task.batches(4)
    assert batch.units == 16
    assert torch.equal(batch.targets, batch.inputs["input_ids"][:, 1:])
    (tmp_path / "short.txt").write_text("C")
    with pytest.raises(EvaluationError, match="two tokens or more"):
        load(one)
    with pytest.raises(EvaluationError, match="at most 64 tokens"):
        load(subject("gpt2", max_length=65))


def test_a_model_in_training_mode_is_refused(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    with pytest.raises(EvaluationError, match="eval"):
        evaluate(model.train(), task, QUICK, accelerator)


def test_a_refused_patch_is_refused_before_anything_runs(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    stages: list[tuple[str, float]] = []
    with pytest.raises(PatchError):
        evaluate(model, task, replace(QUICK, include=("nothing.*",)), accelerator, lambda *told: stages.append(told))
    assert stages == []
    assert len(find_sites(model).changed) == 3


@pytest.fixture(scope="module")
def result(tiny: Subject, accelerator: Accelerator) -> Result:
    return evaluate(*load(tiny), replace(QUICK, activation="relu_squared"), accelerator)


def test_json_has_the_tables_numbers_and_every_sample(result: Result, tmp_path: Path) -> None:
    surroundings = environment(processes=1, device="cpu", command=["/somewhere/hf-gelu-patch", "evaluate"])
    save([result], QUICK, surroundings, tmp_path)
    found = json.loads((tmp_path / JSON_NAME).read_text(encoding="utf-8"))
    [model] = found["models"]
    assert model["quality"] == json.loads(json.dumps(vars(result.quality)))
    assert model["speed"]["timings"]["seconds"] == result.speed.timings.seconds
    assert len(model["patch"]["sites"]) == len(result.patch.sites)
    assert found["environment"]["command"] == ["hf-gelu-patch", "evaluate"]
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert found["environment"]["threads"] == torch.get_num_threads()
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "evaluation.md"}

    table = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    quality, speed = model["quality"], model["speed"]
    assert f"accuracy {quality['before']['accuracy']:.4f} → {quality['after']['accuracy']:.4f}" in table
    assert f"{quality['flips']} of 37" in table
    assert f"{quality['right_to_wrong']} right → wrong" in table
    assert f"{speed['ratio']['value']:.3f}×" in table
    assert f"| {speed['verdict']}<br>" in table
    assert result.patch.summary in table


def test_what_is_not_finite_is_still_json(result: Result) -> None:
    broken = replace(
        result,
        quality=replace(result.quality, max_abs_logit_change=math.nan, after={"accuracy": math.inf, "macro_f1": 0.0}),
    )
    text = json.dumps(to_dict([broken], QUICK, {}), allow_nan=False)
    assert json.loads(text)["models"][0]["quality"]["max_abs_logit_change"] is None


def test_a_pipe_in_a_name_does_not_break_the_markdown(result: Result) -> None:
    odd = replace(result, subject=replace(result.subject, name="a|b"))
    row = next(line for line in markdown([odd], QUICK, {}).splitlines() if "a\\|b" in line)
    assert row.replace("\\|", "").count("|") == 7


def test_an_interrupted_write_leaves_the_old_file(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / JSON_NAME).write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(EvaluationError, match="disk full"):
        save([result], QUICK, {}, tmp_path)
    assert (tmp_path / JSON_NAME).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [JSON_NAME]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="--output_dir"):
        writable(tmp_path / "file" / "results")
