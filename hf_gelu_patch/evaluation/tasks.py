"""What a model is asked, by task: rows of data to batches, a batch to logits, logits to an outcome for each example.

Batches are formed once from all the examples, in an order and of a size that do not depend on how many processes
there are; whoever runs one computes the same bits. Nothing is drawn at random that a row's number does not settle.
"""

from __future__ import annotations

import copy
import io
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.data import PROBLEM, EvaluationError, first_line
from hf_gelu_patch.evaluation.heads import IGNORED, MAX_LOGITS, head_of, read_logits
from hf_gelu_patch.evaluation.heads import label_columns as _label_columns
from hf_gelu_patch.evaluation.labels import BadLabelError, LabelsError, as_number
from hf_gelu_patch.evaluation.limits import Limits
from hf_gelu_patch.evaluation.loading import (
    Subject,
    check_vocabulary,
    load_metric,
    own_file,
    own_task,
    task_info,
)
from hf_gelu_patch.evaluation.quality import (
    ClassificationMetric,
    LanguageModelMetric,
    Outcome,
    SequenceMetric,
    SimilarityMetric,
)
from hf_gelu_patch.evaluation.records import rows_digest, text_digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

__all__ = ["Batch", "Prediction", "Task", "make_task"]

_MAX_LENGTH = 512
_DECODED = 32  # tokens, at most, in a timed generation from running text
_MASKED = 0.15  # of a text's tokens
_LAST_OF_UTF8 = (0x7F, 0x7FF, 0xFFFF)  # the last characters that take one, two and three bytes
_SIDES = ("first.", "second.")  # what the inputs of each text of a pair begin with
_MAX_NAME = 4096  # characters in the name of a file
_PROBE = 200  # characters of a text that tell what a tokenizer puts around it


