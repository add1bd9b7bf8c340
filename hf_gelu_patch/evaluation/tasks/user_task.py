"""A task of one's own, from a Python file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.data.tables import PROBLEM
from hf_gelu_patch.evaluation.digests import rows_digest, text_digest
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.heads import label_columns
from hf_gelu_patch.evaluation.tasks.language import token_columns, token_pairs
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, read_logits
from hf_gelu_patch.evaluation.tasks.registry import task_info
from hf_gelu_patch.evaluation.tasks.user_file import own_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OwnTask(Task):
    """What a user's function ``batch`` makes of rows: see ``own_file.own_task``."""

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
        self._data = data = first_rows(data, limit)
        examples: list[dict[str, Any]] = []
        for row in self.rows(data):
            values = self._values(row)
            shown = str(values.get(self.subject.input_column or "", next(iter(values.values()), "")))
            example = {"row": row, "shown": shown}
            # Each for itself where bad ones are to be found; else the first, for what is wrong with the function.
            trouble = self._trouble(example) if self._skip_bad_rows or not examples else None
            if trouble is not None:
                self.leave_out(row, trouble)
            else:
                examples.append(example)
        if examples:
            _, targets = self._made(examples[:1])
            self._kind = "none" if targets is None else "one" if targets.dim() == 1 else "many"
            self.answered = self._kind != "none"
        return examples

    def _values(self, row: int) -> dict[str, Any]:
        return {name: value for name, value in self._data[row].items() if name != PROBLEM}

    def _made(self, examples: Sequence[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor | None]:
        made = self._function([self._values(example["row"]) for example in examples], self.processor, self.config)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Mapping):
            raise TypeError("batch has to give two things: a dict of tensors, and the right classes")
        inputs = dict(made[0])
        targets = None if made[1] is None else torch.as_tensor(made[1])
        if targets is not None and targets.dtype == torch.bool:
            targets = targets.long()
        for name, value in [*inputs.items(), *([] if targets is None else [("the right classes", targets)])]:
            if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(examples):
                raise TypeError(f"{name} is no tensor with a row for each of {len(examples)} rows")
        if targets is not None and (targets.is_floating_point() or targets.dim() > 2):
            raise TypeError(
                "the right classes are no whole numbers, one for each row or one for each position, and a task of "
                "one's own has no others: give None in their place to look at drift and speed alone"
            )
        if targets is not None and targets.dim() == 1 and (targets == IGNORED).any():
            raise TypeError(f"its right class is {IGNORED}, which is for single positions that do not count")
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
                    self.leave_out(example["row"], trouble)
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
        logits = self.forward(model, batch)
        if self._kind == "none":
            return Prediction(logits, (Outcome((), (), 0.0, 0),) * len(batch.ids))
        self._check_classes(batch, logits.shape[-1])
        return Prediction(logits, tuple(Outcome(*read) for read in read_logits(logits, batch.targets)))

    def _check_classes(self, batch: Batch, classes: int) -> None:
        """Raises EvaluationError."""
        others = (batch.targets != IGNORED) & ((batch.targets < 0) | (batch.targets >= classes))
        if not others.any():
            return
        place, column = others.nonzero()[0].tolist()
        row, right = self.examples[batch.ids[place]]["row"] + 1, int(batch.targets[place, column])
        raise EvaluationError(
            f"{self.subject.name}: {self.subject.data}: row {row} has the right class {right}, by {self.subject.task}, "
            f"and the model gives {classes} classes, counted from 0. Let batch return those, or leave such rows out of "
            "the data."
        )

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        del examples
        if self._kind == "none":
            return {}
        return {"tokens": token_columns(outcomes)} if self._kind == "many" else label_columns(outcomes)

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        del examples
        return token_pairs(outcomes)  # an answer for each row, or for each position
