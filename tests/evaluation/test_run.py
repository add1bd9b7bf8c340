"""Evaluation of real models in this process: what is compared, and that the model is left alone."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from tiny_classifier import rows, write_checkpoint, write_data
from torch import Tensor
from transformers import PreTrainedModel

from hf_gelu_patch import PatchError, find_sites
from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.metrics.language import edit_distance
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.quality import judge
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.report.markdown import markdown
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.run import evaluate, evaluate_subject
from hf_gelu_patch.evaluation.run.result import Result, VariantResult
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Implementation, register_implementation

pytestmark = pytest.mark.slow

QUICK = Settings(min_rounds=3, min_seconds=0.01, max_seconds=0.1)


def of(*texts: str, **changes: Any) -> Settings:
    return replace(QUICK, variants=tuple(map(Variant.parse, texts)), **changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("tiny")
    return subject(str(write_checkpoint(folder / "tiny")), validation_file=str(write_data(folder / "data.csv")))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def load(one: Subject, limit: int | None = None) -> tuple[PreTrainedModel, Task]:
    model = load_model(one.model, one.task)
    return model, make_task(one, model.config, load_processor(one.model, one.task), load_rows(one), limit=limit)


# ------------------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aten", Variant("aten", "aten")),
        (" activation=silu ", Variant("activation=silu", activation="silu")),
        ("aten,activation=silu", Variant("aten,activation=silu", "aten", "silu")),
        ("eager,tiles=4", Variant("eager,tiles=4", "eager", tiles=4)),
        ("tiles=64MiB", Variant("tiles=64MiB", tiles="64MiB")),
        ("aten,recompute", Variant("aten,recompute", "aten", recompute=True)),
        (
            "activation=gelu_tanh, include=encoder.*; decoder.*,exclude=*.0.*",
            Variant(
                "activation=gelu_tanh, include=encoder.*; decoder.*,exclude=*.0.*",
                activation="gelu_tanh",
                include=("encoder.*", "decoder.*"),
                exclude=("*.0.*",),
            ),
        ),
    ],
)
def test_a_variant_is_read(text: str, expected: Variant) -> None:
    assert Variant.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "implementation is empty"),
        ("activation=", "activation is empty"),
        ("aten,", "implementation is empty"),
        ("aten,eager", "implementation twice"),
        ("recompute=1", "recompute takes no value"),
        ("name=a", "no 'name'.*implementation=…, activation=…, include=…, exclude=…, recompute, tiles=…"),
    ],
)
def test_a_variant_that_says_nothing_or_too_much(text: str, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        Variant.parse(text)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, "auto"),
        ({"implementation": "aten"}, "aten"),
        ({"activation": "silu"}, "activation=silu"),
        ({"recompute": True}, "recompute"),
        ({"implementation": "aten", "include": ["a", "b"]}, "aten,include=a;b"),
    ],
)
def test_options_make_the_variant_that_its_name_reads_as(said: dict[str, Any], name: str) -> None:
    assert Variant.of(**said).name == name
    assert Variant.parse(name) == Variant.of(**said)


def test_variants_have_to_be_told_apart(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    with pytest.raises(EvaluationError, match="'aten' is named 2 times"):
        evaluate(model, task, of("aten", "eager", "aten"), accelerator)
    with pytest.raises(EvaluationError, match="no variant"):
        evaluate(model, task, of(), accelerator)
    with pytest.raises(EvaluationError, match="'before' is what the unpatched"):
        evaluate(model, task, replace(QUICK, variants=(Variant("before"),)), accelerator)


# ------------------------------------------------------------------------------------------------------------- results


def test_quality_is_that_of_the_model_run_by_itself(tiny: Subject, accelerator: Accelerator) -> None:
    """Example by example, unpadded, against batches that are padded."""
    model, task = load(tiny)
    found = evaluate(model, task, replace(QUICK, batch_size=5), accelerator)
    tokenizer = load_processor(tiny.model, tiny.task)
    with torch.no_grad():
        said = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text, _ in rows()]
    right = sum(["no", "yes"][answer] == label for answer, (_, label) in zip(said, rows(), strict=True))
    [variant] = found.variants
    assert found.unpatched["accuracy"] == variant.quality.before["accuracy"] == right / 37
    assert 0 < len(set(said)) == 2, "a model that says one thing only would prove nothing"
    assert (variant.quality.examples, variant.quality.answers, found.batch_size) == (37, 37, 5)


def test_each_variant_is_measured_against_the_same_model_which_is_left_alone(
    tiny: Subject, accelerator: Accelerator
) -> None:
    model, task = load(tiny)
    modules, state = dict(model.named_modules()), {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    found = evaluate(model, task, of("auto", "activation=relu", "activation=relu,include=*layer.0*"), accelerator)
    same, other, half = found.variants
    assert [len(one.patch.changed) for one in found.variants] == [3, 2, 1]
    assert same.quality.flips == 0
    assert 0 < same.quality.max_abs_logit_change < 1e-4 * same.quality.max_abs_logit
    assert same.quality.max_abs_logit_change == same.drift.max_abs
    assert other.drift.max_abs > 1e-2
    assert same.drift.max_abs < half.drift.max_abs != other.drift.max_abs
    assert all(one.quality.before == found.unpatched for one in found.variants)
    assert [layer.path for layer in half.layers] == ["bert.encoder.layer.0", "bert.encoder.layer.1", "logits"]
    assert [layer.own for layer in half.layers] == [layer.own for layer in same.layers]
    for one in found.variants:
        timings = one.speed.timings
        assert {len(samples) for samples in timings.seconds.values()} == {len(timings.units)}
        assert timings.seconds.keys() == {"before", "again", "after"}
        assert timings.seconds["before"] == same.speed.timings.seconds["before"], "all in the same rounds"
        assert one.wrong is None
        assert one.drift.own is not None
        assert one.drift.exact is not None
    assert found.seconds.keys() == {"load", "compile", "quality", "layers", "speed"}
    assert 0 < found.activation_share < 0.5
    assert (found.exact_reason, found.records) == ("", None)

    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config


def test_alone_a_variant_gives_what_it_gives_among_others(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    texts = ("aten", "activation=relu_squared", "activation=silu")
    together = evaluate(model, task, of(*texts), accelerator)
    for one in together.variants:
        [alone] = evaluate(model, task, of(one.variant.name), accelerator).variants
        assert alone.quality == one.quality
        assert alone.drift == one.drift
        assert alone.layers == one.layers


def test_a_swap_that_changes_answers_is_seen(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    result = evaluate(model, task, of("activation=relu_squared", margin=0.5), accelerator)
    found = result.variants[0].quality
    assert found.flips > 0
    assert found.flips == found.right_to_wrong + found.wrong_to_right  # of two labels, one is right
    gain = found.wrong_to_right - found.right_to_wrong
    assert found.after["accuracy"] * 37 == pytest.approx(found.before["accuracy"] * 37 + gain)
    assert result.described == {flip.example: rows()[flip.example][0] for flip in found.flipped}
    assert result.named == {"0": "no", "1": "yes"}
    assert judge(found) == "equivalent within ±0.5"


def test_where_nothing_is_patched_the_model_is_timed_against_itself(accelerator: Accelerator) -> None:
    found = evaluate_subject(subject("vit"), of("auto,exclude=*", limit=64), accelerator)
    [variant] = found.variants
    assert variant.patch.changed == ()
    assert variant.speed.verdict == "nothing patched"
    assert variant.speed.timings.seconds.keys() == {"before", "again"}
    assert variant.quality.before == variant.quality.after
    assert variant.drift.max_abs == 0.0
    assert {layer.change for layer in variant.layers} == {0.0}


OWN_FEATURES = """
def batch(rows, processor, config):
    return processor([row["text"] for row in rows], padding=True, return_tensors="pt"), None
