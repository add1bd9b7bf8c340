"""Objects in images, with the boxes around them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.objects import MOST_BOXES
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows, shortened
from hf_gelu_patch.evaluation.tasks.heads import label_names
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixel_sizes, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.labels import BadLabelError, Labels, LabelsError, as_number, class_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 0.5  # the score from which on a box is an answer that people are told
_BEYOND = 1.1  # a box may reach so far beyond an image: annotations are not exact


class ObjectDetection(Task):
    """An image and the objects in it: ``{"bbox": [[x, y, width, height], …], "category": [label, …]}``, in pixels from
    the upper left corner, as COCO has it; ``iscrowd`` may be there too. A list of ``{"bbox": …, "category": …}`` will
    do, and either as JSON.

    Each image is made ready by itself, and those of one size alone go together: what a batch is filled up with would
    move all boxes near it. Up to 100 boxes an image are recorded, those of the highest scores, and count.

    What people are told as an image's answer, and may be right or wrong, are the labels of the boxes with a score of
    ½ or more, and how many.

    ``forward`` gives the logits and the boxes, [examples, 1, queries · (classes + 4)]. What a softmax of the logits
    means differs from model to model, so it is not looked at.
    """

    softmax = False
    output = "logits and boxes"
    names_files = True
    _label: Callable[[Any], int] | None = None
    _names: Sequence[str] = ()

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if not hasattr(self.processor, "post_process_object_detection"):
            raise EvaluationError(
                f"the image processor of {self.subject.name} makes no boxes of what a model gives "
                "(post_process_object_detection): save the model's own to its folder."
            )
        first = first_rows(data, limit)
        if self._label is None:
            self._label = self._reader(data)
        for rows in self.parts(first, AT_A_TIME):
            objects = self._objects(first, rows, self._label)
            for row, image in pixels_of(self, first, objects, together=1).items():
                trouble = _outside(objects[row]["boxes"], image["size"])
                if trouble is None:
                    yield {**image, "objects": objects[row]}
                else:
                    self.leave_out(row, trouble)

    def _reader(self, data: datasets.Dataset) -> Callable[[Any], int]:
        """What gives the id of the label that a category is, told from the whole column."""
        column = str(self.subject.target_column)
        labels, trouble = [], ""
        for start in range(0, len(data), AT_A_TIME):
            rows = range(start, min(start + AT_A_TIME, len(data)))
            for row, value in self.values(data, column, rows).items():
                try:
                    labels += _read(value)["labels"]
                except ValueError as error:
                    trouble = trouble or f": row {row + 1} holds none, {error}"
        if not labels:
            raise EvaluationError(f"{self.subject.data}: no row has an object to be found{trouble}.")
        self._names = label_names(self.config, self.subject.name, int(self.config.num_labels))
        try:
            return Labels(self._names, self.subject.labels).reader(labels, _classes(data.features[column]))
        except LabelsError as error:
            raise EvaluationError(f"{self.subject.name}: {self.subject.data}, column {column!r}: {error}") from None

    def _objects(
        self, data: datasets.Dataset, rows: Iterable[int], label: Callable[[Any], int]
    ) -> dict[int, dict[str, list[Any]]]:
        """The right boxes, their labels and whether they are crowds, by row."""
        found = {}
        for row, value in self.values(data, self.subject.target_column, rows).items():
            try:
                objects = _read(value)
                found[row] = {**objects, "labels": [label(one) for one in objects["labels"]]}
            except BadLabelError as error:
                self.leave_out(row, str(error))
            except ValueError as error:
                self.leave_out(row, f"holds no objects in the column {self.subject.target_column!r}: {error}")
        return found

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)

    def logits_per_example(self) -> int:
        queries = getattr(self.config, "num_queries", None) or getattr(self.config, "num_detection_tokens", 100)
        return int(queries or 100) * (int(self.config.num_labels) + 5)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        return Batch(ids, stacked_pixels(self, examples), torch.zeros(len(ids), 1, dtype=torch.long), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return _together(model(**batch.inputs))

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        output = model(**batch.inputs)
        examples = self.examples.some(batch.ids)
        sizes = [example["size"] for example in examples]
        plain = SimpleNamespace(logits=output.logits.float(), pred_boxes=output.pred_boxes.float())
        made = self.processor.post_process_object_detection(plain, threshold=0.0, target_sizes=sizes)
        outcomes = [
            self._outcome(one, example["objects"]["labels"]) for one, example in zip(made, examples, strict=True)
        ]
        return Prediction(_together(output), tuple(outcomes))

    def _outcome(self, made: Mapping[str, Tensor], right: Sequence[int]) -> Outcome:
        scores, order = made["scores"].sort(descending=True, stable=True)
        order = order[:MOST_BOXES]
        corners = made["boxes"][order].double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        details = {
            "boxes": boxes.tolist(),
            "scores": scores[:MOST_BOXES].tolist(),
            "labels": made["labels"][order].tolist(),
        }
        said = [label for label, score in zip(details["labels"], details["scores"], strict=True) if score >= _SHOWN]
        return Outcome((self._counted(said),), (self._counted(right),), 0.0, 0, details=details)

    def _counted(self, labels: Sequence[int]) -> str:
        """ "cat, 2 dog": each label, and how many."""
        many = sorted(Counter(self._names[label] for label in labels).items())
        return ", ".join(name if count == 1 else f"{count} {name}" for name, count in many) or "nothing"

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """The model's own, of the best matching (Carion et al. 2020), for each image."""
        labels = []
        for example in self.examples.some(batch.ids):
            (height, width), objects = example["size"], example["objects"]
            boxes = torch.tensor(objects["boxes"], dtype=torch.float32).reshape(-1, 4)
            centred = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
            scaled = (centred / torch.tensor([width, height, width, height])).to(model.device)
            labels.append(
                {
                    "class_labels": torch.tensor(objects["labels"], dtype=torch.long, device=model.device),
                    "boxes": scaled,
                }
            )
        return model(**batch.inputs, labels=labels).loss * len(batch.ids), len(batch.ids)

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        said, right = np.empty(len(outcomes), dtype=object), np.empty(len(outcomes), dtype=object)
        said[:], right[:] = [dict(one.details) for one in outcomes], [example["objects"] for example in examples]
        return {"boxes": {"predictions": said, "references": right}}


