"""Fine-tuning: a swap's cost and its healing, checkpoints, what is saved, several processes, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from finetuning_worker import request, start
from safetensors.torch import load_file
from torch import Tensor

from hf_gelu_patch import patch
from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.run import unpatched_metrics
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.order import Order
from hf_gelu_patch.finetuning.run import STAGES, finetune
from scripts.healing import curve, healing

Data = dict[str, Any]
ROOT = Path(__file__).parent.parent


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class StoppedError(Exception):
    pass


def run(asked: Any, stop: int | None = None) -> Data:
    """A whole run, or one that dies before that step."""
    steps: list[float] = []

    def tell(stage: str, share: float) -> None:
        assert stage in STAGES
        if stage == "train":
            steps.append(share)
            if len(steps) == stop:
                raise StoppedError

    return finetune(asked, Accelerator(cpu=True), tell)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data]:
    """A run that nothing interrupted: ten steps of two batches, SiLU swapped in."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(request(checkpoint, data, folder, "silu"))


# ------------------------------------------------------------------------------------------------------ what is learnt


def test_a_swap_is_measured_and_healed(whole: tuple[Path, Data], checkpoint: Path, data: Path) -> None:
    folder, found = whole
    assert list(found["stages"]) == ["before", "patched", "trained"]
    assert list(found["changes"]) == ["patched", "trained", "healed"]
    one = subject(str(checkpoint), validation_file=str(data))
    assert found["stages"]["before"] == unpatched_metrics(one, Settings(), Accelerator(cpu=True))
    assert found["changes"]["healed"]["wrong_to_right"] > 0
    history = found["training"]["history"]
    assert [len(history[name]) for name in ("loss", "learning_rate", "grad_norm")] == [10, 10, 10]
    assert [one["step"] for one in history["validation"]] == [5]
    assert found["training"]["trained"] == sum(weight.numel() for weight in weights(folder).values())
    assert json.loads((folder / "finetuning.json").read_text()) == found
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| patched, not trained | accuracy |" in (folder / "finetuning.md").read_text()


def test_what_is_saved_computes_the_same_without_the_package(whole: tuple[Path, Data], data: Path) -> None:
    folder, found = whole
    assert json.loads((folder / "config.json").read_text())["hidden_act"] == "silu"
    assert found["reloaded"].endswith("computes the same without hf_gelu_patch")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = json.loads((folder / "answers" / "trained.json").read_text())
    one = subject(str(folder), validation_file=str(data))
    texts = load_rows(one)[:8]
    logits = model(**tokenizer(texts["text"], padding=True, return_tensors="pt")).logits.double()
    right = torch.tensor([["no", "yes"].index(label) for label in texts["label"]])
    losses = torch.nn.functional.cross_entropy(logits, right, reduction="none")
    assert losses.tolist() == pytest.approx([answer["loss"] for answer in answers[:8]], abs=1e-5)


def test_a_function_that_no_config_can_name_is_told_of(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    found = run(request(checkpoint, data, tmp_path / "run", "elu", max_train_steps=1))
    assert "computes gelu_new in place of elu at 2 of 2 sites" in found["reloaded"]
    assert "patch(model, activation='elu')" in found["reloaded"]


def test_the_loss_is_the_models_own(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """One step of plain PyTorch on the same examples: AdamW without dropout, the mean over all of them."""
    exact = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((exact / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (exact / "config.json").write_text(json.dumps({**config, **dropout}))
    options = {"lr_scheduler_type": "constant", "num_warmup_steps": 0, "weight_decay": 0.0, "max_train_steps": 1}
    asked = request(exact, data, tmp_path / "run", None, **options, per_device_train_batch_size=7)
    found = run(replace(asked, variant=Variant.of("eager")))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exact).eval()
    one = subject(str(exact), validation_file=str(data))
    task = make_task(one, model.config, load_processor(str(exact), one.task), load_rows(one))
    step = [example for ids in Order(task, 7, 2, 5).epoch(0)[0] for example in ids]
    batch = task.collate(tuple(step), [task.examples[example] for example in step])
    loss = model(**batch.inputs, labels=batch.targets[:, 0]).loss
    loss.backward()
    assert found["training"]["history"]["loss"] == [pytest.approx(loss.item(), rel=1e-5)]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).step()
    trained = weights(tmp_path / "run")
    for name, weight in model.state_dict().items():
        if name.endswith("key.bias"):  # its gradient is 0 but for rounding, which AdamW makes a whole step of
            continue
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=5e-5, msg=name)


def labelled(checkpoint: Path, folder: Path, **config: Any) -> Path:
    """The tiny classifier with another head."""
    shutil.copytree(checkpoint, folder)
    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(folder, **config))
    model.save_pretrained(folder)
    return folder