@dataclass(frozen=True)
class Batch:
    """Some examples, ready for the model.

    Attributes:
        ids: which examples, as numbered in the task.
        inputs: keyword arguments of the model; of a pair of texts that are embedded, those of each under its name.
        targets: [examples, positions], the right answers; −100 where there is none. Where a task has none at all, 0
            at each position that is compared.
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
        metric: how its outcomes are measured; None where there is no right answer to measure them by.
        generates: whether there is something to generate, with ``generate``.
        softmax: whether the softmax of what ``forward`` gives means something: it does of logits, not of features.
        output: what ``forward`` gives, in a word.
        limits: what the model takes.
        examples: encoded, in the order of the data, without the rows that were left out.
        skipped: each row that was left out, counted from 1, and why.
        asked: a hash of the rows that count, as they stand in the data.
        extra: another metric to measure predictions and references by.
    """

    unit = "examples"
    metric: type[Any] | None = None
    generates: ClassVar[bool] = False
    softmax: bool = True
    output: str = "logits"
    limits_rows: ClassVar[bool] = True
    """Whether a limit is one of rows, rather than of what they are cut into."""
    names_files: ClassVar[bool] = False
    """Whether a text in the data may be the name of a file."""

    def __init__(
        self,
        subject: Subject,
        config: Any,
        processor: Any,
        data: datasets.Dataset,
        limit: int | None = None,
        *,
        limits: Limits,
        skip_bad_rows: bool = False,
    ) -> None:
        self.subject = subject
        self.config = config
        self.limits = limits
        self.processor = processor
        self.extra = None
        self._skip_bad_rows = skip_bad_rows
        self._bad: dict[int, str] = {}
        self.examples: list[dict[str, Any]] = self.encode(data, limit)
        self.asked = self.digest(_first(data, limit) if self.limits_rows else data)
        self.skipped = tuple((row + 1, reason) for row, reason in sorted(self._bad.items()))
        if not self.examples:
            raise self._nothing_left()
        self._check_known()
        if subject.metric is not None:
            if self.metric is None:
                raise EvaluationError(f"{subject.task} has no right answers to measure by: drop --metric.")
            self.extra = load_metric(subject.metric, allow_download=subject.allow_download)

    @abstractmethod
    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        """The examples in the first ``limit`` rows (or the first ``limit`` blocks of running text).

        Raises:
            EvaluationError: a row holds what the task cannot take, and is not to be skipped; the message names it.
        """

    @abstractmethod
    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch: ...

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        """What the metric takes, an entry for each example: of all examples, in their order."""
        del outcomes
        return {}

    def pairs(self, outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
        """The predictions, and the references they are held to, as any other metric takes them."""
        columns = self.columns(outcomes)
        return columns["predictions"].tolist(), columns["references"].tolist()

    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The task's metrics by name, and the other metric's numbers.

        Raises:
            EvaluationError: the other metric does not take what this task predicts.
        """
        found: dict[str, float] = {} if self.metric is None else self.metric.measure(**self.columns(outcomes))
        if self.extra is None:
            return found
        predictions, references = self.pairs(outcomes)
        try:
            others = self.extra.compute(predictions=predictions, references=references) or {}
        except Exception as error:  # it is someone else's code
            raise EvaluationError(
                f"the metric {self.subject.metric} cannot measure what {self.subject.task} predicts: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        for name, value in others.items():
            if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                found[name if name not in found else f"{self.extra.name}.{name}"] = float(value)
        return found

    def describe(self, example: int) -> str:
        """A short text by which people know an example: the beginning of what the model is given."""
        return _shortened(self.examples[example]["shown"])

    def place(self, example: int) -> str:
        """Where an example stands: its row in the data, counted from 1, or its block of running text."""
        row = self.examples[example].get("row")
        return (
            f"{self.subject.name}: {self.subject.data}: {f'block {example + 1}' if row is None else f'row {row + 1}'}"
        )

    def named(self, answer: str) -> str:
        """An answer as people know it: what a label or a token is called."""
        return answer

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        """What the examples of one batch have in common."""
        del example
        return ()

    def size(self, example: dict[str, Any]) -> int:
        """How long an example is: like lengths go into one batch."""
        return len(example.get("input_ids", ()))

    def logits_per_example(self) -> int:
        """How many numbers the logits of the largest example have."""
        return int(getattr(self.config, "num_labels", 1))

    def batch_size(self) -> int:
        """32, or fewer where a batch's logits would take more than 128 MB in float32."""
        return max(1, min(32, MAX_LOGITS // max(1, self.logits_per_example())))

    def alone(self, example: int) -> Batch:
        """One example, with nothing beside it."""
        return self.collate((example,), [self.examples[example]])

    def batches(self, size: int) -> list[Batch]:
        """All examples in batches of ``size`` or less, of one shape each, the longest first: the same for any number of
        processes."""
        shapes = [self.shape(example) for example in self.examples]
        order = sorted(range(len(self.examples)), key=lambda i: (shapes[i], -self.size(self.examples[i]), i))
        alike = (tuple(group) for _, group in itertools.groupby(order, shapes.__getitem__))
        cut = (ids[start : start + size] for ids in alike for start in range(0, len(ids), size))
        return [self.collate(ids, [self.examples[i] for i in ids]) for ids in cut]

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Logits [examples, positions, classes]. What is timed."""
        logits: Tensor = model(**batch.inputs).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        """Run the model, and read off an outcome for each example."""
        logits = self.forward(model, batch)
        return Prediction(logits, tuple(Outcome(*read) for read in read_logits(logits, batch.targets)))

    def digest(self, data: datasets.Dataset) -> str:
        """A hash of the columns that count: of inputs and right answers as they were before anything was made of
        them."""
        return rows_digest(data, [*dict.fromkeys(self.subject.columns)], self.file)

    def file(self, name: str) -> Path | None:
        """The file of that name, beside the data or from here; None where there is none."""
        if not self.names_files or len(name) > _MAX_NAME:
            return None
        try:
            return next((path for path in _places(name, self.subject.data) if path.is_file()), None)
        except (OSError, ValueError):  # it is no name of a file
            return None

    def without(self, failed: Mapping[int, str]) -> Task:
        """The same task without the rows of examples that the model fails on, which ``skipped`` then has too.

        Args:
            failed: how it fails, by example.

        Raises:
            EvaluationError: bad rows are not to be skipped, or none is left; running text has no rows to leave out.
        """
        kept = copy.copy(self)
        kept._bad = dict(self._bad)
        for example, reason in sorted(failed.items()):
            row = self.examples[example].get("row")
            if row is None:
                raise EvaluationError(
                    f"{self.place(example)} {reason}. Mend the text there, or take a smaller --max_length."
                )
            kept.leave_out(row, reason)
        kept.examples = [example for example in self.examples if example.get("row") not in kept._bad]
        kept.skipped = tuple((row + 1, reason) for row, reason in sorted(kept._bad.items()))
        if not kept.examples:
            raise kept._nothing_left()
        return kept

    def _nothing_left(self) -> EvaluationError:
        [(row, reason), *_] = self.skipped
        return EvaluationError(f"{self.subject.name}: {self.subject.data}: no row can be used; row {row} {reason}.")

    def _check_known(self) -> None:
        """See that there is some word in the data that the tokenizer knows."""
        texts = [example.get("shown_ids", example["input_ids"]) for example in self.examples if "input_ids" in example]
        if not texts:
            return
        special, unknown = set(self.processor.all_special_ids), getattr(self.processor, "unk_token_id", None)
        if not all(token in special for ids in texts for token in ids):
            return
        if not any(unknown in ids for ids in texts):
            raise EvaluationError(
                f"{self.subject.name}: {self.subject.data}: no row has a word in the column "
                f"{self.subject.input_column!r}: name the right one with --input_column."
            )
        if unknown is not None:
            raise EvaluationError(
                f"every word of {self.subject.data} is unknown to the tokenizer of {self.subject.name} "
                f"({self.processor.unk_token}): save the model's own tokenizer to its folder, or name the right column "
                "with --input_column."
            )

    # What follows is for the tasks' own ``encode``.

    def leave_out(self, row: int, reason: str) -> None:
        """Note a bad row, counted from 0.

        Raises:
            EvaluationError: bad rows are not to be skipped.
        """
        if not self._skip_bad_rows:
            raise EvaluationError(
                f"{self.subject.name}: {self.subject.data}: row {row + 1} {reason}. "
                "Mend the row or remove it, or leave such rows out with --skip_bad_rows."
            )
        self._bad.setdefault(row, reason)

    def rows(self, data: datasets.Dataset) -> list[int]:
        """The rows that could be read."""
        if PROBLEM not in data.column_names:
            return list(range(len(data)))
        problems = data[PROBLEM][:]
        for row, reason in enumerate(problems):
            if reason is not None:
                self.leave_out(row, reason)
        return [row for row, reason in enumerate(problems) if reason is None]

    def texts(self, data: datasets.Dataset, column: str | None, rows: Iterable[int]) -> dict[int, str]:
        """The texts of a column, by row."""
        values = data[column][:]
        found = {}
        for row in rows:
            if isinstance(values[row], str):
                found[row] = values[row]
            else:
                self.leave_out(row, f"of the column {column!r} is no text: {_shortened(repr(values[row]))}")
        return found

    def tokens(self, rows: Sequence[int], texts: Mapping[int, str], **options: Any) -> dict[int, dict[str, Any]]:
        """What the tokenizer makes of texts that will stand in batches, by row: there has to be something of each."""
        given = [texts[row] for row in rows]
        if not given:
            return {}
        encoded = self.processor(given, truncation=True, max_length=self.length(), **options)
        found = {}
        for number, row in enumerate(rows):
            tokens = {key: encoded[key][number] for key in encoded if self.limits.takes(key)}
            trouble = self.limits.trouble(tokens) if tokens["input_ids"] else "has no tokens"
            if trouble is None:
                found[row] = tokens
            else:
                self.leave_out(row, trouble)
        return found

    def length(self) -> int:
        """Tokens in an example: as asked for, within what the model has positions for."""
        asked = self.subject.max_length
        own = self.limits.positions or getattr(self.config.get_text_config(), "max_position_embeddings", None)
        own = own or _MAX_LENGTH
        most = min(own if own > 0 else _MAX_LENGTH, self.processor.model_max_length)  # XLNet has −1 for none
        if asked is not None and asked > most:
            raise EvaluationError(f"{self.subject.name} takes at most {most} tokens: --max_length {asked} is too long.")
        return int(asked or min(most, _MAX_LENGTH))

    def padded(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """What the tokenizer made of some examples, filled up to one length.

        Raises:
            EvaluationError: there is something to fill up, and no token to do it with.
        """
        rows = [example["tokens"] for example in examples]
        uneven = len({len(row["input_ids"]) for row in rows}) > 1
        if uneven and self.processor.pad_token is None:
            raise EvaluationError(
                f"the tokenizer of {self.subject.name} has no padding token, and a batch has texts of several lengths: "
                "set tokenizer.pad_token and save it to the checkpoint's folder, or evaluate with "
                "--per_device_eval_batch_size 1."
            )
        return dict(self.processor.pad(rows, padding=uneven, return_tensors="pt"))

    def stacked(self, rows: Sequence[list[int]], absent: int) -> Tensor:
        """[examples, positions] out of a number for each token, filled up where ``padded`` fills up."""
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=absent, padding_side=self.processor.padding_side)


def _shortened(text: str) -> str:
    text = " ".join(text[:400].split())
    return text if len(text) <= 100 else text[:99] + "…"


def _first(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    return data if limit is None else data.select(range(min(limit, len(data))))


# ----------------------------------------------------------------------------------------------------- classification


class _Classification(Task):
    """A right answer for an example, of the kind that the model's head gives: a label, several, or a number."""

    _likeliest: ClassVar[int | None] = None

    def __init__(self, subject: Subject, config: Any, *arguments: Any, **options: Any) -> None:
        self.head = head_of(config, subject, likeliest=self._likeliest)
        self.metric, self.softmax = self.head.metric, self.head.softmax
        self._answer: Callable[[Any], Any] | None = None
        super().__init__(subject, config, *arguments, **options)

    def answers(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, Any]:
        """The right answers, by row. How a column is to be read is told from the whole of it, once."""
        column = self.subject.target_column
        values = data[column][:]
        if self._answer is None:
            try:
                self._answer = self.head.reader(values, data.features[column])
            except LabelsError as error:
                raise EvaluationError(f"{self.subject.name}: {self.subject.data}, column {column!r}: {error}") from None
        found = {}
        for row in rows:
            try:
                found[row] = self._answer(values[row])
            except BadLabelError as error:
                self.leave_out(row, str(error))
        return found

    def logits_per_example(self) -> int:
        return self.head.outputs

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return super().forward(model, batch)[:, None, :]

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        if logits.shape[2:] != (self.head.outputs,):
            raise EvaluationError(
                f"{self.subject.name} gives {list(logits.shape[2:])} numbers an example, where num_labels in its "
                f"config says {self.head.outputs}: mend config.json."
            )
        return Prediction(logits, tuple(self.head.outcomes(logits[:, 0], self._right(batch.ids))))

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        return self.head.columns(outcomes, self._right(range(len(outcomes))))

    def pairs(self, outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
        return self.head.pairs(self.columns(outcomes))

    def named(self, answer: str) -> str:
        return self.head.named(answer)

    def _right(self, ids: Iterable[int]) -> list[Any]:
        return [self.examples[example]["label"] for example in ids]


class TextClassification(_Classification):
    """A text, or a pair of texts, and what is right of it."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        every, data = data, _first(data, limit)
        texts = self.texts(data, self.subject.input_column, self.rows(data))
        options = {}
        if self.subject.second_column is not None:
            seconds = self.texts(data, self.subject.second_column, texts)
            texts = {row: texts[row] for row in seconds}
        labels = self.answers(every, texts)
        if self.subject.second_column is not None:
            options["text_pair"] = [seconds[row] for row in labels]
        encoded = self.tokens(list(labels), texts, **options)
        return [
            {"row": row, "tokens": tokens, "input_ids": tokens["input_ids"], "label": labels[row], "shown": texts[row]}
            for row, tokens in encoded.items()
        ]

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        return Batch(ids, self.padded(examples), self.head.targets([e["label"] for e in examples]), len(ids))


class ImageClassification(_Classification):
    """An image and what is right of it; where there are more than five labels, the five likeliest are looked at too."""

    _likeliest = 5

    names_files = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        first = _first(data, limit)
        labels = self.answers(data, self.rows(first))
        return [{**image, "label": labels[row]} for row, image in _pixels(self, first, labels).items()]

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        targets = self.head.targets([example["label"] for example in examples])
        return Batch(ids, _stacked(self, examples), targets, len(ids))

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return _sizes(example)


def _pixels(task: Task, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The images of the rows as the image processor makes them, by row."""
    column = task.subject.input_column
    try:
        stored = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow and datasets each have their own
        raise EvaluationError(
            f"{task.subject.data}: the column {column!r} does not hold images ({first_line(error)}). "
            "Name the one that does with --input_column."
        ) from error
    found: dict[int, dict[str, Any]] = {}
    held: dict[int, tuple[Image, str]] = {}

    def process() -> None:
        for row, pixels in _processed(task, held).items():
            found[row] = {"row": row, "pixels": pixels, "shown": held[row][1]}
        held.clear()

    for row in rows:
        value = stored[row][column] or {}
        name = value.get("path") or f"image in row {row + 1}"
        try:
            held[row] = (_image(value, task.subject.data), name)
        except Exception as error:  # pillow has many
            task.leave_out(row, f"holds no image that can be read ({name}: {first_line(error)})")
        if len(held) == 64:
            process()
    process()
    return found


def _places(name: str | Path, data: Path | str) -> tuple[Path, Path]:
    """Where a file that the data name may be: beside them, or from here."""
    return Path(data).parent / name, Path(name)


def _processed(task: Task, held: Mapping[int, tuple[Image, str]]) -> dict[int, dict[str, Tensor]]:
    """What the image processor makes of some images, by row: of all together, or of each by itself where they come out
    at sizes of their own, or one is more than it can take."""

    def made(images: Sequence[Image]) -> list[dict[str, Tensor]]:
        tensors = {
            name: value
            for name, value in task.processor(images, return_tensors="pt").items()
            if isinstance(value, Tensor) and len(value) == len(images) and task.limits.takes(name)
        }
        return [{name: value[number] for name, value in tensors.items()} for number in range(len(images))]

    images = [image for image, _ in held.values()]
    try:
        return dict(zip(held, made(images), strict=True)) if images else {}
    except Exception:  # each image processor has its own
        found = {}
        for row, (image, name) in held.items():
            try:
                [found[row]] = made([image])
            except Exception as error:
                size = f"{image.width} × {image.height}"
                task.leave_out(
                    row, f"holds an image that the image processor cannot take ({name}, {size}: {first_line(error)})"
                )
        return found


def _image(value: dict[str, Any], data: Path | str) -> Image:
    """The picture, in RGB and the right way up. A path is from here or from the data file."""
    from PIL import Image, ImageOps

    content, path = value.get("bytes"), Path(value.get("path") or "")
    if content is None:
        if value.get("path") is None:
            raise ValueError("there is none")
        content = next((one for one in _places(path, data) if one.is_file()), path).read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        turned: Image.Image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))  # Pillow would cut off at 255
        elif image.mode in ("I", "F"):
            raise ValueError(f"its mode {image.mode} has no range that is known: save it with 8 or 16 bits a channel")
        return turned.convert("RGB")


def _stacked(task: Task, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What was made of their images, numbers in the model's dtype."""
    dtype = task.config.dtype if isinstance(task.config.dtype, torch.dtype) else torch.float32
    tensors = {name: torch.stack([e["pixels"][name] for e in examples]) for name in examples[0]["pixels"]}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def _sizes(example: dict[str, Any]) -> tuple[Any, ...]:
    """Of what was made of an image: those of one batch have to be alike."""
    return tuple((name, tuple(value.shape)) for name, value in sorted(example.get("pixels", {}).items()))


# ------------------------------------------------------------------------------------------------------------ features


class SentenceSimilarity(Task):
    """Two texts and a score of how alike they are. The model's answer is the cosine of their embeddings, each the mean
    of the last hidden state over the tokens that are no padding (Reimers & Gurevych 2019): of an encoder and decoder
    the encoder's (Ni et al. 2021), of an image and a text tower the text's. The embeddings stand where other tasks have
    logits: two positions for each example."""

    metric = SimilarityMetric
    softmax = False
    output = "embeddings"

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        first = self.texts(data, self.subject.input_column, self.rows(data))
        second = self.texts(data, self.subject.second_column, first)
        scores = data[self.subject.target_column][:]
        right = {}
        for row in second:
            number = as_number(scores[row])
            if number is None:
                self.leave_out(row, f"has no score that is a number: {scores[row]!r}")
            else:
                right[row] = number
        one = self.tokens(list(right), first)
        two = self.tokens(list(one), second)
        return [
            {
                "row": row,
                "pair": (one[row], two[row]),
                "input_ids": max(one[row]["input_ids"], two[row]["input_ids"], key=len),
                "score": right[row],
                "shown": f"{_shortened(first[row])} | {_shortened(second[row])}",
            }
            for row in two
        ]

    def logits_per_example(self) -> int:
        return 2 * int(self.config.get_text_config().hidden_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        inputs = {
            f"{side}{name}": value
            for which, side in enumerate(_SIDES)
            for name, value in self.padded([{"tokens": example["pair"][which]} for example in examples]).items()
        }
        return Batch(ids, inputs, torch.zeros(len(ids), 2, dtype=torch.long), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        embeddings = []
        embed = model.get_encoder() if self.config.is_encoder_decoder else _tower(model, "text")
        for side in _SIDES:  # one after the other: the texts of a pair are not to be filled up to each other's length
            inputs = {name.removeprefix(side): value for name, value in batch.inputs.items() if name.startswith(side)}
            states: Tensor = embed(**inputs).last_hidden_state
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).to(states.dtype)
            weights = mask / mask.sum(1, keepdim=True)
            embeddings.append((weights[:, None, :] @ states)[:, 0])
        return torch.stack(embeddings, dim=1)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        embeddings = self.forward(model, batch)
        one, two = embeddings.double().unbind(1)
        cosines = torch.cosine_similarity(one, two, dim=-1).tolist()
        return Prediction(embeddings, tuple(Outcome((), (), 0.0, 0, score=cosine) for cosine in cosines))

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        return {
            "predictions": np.array([outcome.score for outcome in outcomes], dtype=np.float64),
            "references": np.array([example["score"] for example in self.examples], dtype=np.float64),
        }


def _tower(model: PreTrainedModel, kind: str) -> Callable[..., Any]:
    """What has hidden states of a "text" or an "image": the model, or one of its two towers."""
    features: Callable[..., Any] = getattr(model, f"get_{kind}_features", model)
    return features


class FeatureDrift(Task):
    """Texts, or images, without right answers: the last hidden states stand where other tasks have logits, at each
    token that is no padding. An image's are one position. Of a model with a tower for each, the data say which."""

    softmax = False
    output = "features"
    names_files = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        rows = self.rows(data)
        self.processor, images = self._reader(data, rows)
        if images:
            return list(_pixels(self, data, rows).values())
        check_vocabulary(self.processor, self.subject.name)
        texts = self.texts(data, self.subject.input_column, rows)
        return [
            {"row": row, "tokens": tokens, "input_ids": tokens["input_ids"], "shown": texts[row]}
            for row, tokens in self.tokens(list(texts), texts).items()
        ]

    def _reader(self, data: datasets.Dataset, rows: Sequence[int]) -> tuple[Any, bool]:
        """The tokenizer or the image processor, and whether it is the latter: of a processor with both the one that the
        first row is for, which is an image, the path of a file, or a text."""
        column = self.subject.input_column
        is_image = isinstance(data.features[column], datasets.Image)
        if hasattr(self.processor, "pad_token"):
            if is_image:
                raise EvaluationError(
                    f"{self.subject.data}: the column {column!r} holds images, and {self.subject.name} has a tokenizer "
                    "alone: save its image processor to its folder, or name a column of texts with --input_column."
                )
            return self.processor, False
        tokenizer, images = (getattr(self.processor, name, None) for name in ("tokenizer", "image_processor"))
        if tokenizer is None or images is None:
            return tokenizer or images or self.processor, tokenizer is None
        if not is_image and rows:
            value = data[rows[0]][column]
            is_image = isinstance(value, dict | bytes) or (isinstance(value, str) and self.file(value) is not None)
        return (images if is_image else tokenizer), is_image

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return _sizes(example)

    def logits_per_example(self) -> int:
        return self.size(self.examples[0]) * int(getattr(self.config.get_text_config(), "hidden_size", 1024))

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        if "pixels" in examples[0]:
            return Batch(ids, _stacked(self, examples), torch.zeros(len(ids), 1, dtype=torch.long), len(ids))
        inputs = self.padded(examples)
        if self.config.is_encoder_decoder and self.limits.takes("decoder_input_ids"):
            inputs |= {f"decoder_{name}": inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return Batch(ids, inputs, self.stacked([[0] * self.size(example) for example in examples], IGNORED), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        images = "pixel_values" in batch.inputs
        states: Tensor = _tower(model, "image" if images else "text")(**batch.inputs).last_hidden_state
        return states.flatten(1)[:, None] if images else states

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        return Prediction(self.forward(model, batch), (Outcome((), (), 0.0, 0),) * len(batch.ids))


# ---------------------------------------------------------------------------------------------------- language models


class _LanguageModel(Task):
    """Tokens that are to be told from others."""

    unit = "tokens"
    limits_rows = False
    metric = LanguageModelMetric

    def logits_per_example(self) -> int:
        return max(map(self.size, self.examples)) * int(self.config.get_text_config().vocab_size)

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        return _token_columns(outcomes)

    def pairs(self, outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
        return _token_pairs(outcomes)

    def describe(self, example: int) -> str:
        return _shortened(self.processor.decode(self.examples[example]["input_ids"][:100]))

    def named(self, answer: str) -> str:
        return repr(self.processor.decode([int(answer)]))


def _token_columns(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
    hits = [sum(a == b for a, b in zip(o.answers, o.targets, strict=True)) for o in outcomes]
    return {
        "losses": np.array([outcome.loss for outcome in outcomes], dtype=np.float64),
        "tokens": np.array([outcome.tokens for outcome in outcomes], dtype=np.int64),
        "hits": np.array(hits, dtype=np.int64),
    }


def _token_pairs(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
    """Token by token."""
    return (
        [answer for outcome in outcomes for answer in outcome.answers],
        [target for outcome in outcomes for target in outcome.targets],
    )


def _frame(tokenizer: Any, texts: Iterable[str]) -> tuple[int, int]:
    """How many tokens a tokenizer puts before a text, and how many behind it: told from the first text of which it
    makes any. Without one, all of them are before."""
    around = 0
    for text in texts:
        piece = text.strip()[:_PROBE]
        bare, whole = (tokenizer(piece, add_special_tokens=own, verbose=False)["input_ids"] for own in (False, True))
        around = len(whole) - len(bare)
        for before in range(around + 1) if bare else ():
            if whole[before : before + len(bare)] == bare:
                return before, around - before
    return around, 0


class MaskedLM(_LanguageModel):
    """Texts of which 15 % of the tokens (at least one), drawn by the example's number, are hidden behind the mask token
    and have to be told (Devlin et al. 2018, all of those drawn masked). A text longer than ``max_length`` gives several
    examples, each between what the tokenizer puts around a text: none of it is left out."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        if self.processor.mask_token_id is None:
            raise EvaluationError(f"the tokenizer of {self.subject.name} has no mask token: it is for another --task.")
        texts = self.texts(data, self.subject.input_column, self.rows(data))
        before, behind = _frame(self.processor, texts.values())
        room = self.length() - before - behind
        if room < 1:
            raise EvaluationError(
                f"{before + behind} tokens of {self.length()} are the tokenizer's own, which leaves none for the text: "
                "take a larger --max_length."
            )
        examples: list[dict[str, Any]] = []
        for row, text in texts.items():
            if limit is not None and len(examples) >= limit:
                break
            encoded = {key: ids for key, ids in self.processor(text, verbose=False).items() if self.limits.takes(key)}
            end = len(encoded["input_ids"]) - behind
            shown = {**encoded, "input_ids": [*encoded["input_ids"], self.processor.mask_token_id]}
            trouble = self.limits.trouble(shown) if end > before else "has no tokens"
            if trouble is not None:
                self.leave_out(row, trouble)
                continue
            for start in range(before, end, room):
                stop = min(start + room, end)
                kept = [*range(before), *range(start, stop), *range(end, end + behind)]
                tokens = {key: [values[place] for place in kept] for key, values in encoded.items()}
                masked = self._masked(tokens, range(before, before + stop - start), len(examples))
                examples.append({"row": row, **masked})
        return examples[:limit]

    def _masked(self, tokens: dict[str, Any], places: Sequence[int], example: int) -> dict[str, Any]:
        chosen = random.Random(f"masked-lm {example}").sample(places, max(1, round(_MASKED * len(places))))
        ids, targets = list(tokens["input_ids"]), [IGNORED] * len(tokens["input_ids"])
        for place in chosen:
            targets[place], ids[place] = ids[place], self.processor.mask_token_id
        whole = tokens["input_ids"]
        return {"tokens": {**tokens, "input_ids": ids}, "input_ids": ids, "targets": targets, "shown_ids": whole}

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        targets = self.stacked([example["targets"] for example in examples], IGNORED)
        return Batch(ids, self.padded(examples), targets, sum(map(self.size, examples)))

    def describe(self, example: int) -> str:
        return _shortened(self.processor.decode(self.examples[example]["shown_ids"][:100]))


class CausalLM(_LanguageModel):
    """Running text, cut into blocks of ``max_length`` tokens without overlap, the rest dropped. With a stride, a window
    of ``max_length`` tokens moves on by it to the end of the text, and every token is an answer once: in the first
    window that reaches it, where as many stand before it as can (https://huggingface.co/docs/transformers/perplexity).

    What the tokenizer puts before a text (BOS) stands before each block and window, so that the first token of the text
    there is an answer too; where it puts nothing, a block's first token is none, nor is the text's under a window. What
    it puts behind a text is left out.

    Attributes:
        decode_tokens: how many ``generate`` adds.
    """

    generates = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        texts = self.texts(data, self.subject.input_column, self.rows(data))
        opening, tokens, sizes = self._tokens("\n\n".join(texts.values()))
        if (trouble := self.limits.trouble({"input_ids": opening + tokens})) is not None:
            raise EvaluationError(f"{self.subject.name}: the text of {self.subject.data} {trouble}.")
        window, least = self.length(), max(len(opening), 1)  # tokens that stand before the first answer
        room = min(window - len(opening), len(tokens))
        length = len(opening) + max(room, 0)
        if length <= least:
            raise EvaluationError(
                f"{self.subject.data}: perplexity needs {least + 1} tokens or more in a block, and there are {length}: "
                "give it more text, or a larger --max_length."
            )
        stride = self.subject.stride
        if stride is not None and not 1 <= stride <= window - least:
            raise EvaluationError(
                f"a window of {window} tokens that moves on by {stride} leaves tokens out, for each is told from those "
                f"before it: take a --stride of 1 to {window - least}."
            )
        self.decode_tokens = min(_DECODED, length - length // 2)
        if stride is None:
            starts: Sequence[int] = range(0, len(tokens) - room + 1, room)
        else:
            starts = range(0, max(1, len(tokens) - room + stride), stride)
        examples, told = [], 0
        for start in starts[:limit]:
            block = opening + tokens[start : start + room]
            known = max(len(opening) + told - start, 1)
            told = start + len(block) - len(opening)
            size = float(sizes[start + known - len(opening) : told].sum())
            examples.append({"input_ids": block, "known": known, "bytes": size})
        return examples

    def _tokens(self, text: str) -> tuple[list[int], list[int], np.ndarray[Any, Any]]:
        """What the tokenizer puts before a text, the text's own tokens, and how many of its UTF-8 bytes each stands
        for: those between the end of the token before it and its own. A tokenizer that does not say where its tokens
        stand has them all of one size. They add up to the text's."""
        before, behind = _frame(self.processor, [text])
        fast = bool(self.processor.is_fast)
        encoded = self.processor(text, return_offsets_mapping=fast, verbose=False)
        ids = encoded["input_ids"]
        end = len(ids) - behind
        if not fast:
            return ids[:before], ids[before:end], np.full(end - before, len(text.encode()) / max(1, end - before))
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        reached = np.concatenate([[0], np.cumsum(1 + sum(codes > most for most in _LAST_OF_UTF8))])
        ends = [0, *(place for _, place in encoded["offset_mapping"][before : end - 1]), len(text)]
        return ids[:before], ids[before:end], np.diff(reached[np.maximum.accumulate(ends)])

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        return {**super().columns(outcomes), "bytes": np.array([example["bytes"] for example in self.examples])}

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        windows = [torch.tensor(example["input_ids"]) for example in examples]
        targets = [window.clone() for window in windows]
        for target, example in zip(targets, examples, strict=True):
            target[: example["known"]] = IGNORED
        inputs = {"input_ids": pad_sequence(windows, batch_first=True)}
        units = sum(map(len, windows))
        if units < inputs["input_ids"].numel():  # the text's last window is shorter
            inputs["attention_mask"] = pad_sequence([torch.ones_like(w) for w in windows], batch_first=True)
        return Batch(ids, inputs, pad_sequence(targets, batch_first=True, padding_value=IGNORED)[:, 1:], units)

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return logits[:, :-1]

    def generate(self, model: PreTrainedModel, batch: Batch, new_tokens: int | None = None) -> Tensor:
        """Go on, greedily, from the first half of each block: always by ``decode_tokens``, whatever comes. With one
        new token it is the prefill alone."""
        ids = batch.inputs["input_ids"]
        prompt = ids[:, : max(1, ids.shape[1] // 2)]
        return _generated(model, new_tokens or self.decode_tokens, input_ids=prompt)


def _generated(model: PreTrainedModel, new_tokens: int, **inputs: Tensor) -> Tensor:
    """So many tokens, the likeliest each time, past any end."""
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    options: dict[str, Any] = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0  # never comes up: all go on to the end
    generated: Tensor = model.generate(**inputs, do_sample=False, num_beams=1, **options)  # type: ignore[operator]
    return generated


class Seq2Seq(Task):
    """A text and the text it should become: generated greedily, and, for loss and logits, with the right answer given
    to the decoder token by token, which is also what is timed.

    Attributes:
        new_tokens: generate at most so many where the model's generation config does not say.
        decode_tokens: how many ``generate`` makes: as many as the longest right answer has, at most 32.
    """

    metric = SequenceMetric
    generates = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        data = _first(data, limit)
        sources = self.texts(data, self.subject.input_column, self.rows(data))
        targets = self.texts(data, self.subject.target_column, sources)
        encoded = self.tokens(list(targets), sources)
        given = [targets[row] for row in encoded]
        labels = self.processor(text_target=given, truncation=True, max_length=self.length()) if given else {}
        examples = []
        for number, (row, tokens) in enumerate(encoded.items()):
            if not labels["input_ids"][number]:
                self.leave_out(row, "has no tokens in the right answer")
                continue
            examples.append(
                {
                    "row": row,
                    "tokens": {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens},
                    "input_ids": tokens["input_ids"],
                    "labels": labels["input_ids"][number],
                    "target": " ".join(targets[row].split()),
                    "shown": sources[row],
                }
            )
        longest = max((len(example["labels"]) for example in examples), default=1)
        self.new_tokens, self.decode_tokens = longest + 8, min(_DECODED, longest)
        return examples

    def logits_per_example(self) -> int:
        return max(len(example["labels"]) for example in self.examples) * int(self.config.get_text_config().vocab_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        labels = pad_sequence([torch.tensor(e["labels"]) for e in examples], batch_first=True, padding_value=IGNORED)
        return Batch(ids, {**self.padded(examples), "labels": labels}, labels, len(ids))

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
        read = read_logits(logits, batch.targets)
        outcomes = (
            Outcome((" ".join(text.split()),), (self.examples[example]["target"],), loss, tokens)
            for example, text, (_, _, loss, tokens) in zip(batch.ids, texts, read, strict=True)
        )
        return Prediction(logits, tuple(outcomes))

    def generate(self, model: PreTrainedModel, batch: Batch, new_tokens: int | None = None) -> Tensor:
        """Generate greedily, always ``decode_tokens`` of them, whatever comes. With one, it is the prefill (the
        encoder, and the decoder's first step) alone."""
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        return _generated(model, new_tokens or self.decode_tokens, **inputs)

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        return {
            "predictions": np.array([outcome.answers[0] for outcome in outcomes], dtype=object),
            "references": np.array([outcome.targets[0] for outcome in outcomes], dtype=object),
            "losses": np.array([outcome.loss for outcome in outcomes], dtype=np.float64),
            "tokens": np.array([outcome.tokens for outcome in outcomes], dtype=np.int64),
        }


# ------------------------------------------------------------------------------------------------- a task of one's own


class OwnTask(Task):
    """What a user's function ``batch`` makes of rows: see ``loading.own_task``."""

    names_files = True

    def digest(self, data: datasets.Dataset) -> str:
        """Of all columns and of the function's file, which says what becomes of them."""
        columns = [name for name in data.column_names if name != PROBLEM]
        source = Path(self.subject.task).expanduser().read_text(encoding="utf-8")
        return text_digest([source, rows_digest(data, columns, self.file)])

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        self._function: Callable[..., Any] = own_task(self.subject.task)
        self.softmax = task_info(self.subject.task).auto_class != "AutoModel"
        self.output = "logits" if self.softmax else "features"
        data = _first(data, limit)
        examples: list[dict[str, Any]] = []
        for row in self.rows(data):
            values = {name: value for name, value in data[row].items() if name != PROBLEM}
            shown = str(values.get(self.subject.input_column or "", next(iter(values.values()), "")))
            example = {"row": row, "values": values, "shown": shown}
            # Each for itself where bad ones are to be found; else the first, for what is wrong with the function.
            trouble = self._trouble(example) if self._skip_bad_rows or not examples else None
            if trouble is not None:
                self.leave_out(row, trouble)
            else:
                examples.append(example)
        if examples:
            _, targets = self._made(examples[:1])
            self._kind = "none" if targets is None else "one" if targets.dim() == 1 else "many"
            self.metric = {"none": None, "one": ClassificationMetric, "many": LanguageModelMetric}[self._kind]
        return examples

    def _made(self, examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor | None]:
        made = self._function([example["values"] for example in examples], self.processor, self.config)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Mapping):
            raise TypeError("batch has to give two things: a dict of tensors, and the right classes")
        inputs = dict(made[0])
        targets = None if made[1] is None else torch.as_tensor(made[1])
        for name, value in [*inputs.items(), *([] if targets is None else [("the right classes", targets)])]:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(examples):
                raise TypeError(f"{name} is no tensor with a row for each of {len(examples)} rows")
        if targets is not None and (targets.is_floating_point() or targets.dim() > 2):
            raise TypeError(
                "the right classes are no whole numbers, one for each row or one for each position, and a task of "
                "one's own has no others: give None in their place to look at drift and speed alone"
            )
        return inputs, targets

    def _trouble(self, example: dict[str, Any]) -> str | None:
        try:
            self._made([example])
        except Exception as error:  # it is the user's own code
            return f"is more than {self.subject.task} can take: {type(error).__name__}: {first_line(error)}"
        return None

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        try:
            inputs, targets = self._made(examples)
        except Exception as error:  # it is the user's own code
            for example in examples:
                if (trouble := self._trouble(example)) is not None:
                    raise EvaluationError(f"{self.subject.data}: row {example['row'] + 1} {trouble}.") from error
            raise EvaluationError(
                f"{self.subject.task}: batch failed on {len(examples)} rows: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        if targets is None:
            targets = torch.zeros(len(ids), 1, dtype=torch.long)
        return Batch(ids, inputs, targets if targets.dim() == 2 else targets[:, None], len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        output = model(**batch.inputs)
        logits: Tensor | None = getattr(output, "logits", None)
        logits = output.last_hidden_state if logits is None else logits
        return logits if self._kind == "many" else logits.flatten(1)[:, None]

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        if self._kind != "none":
            return super().predict(model, batch)
        return Prediction(self.forward(model, batch), (Outcome((), (), 0.0, 0),) * len(batch.ids))

    def columns(self, outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
        if self._kind == "none":
            return {}
        return _token_columns(outcomes) if self._kind == "many" else _label_columns(outcomes)

    def pairs(self, outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
        return _token_pairs(outcomes)  # an answer for each row, or for each position


_CLASSES: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "sentence-similarity": SentenceSimilarity,
    "masked-lm": MaskedLM,
    "causal-lm": CausalLM,
    "seq2seq": Seq2Seq,
    "image-classification": ImageClassification,
    "feature-drift": FeatureDrift,
}


def make_task(
    subject: Subject,
    config: Any,
    processor: Any,
    data: datasets.Dataset,
    *,
    limit: int | None = None,
    limits: Limits | None = None,
    skip_bad_rows: bool = False,
) -> Task:
    """The subject's task on its data.

    Args:
        config: the model's.
        processor: its tokenizer, or image processor.
        data: from ``load_rows``.
        limit: use the first so many rows, or blocks of text; None for all.
        limits: what the model takes; None where that is not known.
        skip_bad_rows: leave out rows that the task cannot take, and note them in ``Task.skipped``.

    Raises:
        EvaluationError: a row holds what the task cannot take, or the other metric cannot be loaded.
    """
    kind = OwnTask if own_file(subject.task) else _CLASSES[subject.task]
    return kind(subject, config, processor, data, limit, limits=limits or Limits(), skip_bad_rows=skip_bad_rows)
