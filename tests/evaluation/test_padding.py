"""Figures do not depend on the batch: at every size they are those of each row by itself, or the run is refused."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from tiny_classifier import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.run import unpatched_metrics

DECODER = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
NAMES = ["input_ids", "attention_mask"]
COUNT = len(WORDS)


def gpt2(**options: Any) -> PreTrainedModel:
    config = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=32, vocab_size=COUNT, **options)
    return transformers.GPT2ForSequenceClassification(config)


def gpt_neo(**options: Any) -> PreTrainedModel:
    config = transformers.GPTNeoConfig(
        hidden_size=32,
        num_heads=4,
        num_layers=2,
        attention_types=[[["global"], 2]],
        vocab_size=COUNT,
        max_position_embeddings=32,
        **options,
    )
    return transformers.GPTNeoForSequenceClassification(config)


def llama(**options: Any) -> PreTrainedModel:
    config = transformers.LlamaConfig(**DECODER, num_key_value_heads=2, vocab_size=COUNT, **options)
    return transformers.LlamaForSequenceClassification(config)


def bert(**options: Any) -> PreTrainedModel:
    config = transformers.BertConfig(**DECODER, vocab_size=COUNT, max_position_embeddings=32, **options)
    return transformers.BertForSequenceClassification(config)


def bert_encoder(**options: Any) -> PreTrainedModel:
    config = transformers.BertConfig(**DECODER, vocab_size=COUNT, max_position_embeddings=32, **options)
    return transformers.BertModel(config)


def xlnet(**options: Any) -> PreTrainedModel:
    config = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=COUNT, **options)
    return transformers.XLNetForSequenceClassification(config)


def save(folder: Path, build: Callable[..., PreTrainedModel], config: dict[str, Any], **tokenizer: Any) -> Path:
    """A model with weights large enough for answers to differ, and a tokenizer that puts nothing around a text."""
    torch.manual_seed(0)
    model = build(**config)
    for weight in model.parameters():
        weight.data.mul_(4.0) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 32, "model_input_names": NAMES}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **{**options, **tokenizer}).save_pretrained(folder)
    return folder


def write(path: Path, header: list[str], rows: list[tuple[Any, ...]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


TEXTS = [" ".join(random.Random(n).choices(WORDS[2:], k=1 + n)) for n in random.Random(0).sample(range(30), 30)]


@torch.inference_mode()
def own_answers(place: Path) -> list[int]:
    """What the model says of each text by itself."""
    model, tokenizer = load_model(str(place), "text-classification"), load_processor(str(place), "text-classification")
    said = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in TEXTS]
    assert len(set(said)) == 2, "a model that says one thing only would prove nothing"
    return said


def accuracy(place: Path, data: str, size: int | None, **settings: Any) -> float:
    one = subject(str(place), validation_file=data, task="text-classification")
    return unpatched_metrics(one, Settings(batch_size=size, **settings), Accelerator(cpu=True))["accuracy"]


@pytest.mark.parametrize(
    ("build", "config", "tokenizer", "said"),
    [
        (gpt2, {"pad_token_id": 0}, {"padding_side": "left"}, "fills up on the left: set its padding_side to 'right'"),
        (gpt_neo, {"pad_token_id": 0}, {"padding_side": "left"}, "fills up on the left"),
        (bert, {}, {"padding_side": "left"}, "fills up on the left"),
        (gpt2, {"pad_token_id": 5}, {}, "The config has the pad_token_id 5, the tokenizer 0: give both the same"),
        (llama, {"pad_token_id": 5}, {}, "The config has the pad_token_id 5, the tokenizer 0"),
        (gpt2, {}, {}, r"not on \d+ in a batch: .*The config has no pad_token_id, the tokenizer 0"),
        (llama, {}, {}, "The config has no pad_token_id, the tokenizer 0"),
        (bert, {}, {"model_input_names": ["input_ids"]}, "gives no attention_mask: name it in its model_input_names"),
        (bert, {}, {"pad_token": "[NEW]"}, f"no embedding for the tokenizer's pad_token_id {COUNT}"),
        (gpt2, {}, {"pad_token": None}, "has no padding token.*set tokenizer.pad_token"),
    ],
)
def test_where_padding_moves_a_row_only_single_rows_are_evaluated(
    build: Callable[..., PreTrainedModel], config: dict[str, Any], tokenizer: dict[str, Any], said: str, tmp_path: Path
) -> None:
    place = save(tmp_path / "model", build, config, **tokenizer)
    data = write(tmp_path / "a.csv", ["text", "label"], list(zip(TEXTS, own_answers(place), strict=True)))
    for size in (8, None):
        with pytest.raises(EvaluationError, match=f"(?s){said}.*--per_device_eval_batch_size 1"):
            accuracy(place, data, size)
    assert accuracy(place, data, 1) == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_half_precision_would_hide_is_found_too(dtype: str, tmp_path: Path) -> None:
    """Positions that move logits by a hundredth of their scale: less than √ε of bfloat16, and enough for an answer."""

    def faint(**options: Any) -> PreTrainedModel:
        model = gpt2(**options)
        model.transformer.wpe.weight.data.mul_(0.02)
        return model

    place = save(tmp_path / "model", faint, {"pad_token_id": 0}, padding_side="left")
    data = write(tmp_path / "a.csv", ["text", "label"], list(zip(TEXTS, own_answers(place), strict=True)))
    with pytest.raises(EvaluationError, match=r"they move by 0\.0\d+, more than 0\.00035"):
        accuracy(place, data, 8, loading=Loading(dtype=dtype))


@pytest.mark.parametrize(
    ("build", "config", "tokenizer", "dtype"),
    [
        (gpt2, {"pad_token_id": 0}, {}, "float32"),
        (gpt2, {"pad_token_id": 0}, {}, "bfloat16"),
        (llama, {"pad_token_id": 0}, {"padding_side": "left"}, "float32"),
        (llama, {"pad_token_id": 0}, {"padding_side": "left"}, "float16"),
        (bert, {}, {}, "bfloat16"),
        (bert, {"pad_token_id": 7}, {}, "float32"),  # of no consequence where the first token is looked at
        (xlnet, {"pad_token_id": 0}, {"padding_side": "left"}, "float32"),
    ],
)
def test_where_padding_is_left_out_figures_are_the_same_at_every_size(
    build: Callable[..., PreTrainedModel], config: dict[str, Any], tokenizer: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    place = save(tmp_path / "model", build, config, **tokenizer)
    data = write(tmp_path / "a.csv", ["text", "label"], list(zip(TEXTS, own_answers(place), strict=True)))
    found = [accuracy(place, data, size, loading=Loading(dtype=dtype)) for size in (1, 8, None)]
    assert found == [1.0] * 3 if dtype == "float32" else min(found) > 0.8


def test_without_a_padding_token_texts_of_one_length_stand_in_a_batch(tmp_path: Path) -> None:
    place = save(tmp_path / "model", bert, {}, pad_token=None)
    rows = [(" ".join(WORDS[n : n + 4]), n % 2) for n in range(2, 20)]
    data = write(tmp_path / "a.csv", ["text", "label"], rows)
    assert accuracy(place, data, 8) == accuracy(place, data, 1)


def test_a_pair_of_texts_is_not_padded_to_one_length(tmp_path: Path) -> None:
    """Each text of a pair by itself, or else even a batch of one pair would have padding."""
    place = save(tmp_path / "model", bert_encoder, {}, padding_side="left")
    pairs = list(zip(TEXTS, TEXTS[1:], range(29), strict=False))
    one = subject(
        str(place),
        task="sentence-similarity",
        validation_file=write(tmp_path / "a.csv", ["text1", "text2", "score"], pairs),
    )
    alone = unpatched_metrics(one, Settings(batch_size=1), Accelerator(cpu=True))
    with pytest.raises(EvaluationError, match="fills up on the left"):
        unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True))
    save(place, bert_encoder, {})
    assert unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True)) == pytest.approx(alone, abs=1e-5)
    save(place, bert_encoder, {}, model_input_names=["input_ids"])
    assert unpatched_metrics(one, Settings(batch_size=1), Accelerator(cpu=True)) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_words_are_told_beside_longer_texts(side: str, tmp_path: Path) -> None:
    place = save(tmp_path / "model", _masked, {}, padding_side=side, mask_token="w39")
    one = subject(
        str(place),
        task="masked-lm",
        validation_file=write(tmp_path / "a.csv", ["text"], [(text,) for text in TEXTS]),
    )
    alone = unpatched_metrics(one, Settings(batch_size=1), Accelerator(cpu=True))
    if side == "left":
        with pytest.raises(EvaluationError, match="fills up on the left"):
            unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True))
    else:
        among = unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True))
        assert among == pytest.approx(alone, rel=1e-5)


def _masked(**options: Any) -> PreTrainedModel:
    config = transformers.BertConfig(**DECODER, vocab_size=COUNT, max_position_embeddings=32, **options)
    return transformers.BertForMaskedLM(config)


def fnet(**options: Any) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 32}
    return transformers.FNetForMaskedLM(transformers.FNetConfig(**sizes, vocab_size=COUNT, **options))


def test_no_mask_is_asked_for_where_the_model_takes_none(tmp_path: Path) -> None:
    place = save(tmp_path / "model", fnet, {"pad_token_id": 0}, mask_token="w39", model_input_names=["input_ids"])
    data = write(tmp_path / "a.csv", ["text"], [(text,) for text in TEXTS])
    one = subject(str(place), task="masked-lm", validation_file=data)
    with pytest.raises(EvaluationError, match=r"batch size\. Evaluate with --per_device_eval_batch_size 1"):
        unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True))
    unpatched_metrics(one, Settings(batch_size=1, limit=3), Accelerator(cpu=True))


OWN = """
AUTO_CLASS = "AutoModelForSequenceClassification"


def batch(rows, processor, config):
    inputs = processor([row["text"] for row in rows], padding=True, return_tensors="pt")
    return {"input_ids": inputs["input_ids"]}, [int(row["label"]) for row in rows]
"""


def test_a_task_of_ones_own_that_forgets_the_mask_is_refused(tmp_path: Path) -> None:
    place = save(tmp_path / "model", bert, {})
    (tmp_path / "own.py").write_text(OWN)
    data = write(tmp_path / "a.csv", ["text", "label"], [(text, n % 2) for n, text in enumerate(TEXTS)])
    one = subject(str(place), task=str(tmp_path / "own.py"), validation_file=data)
    with pytest.raises(EvaluationError, match=r"gives other logits for row \d+ \("):
        unpatched_metrics(one, Settings(batch_size=8), Accelerator(cpu=True))
    (tmp_path / "own.py").write_text(OWN.replace('{"input_ids": inputs["input_ids"]}', "inputs"))
    unpatched_metrics(replace(one), Settings(batch_size=8), Accelerator(cpu=True))
