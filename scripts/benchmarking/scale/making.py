"""A tiny classifier, and as many short texts for it as are asked for."""

from __future__ import annotations

import random
from pathlib import Path

_WORDS = 500
_LONGEST = 8  # words of a text


def write_model(folder: Path) -> Path:
    """BERT with two layers of 32, whose ``gelu_new`` runs as eight operations, and two labels."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(_WORDS))]
    config = transformers.BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        num_hidden_layers=2,
        vocab_size=len(words),
        max_position_embeddings=32,
        hidden_act="gelu_new",
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    model = transformers.BertForSequenceClassification(config)
    for weight in model.parameters():
        weight.data.mul_(6.0) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int) -> Path:
    """So many texts of 1 to 8 words, and a label drawn for each."""
    draw = random.Random(count)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for _ in range(count):
            words = " ".join(f"w{draw.randrange(_WORDS)}" for _ in range(draw.randint(1, _LONGEST)))
            file.write(f"{words},{draw.choice(('no', 'yes'))}\n")
    return path
