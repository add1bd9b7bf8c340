"""What a model is asked, by task: rows of data to batches, a batch to logits, logits to an outcome for each example.

Batches are formed once from all the examples, in an order and of a size that do not depend on how many processes
there are; whoever runs one computes the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.loading import EvaluationError, Subject
from hf_gelu_patch.evaluation.quality import ClassificationMetric, LanguageModelMetric, Outcome, SequenceMetric

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Batch", "Prediction", "Task", "make_task"]

_IGNORED = -100
_MAX_LOGITS = 2**25  # numbers in the logits of one batch, 128 MB in float32
_MAX_LENGTH = 512


@dataclass(frozen=True)
class Batch:
    """Some examples, ready for the model.

    Attributes:
        ids: which examples, as numbered in the data.
        inputs: keyword arguments of the model.
        targets: [examples, positions], the right answers; −100 where there is none.
        units: the work in it, in the task's unit.
    """

    ids: tuple[int, ...]
    inputs: dict[str, Tensor]
    targets: Tensor
    units: int

    def to(self, device: torch.device) -> Batch:
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Batch(self.ids, inputs, self.targets.to(device), self.units)


@dataclass(frozen=True)
class Prediction:
    """What a model said of a batch: ``logits`` [examples, positions, classes], and an outcome for each example."""

    logits: Tensor
    outcomes: tuple[Outcome, ...]


class Task(ABC):
    """One task on one subject's data with one model's tokenizer or image processor.

    Attributes:
        unit: what throughput counts.
        examples: encoded, in the order of the data.
    """

    unit = "examples"

    def __init__(
        self, subject: Subject, config: Any, processor: Any, data: datasets.Dataset, limit: int | None
    ) -> None:
        self.subject = subject
        self.config = config
        self.processor = processor
        self.examples: list[dict[str, Any]] = self.encode(data, limit)

    @abstractmethod
    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        """At most ``limit`` examples, the first ones.

        Raises:
            EvaluationError: a row holds what the task cannot take; the message names the row.
        """

    @abstractmethod
    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch: ...

    @abstractmethod
    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]: ...

    def size(self, example: dict[str, Any]) -> int:
        """How long an example is: like lengths go into one batch."""
        return len(example.get("input_ids", ()))

    def logits_per_example(self) -> int:
        """How many numbers the logits of the largest example have."""
        return int(getattr(self.config, "num_labels", 1))

    def batch_size(self) -> int:
        """32, or fewer where a batch's logits would take more than 128 MB in float32."""
        return max(1, min(32, _MAX_LOGITS // max(1, self.logits_per_example())))

    def batches(self, size: int) -> list[Batch]:
        """All examples in batches of ``size``, the longest first: the same for any number of processes."""
        order = sorted(range(len(self.examples)), key=lambda i: (-self.size(self.examples[i]), i))
        cut = (tuple(order[start : start + size]) for start in range(0, len(order), size))
        return [self.collate(ids, [self.examples[i] for i in ids]) for ids in cut]

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Logits [examples, positions, classes]. What is timed."""
        logits: Tensor = model(**batch.inputs).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        """Run the model, and read off an outcome for each example."""
        logits = self.forward(model, batch)
        outcomes = (
            Outcome(answers, tuple(targets.tolist()), loss, len(targets))
            for answers, targets, loss in _read(logits, batch.targets)
        )
        return Prediction(logits, tuple(outcomes))


def _read(logits: Tensor, targets: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor, float]]:
    """For each example: the most likely class at each position that counts, the right ones, and their summed negative
    log-likelihood, in float64."""
    for row, target in zip(logits, targets, strict=True):
        counts = target != _IGNORED
        scores, right = row[counts].double(), target[counts]
        likelihood = scores.log_softmax(-1).gather(-1, right[:, None])
        yield tuple(scores.argmax(-1).tolist()), right.cpu(), -float(likelihood.sum())


class _Classification(Task):
    """One label for an example."""

    def label(self, row: int, value: Any) -> int:
        """A label's id, from its id or its name."""
        known: dict[str, int] = {str(name): int(index) for name, index in (self.config.label2id or {}).items()}
        index = known.get(str(value))
        if index is None:
            try:
                index = int(str(value))
            except ValueError:
                index = -1
        if not 0 <= index < self.config.num_labels:
            names = ", ".join(
                f"{index} ({name})" for name, index in sorted(known.items(), key=lambda item: item[1])[:12]
            )
            raise EvaluationError(
                f"{self.subject.data}: row {row + 1} has the label {value!r}, which the model does not know. "
                f"Its labels: {names}{', …' if len(known) > 12 else ''}."
            )
        return index

    def labels(self, data: datasets.Dataset) -> list[int]:
        column = self.subject.target_column
        feature = data.features[column]
        values = data[column][:]
        if isinstance(feature, datasets.ClassLabel) and set(feature.names) <= set(self.config.label2id):
            values = [feature.int2str(value) for value in values]
        return [self.label(row, value) for row, value in enumerate(values)]

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return super().forward(model, batch)[:, None, :]

    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        return ClassificationMetric.measure(
            predictions=[outcome.answers[0] for outcome in outcomes],
            references=[outcome.targets[0] for outcome in outcomes],
        )


class TextClassification(_Classification):
    """A text and its label."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        texts = _texts(data, self.subject.input_column, self.subject)
        length = _length(self.subject, self.config, self.processor)
        encoded = _tokens(self.processor, self.subject, text=texts, max_length=length)
        return [
            {**{key: encoded[key][row] for key in encoded}, "label": label}
            for row, label in enumerate(self.labels(data))
        ]

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        rows = [{key: value for key, value in example.items() if key != "label"} for example in examples]
        inputs = dict(self.processor.pad(rows, padding=True, return_tensors="pt"))
        return Batch(ids, inputs, torch.tensor([[example["label"]] for example in examples]), len(ids))


class ImageClassification(_Classification):
    """An image and its label."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        column = self.subject.input_column
        try:
            images = [image.convert("RGB") for image in data.cast_column(column, datasets.Image())[column]]
        except Exception as error:  # pyarrow and pillow each have their own
            raise EvaluationError(
                f"{self.subject.data}: the column {column!r} does not hold images ({type(error).__name__}: {error}). "
                "Name the one that does with --input_column."
            ) from error
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        return [{"pixels": image, "label": label} for image, label in zip(pixels, self.labels(data), strict=True)]

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        dtype = self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32
        pixels = torch.stack([example["pixels"] for example in examples]).to(dtype)
        return Batch(
            ids, {"pixel_values": pixels}, torch.tensor([[example["label"]] for example in examples]), len(ids)
        )


class CausalLM(Task):
    """Running text, cut into blocks of ``max_length`` tokens without overlap, the rest dropped. Every token but a
    block's first is an answer."""

    unit = "tokens"

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        text = "\n\n".join(_texts(data, self.subject.input_column, self.subject))
        tokens = self.processor(text, verbose=False)["input_ids"]
        length = min(_length(self.subject, self.config, self.processor), len(tokens))
        if length < 2:
            raise EvaluationError(
                f"{self.subject.data}: perplexity needs two tokens or more in a block, and there are {length}: give it "
                "more text, or a larger --max_length."
            )
        count = len(tokens) // length
        count = count if limit is None else min(count, limit)
        return [{"input_ids": tokens[i * length : (i + 1) * length]} for i in range(count)]

    def logits_per_example(self) -> int:
        return len(self.examples[0]["input_ids"]) * int(self.config.get_text_config().vocab_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        tokens = torch.tensor([example["input_ids"] for example in examples])
        return Batch(ids, {"input_ids": tokens}, tokens[:, 1:], tokens.numel())

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return logits[:, :-1]

    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        return LanguageModelMetric.measure(
            losses=[outcome.loss for outcome in outcomes],
            tokens=[outcome.tokens for outcome in outcomes],
            hits=[sum(a == b for a, b in zip(o.answers, o.targets, strict=True)) for o in outcomes],
        )


class Seq2Seq(Task):
    """A text and the text it should become: generated greedily, and, for loss and logits, with the right answer given
    to the decoder token by token, which is also what is timed.

    Attributes:
        new_tokens: generate at most so many where the model's generation config does not say.
    """

    new_tokens: int

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        column = self.subject.target_column
        assert column is not None
        length = _length(self.subject, self.config, self.processor)
        sources, targets = _texts(data, self.subject.input_column, self.subject), _texts(data, column, self.subject)
        encoded = _tokens(self.processor, self.subject, text=sources, max_length=length)
        labels = _tokens(self.processor, self.subject, text_target=targets, max_length=length)["input_ids"]
        self.new_tokens = max(len(row) for row in labels) + 8
        return [
            {
                "input_ids": encoded["input_ids"][row],
                "attention_mask": encoded["attention_mask"][row],
                "labels": labels[row],
                "target": " ".join(target.split()),
            }
            for row, target in enumerate(targets)
        ]

    def logits_per_example(self) -> int:
        return max(len(example["labels"]) for example in self.examples) * int(self.config.get_text_config().vocab_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        rows = [{key: example[key] for key in ("input_ids", "attention_mask")} for example in examples]
        inputs = dict(self.processor.pad(rows, padding=True, return_tensors="pt"))
        labels = pad_sequence([torch.tensor(e["labels"]) for e in examples], batch_first=True, padding_value=_IGNORED)
        return Batch(ids, {**inputs, "labels": labels}, labels, len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        own = getattr(model.generation_config, "max_new_tokens", None)
        generated = model.generate(  # type: ignore[operator]  # what torch says of any attribute of a module
            **inputs, do_sample=False, num_beams=1, max_new_tokens=own or self.new_tokens
        )
        texts = self.processor.batch_decode(generated, skip_special_tokens=True)
        outcomes = (
            Outcome((" ".join(text.split()),), (self.examples[example]["target"],), loss, len(right))
            for example, text, (_, right, loss) in zip(batch.ids, texts, _read(logits, batch.targets), strict=True)
        )
        return Prediction(logits, tuple(outcomes))

    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        return SequenceMetric.measure(
            predictions=[outcome.answers[0] for outcome in outcomes],
            references=[outcome.targets[0] for outcome in outcomes],
            losses=[outcome.loss for outcome in outcomes],
            tokens=[outcome.tokens for outcome in outcomes],
        )


_CLASSES: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "causal-lm": CausalLM,
    "seq2seq": Seq2Seq,
    "image-classification": ImageClassification,
}


def make_task(
    subject: Subject, config: Any, processor: Any, data: datasets.Dataset, *, limit: int | None = None
) -> Task:
    """The subject's task on its data.

    Args:
        config: the model's.
        processor: its tokenizer, or image processor.
        limit: use the first so many examples (rows, or blocks of text); None for all.

    Raises:
        EvaluationError: a row holds what the task cannot take.
    """
    return _CLASSES[subject.task](subject, config, processor, data, limit)


def _first(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    return data if limit is None else data.select(range(min(limit, len(data))))


def _texts(data: datasets.Dataset, column: str, subject: Subject) -> list[str]:
    texts: list[str] = data[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise EvaluationError(f"{subject.data}: row {row + 1} of the column {column!r} is no text: {text!r}.")
    return texts


def _tokens(tokenizer: Any, subject: Subject, **arguments: Any) -> Any:
    """What the tokenizer makes of texts that will stand in batches: there has to be something of each, and something
    to fill up with."""
    if tokenizer.pad_token is None:
        raise EvaluationError(
            f"the tokenizer of {subject.name} has no padding token, which batches need: set tokenizer.pad_token and "
            "save it to the checkpoint's folder."
        )
    encoded = tokenizer(**arguments, truncation=True)
    for row, tokens in enumerate(encoded["input_ids"]):
        if not tokens:
            raise EvaluationError(f"{subject.data}: row {row + 1} has no tokens: fill it in, or leave it out.")
    return encoded


def _length(subject: Subject, config: Any, tokenizer: Any) -> int:
    """Tokens in an example: as asked for, within what the model has positions for."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None) or _MAX_LENGTH
    most = min(own, tokenizer.model_max_length)
    if subject.max_length is not None and subject.max_length > most:
        raise EvaluationError(
            f"{subject.name} takes at most {most} tokens: --max_length {subject.max_length} is too long."
        )
    return int(subject.max_length or min(most, _MAX_LENGTH))
