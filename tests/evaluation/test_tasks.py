"""What each task makes of rows, and what a model says of them: held to the same model run by hand, example by example.

Models are tiny ones of random weights, made here from configs with tokenizers of forty words.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_classifier import rows, saved, write_checkpoint, write_data
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.metrics.registry import measured, rows_of
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.tasks.registry import TASKS

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *(f"w{number}" for number in range(40))]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}


def write_tokenizer(folder: Path) -> None:
    """Words between [CLS] and [SEP]."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    return saved(model, folder, 6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def masked(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, vocab_size=len(VOCABULARY), max_position_embeddings=32)
    write_tokenizer(folder / "masked")
    return save(transformers.BertForMaskedLM(config), folder / "masked")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    return write_checkpoint(folder / "classifier")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=7)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    return save(transformers.ViTForImageClassification(config), folder / "vit")


def write_rows(path: Path, header: Sequence[str], found: Sequence[Sequence[Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *found])
    return str(path)


def sentences(count: int, most: int = 12) -> list[str]:
    draw = random.Random(3)
    return [" ".join(draw.choices(VOCABULARY[5:], k=1 + (7 * i) % most)) for i in range(count)]


def load(
    one: Subject, *, limit: int | None = None, skip: bool = False
) -> tuple[transformers.PreTrainedModel, Any, Task]:
    model, processor = load_model(one.model, one.task), load_processor(one.model, one.task)
    data = load_rows(one, skip_bad_rows=skip)
    return model, processor, make_task(one, model.config, processor, data, limit=limit, skip_bad_rows=skip)


@torch.inference_mode()
def run(model: transformers.PreTrainedModel, task: Task, size: int) -> list[Outcome]:
    found = {}
    for batch in task.batches(size):
        prediction = task.predict(model, batch)
        assert prediction.logits.shape[:2] == batch.targets.shape
        assert torch.equal(prediction.logits, task.forward(model, batch))
        found.update(zip(batch.ids, prediction.outcomes, strict=True))
    assert sorted(found) == list(range(len(task.examples)))
    return [found[example] for example in sorted(found)]


def test_the_list_of_tasks_names_what_there_is() -> None:
    for name, info in TASKS.items():
        assert hasattr(transformers, info.auto_class), name
        assert "\n" not in info.summary


@torch.inference_mode()
def test_text_classification(classifier: Path, tmp_path: Path) -> None:
    model, tokenizer, task = load(subject(str(classifier), validation_file=str(write_data(tmp_path / "a.csv"))))
    outcomes = run(model, task, 5)
    for (text, label), outcome in zip(rows(), outcomes, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
        target = ["no", "yes"].index(label)
        assert (outcome.answers, outcome.targets, outcome.tokens) == ((int(logits.argmax()),), (target,), 1)
        assert outcome.loss == pytest.approx(-float(logits.log_softmax(-1)[target]), abs=1e-5)
        assert outcome.top5 == ()
    assert task.metrics(outcomes) == pytest.approx(measured(rows_of(task.columns(outcomes, task.examples))))
    assert task.describe(3) == rows()[3][0]
    assert len(task.describe(0)) <= 100
    assert len(load(subject(str(classifier), validation_file=str(tmp_path / "a.csv")), limit=4)[2].examples) == 4


@torch.inference_mode()
def test_pairs_of_texts_are_classified(folder: Path, masked: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(masked)
    config.num_labels = 3
    place = save(transformers.BertForSequenceClassification(config), folder / "pairs")
    write_tokenizer(place)
    data = write_rows(tmp_path / "a.csv", ["a", "b", "label"], [("w1 w2", "w3", 0), ("w4", "w5 w6", 2)])
    one = subject(str(place), validation_file=data, input_column="a", second_column="b")
    model, tokenizer, task = load(one)
    [batch] = task.batches(2)
    assert tokenizer.batch_decode(batch.inputs["input_ids"]) == [
        "[CLS] w1 w2 [SEP] w3 [SEP]",
        "[CLS] w4 [SEP] w5 w6 [SEP]",
    ]
    alone = model(**tokenizer("w4", "w5 w6", return_tensors="pt")).logits
    torch.testing.assert_close(task.predict(model, batch).logits[1], alone)


@torch.inference_mode()
def test_sentence_similarity(masked: Path, tmp_path: Path) -> None:
    first, second, draw = sentences(9), sentences(9, 5)[::-1], random.Random(1)
    scores = [draw.uniform(0, 5) for _ in first]
    data = write_rows(tmp_path / "a.csv", ["text1", "text2", "score"], list(zip(first, second, scores, strict=True)))
    model, tokenizer, task = load(subject(str(masked), task="sentence-similarity", validation_file=data))
    outcomes = run(model, task, 4)

    def embedding(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)

    cosines = [
        float(torch.cosine_similarity(embedding(one), embedding(two), dim=0))
        for one, two in zip(first, second, strict=True)
    ]
    assert [outcome.score for outcome in outcomes] == pytest.approx(cosines, abs=1e-5)
    assert task.metrics(outcomes)["pearson"] == pytest.approx(np.corrcoef(cosines, scores)[0, 1], abs=1e-4)
    assert task.describe(0) == f"{first[0]} | {second[0]}"


@torch.inference_mode()
def test_masked_language_modelling(masked: Path, tmp_path: Path) -> None:
    texts = [*sentences(6), " ".join(VOCABULARY[5:] * 2)]  # the last one is 80 words, and 30 fit
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one = subject(str(masked), validation_file=str(tmp_path / "a.jsonl"))
    assert one.task == "masked-lm"
    model, tokenizer, task = load(one)
    assert len(task.examples) == 6 + 3
    outcomes = run(model, task, 4)
    shown = []
    for number, (example, outcome) in enumerate(zip(task.examples, outcomes, strict=True)):
        ids, targets = torch.tensor(example["input_ids"]), torch.tensor(example["targets"])
        places = targets != -100
        assert places.sum() == max(1, round(0.15 * (len(ids) - 2)))
        assert (ids[places] == tokenizer.mask_token_id).all()
        assert (ids == tokenizer.mask_token_id).sum() == places.sum()
        whole = torch.where(places, targets, ids)
        assert whole[0] == tokenizer.cls_token_id
        assert whole[-1] == tokenizer.sep_token_id
        shown += tokenizer.decode(whole[1:-1]).split()
        assert task.describe(number).startswith(tokenizer.decode(whole)[:90])
        assert task.named(str(int(whole[0]))) == repr(tokenizer.decode(whole[:1]))
        likelihood = model(ids[None]).logits[0].double().log_softmax(-1)
        assert outcome.targets == tuple(targets[places].tolist())
        assert outcome.answers == tuple(likelihood.argmax(-1)[places].tolist())
        assert outcome.loss == pytest.approx(-float(likelihood[places, targets[places]].sum()), abs=1e-4)
    assert shown == " ".join(texts).split()
    assert [example["targets"] for example in load(one)[2].examples] == [e["targets"] for e in task.examples]
    assert [e["targets"] for e in load(one, limit=3)[2].examples] == [e["targets"] for e in task.examples[:3]]
    measured = task.metrics(outcomes)
    total = sum(outcome.loss for outcome in outcomes) / sum(outcome.tokens for outcome in outcomes)
    assert measured["perplexity"] == pytest.approx(math.exp(total))


RESIDUES = "LAGVSERTIDPKQNFYMHWC"


def words_tokenizer(folder: Path, around: str, **options: Any) -> None:
    """Words, between what ``around`` puts there."""
    write_tokenizer(folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = [(word, found.convert_tokens_to_ids(word)) for word in around.split() if word != "$A"]
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer, **{"model_max_length": 16, **names, **options}
    ).save_pretrained(folder)


def residues_tokenizer(folder: Path) -> None:
    """A tokenizer written in Python, which gives no overflowing tokens."""
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<mask>"]))
    transformers.EsmTokenizer(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)


@pytest.mark.parametrize(
    ("write", "joint", "room"),
    [
        (lambda folder: words_tokenizer(folder, "[CLS] $A [SEP]"), " ", 14),
        (lambda folder: words_tokenizer(folder, "[CLS] $A [SEP]", truncation_side="left"), " ", 14),
        (lambda folder: words_tokenizer(folder, "$A"), " ", 16),
        (lambda folder: words_tokenizer(folder, "$A [SEP] [CLS]", padding_side="left"), " ", 14),
        (lambda folder: words_tokenizer(folder, "[CLS] [CLS] $A"), " ", 14),
        (residues_tokenizer, "", 14),
    ],
    ids=["both", "left", "none", "behind", "before", "python"],
)
def test_no_token_of_a_long_text_is_left_out(write: Any, joint: str, room: int, masked: Path, tmp_path: Path) -> None:
    write(tmp_path)
    config = transformers.AutoConfig.from_pretrained(masked)
    config.save_pretrained(tmp_path)
    tokenizer = load_processor(str(tmp_path), "masked-lm")
    draw = random.Random(0)
    pieces = RESIDUES if joint == "" else VOCABULARY[5:]
    texts = [joint.join(draw.choices(pieces, k=count)) for count in (1, 14, 15, 100, 3)]
    data = write_rows(tmp_path / "a.csv", ["text"], [(text,) for text in texts])
    one = subject(str(masked), task="masked-lm", validation_file=data)
    task = make_task(one, config, tokenizer, load_rows(one))
    said, whole = [], tokenizer(texts[0])["input_ids"]
    for example in task.examples:
        ids = [
            i if target == -100 else target for i, target in zip(example["input_ids"], example["targets"], strict=True)
        ]
        assert len(ids) <= 16
        assert {len(values) for values in example["tokens"].values()} == {len(ids)}
        kept = [number for number in ids if number not in {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}]
        assert len(ids) - len(kept) == len(whole) - 1 == 16 - room
        assert example["targets"].count(-100) == len(ids) - max(1, round(0.15 * len(kept)))
        said += tokenizer.convert_ids_to_tokens(kept)
    assert joint.join(said) == joint.join(texts)
    assert len(task.examples) == sum(math.ceil(len(text.split() if joint else text) / room) for text in texts)


def test_a_text_needs_room_beside_the_tokenizers_own_tokens(masked: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.csv", ["text"], [("w1 w2",)])
    with pytest.raises(EvaluationError, match=r"2 tokens of 2 are the tokenizer's own.*--max_length"):
        load(subject(str(masked), validation_file=data, max_length=2))


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 5, 16, 23])
def test_a_sliding_window_scores_every_token_once(stride: int, tmp_path: Path) -> None:
    """Against the loop of transformers' guide to perplexity, which gives the model labels of −100."""
    (tmp_path / "a.txt").write_text("Call me Ishmael. Some years ago - never mind how long precisely.")
    one = subject("gpt2", validation_file=str(tmp_path / "a.txt"), max_length=24, stride=stride)
    model, tokenizer, task = load(one)
    outcomes = run(model, task, 3)
    tokens = tokenizer((tmp_path / "a.txt").read_text(), return_tensors="pt").input_ids
    length, scored, losses, count = tokens.shape[1], 0, 0.0, 0
    for begin in range(0, length, stride):
        end = min(begin + 24, length)
        labels = tokens[:, begin:end].clone()
        labels[:, : -(end - scored)] = -100
        counted = int((labels[:, 1:] != -100).sum())
        losses += float(model(tokens[:, begin:end], labels=labels).loss) * counted
        count, scored = count + counted, end
        if end == length:
            break
    assert sum(outcome.tokens for outcome in outcomes) == count == length - 1
    assert [target for outcome in outcomes for target in outcome.targets] == tokens[0, 1:].tolist()
    assert sum(outcome.loss for outcome in outcomes) == pytest.approx(losses, rel=1e-5)
    assert task.metrics(outcomes)["perplexity"] == pytest.approx(math.exp(losses / count), rel=1e-5)


def llama(folder: Path, around: str, *, scale: float = 6.0) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=len(VOCABULARY))
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data.mul_(scale) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    words_tokenizer(folder, around, model_input_names=["input_ids", "attention_mask"])
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("stride", [None, 1, 5, 14])
@pytest.mark.parametrize(
    ("around", "opening"), [("$A", []), ("[CLS] $A", [2]), ("[CLS] $A [SEP]", [2]), ("[CLS] [SEP] $A", [2, 3])]
)
def test_each_block_begins_with_what_the_tokenizer_puts_first(
    around: str, opening: list[int], stride: int | None, tmp_path: Path
) -> None:
    """Against a loop over the text's tokens, each told from as many before it as a window holds."""
    place, text = llama(tmp_path, around), " ".join(sentences(12))
    (tmp_path / "a.txt").write_text(text)
    model, _, task = load(subject(str(place), validation_file=str(tmp_path / "a.txt"), stride=stride))
    outcomes = run(model, task, 4)
    ids, room = [VOCABULARY.index(word) for word in text.split()], 16 - len(opening)
    if stride is None:
        ids = ids[: len(ids) // room * room]
    expected, start, told = [], 0, 0
    while told < len(ids):
        piece = ids[start : start + room]
        logits = model(torch.tensor([opening + piece])).logits[0].double().log_softmax(-1)
        for place_ in range(max(told - start, 0 if opening else 1), len(piece)):
            expected.append((piece[place_], -float(logits[len(opening) + place_ - 1, piece[place_]])))
        told, start = start + len(piece), start + (stride or room)
    assert all(example["input_ids"][: len(opening)] == opening for example in task.examples)
    assert [target for outcome in outcomes for target in outcome.targets] == [target for target, _ in expected]
    assert sum(outcome.loss for outcome in outcomes) == pytest.approx(sum(loss for _, loss in expected), rel=1e-5)
    if stride is not None and opening:
        assert sum(example["bytes"] for example in task.examples) == len(text)


@pytest.mark.parametrize("text", ["", "   ", "w1"])
def test_a_text_of_too_few_tokens_is_refused(text: str, tmp_path: Path) -> None:
    place = llama(tmp_path, "$A [SEP]")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    with pytest.raises(EvaluationError, match="perplexity needs 2 tokens or more in a block"):
        load(subject(str(place), validation_file=str(tmp_path / "a.jsonl")))


TEXTS = [
    "w1 w2 w3",
    "  w1\n\nw2\tw3  ",
    "w1 Übergrößenträger w2 日本語 w3 🙂 w4",
    " ".join(VOCABULARY[5:] * 3),
]


def bytes_tokenizer() -> Any:
    """One token a byte, behind [CLS], and where in the text it stands."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1, "[CLS]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=16)


@torch.inference_mode()
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["words", "bytes", "python"])
def test_bits_per_byte_are_those_of_the_text(kind: str, text: str, tmp_path: Path) -> None:
    """A model that takes all tokens for equally likely needs log₂ |vocabulary| bits a token: of words, of bytes, and of
    bytes in a tokenizer written in Python, which puts nothing before a text and does not say where its tokens stand."""
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    place, size = llama(tmp_path, "[CLS] $A", scale=0.0), len(text.encode())
    tokenizer = {
        "words": lambda: load_processor(str(place), "causal-lm"),
        "bytes": bytes_tokenizer,
        "python": lambda: transformers.ByT5Tokenizer(model_max_length=16),
    }[kind]()
    vocabulary = len(tokenizer) if kind == "python" else len(VOCABULARY)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=vocabulary)
    model = transformers.LlamaForCausalLM(config).eval()
    model.lm_head.weight.zero_()
    for stride in (None, 7):
        one = subject(str(place), validation_file=str(tmp_path / "a.txt"), stride=stride)
        task = make_task(one, config, tokenizer, load_rows(one))
        outcomes = run(model, task, 4)
        told = sum(example["bytes"] for example in task.examples)
        count = sum(outcome.tokens for outcome in outcomes)
        if kind != "words":
            assert told == pytest.approx(count)
        if stride is not None:
            assert told == pytest.approx(size - 1 if kind == "python" else size)
        bits = count * math.log2(vocabulary) / told
        assert task.metrics(outcomes)["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_a_window_may_not_leave_tokens_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Call me Ishmael.")
    with pytest.raises(EvaluationError, match="--stride of 1 to 7"):
        load(subject("gpt2", validation_file=str(tmp_path / "a.txt"), max_length=8, stride=8))


@torch.inference_mode()
def test_generation_is_always_as_long() -> None:
    for name in ("gpt2", "t5"):
        model, _, task = load(subject(name), limit=4)
        [batch] = task.batches(4)
        assert task.generates
        whole = task.generate(model, batch)
        model.generation_config.eos_token_id = int(whole[0, -2])  # an end that comes, and must not end it
        whole, first = task.generate(model, batch), task.generate(model, batch, new_tokens=1)
        assert whole.shape[1] - first.shape[1] == task.decode_tokens - 1 > 3
        assert torch.equal(whole[:, : first.shape[1]], first)


@torch.inference_mode()
def test_image_classification_looks_at_five(vit: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(35):
        path = tmp_path / "images" / f"LABEL_{number % 7}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    one = subject(str(vit), validation_file=str(tmp_path / "images"))
    assert one.task == "image-classification"
    model, processor, task = load(one)
    outcomes = run(model, task, 4)
    files = sorted((tmp_path / "images").glob("*/*.png"))
    for number, (file, outcome) in enumerate(zip(files, outcomes, strict=True)):
        logits = model(**processor(Image.open(file).convert("RGB"), return_tensors="pt")).logits[0]
        target = int(file.parent.name[-1])
        assert (outcome.answers, outcome.targets) == ((int(logits.argmax()),), (target,))
        assert outcome.top5 == (target in logits.argsort(descending=True)[:5].tolist(),)
        assert task.describe(number).endswith(file.name)
    assert {outcome.top5 for outcome in outcomes} == {(True,), (False,)}
    measured = task.metrics(outcomes)
    assert measured["top5_accuracy"] == sum(outcome.top5[0] for outcome in outcomes) / 35
    assert measured["top5_accuracy"] > measured["accuracy"]


def test_broken_images_are_named_or_skipped(vit: Path, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(whole, "PNG")
    contents = {"a.png": whole.getvalue(), "b.png": b"no picture", "c.png": whole.getvalue()[:60], "d.png": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = ["a.png", "b.png", "c.png", "d.png", "nowhere.png", "https://example.com/a.png", "a.png"]
    data = write_rows(tmp_path / "a.csv", ["image", "label"], [(name, 1) for name in names])
    one = subject(str(vit), validation_file=data)
    with pytest.raises(EvaluationError, match=r"a\.csv: row 2 holds no image .*b\.png.*--skip_bad_rows") as raised:
        load(one)
    assert " object at 0x" not in str(raised.value), "an address is another one in each run"
    _, _, task = load(one, skip=True)
    assert len(task.examples) == 2
    assert [row for row, _ in task.skipped] == [2, 3, 4, 5, 6]
    with pytest.raises(EvaluationError, match="no row can be used; row 1 holds no image"):
        load(
            replace(one, data=Path(write_rows(tmp_path / "b.csv", ["image", "label"], [("x", 1), ("b.png", 1)]))),
            skip=True,
        )


@torch.inference_mode()
def test_feature_drift_needs_no_right_answers(masked: Path, vit: Path, tmp_path: Path) -> None:
    texts = sentences(5)
    data = write_rows(tmp_path / "a.csv", ["text"], [(text,) for text in texts])
    model, tokenizer, task = load(subject(str(masked), task="feature-drift", validation_file=data))
    assert not task.answered
    outcomes = run(model, task, 5)
    assert (task.metrics(outcomes), task.columns(outcomes, task.examples)) == ({}, {})
    [batch] = task.batches(5)
    states = task.forward(model, batch)
    for number, row, targets in zip(batch.ids, states, batch.targets, strict=True):
        alone = model(**tokenizer(texts[number], return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row[targets != -100], alone, atol=1e-4, rtol=1e-4)

    for number in range(3):
        Image.new("RGB", (8, 8), (number, 99, 5)).save(tmp_path / f"{number}.png")
    data = write_rows(tmp_path / "b.csv", ["picture"], [(f"{number}.png",) for number in range(3)])
    one = subject(str(vit), task="feature-drift", validation_file=data, input_column="picture")
    model, _, task = load(one)
    assert len(run(model, task, 2)) == 3
    assert task.batches(3)[0].targets.tolist() == [[0], [0], [0]]
    model, _, task = load(subject("t5", task="feature-drift", validation_file=str(write_data(tmp_path / "c.csv"))))
    assert len(run(model, task, 8)) == 37


BAD = [("w1", "yes"), ("", "no"), ("w2", "maybe"), ("w3", "2"), ("w4", "0")]


def test_bad_rows_are_named_or_skipped_and_counted(classifier: Path, tmp_path: Path) -> None:
    one = subject(str(classifier), validation_file=write_rows(tmp_path / "a.csv", ["text", "label"], BAD))
    with pytest.raises(EvaluationError, match=r"row 3 has the label 'maybe'.*0 \(no\), 1 \(yes\).*--skip_bad_rows"):
        load(one)
    _, _, task = load(one, skip=True)
    assert [example["label"] for example in task.examples] == [1]  # ids are not mixed with names
    assert [row for row, _ in task.skipped] == [2, 3, 4, 5]
    assert "no tokens" in dict(task.skipped)[2]
    assert [row for row, _ in load(one, skip=True, limit=3)[2].skipped] == [2, 3]

    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "w1", "label": 1}\n{"text": "\xff", "label": 1}\n{"text": null, "label": 1}\n'
    )
    one = replace(one, data=tmp_path / "a.jsonl")
    assert load(one, skip=True)[2].skipped == (
        (2, "is bad in the column 'text': it holds bytes that are not UTF-8"),
        (3, "of the column 'text' is no text: None"),
    )


@pytest.mark.parametrize("score", ["", "much", "nan"])
def test_a_score_is_a_number(score: str, masked: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.csv", ["text1", "text2", "score"], [("w1", "w2", 1), ("w1", "w2", score)])
    with pytest.raises(EvaluationError, match="row 2 has no score"):
        load(subject(str(masked), task="sentence-similarity", validation_file=data))


OWN = """
AUTO_CLASS = "AutoModelForSequenceClassification"


def batch(rows, processor, config):
    inputs = processor([row["text"] for row in rows], padding=True, return_tensors="pt")
    return inputs, [config.label2id[row["label"]] for row in rows]
"""


def test_a_task_of_ones_own_is_one_function(classifier: Path, masked: Path, tmp_path: Path) -> None:
    data = str(write_data(tmp_path / "a.csv"))
    (tmp_path / "own.py").write_text(OWN)
    own = subject(str(classifier), task=str(tmp_path / "own.py"), validation_file=data)
    model, _, task = load(own)
    _, _, built_in = load(subject(str(classifier), validation_file=data))
    outcomes, others = run(model, task, 5), run(model, built_in, 5)
    assert [(o.answers, o.targets) for o in outcomes] == [(o.answers, o.targets) for o in others]
    assert task.metrics(outcomes) == built_in.metrics(others)
    assert task.describe(2) == rows()[2][0]

    # A right class for each position, and none at all.
    (tmp_path / "positions.py").write_text(
        'AUTO_CLASS = "AutoModelForMaskedLM"\n\n\ndef batch(rows, processor, config):\n'
        '    inputs = processor([row["text"] for row in rows], padding=True, return_tensors="pt")\n'
        '    return inputs, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)\n'
    )
    model, _, task = load(subject(str(masked), task=str(tmp_path / "positions.py"), validation_file=data))
    measured = task.metrics(run(model, task, 5))
    assert set(measured) == {"perplexity", "token_accuracy"}
    (tmp_path / "nothing.py").write_text(
        "def batch(rows, processor, config):\n"
        '    return processor([row["text"] for row in rows], padding=True, return_tensors="pt"), None\n'
    )
    model, _, task = load(subject(str(masked), task=str(tmp_path / "nothing.py"), validation_file=data))
    assert task.metrics(run(model, task, 37)) == {}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def other(): ...", r"no function batch\(rows, processor, config\)"),
        ("1 / 0", "cannot be run: ZeroDivisionError"),
        ("def batch(", "cannot be run: SyntaxError"),
        (OWN.replace('row["label"]', 'row["lable"]'), r"row 1 .*KeyError: no 'lable'"),
        (OWN.replace("return inputs, ", "return "), "has to give two things"),
        (OWN.replace("for row in rows]\n'", "'").replace('config.label2id[row["label"]]', "0.5"), "no whole numbers"),
        (OWN.replace("AutoModelForSequenceClassification", "AutoModelForNothing"), "AutoModelForNothing"),
    ],
)
def test_what_is_wrong_with_a_task_of_ones_own_is_said(code: str, said: str, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(code)
    data = str(write_data(tmp_path / "a.csv"))
    with pytest.raises(EvaluationError, match=said):
        load(subject(str(classifier), task=str(tmp_path / "own.py"), validation_file=data))


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ('[-100 if row["text"] == "w2" else 1 for row in rows]', r"a\.csv: row 2 .*right class is -100"),
        ("[-1 for row in rows]", r"a\.csv: row 1 has the right class -1, by .*own\.py, .* gives 2 classes"),
        ('[7 if row["text"] == "w2" else 1 for row in rows]', r"a\.csv: row 2 has the right class 7"),
        ('[[3] if row["text"] == "w2" else [-100] for row in rows]', r"a\.csv: row 2 has the right class 3"),
    ],
)
def test_right_classes_that_a_model_does_not_have(right: str, said: str, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace('[config.label2id[row["label"]] for row in rows]', right))
    data = write_rows(tmp_path / "a.csv", ["text", "label"], [("w1", "yes"), ("w2", "no")])
    with pytest.raises(EvaluationError, match=said):
        run(*load(subject(str(classifier), task=str(tmp_path / "own.py"), validation_file=data))[::2], 2)


def test_right_classes_may_be_booleans(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace('config.label2id[row["label"]]', 'row["label"] == "yes"'))
    data = str(write_data(tmp_path / "a.csv"))
    model, _, task = load(subject(str(classifier), task=str(tmp_path / "own.py"), validation_file=data))
    _, _, built_in = load(subject(str(classifier), validation_file=data))
    assert [o.targets for o in run(model, task, 5)] == [o.targets for o in run(model, built_in, 5)]


def test_rows_that_a_task_of_ones_own_cannot_take(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    data = write_rows(tmp_path / "a.csv", ["text", "label"], [("w1", "yes"), ("w2", "maybe"), ("w3", "no")])
    one = subject(str(classifier), task=str(tmp_path / "own.py"), validation_file=data)
    with pytest.raises(EvaluationError, match=r"a\.csv: row 2 .*KeyError: no 'maybe'\. Mend .* --skip_bad_rows"):
        load(one)[2].batches(3)[0]
    _, _, task = load(one, skip=True)
    assert [row for row, _ in task.skipped] == [2]
    assert len(task.batches(3)[0].ids) == 2


METRIC = """
import datasets
import evaluate


class Errors(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("KIND")
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features({"predictions": kind, "references": kind})
        )

    def _compute(self, predictions, references):
        wrong = sum(a != b for a, b in zip(predictions, references, strict=True))
        return {"errors": wrong, "accuracy": 0.125, "listed": [1, 2]}
"""


@pytest.mark.usefixtures("modules_cache")
def test_another_metric_is_measured_too(classifier: Path, tmp_path: Path) -> None:
    script = tmp_path / "errors" / "errors.py"
    script.parent.mkdir()
    script.write_text(METRIC.replace("KIND", "int64"))
    data = str(write_data(tmp_path / "a.csv"))
    for name in (str(script), str(script.parent)):
        model, _, task = load(subject(str(classifier), validation_file=data, metric=name))
        outcomes = run(model, task, 8)
        measured = task.metrics(outcomes)
        assert measured["errors"] == sum(outcome.answers != outcome.targets for outcome in outcomes)
        assert measured["accuracy"] == pytest.approx(1 - measured["errors"] / 37)
        assert measured["errors.accuracy"] == 0.125
        assert "listed" not in measured
    model, _, task = load(replace(subject("t5"), metric=str(script)), limit=3)
    with pytest.raises(EvaluationError, match="cannot measure what seq2seq predicts"):
        task.metrics(run(model, task, 3))
    with pytest.raises(EvaluationError, match="drop --metric"):
        load(subject(str(classifier), task="feature-drift", validation_file=data, metric=str(script)))


def test_batches_are_the_same_however_often_they_are_made(masked: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.csv", ["text"], [(text,) for text in sentences(11)])
    one = subject(str(masked), validation_file=data)
    first, second = (load(one)[2].batches(4) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.ids == b.ids
        assert all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        assert torch.equal(a.targets, b.targets)
    assert sorted(number for batch in first for number in batch.ids) == list(range(11))


# ---------------------------------------------------------------------------- images, towers, encoders without decoders


def write_images(place: Path, sizes: Sequence[tuple[int, int]], modes: Sequence[str] = ("RGB",)) -> Path:
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        path = place / f"LABEL_{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.convert(modes[number % len(modes)]).save(path)
    return place


@torch.inference_mode()
@pytest.mark.parametrize(
    "processor",
    [
        transformers.ViTImageProcessor(do_resize=False),
        transformers.ViTImageProcessor(size={"shortest_edge": 8}),
        transformers.CLIPImageProcessor(size={"shortest_edge": 12}, do_center_crop=False),
    ],
    ids=["as they are", "shortest edge", "without a crop"],
)
def test_images_of_several_sizes_stand_in_batches_of_their_own(processor: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=2)
    place = save(transformers.ResNetForImageClassification(config), tmp_path / "resnet")
    processor.save_pretrained(place)
    sizes = [(20, 20), (31, 20), (20, 44), (20, 20), (31, 20), (20, 20), (17, 20)]
    data = write_images(tmp_path / "images", sizes, ("RGB", "P", "L", "RGBA", "1", "LA"))
    one = subject(str(place), validation_file=str(data))
    model, own, task = load(one)
    files = sorted(data.glob("*/*.png"))
    answers = [
        int(model(**own(Image.open(file).convert("RGB"), return_tensors="pt")).logits.argmax()) for file in files
    ]
    for size in (1, 2, 8):
        assert [outcome.answers for outcome in run(model, task, size)] == [(answer,) for answer in answers]
        assert all(len(batch.ids) <= size for batch in task.batches(size))
    features = subject(str(place), task="feature-drift", validation_file=str(data), input_column="image")
    model, _, task = load(features)
    assert len(run(model, task, 8)) == 7


def test_an_image_whose_numbers_have_no_known_range_is_named_or_left_out(tmp_path: Path) -> None:
    place = tmp_path / "vit"
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=2)
    save(transformers.ViTForImageClassification(config), place)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(place)
    (tmp_path / "images" / "LABEL_0").mkdir(parents=True)
    (tmp_path / "images" / "LABEL_1").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, values in {
        "LABEL_0/a.png": draw.integers(0, 256, (8, 8), dtype=np.uint8),
        "LABEL_1/deep.png": np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16),
    }.items():
        Image.fromarray(values).save(tmp_path / "images" / name)
    Image.fromarray(draw.random((8, 8)).astype(np.float32)).save(tmp_path / "images" / "LABEL_0" / "b.tiff")
    Image.fromarray(draw.integers(0, 9, (8, 8)).astype(np.int32)).save(tmp_path / "images" / "LABEL_1" / "c.tiff")
    one = subject(str(place), validation_file=str(tmp_path / "images"))
    with pytest.raises(EvaluationError, match=r"row 2 holds no image .*b\.tiff: its mode F has no range.*8 or 16 bits"):
        load(one)
    _, _, task = load(one, skip=True)
    assert [row for row, _ in task.skipped] == [2, 3]
    assert "mode I" in dict(task.skipped)[3]


def test_sixteen_bits_are_no_white(vit: Path, tmp_path: Path) -> None:
    """Pillow would cut every number off at 255."""
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name, values in {"deep": deep, "flat": (deep >> 8).astype(np.uint8)}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    data = write_rows(tmp_path / "a.csv", ["image", "label"], [("deep.png", 0), ("flat.png", 0)])
    _, _, task = load(subject(str(vit), validation_file=data))
    deep_pixels, flat_pixels = (example["pixels"]["pixel_values"] for example in task.examples)
    assert torch.equal(deep_pixels, flat_pixels)
    assert deep_pixels.unique().numel() > 50


TEXT = {**SIZES, "vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "pad_token_id": 0}
VISION = {**SIZES, "image_size": 8, "patch_size": 4}
TOWERS = {
    "CLIP": lambda: transformers.CLIPConfig(
        text_config={**TEXT, "bos_token_id": 2, "eos_token_id": 3}, vision_config=VISION, projection_dim=16
    ),
    "Siglip": lambda: transformers.SiglipConfig(text_config=TEXT, vision_config=VISION),
    "ChineseCLIP": lambda: transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16),
    "VisionTextDualEncoder": lambda: transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=16
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", TOWERS)
def test_of_two_towers_the_data_say_which(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    place = save(getattr(transformers, f"{kind}Model")(TOWERS[kind]()), tmp_path / "towers")
    write_tokenizer(place)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(place)
    pictures = write_images(tmp_path / "images", [(9, 9)] * 4)
    data = write_rows(
        tmp_path / "a.csv",
        ["text", "text1", "text2", "score", "picture"],
        [(text, text, "w1", 1, f"images/LABEL_{n % 2}/{n:02}.png") for n, text in enumerate(sentences(4))],
    )

    def states(**options: Any) -> tuple[torch.Tensor, transformers.PreTrainedModel]:
        model, _, task = load(subject(str(place), **options))
        [batch] = task.batches(4)
        return task.forward(model, batch)[list(batch.ids).index(0)], model

    found, model = states(task="feature-drift", validation_file=data)
    inputs = {"input_ids": tokenizer(sentences(4)[0], return_tensors="pt").input_ids}
    own = model.get_text_features(**inputs).last_hidden_state[0]
    torch.testing.assert_close(found[: len(own)], own, atol=1e-4, rtol=1e-4)

    embedded, _ = states(task="sentence-similarity", validation_file=data)
    torch.testing.assert_close(embedded[0], own.mean(0), atol=1e-4, rtol=1e-4)

    first = Image.open(tmp_path / "images" / "LABEL_0" / "00.png")
    own = model.get_image_features(**images(first, return_tensors="pt")).last_hidden_state[0]
    for options in (
        {"validation_file": str(pictures), "input_column": "image"},
        {"validation_file": data, "input_column": "picture"},
    ):
        found, _ = states(task="feature-drift", **options)
        torch.testing.assert_close(found[0], own.flatten(), atol=1e-4, rtol=1e-4)


def test_a_tower_without_its_processor_is_refused(tmp_path: Path) -> None:
    place = save(transformers.CLIPModel(TOWERS["CLIP"]()), tmp_path / "clip")
    pictures = str(write_images(tmp_path / "images", [(9, 9)]))
    texts = write_rows(tmp_path / "a.csv", ["text"], [("w1",)])
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    images.save_pretrained(place)
    with pytest.raises(EvaluationError, match="clip has no tokenizer"):
        load(subject(str(place), task="feature-drift", validation_file=texts))
    assert load(subject(str(place), task="feature-drift", validation_file=pictures, input_column="image"))
    (place / "preprocessor_config.json").unlink()
    write_tokenizer(place)
    with pytest.raises(EvaluationError, match=r"column 'image' holds images, and clip has a tokenizer alone"):
        load(subject(str(place), task="feature-drift", validation_file=pictures, input_column="image"))
    assert load(subject(str(place), task="feature-drift", validation_file=texts))


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": len(VOCABULARY)}
BART = {
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
       (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))},
    **{"d_model": 32, "vocab_size": len(VOCABULARY), "max_position_embeddings": 40, "pad_token_id": 0},
}  # fmt: skip
ENCODERS = {
    "T5EncoderModel": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
    "T5Model": lambda: transformers.T5Model(transformers.T5Config(**T5)),
    "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
    "LongT5EncoderModel": lambda: transformers.LongT5EncoderModel(transformers.LongT5Config(**T5, local_radius=7)),
    "BartModel": lambda: transformers.BartModel(transformers.BartConfig(**BART)),
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("as_published", [False, True])
def test_an_encoders_states_are_what_sentences_are_compared_by(kind: str, as_published: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    place = save(ENCODERS[kind](), tmp_path / "encoder")
    write_tokenizer(place)
    if as_published:  # as sentence-t5 has it, whose decoder is not there
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    rows = [(text, "w1 w2", n) for n, text in enumerate(sentences(5))]
    data = write_rows(tmp_path / "a.csv", ["text1", "text2", "score"], rows)
    model, tokenizer, task = load(subject(str(place), task="sentence-similarity", validation_file=data))
    encoder = model.get_encoder()
    for batch in task.batches(2):
        for example, embedded in zip(batch.ids, task.forward(model, batch), strict=True):
            for text, one in zip(rows[example][:2], embedded, strict=True):
                ids = tokenizer(text, return_tensors="pt").input_ids
                own = encoder(input_ids=ids).last_hidden_state[0].mean(0)
                torch.testing.assert_close(one, own, atol=1e-4, rtol=1e-4)
    data = write_rows(tmp_path / "b.csv", ["text"], [(text,) for text in sentences(5)])
    model, _, task = load(subject(str(place), task="feature-drift", validation_file=data))
    assert len(run(model, task, 2)) == 5


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: transformers.WhisperModel(transformers.WhisperConfig(**BART, max_source_positions=8)),
            "takes input_features, and feature-drift has texts or images",
        ),
        (
            lambda: transformers.Wav2Vec2Model(
                transformers.Wav2Vec2Config(**SIZES, conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,))
            ),
            "takes input_values, and feature-drift has texts or images",
        ),
    ],
)
def test_a_model_that_reads_something_else_is_refused(model: Any, said: str, tmp_path: Path) -> None:
    place = save(model(), tmp_path / "model")
    with pytest.raises(EvaluationError, match=rf"{said}.*--task FILE\.py"):
        load_model(str(place), "feature-drift")
