"""sentence-transformers: tiny models of some of transformers' types, with the modules that may stand behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoConfig

from scripts.covering.libraries import Ways
from scripts.covering.shrinking import Shrinker
from scripts.covering.sizes import TEXT_LENGTH, VOCABULARY, WIDTH


class _Kind(NamedTuple):
    """A model: its class, the type of its transformer, that one's task and class, and what stands behind it."""

    whole: Callable[..., nn.Module]
    model_type: str
    task: str = "feature-extraction"
    auto: str = "AutoModel"
    behind: Callable[[], list[nn.Module]] = lambda: [Pooling(WIDTH)]


_MODELS = {
    **{
        f"SentenceTransformer-{name}": _Kind(SentenceTransformer, name)
        for name in ("bert", "mpnet", "distilbert", "roberta", "modernbert", "qwen3", "gemma3_text", "t5")
    },
    "SentenceTransformer-bert-cnn": _Kind(
        SentenceTransformer, "bert", behind=lambda: [CNN(WIDTH, WIDTH), Pooling(3 * WIDTH)]
    ),
    "SentenceTransformer-bert-dense": _Kind(
        SentenceTransformer, "bert", behind=lambda: [Pooling(WIDTH), Dense(WIDTH, WIDTH), Normalize()]
    ),
    "SentenceTransformer-bert-dense-gelu": _Kind(
        SentenceTransformer,
        "bert",
        behind=lambda: [
            Pooling(WIDTH),
            Dense(WIDTH, 2 * WIDTH, activation_function=nn.GELU(), use_residual=True),
            LayerNorm(2 * WIDTH),
        ],
    ),
    "SentenceTransformer-bert-lstm": _Kind(
        SentenceTransformer, "bert", behind=lambda: [LSTM(WIDTH, WIDTH), Pooling(2 * WIDTH)]
    ),
    **{
        f"CrossEncoder-{name}": _Kind(
            CrossEncoder, name, "sequence-classification", "AutoModelForSequenceClassification", list
        )
        for name in ("bert", "roberta", "distilbert", "modernbert")
    },
    "SparseEncoder-bert": _Kind(SparseEncoder, "bert", "fill-mask", "AutoModelForMaskedLM", lambda: [SpladePooling()]),
    "SparseEncoder-distilbert-log1p": _Kind(
        SparseEncoder,
        "distilbert",
        "fill-mask",
        "AutoModelForMaskedLM",
        lambda: [SpladePooling(activation_function="log1p_relu")],
    ),
    "SparseEncoder-bert-auto-encoder": _Kind(
        SparseEncoder, "bert", behind=lambda: [Pooling(WIDTH), SparseAutoEncoder(WIDTH, 2 * WIDTH, k=4, k_aux=8)]
    ),
}


def names() -> Sequence[str]:
    return tuple(_MODELS)


def build(name: str) -> Ways:
    yield lambda: _made(_MODELS[name]), _inputs


def _made(kind: _Kind) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(kind.model_type)
        Shrinker().shrink(config)
        config.num_labels = 1
        getattr(transformers, kind.auto).from_config(config).save_pretrained(folder)
        words = {"[PAD]": 0, "[UNK]": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")),
            pad_token="[PAD]",
            unk_token="[UNK]",
        ).save_pretrained(folder)
        first = Transformer(folder, transformer_task=kind.task)
        return kind.whole(modules=[first, *kind.behind()], device="cpu")


def _inputs(_: nn.Module) -> dict[str, Any]:
    ids = torch.randint(4, VOCABULARY // 2, (1, TEXT_LENGTH))
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"input": {**features, "sentence_lengths": torch.tensor([TEXT_LENGTH])}}
