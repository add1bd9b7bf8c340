"""Tasks of lm-evaluation-harness on real models: its own scores, the same statistics as for any task, the reports."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from accelerate import Accelerator
from scipy.stats import binomtest
from tiny_classifier import saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import hf_gelu_patch
from hf_gelu_patch import patch
from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.harness.asking import Asking
from hf_gelu_patch.evaluation.harness.run import Loaded, Question, check_processes, evaluate_question
from hf_gelu_patch.evaluation.harness.scoring import samples_of
from hf_gelu_patch.evaluation.harness.tasks import load_tasks
from hf_gelu_patch.evaluation.options.harness import Harness, asked_tasks
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.quality import judge
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.report.shipping import shipping
from hf_gelu_patch.evaluation.run.result import Result
from hf_gelu_patch.evaluation.samples.comparing import compare_runs, compare_samples
from hf_gelu_patch.evaluation.samples.finished import read_run
from hf_gelu_patch.evaluation.variants import Variant

pytestmark = pytest.mark.slow

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
QUICK = Settings(min_rounds=3, min_seconds=0.01, max_seconds=0.1, variants=(Variant.parse("activation=relu"),))


def write_model(folder: Path) -> Path:
    """A tiny random Llama whose words are w0 … w39, with a chat template."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(SPECIAL) + len(WORDS),
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    saved(transformers.LlamaForCausalLM(config), folder, 12.0)
    ids = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B", special_tokens=[("[BOS]", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )
    fast.chat_template = "{% for message in messages %}w0 {{ message['content'] }} w1 {% endfor %}w2"
    fast.save_pretrained(folder)
    return folder


CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, aggregation: brier_score, higher_is_better: false}
"""
WORD = """
task: tiny_word
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
TEXT = """
task: tiny_text
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["w39"], max_gen_toks: 4, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: first, filter: [{function: regex, regex_pattern: "(w[0-9]+)"}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: chrf, aggregation: chrf, higher_is_better: true}
"""
RUNNING = """
task: tiny_running
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
GROUP = """
group: tiny_group
task: [tiny_choice, tiny_word]
aggregate_metric_list:
  - {metric: acc, weight_by_size: WEIGHT}
"""


def write_tasks(folder: Path, documents: int = 24) -> Path:
    folder.mkdir(exist_ok=True)
    generator = random.Random(0)
    for name, count in (("choice", documents), ("word", documents // 2)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                question = " ".join(generator.choices(WORDS, k=2 + (5 * number) % 7))
                choices = generator.sample(WORDS[:30], 3)
                file.write(json.dumps({"question": question, "choices": choices, "label": number % 3}) + "\n")
    for text, data in ((CHOICE, "choice"), (WORD, "word"), (TEXT, "word"), (RUNNING, "word")):
        files = f"{{test: '{folder / data}.jsonl', train: '{folder}/choice.jsonl'}}"
        task = re.search("task: (.*)", text)
        assert task is not None
        (folder / f"{task[1]}.yaml").write_text(
            f"dataset_path: json\ndataset_kwargs: {{data_files: {files}}}\ntest_split: test\n"
            f"fewshot_split: train\n{text}"
        )
    for name, weight in (("tiny_group", "true"), ("tiny_flat", "false")):
        (folder / f"{name}.yaml").write_text(GROUP.replace("tiny_group", name).replace("WEIGHT", weight))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def loaded(place: Path) -> Loaded:
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    return Loaded("tiny", str(place), model, transformers.AutoTokenizer.from_pretrained(place))


def own(place: Path | str | Any, tasks: Path, name: str, **more: Any) -> Mapping[str, Any]:
    """What lm-evaluation-harness itself says: of a checkpoint that it loads, or of a model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    size = more.pop("batch_size", 1)
    if isinstance(place, str | Path):
        how: dict[str, Any] = {"model": "hf", "model_args": {"pretrained": str(place)}, "device": "cpu"}
    else:
        model, tokenizer = place
        how = {"model": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)}
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        **how, tasks=[name], batch_size=size, task_manager=manager, bootstrap_iters=0, **more
    )
    assert found is not None
    return found


