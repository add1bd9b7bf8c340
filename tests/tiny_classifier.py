"""A tiny random classifier with an unfused activation, saved as a checkpoint, and data for it."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(40))]


def write_checkpoint(folder: Path) -> Path:
    """BERT with ``gelu_new`` in two layers, and two labels, "no" and "yes"."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        num_hidden_layers=2,
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        hidden_act="gelu_new",
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    write_words(folder)
    return saved(transformers.BertForSequenceClassification(config), folder, 6.0)


def saved(model: transformers.PreTrainedModel, folder: Path, factor: float) -> Path:
    """A model with weights so many times as large, for answers to differ."""
    for weight in model.parameters():
        weight.data.mul_(factor) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    return folder


def write_words(folder: Path) -> None:
    """A tokenizer of words that puts nothing around a text."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)


def rows() -> list[tuple[str, str]]:
    """37 texts of 1 to 19 words, no two neighbours of one length, and labels by name."""
    generator = random.Random(0)
    return [
        (" ".join(generator.choices(WORDS[2:], k=1 + (7 * number) % 19)), generator.choice(["no", "yes"]))
        for number in range(37)
    ]


def write_data(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows()])
    return path
