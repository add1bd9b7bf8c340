"""A task and a metric are each added in one place, and have all else for free."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from tiny_classifier import WORDS, rows, write_checkpoint

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.metrics import ANSWERS, METRICS, Metric, ratio, register_metric, sums
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.report.card import model_card
from hf_gelu_patch.evaluation.report.markdown import markdown
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.run import evaluate_subject
from hf_gelu_patch.evaluation.tasks.base import Batch
from hf_gelu_patch.evaluation.tasks.language import LanguageModel
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.tasks.registry import TASKS, TaskInfo, register_task, task_info


def add_a_task() -> None:
    class LastWord(LanguageModel):  # as LAMBADA asks (Paperno et al. 2016)
        def encode(self, data: Any, limit: int | None) -> list[dict[str, Any]]:
            texts = self.texts(data, self.subject.input_column, self.rows(data)[:limit])
            found = self.tokens(list(texts), texts)
            return [{"row": row, "tokens": one, "input_ids": one["input_ids"]} for row, one in found.items()]

        def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
            words = [example["input_ids"] for example in examples]
            targets = self.stacked([[IGNORED] * (len(one) - 1) + one[-1:] for one in words], IGNORED)
            return Batch(ids, self.padded(examples), targets[:, 1:], len(ids))

        def forward(self, model: Any, batch: Batch) -> torch.Tensor:
            return model(**batch.inputs).logits[:, :-1]

    register_task(TaskInfo("last-word", "the last word of each text", LastWord, "AutoModelForCausalLM", ("tokens",)))


def add_a_metric() -> None:
    def error_rate(weights: Any, rows: Mapping[str, Any]) -> Any:
        return ratio(sums(weights, rows["tokens"] - rows["hits"]), sums(weights, rows["tokens"]))

    register_metric(Metric("token_error_rate", ("tokens", "text"), error_rate, lower_is_better=True))


@pytest.fixture
def added() -> Iterator[None]:
    """Both, until the test is over."""
    known = dict(TASKS), dict(METRICS)
    add_a_metric()
    add_a_task()
    yield
    for table, was in zip((TASKS, METRICS), known, strict=True):
        table.clear()
        table.update(was)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 in small, with the tokenizer of the tiny classifier."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "gpt2")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=32, n_layer=2, n_head=4)
    config.pad_token_id = 0
    made = transformers.GPT2LMHeadModel(config)
    for weight in made.parameters():
        weight.data.mul_(6.0) if weight.dim() > 1 else None
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of two words and more."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"w0 {text}"}) + "\n" for text, _ in rows()))
    return path


@pytest.mark.parametrize("add", [add_a_task, add_a_metric])
def test_it_takes_one_place_of_at_most_fifteen_lines(add: Callable[[], None]) -> None:
    lines = [line for line in inspect.getsource(add).splitlines()[1:] if line.strip()]
    assert len(lines) <= 15


@pytest.mark.usefixtures("added")
def test_an_added_task_and_metric_are_evaluated_and_reported(model: Path, data: Path) -> None:
    one = subject(str(model), task="last-word", validation_file=str(data))
    assert one.columns == ("text",)
    settings = Settings(limit=20, margin=0.05, min_rounds=3, min_seconds=0.01, max_seconds=0.1)
    result = evaluate_subject(one, settings, Accelerator(cpu=True))

    whole = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    hits = []
    for text, _ in rows()[:20]:
        ids = tokenizer(f"w0 {text}", return_tensors="pt").input_ids
        with torch.inference_mode():
            hits.append(int(whole(ids[:, :-1]).logits[0, -1].argmax()) == int(ids[0, -1]))
    assert result.unpatched["token_accuracy"] == pytest.approx(sum(hits) / 20)
    assert result.unpatched["token_error_rate"] == pytest.approx(1 - sum(hits) / 20)
    assert list(result.unpatched) == ["perplexity", "token_accuracy", "token_error_rate"]

    [variant] = result.variants
    assert len(variant.patch.changed) == 2
    assert (variant.quality.examples, variant.quality.answers) == (20, 20)
    assert variant.quality.differences.keys() == result.unpatched.keys()
    assert variant.quality.equivalent is not None
    assert variant.quality.equivalent["token_error_rate"]
    written = plain([result], settings, {})
    assert "token_error_rate" in written["lower_is_better"]
    told = markdown(written)
    assert "token error rate" in told
    assert "type: last-word" in model_card(written)


@pytest.mark.usefixtures("added")
def test_the_command_line_knows_them(capsys: pytest.CaptureFixture[str], model: Path, data: Path) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    told = re.sub(r"-?\n\s+", lambda cut: cut[0].strip() or " ", capsys.readouterr().out)
    assert "last-word or a Python file; evaluate alone takes lm_eval:NAME[,NAME] too" in told
    assert "feature-drift, last-word; " in told
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    assert "last-word: the last word of each text\n  models: AutoModelForCausalLM; columns: text\n" in listed
    assert listed.count("perplexity, token_accuracy, token_error_rate\n") == 2  # masked-lm's too
    assert listed.count("bits_per_byte, token_error_rate\n") == 1
    asked = ["--model_name_or_path", str(model), "--task", "last-word", "--validation_file", str(data)]
    assert main(["evaluate", *asked, "--dry_run"]) == 0
    assert ": last-word\n" in capsys.readouterr().out
    assert main(["evaluate", *asked, "--stride", "4"]) == 1
    assert "last-word has no sliding window" in capsys.readouterr().err


@pytest.mark.usefixtures("added")
def test_their_names_are_checked() -> None:
    with pytest.raises(EvaluationError, match="'last-word' is taken: register it under another"):
        add_a_task()
    with pytest.raises(EvaluationError, match="'token_error_rate' is taken: register it under another"):
        add_a_metric()
    with pytest.raises(EvaluationError, match=r"unknown task 'last-wort'\. Did you mean 'last-word'\?.*last-word"):
        task_info("last-wort")
    with pytest.raises(EvaluationError, match="is a Python file's"):
        register_task(TaskInfo("mine.py", "", "nowhere:Nothing"))
    for register in (
        lambda: register_metric(Metric("another", ("token",), lambda weights, _: weights)),
        lambda: register_task(TaskInfo("another", "", "nowhere:Nothing", answers=("token",))),
    ):
        with pytest.raises(EvaluationError, match=r"kind of answer 'token'\. Did you mean 'tokens'\? Valid: label, "):
            register()
    assert "another" not in {*TASKS, *METRICS}


def test_what_comes_along_is_whole() -> None:
    for name, info in TASKS.items():
        assert info.name == name
        assert {*info.answers} <= ANSWERS.keys()
        assert info.load().__doc__
    assert {kind for info in TASKS.values() for kind in info.answers} == ANSWERS.keys()  # none is for nothing
    assert all(metric.name == name and {*metric.answers} <= ANSWERS.keys() for name, metric in METRICS.items())
