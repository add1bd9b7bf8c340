"""Images of which most is hidden, to be told from the rest."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixel_sizes, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.logits import widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIDDEN = 0.6  # of an image, as SimMIM has it
_BLOCK = 32  # pixels: what is hidden is hidden in squares of that size, where the image has room for several


class MaskedImageModeling(Task):
    """Images of which 60 % is hidden and has to be told (Xie et al. 2022, SimMIM). The row's number decides what.

    What is hidden are squares of 32 pixels, or single patches in images of less than 128. An image's score is the mean
    |said − right| over the numbers that are hidden, of pixels as the image processor scales them; the less the better.
    ``forward`` gives the image that the model makes, [examples, 1, channels · height · width].
    """

    softmax = False
    output = "reconstruction"
    names_files = True
    pairable = False

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data = first_rows(data, limit)
        patch = _side(self.config.patch_size)
        for rows in self.parts(data, AT_A_TIME):
            for row, image in pixels_of(self, data, rows).items():
                height, width = image["pixels"]["pixel_values"].shape[-2:]
                if height % patch or width % patch:
                    self.leave_out(row, f"gives an image of {width} × {height}, which patches of {patch} do not fill")
                    continue
                yield {**image, "hidden": _hidden(height // patch, width // patch, patch, row), "patch": patch}

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)

    def logits_per_example(self) -> int:
        return int(self.examples[0]["pixels"]["pixel_values"].numel())

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        masks = torch.stack([torch.from_numpy(example["hidden"].ravel()) for example in examples])
        inputs = {**stacked_pixels(self, examples), "bool_masked_pos": masks}
        return Batch(ids, inputs, torch.zeros(len(ids), 1, dtype=torch.long), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        made: Tensor = model(**batch.inputs).reconstruction
        return made.flatten(1)[:, None]

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        made = self.forward(model, batch)
        errors, values = self._errors(made, batch)
        outcomes = [Outcome((), (), error, values, score=error / values) for error in errors.double().sum(1).tolist()]
        return Prediction(made, tuple(outcomes))

    def _errors(self, made: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """|said − right| [examples, numbers that are hidden], and how many numbers that are."""
        right = batch.inputs["pixel_values"]
        if made.shape[-1] != right[0].numel():
            raise EvaluationError(
                f"{self.subject.name} makes {made.shape[-1]} numbers of an image of {right[0].numel()}: encoder_stride "
                "in its config has to be what its encoder makes an image smaller by."
            )
        masks = []
        for one in self.examples.some(batch.ids):
            large = np.kron(one["hidden"], np.ones((one["patch"], one["patch"]), dtype=bool))
            masks.append(torch.from_numpy(large).expand(right.shape[1:]))
        hidden = torch.stack(masks).to(right.device)
        errors = (widened(made.reshape(right.shape)) - widened(right)).abs()[hidden].reshape(len(batch.ids), -1)
        return errors, errors.shape[1]

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """Σ |said − right| over what is hidden."""
        errors, values = self._errors(self.forward(model, batch), batch)
        return errors.sum(), values * len(batch.ids)

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        errors = {
            "errors": np.array([outcome.loss for outcome in outcomes], dtype=np.float64),
            "values": np.array([outcome.tokens for outcome in outcomes], dtype=np.int64),
        }
        return {"reconstruction": errors}


def _side(size: Any) -> int:
    """Of a patch, which is square."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def _hidden(height: int, width: int, patch: int, row: int) -> np.ndarray[Any, Any]:
    """[height, width] in patches: which are hidden."""
    least = min(height, width) * patch
    block = _BLOCK // patch if not _BLOCK % patch and least >= 4 * _BLOCK and not least % _BLOCK else 1
    if height % block or width % block:
        block = 1
    down, across = height // block, width // block
    chosen = random.Random(f"masked-image-modeling {row}").sample(range(down * across), round(_HIDDEN * down * across))
    found = np.zeros(down * across, dtype=bool)
    found[chosen] = True
    return np.kron(found.reshape(down, across), np.ones((block, block), dtype=bool))
