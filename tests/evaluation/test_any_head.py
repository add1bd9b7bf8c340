"""Data sets drawn at random, for every kind of head and tokenizer: the figures are the same with batches of 1 and of 8,
a right answer is never another class, and nothing ends in a library's traceback.

A data set is drawn as the right answers and as one way to write them down, so that what was read can be held to what
was meant. What cannot be told may be refused, with ``EvaluationError``; nothing else may be raised.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.padding import check_padding
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.making import make_task

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(40)]
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
COLOURS = ["red", "dark blue", "Green"]
STARS = ["1 star", "2 stars", "3 stars", "4 stars"]


@dataclass(frozen=True)
class Kind:
    """A model with its tokenizer.

    Attributes:
        model: the class in transformers that ends in ForSequenceClassification or ForImageClassification.
        names: the labels; or how many outputs there are.
        config, tokenizer: what differs from the usual.
        padded: whether padding has no say in its logits; where it has, batches of several rows may be refused.
    """

    model: str
    names: Sequence[str] | int = ("no", "yes")
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    padded: bool = True

    @property
    def several(self) -> bool:
        return self.config.get("problem_type") == "multi_label_classification"

    @property
    def labels(self) -> list[str]:
        return [f"LABEL_{i}" for i in range(self.names)] if isinstance(self.names, int) else list(self.names)


SEVERAL = {"problem_type": "multi_label_classification"}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 24, "pad_token_id": 0}
DISTILBERT = {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 24}
LLAMA = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 24, "pad_token_id": 0}
BARE = {"model_input_names": ["input_ids", "attention_mask"]}
KINDS = {
    "names": Kind("Bert", ("Contradiction", "Neutral", "Entailment")),
    "generic names": Kind("Bert", 3),
    "digits": Kind(
        "DistilBert", ("1", "2", "3", "4"), {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 24}, BARE
    ),
    "stars": Kind("Electra", STARS, {"embedding_size": 16}),
    "several": Kind("Roberta", COLOURS, {**SEVERAL, "max_position_embeddings": 32, "pad_token_id": 0}, BARE),
    "several, generic": Kind("Bert", 4, SEVERAL),
    "one of several": Kind("Bert", ("spam",), SEVERAL),
    "a number": Kind("Bert", 1),
    "decoder": Kind("GPT2", ("no", "yes"), GPT2, BARE),
    "decoder, padded on the left": Kind("GPT2", COLOURS, GPT2, {**BARE, "padding_side": "left"}, padded=False),
    "decoder without padding": Kind("GPT2", 2, {**GPT2, "pad_token_id": None}, BARE, padded=False),
    "decoder, another pad id": Kind("Llama", ("a", "b", "c"), {**LLAMA, "pad_token_id": 7}, BARE, padded=False),
    "rotary decoder": Kind("Llama", COLOURS, {**LLAMA, **SEVERAL}, {**BARE, "padding_side": "left"}),
    "another pad id": Kind("Roberta", 1, {"max_position_embeddings": 32, "pad_token_id": 1}, BARE, padded=False),
    "no mask": Kind("Bert", STARS, tokenizer={"model_input_names": ["input_ids"]}, padded=False),
    "images": Kind("ViT", ("cat", "dog", "cow"), {"image_size": 8, "patch_size": 4}),
}


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="any-head-"))


@cache
def written(name: str) -> Path:
    """The checkpoint of a kind."""
    kind, place = KINDS[name], folder() / name.replace(" ", "-").replace(",", "")
    torch.manual_seed(len(name))
    shared = {} if kind.model in ("GPT2", "DistilBert", "ViT") else {"max_position_embeddings": 24}
    usual = {**SIZES, "vocab_size": len(SPECIAL + WORDS)} if kind.model != "GPT2" else {"vocab_size": 45}
    options: dict[str, Any] = {**usual, **shared, **kind.config}
    if isinstance(kind.names, int):
        options["num_labels"] = kind.names
    else:
        options |= {"id2label": dict(enumerate(kind.names)), "label2id": {one: i for i, one in enumerate(kind.names)}}
    if kind.model == "ViT":
        del options["vocab_size"]
    config = getattr(transformers, f"{kind.model}Config")(**options)
    head = "ForImageClassification" if kind.model == "ViT" else "ForSequenceClassification"
    model = getattr(transformers, kind.model + head)(config)
    for weight in model.parameters():
        weight.data.mul_(8.0) if weight.dim() > 1 else None
    model.save_pretrained(place)
    if kind.model == "ViT":
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(place)
    else:
        write_tokenizer(place, **kind.tokenizer)
    return place


def write_tokenizer(place: Path, **options: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options).save_pretrained(place)


@cache
def loaded(name: str) -> tuple[Any, Any]:
    task = "image-classification" if KINDS[name].model == "ViT" else "text-classification"
    return load_model(str(written(name)), task), load_processor(str(written(name)), task)


# ------------------------------------------------------------------------------------------------------------ data sets


@dataclass(frozen=True)
class Way:
    """One way to write right answers down.

    Attributes:
        write: a right answer as a value: of one label from its id, of several from their ids, of a number from itself.
        told: whether it can always be told; else it may be refused.
        classes: whether values are the numbers of classes with names.
    """

    write: Callable[[Any], Any]
    told: bool = True
    classes: Sequence[str] | None = None


def ways(kind: Kind, draw: Callable[..., Any]) -> dict[str, Way]:
    """All ways for a kind of head."""
    names, count = kind.labels, len(kind.labels)
    classes = draw(st.permutations([spelled(draw, name) for name in names]))
    place = {name.strip().lower(): number for number, name in enumerate(classes)}
    own = [place[name.lower()] for name in names]
    if count == 1 and not kind.several:
        return {"float": Way(float), "text": Way(lambda x: f" {x!r}"), "whole": Way(lambda x: x)}
    if kind.several:
        vector = lambda held: [int(i in held) for i in range(count)]  # noqa: E731
        joined = lambda held: "|".join(names[i] for i in held) or "[]"  # noqa: E731
        return {
            "names": Way(lambda held: [spelled(draw, names[i]) for i in held]),
            "ids": Way(list, told=False),
            "vector": Way(vector, told=count > 2),
            "floats": Way(lambda held: [float(one) for one in vector(held)]),
            "booleans": Way(lambda held: [bool(one) for one in vector(held)]),
            "Python": Way(lambda held: repr([names[i] for i in held])),
            "JSON": Way(lambda held: json.dumps(vector(held)), told=count > 2),
            "joined": Way(joined),
            "classes": Way(lambda held: [own[i] for i in held], classes=classes),
        }
    numbered = names[0].startswith("1")
    found = {
        "names": Way(lambda i: spelled(draw, names[i]), told=names[0] != "1"),
        "ids": Way(lambda i: i, told=not numbered),
        "text ids": Way(str, told=not numbered),
        "floats": Way(float, told=not numbered),
        "classes": Way(lambda i: own[i], classes=classes),
    }
    if numbered:
        found["numbers"] = Way(lambda i: i + 1, told=False)
        found["text numbers"] = Way(lambda i: f"{i + 1}.0", told=False)
    if count == 2:
        found["booleans"] = Way(bool)
    return found


def spelled(draw: Callable[..., Any], name: str) -> str:
    return draw(st.sampled_from([name, name.upper(), f" {name} ", name.lower()]))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Data:
    """Rows as drawn: texts (or the numbers of images), the right answer of each or None, and how they are written."""

    inputs: list[str]
    right: list[Any]
    values: list[Any]
    way: Way
    form: str
    skip: bool


@st.composite
def data_sets(draw: Any, name: str) -> Data:
    kind = KINDS[name]
    count = draw(st.integers(1, 12))
    if kind.model == "ViT":
        inputs = [f"{draw(st.integers(0, 7))}.png" for _ in range(count)]
    else:
        word = st.sampled_from([*WORDS, "unknown", "ünïcode", "[SEP]", "[PAD]"])
        inputs = [" ".join(draw(st.lists(word, min_size=1, max_size=30))) for _ in range(count)]
        known = draw(st.sampled_from(WORDS))  # a tokenizer that knows no word of the data is refused
        inputs[0] = f"{known} {inputs[0]}"
    if kind.several:
        answer = st.lists(st.integers(0, len(kind.labels) - 1), unique=True).map(sorted)
    else:
        answer = (
            st.floats(-5, 5).map(lambda x: round(x, 3)) if kind.names == 1 else st.integers(0, len(kind.labels) - 1)
        )
    missing = draw(st.sampled_from([0.0, 0.0, 0.3]))
    right = [None if draw(st.floats(0, 1)) < missing else draw(answer) for _ in range(count)]
    found = ways(kind, draw)
    way = found[draw(st.sampled_from(sorted(found)))]
    values = [None if one is None else way.write(one) for one in right]
    forms = ["saved"] if way.classes else ["csv", "jsonl", "parquet", "saved"]
    return Data(inputs, right, values, way, draw(st.sampled_from(forms)), draw(st.booleans()))


def save(data: Data, place: Path, column: str) -> Path:
    rows = {column: data.inputs, "label": data.values}
    if data.form == "csv":
        with (place / "a.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[column, "label"], *zip(data.inputs, data.values, strict=True)])
        return place / "a.csv"
    if data.form == "jsonl":
        lines = [json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True)]
        (place / "a.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return place / "a.jsonl"
    made = datasets.Dataset.from_dict(rows)
    if data.way.classes is not None:
        kind: Any = datasets.ClassLabel(names=list(data.way.classes))
        kind = datasets.List(kind) if any(isinstance(value, list) for value in data.values) else kind
        made = datasets.Dataset.from_dict(
            rows, features=datasets.Features({column: datasets.Value("string"), "label": kind})
        )
    if data.form == "parquet":
        made.to_parquet(str(place / "a.parquet"))
        return place / "a.parquet"
    made.save_to_disk(str(place / "saved"))
    return place / "saved"


@cache
def images() -> Path:
    draw = np.random.default_rng(0)
    for number in range(8):
        shape = (8 + number, 8, 3) if number % 2 else (8, 9 + number, 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder() / f"{number}.png")
    return folder()


# ------------------------------------------------------------------------------------------------------------ the tests


@torch.inference_mode()
def outcomes(model: Any, task: Task, size: int) -> list[Outcome]:
    batches = task.batches(size)
    check_padding(task, model, batches)
    found = {}
    for batch in batches:
        found.update(zip(batch.ids, task.predict(model, batch).outcomes, strict=True))
    return [found[example] for example in range(len(task.examples))]


def meant(kind: Kind, right: Any) -> Any:
    """A right answer as a task holds it."""
    if kind.several:
        return "".join(str(int(index in right)) for index in range(len(kind.labels)))
    return right


@pytest.mark.filterwarnings("ignore:.*sequence length is longer")
@pytest.mark.parametrize("name", KINDS)
def test_any_data_set_with_any_head(name: str) -> None:
    kind = KINDS[name]
    model, processor = loaded(name)

    @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data_sets(name))
    def check(data: Data) -> None:
        with tempfile.TemporaryDirectory(dir=images()) as place:
            task = made(data, Path(place))
            if task is not None:
                agrees(task)

    def made(data: Data, place: Path) -> Task | None:
        column = "image" if kind.model == "ViT" else "text"
        inputs = [str(folder() / one) for one in data.inputs] if column == "image" else data.inputs
        path = save(Data(**{**vars(data), "inputs": inputs}), place, column)
        one = subject(str(written(name)), validation_file=str(path))
        try:
            rows = load_rows(one, skip_bad_rows=data.skip)
            limits = Limits.of(model)
            task = make_task(one, model.config, processor, rows, limits=limits, skip_bad_rows=data.skip)
        except EvaluationError:
            missing = None in data.right and (not data.skip or all(right is None for right in data.right))
            if missing or not data.way.told:
                return None
            raise
        left = {row - 1 for row, _ in task.skipped}
        assert left == {row for row, right in enumerate(data.right) if right is None}
        held = [meant(kind, right) for right in data.right if right is not None]
        assert [example["label"] for example in task.examples] == held
        return task

    def agrees(task: Task) -> None:
        alone = outcomes(model, task, 1)
        try:
            together = outcomes(model, task, 8)
        except EvaluationError:
            if kind.padded:
                raise
            return
        for one, other in zip(alone, together, strict=True):
            assert one.answers == other.answers
            assert one.targets == other.targets
            assert one.loss == pytest.approx(other.loss, rel=1e-3, abs=1e-3)
            assert one.score is None or one.score == pytest.approx(other.score, rel=1e-3, abs=1e-3)
        first, second = task.metrics(alone), task.metrics(together)
        first.pop("spearman", None)  # an order changes where two scores differ by rounding alone
        assert first == pytest.approx({metric: second[metric] for metric in first}, rel=1e-3, abs=1e-3, nan_ok=True)

    check()
