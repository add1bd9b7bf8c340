"""The quality of a reference model on its data, read and prepared here for training and evaluation alike."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.reference import Reference

__all__ = ["blocks", "edit_distance", "measure", "read_examples"]

T = TypeVar("T")


def measure(reference: Reference, limit: int | None = None, batch_size: int = 32) -> dict[str, float]:
    """Load the model with the plain Auto classes and measure it in float32 on the CPU.

    Args:
        reference: which one.
        limit: the number of examples (rows, or blocks of text) to use, from the first; None for all.
        batch_size: examples in a batch.

    Returns:
        ``accuracy`` for classification; ``perplexity`` for text, per token of the model's tokenizer;
        ``word_accuracy`` (all phonemes right) and ``phoneme_error_rate`` (edits per phoneme) for pronunciation. All
        are fractions, none is a percentage.
    """
    with torch.inference_mode():
        return _MEASURES[reference.task](reference, limit, batch_size)


def read_examples(reference: Reference) -> list[dict[str, Any]]:
    """The rows of the evaluation data; running text is one row. Labels are integers, images are PIL images."""
    path = reference.data_path()
    if path.suffix == ".txt":
        return [{reference.input_column: path.read_text(encoding="utf-8")}]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        if reference.task == "text-classification":
            for row in rows:
                row["label"] = int(row["label"])
        return rows
    import pyarrow.parquet  # type: ignore[import-untyped]
    from PIL import Image

    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        row[reference.input_column] = Image.open(io.BytesIO(row[reference.input_column]["bytes"]))
    return rows


def blocks(token_ids: Sequence[int], length: int) -> Tensor:
    """Running text as ``[blocks, length]``: cut without overlap, the rest at the end dropped."""
    count = len(token_ids) // length
    return torch.tensor(token_ids[: count * length]).view(count, length)


def edit_distance(left: Sequence[object], right: Sequence[object]) -> int:
    """The fewest insertions, deletions and replacements that make one sequence the other."""
    row = list(range(len(right) + 1))
    for i, item in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (item != other))
    return row[-1]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _targets(rows: Sequence[dict[str, Any]], reference: Reference) -> list[Any]:
    assert reference.target_column is not None
    return [row[reference.target_column] for row in rows]


def _text_classification(reference: Reference, limit: int | None, batch_size: int) -> dict[str, float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(reference.model_path())
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(reference.model_path())
    rows = read_examples(reference)[:limit]
    right = 0
    for batch in _batches(rows, batch_size):
        inputs = tokenizer(
            [row[reference.input_column] for row in batch],
            padding=True,
            truncation=True,
            max_length=reference.max_length,
            return_tensors="pt",
        )
        labels = torch.tensor(_targets(batch, reference))
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return {"accuracy": right / len(rows)}


def _image_classification(reference: Reference, limit: int | None, batch_size: int) -> dict[str, float]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model: Any = AutoModelForImageClassification.from_pretrained(reference.model_path())
    model.eval()
    processor = AutoImageProcessor.from_pretrained(reference.model_path())  # type: ignore[no-untyped-call]
    rows = read_examples(reference)[:limit]
    right = 0
    for batch in _batches(rows, batch_size):
        inputs = processor([row[reference.input_column] for row in batch], return_tensors="pt")
        labels = torch.tensor(_targets(batch, reference))
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return {"accuracy": right / len(rows)}


def _causal_lm(reference: Reference, limit: int | None, batch_size: int) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(reference.model_path())
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(reference.model_path())
    assert reference.max_length is not None
    [row] = read_examples(reference)
    tokens = blocks(tokenizer(row[reference.input_column], verbose=False)["input_ids"], reference.max_length)[:limit]
    total = sum(
        model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in torch.split(tokens, batch_size)
    )
    return {"perplexity": math.exp(total / len(tokens))}


def _seq2seq(reference: Reference, limit: int | None, batch_size: int) -> dict[str, float]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(reference.model_path())
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(reference.model_path())
    rows = read_examples(reference)[:limit]
    edits = phonemes = right = 0
    for batch in _batches(rows, batch_size):
        inputs = tokenizer([row[reference.input_column] for row in batch], padding=True, return_tensors="pt")
        outputs = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        for target, output in zip(_targets(batch, reference), outputs, strict=True):
            distance = edit_distance(output.split(), target.split())
            edits += distance
            phonemes += len(target.split())
            right += distance == 0
    return {"word_accuracy": right / len(rows), "phoneme_error_rate": edits / phonemes}


_MEASURES = {
    "text-classification": _text_classification,
    "image-classification": _image_classification,
    "causal-lm": _causal_lm,
    "seq2seq": _seq2seq,
}
