"""How alike two texts are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows, shortened
from hf_gelu_patch.evaluation.tasks.features import embedded
from hf_gelu_patch.evaluation.tasks.labels import as_number
from hf_gelu_patch.evaluation.tasks.logits import widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIDES = ("first.", "second.")  # what the inputs of each text of a pair begin with


class SentenceSimilarity(Task):
    """Two texts, and a score that says how alike they are.

    The model's answer is the cosine of the two embeddings, which ``features.embedded`` makes.

    ``forward`` gives the embeddings where other tasks give logits: [examples, 2, hidden size].
    """

    softmax = False
    output = "embeddings"

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data = first_rows(data, limit)
        for rows in self.parts(data):
            yield from self._encoded(data, rows)

    def _encoded(self, data: datasets.Dataset, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        first = self.texts(data, self.subject.input_column, rows)
        second = self.texts(data, self.subject.second_column, first)
        right = {}
        for row, score in self.values(data, self.subject.target_column, second).items():
            number = as_number(score)
            if number is None:
                self.leave_out(row, f"has no score that is a number: {score!r}")
            else:
                right[row] = number
        one = self.tokens(list(right), first)
        two = self.tokens(list(one), second)
        for row in two:
            yield {
                "row": row,
                "pair": (one[row], two[row]),
                "input_ids": max(one[row]["input_ids"], two[row]["input_ids"], key=len),
                "score": right[row],
                "shown": f"{shortened(first[row])} | {shortened(second[row])}",
            }

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
        for side in _SIDES:  # one after the other: the texts of a pair are not to be filled up to each other's length
            inputs = {name.removeprefix(side): value for name, value in batch.inputs.items() if name.startswith(side)}
            embeddings.append(embedded(model, inputs))
        return torch.stack(embeddings, dim=1)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        embeddings = self.forward(model, batch)
        one, two = embeddings.double().unbind(1)
        cosines = torch.cosine_similarity(one, two, dim=-1).tolist()
        return Prediction(embeddings, tuple(Outcome((), (), 0.0, 0, score=cosine) for cosine in cosines))

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """(cosine − score)², summed over pairs."""
        one, two = widened(self.forward(model, batch)).unbind(1)
        right = torch.tensor([self.examples[example]["score"] for example in batch.ids], dtype=one.dtype)
        cosines = torch.cosine_similarity(one, two, dim=-1)
        return (cosines - right.to(one.device)).square().sum(), len(batch.ids)

    def not_learnable(self) -> str | None:
        beyond = [example for example in self.examples if not -1 <= example["score"] <= 1]
        if not beyond:
            return None
        [first, *_] = beyond
        return (
            f"has the score {first['score']:g} in row {first['row'] + 1}, which no cosine can be: divide the scores so "
            "that they lie between −1 and 1."
        )

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        scores = {
            "predictions": np.array([outcome.score for outcome in outcomes], dtype=np.float64),
            "references": np.array([example["score"] for example in examples], dtype=np.float64),
        }
        return {"score": scores}
