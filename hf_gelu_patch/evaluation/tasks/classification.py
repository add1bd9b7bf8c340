"""Classification of texts, of images and of sounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.heads import head_of, recorded_columns
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixel_sizes, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.labels import BadLabelError, LabelsError
from hf_gelu_patch.evaluation.tasks.lists import Column
from hf_gelu_patch.evaluation.tasks.sounds import sound_sizes, sounds_of, stacked_sounds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Classification(Task):
    """A right answer for an example, of the kind that the model's head gives: a label, several, or a number."""

    _likeliest: ClassVar[int | None] = None

    def __init__(self, subject: Subject, config: Any, *arguments: Any, **options: Any) -> None:
        self.head = head_of(config, subject, likeliest=self._likeliest)
        self.softmax = self.head.softmax
        self._answer: Callable[[Any], Any] | None = None
        super().__init__(subject, config, *arguments, **options)

    def answers(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, Any]:
        """The right answers, by row. How a column is to be read is told from the whole of it, once."""
        column = self.subject.target_column
        if self._answer is None:
            try:
                self._answer = self.head.reader(Column(data, column), data.features[column])
            except LabelsError as error:
                raise EvaluationError(f"{self.subject.name}: {self.subject.data}, column {column!r}: {error}") from None
        found = {}
        for row, value in self.values(data, column, rows).items():
            try:
                found[row] = self._answer(value)
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

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """The head's own, summed over examples."""
        return self.head.loss(self.forward(model, batch)[:, 0], self._right(batch.ids)), len(batch.ids)

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        return self.head.columns(outcomes, [example["label"] for example in examples])

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        return recorded_columns(outcomes)

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        return self.head.pairs(self.columns(outcomes, examples))

    def named(self, answer: str) -> str:
        return self.head.named(answer)

    def _right(self, ids: Iterable[int]) -> list[Any]:
        return [example["label"] for example in self.examples.some(ids)]


class TextClassification(Classification):
    """A text, or a pair of texts, and what is right of it."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        first = first_rows(data, limit)
        for rows in self.parts(first):
            texts = self.texts(first, self.subject.input_column, rows)
            options = {}
            if self.subject.second_column is not None:
                seconds = self.texts(first, self.subject.second_column, texts)
                texts = {row: texts[row] for row in seconds}
            labels = self.answers(data, texts)
            if self.subject.second_column is not None:
                options["text_pair"] = [seconds[row] for row in labels]
            for row, tokens in self.tokens(list(labels), texts, **options).items():
                ids = tokens["input_ids"]
                yield {"row": row, "tokens": tokens, "input_ids": ids, "label": labels[row], "shown": texts[row]}

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        return Batch(ids, self.padded(examples), self.head.targets([e["label"] for e in examples]), len(ids))


class _OfFiles(Classification):
    """Of images or of sounds; where there are more than five labels, the five likeliest are looked at too."""

    _likeliest = 5

    names_files = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        first = first_rows(data, limit)
        for rows in self.parts(first, AT_A_TIME):
            labels = self.answers(data, rows)
            for row, made in self.made_ready(first, labels).items():
                yield {**made, "label": labels[row]}

    @abstractmethod
    def made_ready(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """What is made of the images or sounds of some rows, by row."""

    @abstractmethod
    def inputs(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """What the model is given of some of them."""

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        targets = self.head.targets([example["label"] for example in examples])
        return Batch(ids, self.inputs(examples), targets, len(ids))


class ImageClassification(_OfFiles):
    """An image and what is right of it; where there are more than five labels, the five likeliest are looked at too."""

    def made_ready(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        return pixels_of(self, data, rows)

    def inputs(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return stacked_pixels(self, examples)

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)


class AudioClassification(_OfFiles):
    """A sound and what is right of it; where there are more than five labels, the five likeliest are looked at too."""

    def made_ready(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        return sounds_of(self, data, rows, self.processor)

    def inputs(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return stacked_sounds(self, self.processor, examples)

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return sound_sizes(self.processor, example)

    def size(self, example: dict[str, Any]) -> int:
        return int(example["size"])