def several(task: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([[float(bit) for bit in task.examples[one]["label"]] for one in ids])


LOSSES: dict[str, tuple[str, Callable[[Any, Any], Tensor]]] = {
    "gpt2": ("the reference", lambda _, batch: batch.inputs["input_ids"]),
    "t5": ("the reference", lambda _, batch: batch.inputs["labels"]),
    "vit": ("the reference", lambda _, batch: batch.targets[:, 0]),
    "multi_label_classification": ("0|1|1", lambda task, batch: several(task, batch.ids)),
    "regression": ("0.25", lambda task, batch: torch.tensor([task.examples[one]["label"] for one in batch.ids])),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_each_tasks_loss_is_what_transformers_trains_with(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    label, labels_of = LOSSES[kind]
    if label == "the reference":
        one = subject(kind)
    else:
        names = {0: "a"} if kind == "regression" else {0: "a", 1: "b", 2: "c"}
        folder = labelled(checkpoint, tmp_path / "model", problem_type=kind, id2label=names)
        texts = "text,label\n" + "".join(f"w{number} w3,{label}\n" for number in range(4))
        (tmp_path / "data.csv").write_text(texts)
        one = subject(str(folder), validation_file=str(tmp_path / "data.csv"))
    model = load_model(one.model, one.task)
    task = make_task(one, model.config, load_processor(one.model, one.task), load_rows(one), limit=4)
    batch = task.batches(4)[0]
    with torch.no_grad():
        summed, count = task.loss(model, batch)
        inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
        expected = model(**inputs, labels=labels_of(task, batch)).loss
    assert float(summed) / count == pytest.approx(float(expected), rel=1e-5)


def test_the_order_is_the_same_for_any_number_of_processes(checkpoint: Path, data: Path) -> None:
    one = subject(str(checkpoint), validation_file=str(data))
    task = make_task(one, load_model(one.model, one.task).config, load_processor(one.model, one.task), load_rows(one))
    for by_length in (False, True):
        order = Order(task, 4, 3, 7, by_length)
        epochs = [order.epoch(number) for number in range(2)]
        assert epochs == [order.epoch(number) for number in range(2)]
        assert epochs[0] != epochs[1]
        for epoch in epochs:
            assert sorted(one for step in epoch for ids in step for one in ids) == list(range(37))
            assert len(epoch) == order.steps_in_epoch == 4
    padding = [
        sum(4 * max(lengths) - sum(lengths) for step in Order(task, 4, 3, 7, by_length).epoch(0) for ids in step
            if (lengths := [task.size(task.examples[one]) for one in ids]))
        for by_length in (False, True)
    ]  # fmt: skip
    assert padding[1] < padding[0] / 2


def test_random_states_are_the_users_again(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run(request(checkpoint, data, tmp_path / "run", max_train_steps=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_goes_on(precision: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    options = {"mixed_precision": precision, "max_train_steps": 4, "gradient_checkpointing": True}
    found = run(request(checkpoint, data, tmp_path / "run", **options))
    losses = found["training"]["history"]["loss"]
    exact = run(request(checkpoint, data, tmp_path / "exact", max_train_steps=4))["training"]["history"]["loss"]
    assert losses != exact
    assert losses[0] == pytest.approx(exact[0], rel=0.02)
    asked = request(checkpoint, data, tmp_path / "again", resume_from_checkpoint="latest", **options)
    with pytest.raises(StoppedError):
        run(asked, stop=4)
    run(asked)
    assert same(tmp_path / "run", tmp_path / "again")


# --------------------------------------------------------------------------------------------- killed, and going on


@pytest.mark.parametrize("stop", [1, 5, 9], ids="before step {}".format)
def test_a_run_that_died_ends_in_the_same_weights(
    stop: int, whole: tuple[Path, Data], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    asked = request(checkpoint, data, tmp_path / "run", "silu", resume_from_checkpoint="latest")
    with pytest.raises(StoppedError):
        run(asked, stop)
    assert not (tmp_path / "run" / "config.json").exists()
    left = tmp_path / "run" / ".checkpoint-8"  # what a process that is killed while it writes leaves behind
    left.mkdir()
    (left / "state.pt").write_bytes(b"half")
    found = run(asked)
    assert same(tmp_path / "run", whole[0])
    assert not left.exists()
    for part in ("stages", "changes", "reloaded"):
        assert found[part] == whole[1][part]
    assert found["training"]["history"] == whole[1]["training"]["history"]
    assert found["training"]["timed"] == 10 - 3 * ((stop - 1) // 3)


def test_a_named_checkpoint_and_a_run_that_is_complete(
    whole: tuple[Path, Data], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]
    for named in ("latest", str(tmp_path / "run" / "checkpoint-9")):
        found = run(request(checkpoint, data, tmp_path / "run", "silu", resume_from_checkpoint=named))
        assert found["training"]["timed"] == (0 if named == "latest" else 1)
        assert same(tmp_path / "run", whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_any_moment_it_ends_in_the_same_weights(
    world: int, whole: tuple[Path, Data], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """Killed again and again, each time a little later; two processes share the two batches of a step."""
    options = {"gradient_accumulation_steps": 2 // world, "checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    for number, reached in enumerate(("answers/before.json", "checkpoint-4", "config.json")):
        started = start(world, checkpoint, data, tmp_path / "run", "silu", **options)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / reached).exists() and time.monotonic() < deadline:
            assert all(process.is_alive() or process.exitcode == 0 for process in started)
            time.sleep(0.002 * number)
        for process in started:
            process.kill()
        for process in started:
            process.join(30)
    started = start(world, checkpoint, data, tmp_path / "run", "silu", **options)
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    if world == 1:
        assert same(tmp_path / "run", whole[0])
        return
    uninterrupted = start(world, checkpoint, data, tmp_path / "two", "silu", **options)
    for process in uninterrupted:
        process.join(120)
        assert process.exitcode == 0
    assert same(tmp_path / "run", tmp_path / "two")
    one, two = weights(whole[0]), weights(tmp_path / "two")
    for name, weight in one.items():  # the same batches, and the same dropout in each
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-5, msg=name)


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_trains_an_encoder_with_a_new_head(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(checkpoint, encoder)
    transformers.AutoModel.from_pretrained(checkpoint).save_pretrained(encoder)
    texts = [(f"w{number} w{number % 7}", ("low", "middle", "high")[number % 3]) for number in range(24)]
    rows = "text,label\n" + "".join(f"{text},{label}\n" for text, label in texts)
    (tmp_path / "rows.csv").write_text(rows)
    (tmp_path / "how.yaml").write_text(
        "num_train_epochs: 1\nactivation: relu\nlearning_rate: 0.002\nrecompute: true\ntiles: 2\n"
    )
    words = [
        *("finetune", "--model_name_or_path", encoder, "--task", "text-classification", "--config"),
        *(tmp_path / "how.yaml", "--train-file", tmp_path / "rows.csv", "--validation_file", tmp_path / "rows.csv"),
        *("--output_dir", tmp_path / "run", "--gradient_checkpointing", "--group_by_length"),
    ]
    assert main(list(map(str, words))) == 1
    assert "which would be drawn at random" in capsys.readouterr().err
    assert main([*map(str, words), "--new_head"]) == 0
    printed = capsys.readouterr()
    assert "patched, not trained" in printed.out
    assert [line.rpartition(": ")[2] for line in printed.err.splitlines() if line.startswith("[1/1]")] == list(STAGES)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "high", 1: "low", 2: "middle"}
    assert model.config.hidden_act == "relu"
    assert main([*map(str, words), "--new_head", "--resume_from_checkpoint", "latest"]) == 0
    said = refused(capsys, *words[1:], "--new_head", "--task", "causal-lm", "--output_dir", tmp_path / "other")
    assert "causal-lm: --new_head makes heads for text-classification, natural-language-inference, " in said
    assert "name a model that has a head for this task" in said


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "finetune.py"
    done = subprocess.run(
        [sys.executable, script, "--train_file", "none.csv"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "name one with --model_name_or_path" in done.stderr


# -------------------------------------------------------------------------------------------------------------- LoRA


def test_adapters_are_trained_alone_and_merged(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    asked = request(checkpoint, data, tmp_path / "run", "silu", lora_r=4, lora_dropout=0.1, max_train_steps=6)
    found = run(asked)
    before, after = weights(checkpoint), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {
        "query", "key", "value", "dense", "classifier",
    }  # fmt: skip
    assert not any(name.endswith(".bias") for name in changed - {"classifier.bias"})
    assert found["training"]["trained"] < found["training"]["parameters"] / 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    again = replace(asked, folder=tmp_path / "again", training=replace(asked.training, resume_from_checkpoint="latest"))
    with pytest.raises(StoppedError):
        run(again, stop=5)
    run(again)
    assert same(tmp_path / "run", tmp_path / "again")


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["finetune", *map(str, words)]) == 1
    return capsys.readouterr().err


@pytest.fixture
def asked(checkpoint: Path, data: Path, tmp_path: Path) -> list[object]:
    return [
        *("--model_name_or_path", checkpoint, "--validation_file", data, "--train_file", data),
        *("--output_dir", tmp_path / "run"),
    ]


def without(words: Sequence[object], *names: str) -> list[object]:
    """Command-line words without some options and their values."""
    found = list(words)
    for name in names:
        place = found.index(name)
        del found[place : place + 2]
    return found


def test_what_is_missing_is_named(
    asked: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "name them with --train_file" in refused(capsys, *without(asked, "--train_file"))
    assert "--model_name_or_path" in refused(capsys, *without(asked, "--model_name_or_path"))
    assert "--output_dir" in refused(capsys, *without(asked, "--output_dir"))
    assert "there is no data file" in refused(
        capsys, *without(asked, "--train_file"), "--train_file", tmp_path / "a.csv"
    )
    assert "no right answers to learn from" in refused(capsys, *asked, "--task", "feature-drift")
    assert "--lora_alpha is for LoRA" in refused(capsys, *asked, "--lora_alpha", 8)
    assert "unknown activation 'sliu'" in refused(capsys, *asked, "--activation", "sliu")
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'hf-gelu-patch[lora]'" in refused(capsys, *asked, "--lora_r", 4)
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_left_alone(
    whole: tuple[Path, Data], asked: list[object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt)" in refused(capsys, *asked)
    assert "holds other files (notes.txt)" in refused(capsys, *asked, "--resume_from_checkpoint", "latest")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    shutil.rmtree(folder)
    shutil.copytree(whole[0], folder)
    there = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "--resume_from_checkpoint latest" in refused(capsys, *asked)
    said = refused(capsys, *asked, "--resume_from_checkpoint", "latest")
    assert "learning_rate 0.001 there, 5e-05 now" in said
    assert "activation silu there, none now" in said
    assert "is no checkpoint" in refused(capsys, *asked, "--resume_from_checkpoint", tmp_path / "none")
    assert there == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_damaged_checkpoint_is_named(whole: tuple[Path, Data], checkpoint: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    state = tmp_path / "run" / "checkpoint-10" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(FinetuningError, match=r"checkpoint-10 cannot be read: .* Remove it"):
        run(request(checkpoint, data, tmp_path / "run", "silu", resume_from_checkpoint="latest"))
    shutil.rmtree(state.parent)
    run(request(checkpoint, data, tmp_path / "run", "silu", resume_from_checkpoint="latest"))
    assert same(tmp_path / "run", whole[0])


def test_a_loss_that_is_not_finite_stops_the_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FinetuningError, match="take a smaller --learning_rate"):
        run(request(checkpoint, data, tmp_path / "run", learning_rate=1e30, num_warmup_steps=0))


# ------------------------------------------------------------------------------------------------ transformers' Trainer


def test_trainer_works_on_a_patched_model(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    rows = load_rows(subject(str(checkpoint), validation_file=str(data)))
    examples = [
        {**tokenizer(text), "labels": ["no", "yes"].index(label)}
        for text, label in zip(rows["text"], rows["label"], strict=True)
    ]
    losses = {}
    patches: dict[str, dict[str, Any]] = {"plain": {}, "recompute": {"recompute": True}, "tiles": {"tiles": 2}}
    for name in ("never", *patches):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
        if name != "never":
            report = patch(model, **patches[name])
            assert report.in_tiles if name == "tiles" else report.changed
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=6,
            per_device_train_batch_size=4,
            logging_steps=1,
            learning_rate=1e-3,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_steps=3,
        )
        trainer = transformers.Trainer(
            model=model,
            args=options,
            train_dataset=examples,  # type: ignore[arg-type]  # a list will do
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        losses[name] = [one["loss"] for one in trainer.state.log_history if "loss" in one]
        trainer.save_model(str(tmp_path / f"saved {name}"))
    assert len(losses["never"]) == 6
    own = weights(tmp_path / "saved never")
    for name in patches:
        assert losses[name] == pytest.approx(losses["never"], rel=1e-3)
        saved = weights(tmp_path / f"saved {name}")
        assert saved.keys() == own.keys()
        for key, weight in own.items():
            torch.testing.assert_close(saved[key], weight, rtol=0, atol=1e-3, msg=f"{name}: {key}")


# ---------------------------------------------------------------------------------------------------------- the guide


def test_the_guide_shows_what_was_recorded() -> None:
    record = json.loads((ROOT / "scripts" / "healing" / "healing.json").read_text(encoding="utf-8"))
    guide = (ROOT / "hf_gelu_patch" / "guides" / "finetuning.md").read_text(encoding="utf-8")
    flat = " ".join(guide.split())
    assert healing(record) in guide
    assert curve(record) in flat
    runs = record["healing"]
    assert float(runs["gelu"]["stages"]["trained"]["accuracy"]) >= 0.95
    assert {one["run"]["activation"] for one in runs.values()} == {None, "silu", "relu"}
    assert all(one["run"]["num_train_epochs"] == 1 for one in runs.values())
    assert f"{runs['gelu']['run']['examples']:,} rows" in flat
    assert f"and {runs['gelu']['changes']['trained']['examples']:,} others" in flat
    assert all(
        one["stages"]["before"] == runs["gelu"]["stages"]["trained"] for name, one in runs.items() if name != "gelu"
    )
    told = (
        "SiLU costs nothing that can be told from chance, and more training at this rate gains nothing. ReLU costs much"
    )
    assert told in flat
    silu, relu = (runs[name]["changes"] for name in ("silu", "relu"))
    assert min(silu["patched"]["p"], silu["trained"]["p"]) > 0.05
    assert relu["patched"]["p"] < 1e-4
    lost, left = (-relu[stage]["differences"]["accuracy"]["value"] for stage in ("patched", "trained"))
    assert 0 < left < lost / 2  # "the epoch gives most of it back"
    about = runs["silu"]["environment"]
    assert f"{about['cpu']}, one thread, torch {about['versions']['torch'].partition('+')[0]}" in flat
