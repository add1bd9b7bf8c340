"""Tiny random models for tasks of texts, saved as checkpoints with a tokenizer of forty words; and rows."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_classifier import saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(40)]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
LENGTH = 32


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """Words between [CLS] and [SEP]."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


def write_bert(folder: Path, kind: str, names: Sequence[str] = (), **config: Any) -> Path:
    """A BERT of two layers with one of transformers' heads, and weights large enough for answers to differ."""
    torch.manual_seed(0)
    if names:
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    vocabulary = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": LENGTH, "pad_token_id": 0}
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES, **vocabulary, hidden_act="gelu_new", **config))
    return save(model, folder)


def save(model: Any, folder: Path, words: Sequence[str] = WORDS) -> Path:
    write_tokenizer(folder, words)
    return saved(model, folder, 6.0)


def texts(count: int, most: int = 12, seed: int = 3) -> list[str]:
    """Of 1 to ``most`` words, no two neighbours of one length."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=1 + (7 * number) % most)) for number in range(count)]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