def question(tasks: Path, name: str, **options: Any) -> Question:
    harness = Harness(include_path=(tasks,), **options)
    [asked] = load_tasks([name], harness)
    return Question(asked, harness)


def scores(result: Result, side: str = "before") -> dict[str, float]:
    """Every score of the unpatched model, or of the first variant, as lm-evaluation-harness calls it."""
    return {
        f"{one.metric},{task.filter or 'none'}": getattr(one, side)
        for task in result.variants[0].tasks
        for one in task.scores
    }


def told(results: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in results.items()
        if "," in key and "stderr" not in key and isinstance(value, int | float)
    }


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("tiny_choice", {}, {}),
        ("tiny_choice", {"num_fewshot": 2}, {"batch_size": 4, "limit": 10}),
        ("tiny_word", {"apply_chat_template": True}, {"batch_size": 3}),
        ("tiny_text", {"gen_kwargs": "max_gen_toks=2"}, {}),
        ("tiny_running", {}, {}),
    ],
)
def test_scores_are_those_of_lm_eval_to_the_last_digit(
    place: Path,
    tasks: Path,
    loaded: Loaded,
    accelerator: Accelerator,
    name: str,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    result = evaluate_question(loaded, question(tasks, name, **options), replace(QUICK, **settings), accelerator)
    expected = own(place, tasks, name, **options, **settings)
    assert scores(result) == told(expected["results"][name])
    [variant] = result.variants
    assert variant.quality.before.keys() == {key.removesuffix(",none") for key in scores(result)}
    assert variant.quality.examples == len({one["doc_id"] for one in expected["samples"][name]})
    assert result.batch_size == settings.get("batch_size", 1)
    # the patched twin is asked the same, and answers as the same model patched by itself
    other = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    patch(other, activation="relu")
    after = own((other, loaded.tokenizer), tasks, name, **options, **settings)
    assert scores(result, "after") == told(after["results"][name])


def test_the_batches_that_drift_and_speed_are_of_are_those_that_were_scored(tasks: Path, loaded: Loaded) -> None:
    one = question(tasks, "tiny_word")
    said = Asking(one.asked, one.options, 1, None, None, loaded.tokenizer).of(loaded.model, "tiny")
    with torch.no_grad():
        likelihoods = {
            tuple(inputs["input_ids"][0].tolist()): loaded.model(**inputs).logits[0, -1].log_softmax(-1)
            for inputs in said.seen
        }
    assert len(said.seen) == len(likelihoods) == 12
    for sample in said.samples["tiny_word"]:
        asked = tuple(loaded.tokenizer(sample["doc"]["question"])["input_ids"])
        target = loaded.tokenizer.convert_tokens_to_ids(sample["doc"]["choices"][0])
        assert sample["resps"][0][0][0] == pytest.approx(float(likelihoods[asked][target]), rel=1e-6)


def test_the_p_is_that_of_compare_on_two_folders_of_lm_eval_itself(
    place: Path, tasks: Path, loaded: Loaded, accelerator: Accelerator, tmp_path: Path
) -> None:
    from lm_eval.loggers import EvaluationTracker

    [variant] = evaluate_question(loaded, question(tasks, "tiny_choice"), QUICK, accelerator, folder=tmp_path).variants
    other = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    patch(other, activation="relu")
    folders = tmp_path / "before", tmp_path / "after"
    for folder, model in zip(folders, (place, (other, loaded.tokenizer)), strict=True):
        tracker = EvaluationTracker(output_path=str(folder))
        found = dict(own(model, tasks, "tiny_choice", evaluation_tracker=tracker))
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples(task_name="tiny_choice", samples=samples["tiny_choice"])
    assert main(["compare", *map(str, folders), "--output_dir", str(tmp_path / "out")]) == 0
    [task] = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["tasks"]
    [here] = variant.tasks
    assert [(one["metric"], one["p"], one["difference"]["low"]) for one in task["scores"]] == [
        (one.metric, one.p, one.difference.low) for one in here.scores if one.metric != "brier_score"
    ]
    assert "brier_score" in task["left_out"]  # lm_eval writes arrays down as they are printed
    acc = here.scores[0]
    assert acc.lost is not None
    assert acc.gained is not None
    assert acc.lost + acc.gained > 3
    assert variant.quality.p == acc.p == binomtest(acc.lost, acc.lost + acc.gained).pvalue
    assert (task["changed"], task["answers"]) == (here.changed, here.answers) == (variant.quality.flips, 24)
    # and so it is of what the evaluation has written
    records = tmp_path / "records" / "tiny" / "lm_eval"
    [again] = compare_runs(read_run(records / "before"), read_run(records / "activation=relu"))
    assert [one.p for one in again.scores] == [one.p for one in here.scores if one.p is not None]
    assert not again.notes


@pytest.mark.parametrize("name", ["tiny_group", "tiny_flat"])
def test_a_group_is_aggregated_as_lm_eval_does_and_its_tasks_are_told(
    place: Path, tasks: Path, loaded: Loaded, accelerator: Accelerator, name: str
) -> None:
    [variant] = evaluate_question(loaded, question(tasks, name), QUICK, accelerator).variants
    expected = own(place, tasks, name)["results"]
    assert variant.quality.before == {"acc": expected[name]["acc,none"]}
    assert {task.task: task.scores[-1].before for task in variant.tasks} == {
        "tiny_choice": expected["tiny_choice"]["brier_score,none"],
        "tiny_word": expected["tiny_word"]["acc,none"],
    }
    [choice, word] = [one for task in variant.tasks for one in task.scores if one.metric == "acc"]
    shares = (24 / 36, 12 / 36) if name == "tiny_group" else (0.5, 0.5)
    difference = variant.quality.differences["acc"]
    assert difference.value == pytest.approx(
        sum(share * one.difference.value for share, one in zip(shares, (choice, word), strict=True))
    )
    reaches = [one.difference.high - one.difference.value for one in (choice, word)]
    reach = math.hypot(*(share * one for share, one in zip(shares, reaches, strict=True)))
    assert difference.high - difference.value == pytest.approx(reach)
    assert variant.quality.answers == 36
    assert variant.quality.right_to_wrong == (choice.lost or 0) + (word.lost or 0)
    assert variant.quality.counts_right == ("acc",)


# -------------------------------------------------------------------------------------------------------------- reports


def test_the_command_shows_such_a_task_as_any_other(
    place: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model_name_or_path", str(place), "--task", "lm_eval:tiny_choice,tiny_running"]
    command += ["--include_path", str(tasks), "--timing_seconds", "0.05", "--margin", "0.02"]
    command += ["--variant", "eager", "--variant", "activation=relu", "--output_dir", str(tmp_path / "results")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "tiny: tiny_choice" in shown
    data = json.loads((tmp_path / "results" / "evaluation.json").read_text(encoding="utf-8"))
    assert [model["subject"]["name"] for model in data["models"]] == ["tiny: tiny_choice", "tiny: tiny_running"]
    [[eager, relu], [_, running]] = [model["variants"] for model in data["models"]]
    assert eager["answers"] == "answers unchanged"
    assert eager["quality"]["equivalent"] == {"acc": True, "acc_norm": True, "brier_score": True}
    assert (eager["drift"]["max_abs"], relu["drift"]["max_abs"] > 1, relu["wrong"]) == (0, True, None)
    assert relu["quality"]["flips"] > 0
    assert relu["speed"]["forward"]["unit"] == "tokens"
    assert running["answers"] in ("word perplexity worse", "no score the worse as far as can be told")
    assert "word_perplexity" in data["lower_is_better"]
    page, text = ((tmp_path / "results" / f"evaluation.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "## Tasks of lm-evaluation-harness" in text
    assert "tiny\\_running | word\\_perplexity | 12 |" in text
    assert "Tasks of lm-evaluation-harness" in page
    assert main(["report", str(tmp_path / "results"), "--output_dir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "evaluation.md").read_text(encoding="utf-8") == text
    assert main([*command[:-2], "--dry_run"]) == 0
    assert "records/tiny/lm_eval/" in capsys.readouterr().out


def test_the_task_that_the_guide_shows_runs_as_it_stands(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(hf_gelu_patch.__file__).parent / "guides" / "evaluating.md").read_text(encoding="utf-8")
    (tmp_path / "my-tasks").mkdir()
    for name, language in (("facts.yaml", "yaml"), ("facts.jsonl", "json")):
        [block] = re.findall(rf"```{language}\n(.*?)```", guide, re.DOTALL)
        (tmp_path / "my-tasks" / name).write_text(block)
    [command] = re.findall(r"hf-gelu-patch (evaluate .*lm_eval:facts .*)", guide)
    monkeypatch.chdir(tmp_path)
    assert main([*command.replace(" llama ", f" {place} ").split(), "--timing_seconds", "0.05"]) == 0
    assert "tiny: facts" in capsys.readouterr().out
    [after] = (tmp_path / "results" / "records" / "tiny" / "lm_eval" / "activation=relu").glob("samples_*.jsonl")
    assert len(after.read_text().splitlines()) == 2


def test_what_became_of_likelihoods_alone_is_said_in_words(
    tasks: Path, loaded: Loaded, accelerator: Accelerator
) -> None:
    variants = tuple(map(Variant.parse, ("eager", "aten", "activation=relu_squared")))
    settings = replace(QUICK, variants=variants)
    result = evaluate_question(loaded, question(tasks, "tiny_running"), settings, accelerator)
    eager, _, other = result.variants
    assert judge(eager.quality) == "scores unchanged"
    [figure] = other.quality.differences.values()
    worse = figure.low > 0
    assert judge(other.quality) == ("word perplexity worse" if worse else "no score the worse as far as can be told")
    assert other.quality.relative == other.quality.lower_is_better == ("word_perplexity",)
    assert judge(replace(other.quality, margin=0.1, equivalent={"word_perplexity": True})) == "equivalent within ±0.1"
    shown = shipping(plain([result], settings, {}))
    assert shown[0].verdict == "nothing"
    assert shown[1].reason.startswith("The functions are the same")
    reason = "Beyond chance, word perplexity got worse." if worse else "Scores moved, and word perplexity may be worse"
    assert shown[2].reason.startswith(reason)
    assert shown[2].verdict == ("no" if worse else "unknown")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "lm_eval:"], "names no task"),
        (["--task", "lm_eval:tiny_word,tiny_word"], "names a task twice"),
        (["--task", "lm_eval:nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--task", "lm_eval:tiny_word", "--stride", "3"], "has no use for --stride"),
        (["--task", "lm_eval:tiny_word", "--resume"], "drop --resume"),
        (["--task", "lm_eval:broken"], "the task 'broken' cannot be made: .*nothing.jsonl"),
        (["--task", "lm_eval:far"], "data of the task 'far' are not here: .*[.] Add --allow_download"),
        (["--task", "lm_eval:mute"], "the task 'mute' cannot be made: .*absent"),
        (["--task", "lm_eval:tiny_text", "--max_length", "3"], "tiny: tiny_text fails on tiny_text: .*--max_length"),
        (
            ["--task", "lm_eval:tiny_word", "--num_fewshot", "9"],
            "a smaller --num_fewshot where the task has no 9 other",
        ),
        (["--task", "lm_eval:tiny_text", "--gen_kwargs", "bogus=1"], "other --gen_kwargs where it names one of them"),
        (["--task", "lm_eval:unsafe"], "executes code that the model writes.*--confirm_run_unsafe_code"),
        (["--task", "causal-lm"], "--include_path is for tasks of lm-evaluation-harness"),
    ],
)
def test_what_cannot_be_asked(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    folder = write_tasks(tmp_path / "tasks", documents=4)
    word = (folder / "tiny_word.yaml").read_text()
    (folder / "broken.yaml").write_text(word.replace("tiny_word", "broken").replace("word.jsonl", "nothing.jsonl"))
    (folder / "far.yaml").write_text(re.sub("dataset_kwargs.*", "", word.replace("path: json", "path: nobody/nothing")
                                           .replace("tiny_word", "far")))  # fmt: skip
    (folder / "mute.yaml").write_text(word.replace("tiny_word", "mute").replace("{{question}}", "{{absent.text}}"))
    (folder / "unsafe.yaml").write_text(f"{word.replace('tiny_word', 'unsafe')}\nunsafe_code: true\n")
    monkeypatch.chdir(tmp_path)
    command = [
        "evaluate",
        "--model_name_or_path",
        str(place),
        "--include_path",
        str(folder),
        "--timing_seconds",
        "0.05",
    ]
    assert main([*command, *arguments]) == 1
    assert re.search(expected, " ".join(capsys.readouterr().err.split()))


def test_a_tokenizer_without_a_token_to_begin_with(
    place: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(place, mute)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (mute / name).exists():
            config = json.loads((mute / name).read_text())
            (mute / name).write_text(json.dumps({key: config[key] for key in config if key[:3] not in ("bos", "eos")}))
    command = ["evaluate", "--model_name_or_path", str(mute), "--task", "lm_eval:tiny_word", "--include_path"]
    assert main([*command, str(tasks), "--timing_seconds", "0.05"]) == 1
    assert "its tokenizer has neither a BOS nor an EOS token" in capsys.readouterr().err


def test_several_processes_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"lm_eval:… runs in one process.*Start one process"):
        check_processes(2)
    check_processes(1)
    from hf_gelu_patch.evaluation.harness import tasks

    find: Callable[..., Any] = tasks.importlib.util.find_spec
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(EvaluationError, match=r"pip install 'hf-gelu-patch\[lm-eval\]'"):
        tasks.check_installed()


def test_names(tasks: Path) -> None:
    from lm_eval.tasks import TaskManager

    from hf_gelu_patch.evaluation.harness.tasks import _asked

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    with pytest.raises(EvaluationError, match=r"no task 'tiny_choise'\. Did you mean 'tiny_choice'.*--include_path"):
        _asked(manager, "tiny_choise", Harness())
    assert asked_tasks("lm_eval:a, b,c") == ("a", "b", "c")
    assert asked_tasks("causal-lm") is None
    assert asked_tasks(None) is None


# ------------------------------------------------------------------------------------------------------------ SmolLM2


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three kinds of tasks, about four facts."""
    folder = write_tasks(tmp_path_factory.mktemp("facts"))
    known = [
        ("The capital of France is", ["Paris", "London", "Rome"]),
        ("The sun rises in the", ["east", "west", "north"]),
        ("Two and two are", ["four", "five", "nine"]),
        ("Water freezes to", ["ice", "sand", "wood"]),
    ]
    lines = [json.dumps({"question": text, "choices": choices, "label": 0}) + "\n" for text, choices in known]
    for name in ("choice", "word"):
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def test_smollm2_scores_as_under_lm_eval(facts: Path) -> None:
    """Multiple choice, a likelihood and a generation, by the reference model ``llama``; one of them by lm_eval's own
    loading too."""
    place = REFERENCES["llama"].model_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    for name in ("tiny_choice", "tiny_word", "tiny_text"):
        one = question(facts, name)
        said = Asking(one.asked, one.options, 1, None, 2, tokenizer).of(model, "llama")
        found = {
            f"{metric},{some.filter or 'none'}": score.before
            for some in samples_of(said, one.asked)
            for metric in some.measures
            for score in compare_samples(some, some).scores
            if score.metric == metric
        }
        expected = own(place if name == "tiny_word" else (model, tokenizer), facts, name, limit=2)
        assert found == told(expected["results"][name]), name
        assert len(said.seen) > 0