"""


@pytest.mark.parametrize("task", ["feature-drift", "sentence-similarity", "own"])
def test_features_are_no_logits(task: str, tiny: Subject, accelerator: Accelerator, tmp_path: Path) -> None:
    """Their softmax means nothing, so that KL and top-1 agreement are neither measured nor shown."""
    (tmp_path / "own.py").write_text(OWN_FEATURES)
    (tmp_path / "a.csv").write_text("text,text1,text2,score\nw1 w2,w1,w2,1\nw3,w3 w4,w5,2\nw6 w7,w1,w7,3\n")
    named = str(tmp_path / "own.py") if task == "own" else task
    one = subject(tiny.model, task=named, validation_file=str(tmp_path / "a.csv"))
    result = evaluate_subject(one, of("activation=relu"), accelerator)
    drift = result.variants[0].drift
    assert drift.max_abs > 0
    for found in (drift, drift.own, drift.exact):
        assert found is not None
        assert (found.kl_mean, found.kl_max, found.top1_agreement) == (None, None, None)
    told = markdown(plain([result], QUICK, {}))
    assert "max |Δ|" in told.replace("\\", "")
    assert "mean KL" not in told
    assert "top-1" not in told


def test_eager_is_the_model_against_itself(accelerator: Accelerator) -> None:
    [variant] = evaluate_subject(subject("vit"), of("eager", limit=32), accelerator).variants
    assert variant.patch.changed == ()
    assert variant.speed.timings.seconds.keys() == {"before", "again", "after"}
    assert variant.speed.verdict != "nothing patched"
    assert judge(variant.quality) == "answers unchanged"
    assert variant.drift.max_abs == 0.0


@pytest.mark.parametrize("name", ["gpt2", "t5", "vit"])
def test_the_references_have_the_quality_that_is_noted(name: str, accelerator: Accelerator) -> None:
    """Noted by another programme, written on its own. Patched, they have it too."""
    model, task = load(subject(name))
    task.decode_tokens = 1  # too few to be timed
    [variant] = evaluate(model, task, replace(QUICK, batch_size=128 if name == "t5" else None), accelerator).variants
    noted = REFERENCES[name].quality
    same = {"word_accuracy": "exact_match", "phoneme_error_rate": "edit_error_rate"}
    assert noted
    for found in (variant.quality.before, variant.quality.after):
        for metric, value in noted.items():
            assert found[same.get(metric, metric)] == pytest.approx(value, rel=1e-4)


def test_a_text_without_tokens_is_refused_by_its_row(tiny: Subject, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('text,label\nw1,yes\n"",no\n')
    with pytest.raises(EvaluationError, match="row 2 has no tokens"):
        load(replace(tiny, data=tmp_path / "data.csv"))


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
    with pytest.raises(EvaluationError, match="needs 2 tokens or more"):
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
        evaluate(model, task, of("aten", "aten,include=nothing.*"), accelerator, lambda *told: stages.append(told))
    assert stages == []
    assert len(find_sites(model).changed) == 3


# --------------------------------------------------------------------------------------------- wrong implementations


def _shifted(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh") + 0.01


def _broken(x: Tensor) -> Tensor:
    return torch.log(torch.nn.functional.silu(x))


@pytest.fixture
def planted() -> Any:
    functions = {"shifted": {"gelu_tanh": _shifted}, "broken": {"silu": _broken}}
    for name, function in functions.items():
        register_implementation(Implementation(name, function))
    yield
    for name in functions:
        del IMPLEMENTATIONS[name]


@pytest.mark.usefixtures("planted")
def test_an_implementation_that_computes_something_else_is_wrong(tiny: Subject, accelerator: Accelerator) -> None:
    model, task = load(tiny)
    assert {site.activation for site in find_sites(model).sites} >= {"gelu_new"}
    texts = ("aten", "shifted,include=*intermediate*", "activation=relu_squared", "broken,activation=silu")
    found = evaluate(model, task, of(*texts), accelerator)
    assert found.wrong.keys() == {"shifted,include=*intermediate*", "broken,activation=silu"}
    assert "said to compute the same function, and moves logits by" in found.wrong["shifted,include=*intermediate*"]
    assert "not finite" in found.wrong["broken,activation=silu"]


def test_what_half_precision_rounds_is_not_wrong(tiny: Subject, accelerator: Accelerator) -> None:
    for dtype in ("bfloat16", "float16"):
        [variant] = evaluate_subject(tiny, replace(QUICK, loading=Loading(dtype=dtype)), accelerator).variants
        assert variant.drift.max_abs > 0
        assert variant.wrong is None


# ------------------------------------------------------------------------------ numbers, out of what was written down


def recorded(folder: Path, variant: str) -> list[dict[str, Any]]:
    """The lines of one variant in the order of the examples, read with nothing of ours."""
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()[1:]]
    found = sorted((line for line in lines if line["variant"] == variant), key=lambda line: line["example"])
    assert [line["example"] for line in found] == list(range(len(found)))
    return found


def metrics_of(task: str, lines: list[dict[str, Any]]) -> dict[str, float]:
    outcomes = [line["outcome"] for line in lines]
    said = [answer for one in outcomes for answer in one["answers"]]
    right = [target for one in outcomes for target in one["targets"]]
    loss = math.fsum(one["loss"] for one in outcomes) / sum(one["tokens"] for one in outcomes)
    if task.endswith("-classification"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that never occur
            found = {"accuracy": accuracy_score(right, said), "macro_f1": f1_score(right, said, average="macro")}
        top5 = [one["top5"][0] for one in outcomes if one["top5"]]
        return found | ({"top5_accuracy": sum(top5) / len(top5)} if top5 else {})
    if task == "seq2seq":
        pairs = [(a.split(), b.split()) for a, b in zip(said, right, strict=True)]
        return {
            "exact_match": sum(a == b for a, b in pairs) / len(pairs),
            "edit_error_rate": sum(edit_distance(a, b) for a, b in pairs) / sum(len(b) for _, b in pairs),
            "loss": loss,
        }
    return {"perplexity": math.exp(loss), "token_accuracy": sum(a == b for a, b in zip(said, right, strict=True))
            / len(said)}  # fmt: skip


@functools.cache
def tokenizer_of(model: str) -> Any:
    return load_processor(model, "causal-lm")


def bits_per_byte(result: Result, lines: list[dict[str, Any]]) -> float:
    """Of the text that the right answers make."""
    tokenizer = tokenizer_of(result.subject.model)
    texts = [tokenizer.decode(line["outcome"]["targets"], clean_up_tokenization_spaces=False) for line in lines]
    return math.fsum(line["outcome"]["loss"] for line in lines) / math.log(2) / sum(len(t.encode()) for t in texts)


def recomputed(result: Result, one: VariantResult, folder: Path) -> None:
    """Every number about answers and logits."""
    place = folder / str(result.records)
    before, after = recorded(place, "before"), recorded(place, one.variant.name)
    task = result.subject.task
    for lines, found in ((before, one.quality.before), (after, one.quality.after)):
        expected = metrics_of(task, lines)
        if task == "causal-lm":
            expected["bits_per_byte"] = bits_per_byte(result, lines)
        assert found == pytest.approx(expected, rel=1e-9)
    assert result.unpatched == one.quality.before
    pairs = [
        (a, b, target, old["example"])
        for old, new in zip(before, after, strict=True)
        for a, b, target in zip(
            old["outcome"]["answers"], new["outcome"]["answers"], old["outcome"]["targets"], strict=True
        )
    ]
    quality = one.quality
    assert (quality.examples, quality.answers) == (len(before), len(pairs))
    flips = [pair for pair in pairs if pair[0] != pair[1]]
    counts = Counter("lost" if a == t else "gained" if b == t else "other" for a, b, t, _ in flips)
    assert (quality.flips, quality.right_to_wrong, quality.wrong_to_right) == (
        len(flips),
        counts["lost"],
        counts["gained"],
    )
    changed = counts["lost"] + counts["gained"]
    assert quality.mcnemar_p == pytest.approx(binomtest(counts["lost"], changed).pvalue if changed else 1.0)
    assert [(f.before, f.after, f.target, f.example) for f in quality.flipped] == [
        (str(a), str(b), str(t), example) for a, b, t, example in flips[:100]
    ]
    for name, interval in quality.differences.items():
        assert interval.value == pytest.approx(quality.after[name] - quality.before[name], abs=1e-12)
    rows_ = [line["drift"] for line in after]
    positions = sum(row["positions"] for row in rows_)
    drift = one.drift
    assert drift.positions == positions
    assert drift.max_abs == quality.max_abs_logit_change == max(row["max_abs"] for row in rows_)
    assert drift.scale == quality.max_abs_logit == max(row["scale"] for row in rows_)
    assert drift.mean_abs == pytest.approx(sum(row["sum_abs"] for row in rows_) / sum(r["elements"] for r in rows_))
    if not any("kl_sum" in row for row in rows_):  # of features
        assert (drift.kl_mean, drift.kl_max, drift.top1_agreement) == (None, None, None)
        return
    assert drift.kl_mean == pytest.approx(sum(row["kl_sum"] for row in rows_) / positions)
    assert drift.kl_max == max(row["kl_max"] for row in rows_)
    assert drift.top1_agreement == pytest.approx(sum(row["agree"] for row in rows_) / positions)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "bert" else name for name in REFERENCES]
)
def test_every_number_comes_out_of_what_was_written_down(name: str, accelerator: Accelerator, tmp_path: Path) -> None:
    """What is generated is timed in its two parts, and everything from the rows on.

    Texts are short, and of the thirty layers of the llama six are left. The numbers have to be right whatever it says.
    """
    texts = ("auto", "activation=relu")
    try:
        one = subject(name, max_length={"bert": 32, "gpt2": 16, "llama": 2}.get(name))
    except EvaluationError as error:
        pytest.skip(str(error))
    model, task = load(one, limit=6 if name == "bert" else 16)
    if name == "llama":
        del model.model.layers[2:26]
    settings = of(*texts, max_seconds=0.05)
    result = evaluate(model, task, settings, accelerator, rows=load_rows(one), folder=tmp_path)
    assert [one.variant.name for one in result.variants] == list(texts)
    for variant in result.variants:
        recomputed(result, variant, tmp_path)
    assert any(variant.quality.flips for variant in result.variants) or name == "vit"
    speed = result.variants[0].speed
    assert speed.end_to_end is not None
    assert speed.end_to_end.unit == speed.unit
    assert (speed.prefill is not None) == (name in ("gpt2", "t5"))
    assert speed.decode is None or speed.decode.unit == "tokens"  # beside other work, noise may swallow every round
    assert speed.decode is not None or name != "gpt2"


def test_every_number_comes_out_of_the_tiny_models_too(tiny: Subject, accelerator: Accelerator, tmp_path: Path) -> None:
    texts = ("auto", "activation=gelu_tanh", "activation=relu_squared", "eager")
    result = evaluate_subject(tiny, of(*texts, batch_size=4), accelerator, folder=tmp_path)
    for variant in result.variants:
        recomputed(result, variant, tmp_path)
    assert result.variants[2].quality.flips
    assert set(ACTIVATIONS) >= {"relu_squared"}
