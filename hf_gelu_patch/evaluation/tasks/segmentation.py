"""What each pixel of an image belongs to."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.images import (
    AT_A_TIME,
    image_bytes,
    pixel_sizes,
    pixels_of,
    stacked_pixels,
    stored_images,
)
from hf_gelu_patch.evaluation.tasks.logits import widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNLABELLED = 255  # in masks, unless the config has another number for it


class SemanticSegmentation(Task):
    """An image, and a mask of the same size that says of each pixel which of the model's labels it has, by its id: an
    image of one channel (or with a palette, whose numbers count).

    Pixels of 255 (``semantic_loss_ignore_index``) count nowhere. Where the image processor has ``do_reduce_labels``, 0
    is such a pixel too, and 1 is the model's first label. The model's logits are made as large as the mask before the
    likeliest label is read off, as the image processor does it.

    An image's score, of which people are told where it moved, is the share of its pixels that are right. ``forward``
    gives the logits of an image as one position, [examples, 1, classes · height · width].
    """

    softmax = False
    names_files = True
    pairable = False

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if not hasattr(self.processor, "post_process_semantic_segmentation"):
            raise EvaluationError(
                f"the image processor of {self.subject.name} makes no mask of what a model gives "
                "(post_process_semantic_segmentation): save the model's own to its folder."
            )
        data = first_rows(data, limit)
        for rows in self.parts(data, AT_A_TIME):
            masks = self._masks(data, rows)
            for row, image in pixels_of(self, data, masks).items():
                own, right = image["size"], masks[row].shape
                if own == right:
                    yield {**image, "mask": masks[row]}
                else:
                    self.leave_out(row, f"holds an image of {own[1]} × {own[0]} and a mask of {right[1]} × {right[0]}")

    def _masks(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, np.ndarray[Any, Any]]:
        """The right labels, [height, width], by row; −1 where there is none."""
        column = str(self.subject.target_column)
        stored = stored_images(self, data, column, "--target_column")
        ignored = getattr(self.config, "semantic_loss_ignore_index", _UNLABELLED)
        found = {}
        for row in rows:
            value = stored[row][column] or {}
            name = value.get("path") or f"mask in row {row + 1}"
            try:
                ids = _ids(image_bytes(value, self.subject.data))
            except Exception as error:  # pillow has many
                self.leave_out(row, f"holds no mask that can be read ({name}: {first_line(error)})")
                continue
            unlabelled = ids == ignored
            if getattr(self.processor, "do_reduce_labels", False):
                unlabelled, ids = unlabelled | (ids == 0), ids - 1
            beyond = ids[~unlabelled & (ids >= int(self.config.num_labels))]
            if len(beyond):
                self.leave_out(
                    row, f"has the label {beyond[0]} in its mask ({name}), and the model has {self.config.num_labels}"
                )
            elif unlabelled.all():
                self.leave_out(row, f"has no labelled pixel in its mask ({name})")
            else:
                found[row] = np.where(unlabelled, -1, ids).astype(np.int16)
        return found

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)

    def logits_per_example(self) -> int:
        height, width = self.examples[0]["pixels"]["pixel_values"].shape[-2:]
        return (
            int(self.config.num_labels) * int(height * width) // 16
        )  # most models' logits are a quarter as high and wide

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        return Batch(ids, stacked_pixels(self, examples), torch.zeros(len(ids), 1, dtype=torch.long), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs).logits
        return logits.flatten(1)[:, None]

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits: Tensor = model(**batch.inputs).logits
        outcomes = []
        for one, example in zip(logits, batch.ids, strict=True):  # an image at a time: each may be large
            mask = self.examples[example]["mask"]
            plain = SimpleNamespace(logits=widened(one[None]))
            [said] = self.processor.post_process_semantic_segmentation(plain, target_sizes=[mask.shape])
            outcomes.append(_outcome(said.cpu().numpy(), mask, int(self.config.num_labels)))
        return Prediction(logits.flatten(1)[:, None], tuple(outcomes))

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """−log softmax(logits)[right], its mean over an image's labelled pixels, at the mask's size."""
        total = torch.zeros((), device=model.device)
        for one, example in zip(model(**batch.inputs).logits, batch.ids, strict=True):
            mask = torch.from_numpy(self.examples[example]["mask"].astype(np.int64)).to(one.device)[None]
            large = interpolate(widened(one[None]), size=mask.shape[1:], mode="bilinear", align_corners=False)
            total = total + cross_entropy(large, mask, ignore_index=-1)
        return total, len(batch.ids)

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        del examples
        return _counted(outcomes, int(self.config.num_labels))

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        return _counted(outcomes, 1 + max((max(one.details["labels"], default=0) for one in outcomes), default=0))


def _counted(outcomes: Sequence[Outcome], labels: int) -> Columns:
    """Pixels of each example and label."""
    counted = {name: np.zeros((len(outcomes), labels)) for name in ("hits", "said", "right")}
    for number, outcome in enumerate(outcomes):
        for name, counts in counted.items():
            counts[number, outcome.details["labels"]] = outcome.details[name]
    return {"regions": counted}


def _ids(content: bytes) -> np.ndarray[Any, Any]:
    """[height, width]: the numbers in an image of one channel."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise ValueError(f"it has the mode {image.mode}: a mask has one channel, with the ids of labels")
        return np.asarray(image).astype(np.int64)


def _outcome(said: np.ndarray[Any, Any], right: np.ndarray[Any, Any], labels: int) -> Outcome:
    """Of each label that is there or was said to be, how many pixels are, were, and both."""
    counts = right >= 0
    said, right = said[counts], right[counts]
    hits = np.bincount(right[said == right], minlength=labels)
    many = {"hits": hits, "said": np.bincount(said, minlength=labels), "right": np.bincount(right, minlength=labels)}
    there = np.flatnonzero(many["said"] + many["right"])
    details = {"labels": there.tolist(), **{name: found[there].tolist() for name, found in many.items()}}
    return Outcome((), (), 0.0, 0, score=float(hits.sum() / counts.sum()), details=details)