def _together(output: Any) -> Tensor:
    """[examples, 1, queries · (classes + 4)]."""
    return torch.cat([output.logits, output.pred_boxes], dim=-1).flatten(1)[:, None]


def _classes(feature: Any) -> list[str] | None:
    """The names that the numbers of categories stand for, where datasets has them."""
    inside = getattr(feature, "feature", feature)
    return class_names(inside["category"]) if isinstance(inside, dict) and "category" in inside else None


def _read(value: Any) -> dict[str, list[Any]]:
    """Boxes, labels and crowds of one image.

    Raises:
        ValueError: they are none; what is wrong with them.
    """
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list):
        if not all(isinstance(one, dict) for one in value):
            raise ValueError(f"it has to be a list of objects, each with bbox and category: {shortened(repr(value))}")
        value = {name: [one.get(name) for one in value] for name in ("bbox", "category", "iscrowd")}
    if not isinstance(value, dict) or value.get("bbox") is None or value.get("category") is None:
        raise ValueError(f"it has to have bbox and category: {shortened(repr(value))}")
    labels = list(value["category"])
    crowds = [int(bool(crowd)) for crowd in value.get("iscrowd") or [0] * len(labels)]
    if not len(value["bbox"]) == len(labels) == len(crowds):
        raise ValueError(f"{len(value['bbox'])} boxes, {len(labels)} categories")
    return {"boxes": [_box(box) for box in value["bbox"]], "labels": labels, "crowds": crowds}


def _box(value: Any) -> list[float]:
    numbers = [as_number(one) for one in value] if isinstance(value, list | tuple) else []
    found = [number for number in numbers if number is not None]
    if len(found) != 4 or len(numbers) != 4 or found[2] <= 0 or found[3] <= 0:
        raise ValueError(f"a box is x, y, width and height, the last two above 0; got {shortened(repr(value))}")
    return found


def _outside(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> str | None:
    """Which box is not in the image, as those of corners are not if they are taken for COCO's, or within its first
    pixel, as fractions of the image's size are; None if all are in the image."""
    height, width = size
    for x, y, wide, high in boxes:
        if max(x, y, wide, high) <= 1:
            return (
                f"holds a box ({x:g}, {y:g}, {wide:g}, {high:g}: x, y, width, height) within the first pixel of its "
                f"image: fractions have to be multiplied by its {width} × {height} pixels"
            )
        if x < -0.1 * width or y < -0.1 * height or x + wide > _BEYOND * width or y + high > _BEYOND * height:
            box = f"{x:g}, {y:g}, {wide:g}, {high:g}"
            return (
                f"holds a box ({box}: x, y, width, height) that reaches beyond its image of {width} × {height} pixels"
            )
    return None
