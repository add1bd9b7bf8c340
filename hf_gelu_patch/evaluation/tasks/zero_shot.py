"""Classification of images by texts that name the classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, first_rows
from hf_gelu_patch.evaluation.tasks.heads import SingleLabel, recorded_columns
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.labels import Labels, class_names, shown
from hf_gelu_patch.evaluation.tasks.towers import TwoTowers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TEMPLATE = "This is a photo of {}."  # that of transformers' pipeline
_MOST_IMAGES = 256  # in a batch


class ZeroShotImageClassification(TwoTowers):
    """An image, and which of the data's classes it shows: the one whose name in a sentence goes with it best.

    The classes are those that the column's numbers stand for, the names of the folders, or all texts in the column, in
    their order; a "_" in a name is a space. The sentence is ``--hypothesis_template``, with {} for the name.

    Each batch is what the model is asked: so many images, and the sentences of all classes. With many classes, large
    batches take much less time.
    """

    _head: SingleLabel | None = None
    _sentences: Sequence[dict[str, Any]] = ()
    _classes: Sequence[str] = ()

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if self._head is None:
            self._classes = self._named(data)
            self._head = SingleLabel(Labels(self._classes), likeliest=5)
            self._sentences = self._asked()
        first = first_rows(data, limit)
        for rows in self.parts(first, AT_A_TIME):
            labels = self._labels(first, rows)
            for row, image in pixels_of(self, first, labels, self.image_processor).items():
                yield {**image, "label": labels[row]}

    def _named(self, data: datasets.Dataset) -> list[str]:
        """The classes of the whole data."""
        column = str(self.subject.target_column)
        names = class_names(data.features[column])
        if names is None:
            values = [value for value in data[column][:] if isinstance(value, str) and value.strip()]
            names = sorted(set(values))
        if len(names) < 2:
            there = f"one class, {names[0]!r}" if names else "no names of classes"
            raise EvaluationError(
                f"{self.subject.data}: the column {column!r} has {there}, and it takes two or more. Name the right one "
                "with --target_column."
            )
        return names

    def _asked(self) -> list[dict[str, Any]]:
        """The classes in sentences, as the tokenizer makes them."""
        template = self.subject.hypothesis_template or _TEMPLATE
        if "{}" not in template:
            raise EvaluationError(f"--hypothesis_template {template!r} has no {{}} where the name of a class goes.")
        sentences = [template.replace("{}", " ".join(name.replace("_", " ").split())) for name in self._classes]
        encoded = self.processor(sentences, truncation=True, max_length=self.length())
        found = []
        for number, name in enumerate(self._classes):
            tokens = {key: encoded[key][number] for key in encoded if self.limits.takes(key)}
            if (trouble := self.limits.trouble(tokens)) is not None:
                raise EvaluationError(f"{self.subject.name}: the name of the class {name!r} {trouble}.")
            found.append(tokens)
        if len({tuple(one["input_ids"]) for one in found}) == 1:
            raise EvaluationError(
                f"{self.subject.name}: its tokenizer makes the same of all classes ({shown(self._classes)}): it has to "
                "know words of them, among as many tokens as the model takes."
            )
        return found

    def _labels(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, int]:
        known = {name: index for index, name in enumerate(self._classes)}
        found = {}
        for row, value in self.values(data, self.subject.target_column, rows).items():
            label = known.get(value) if isinstance(value, str) else value
            if isinstance(label, int) and 0 <= label < len(self._classes):
                found[row] = label
            else:
                self.leave_out(row, f"has no class in the column {self.subject.target_column!r}: {value!r}")
        return found

    @property
    def head(self) -> SingleLabel:
        assert self._head is not None  # from encode on
        return self._head

    def logits_per_example(self) -> int:
        return len(self._classes)

    def batch_size(self) -> int:
        """As many images as sentences, within 32 and 256: either side of the model then has like work."""
        return min(_MOST_IMAGES, max(32, len(self._classes)))

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        inputs = {**stacked_pixels(self, examples), **self.filled(self._sentences)}
        return Batch(ids, inputs, self.head.targets([example["label"] for example in examples]), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits_per_image
        return logits[:, None, :]

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        right = [example["label"] for example in self.examples.some(batch.ids)]
        return Prediction(logits, tuple(self.head.outcomes(logits[:, 0], right)))

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        return self.head.columns(outcomes, [example["label"] for example in examples])

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        return recorded_columns(outcomes)

    def named(self, answer: str) -> str:
        return self.head.named(answer)
