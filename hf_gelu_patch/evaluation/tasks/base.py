"""What a task is: rows of data to batches, a batch to logits, logits to an outcome for each example.

Batches are planned once from all the examples. Their order and size do not depend on the number of processes, so that
each batch gives the same bits whichever process runs it. What is drawn at random depends on the row's number alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.data.tables import PROBLEM
from hf_gelu_patch.evaluation.digests import rows_digest
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.metrics.registry import Columns, measured, rows_of
from hf_gelu_patch.evaluation.metrics.user_metric import load_metric
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.tasks.examples import Examples
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, MAX_LOGITS, read_logits, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_LENGTH = 512
_PART = 1000  # rows that are looked at together
_MAX_NAME = 4096  # characters in the name of a file


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
        answered: whether there are right answers to measure its outcomes by.
        generates: whether there is something to generate, with ``generate``.
        softmax: whether the softmax of what ``forward`` gives means something. That of logits does, that of features
            does not.
        output: what ``forward`` gives, in a word.
        limits: what the model takes.
        processor: the tokenizer, or the image processor or feature extractor of a task without texts.
        loaded: the same, or the processor that it is a part of, as it was loaded.
        examples: encoded, in the order of the data, without the rows that were left out; on disk.
        skipped: each row that was left out, counted from 1, and why.
        asked: a hash of the rows that count, as they stand in the data.
        extra: another metric to measure predictions and references by.
    """

    unit = "examples"
    answered: bool = True
    generates: ClassVar[bool] = False
    softmax: bool = True
    output: str = "logits"
    limits_rows: ClassVar[bool] = True
    """Whether a limit is one of rows, rather than of what they are cut into."""
    pairable: ClassVar[bool] = True
    """Whether its predictions and references can be given to a metric of the user's own."""
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
        self.processor = self.loaded = processor
        self.extra = None
        self._skip_bad_rows = skip_bad_rows
        self._bad: dict[int, str] = {}
        self.examples = Examples(self.encode(data, limit), self.shape, self.size)
        self.asked = self.digest(first_rows(data, limit) if self.limits_rows else data)
        self.skipped = tuple((row + 1, reason) for row, reason in sorted(self._bad.items()))
        if not self.examples:
            raise self._nothing_left()
        self._check_known()
        if subject.metric is not None:
            if not self.answered:
                raise EvaluationError(f"{subject.task} has no right answers to measure by: drop --metric.")
            if not self.pairable:
                raise EvaluationError(f"{subject.task} has no answers that another metric could take: drop --metric.")
            self.extra = load_metric(subject.metric, allow_download=subject.allow_download)

    @abstractmethod
    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterable[dict[str, Any]]:
        """The examples in the first ``limit`` rows (or the first ``limit`` blocks of running text), in their order:
        a list, or a generator that takes some rows at a time (see ``parts``) and holds no more than these. Examples
        are written to disk as they come, and have to be what pickle takes.

        Raises:
            EvaluationError: a row holds what the task cannot take, and is not to be skipped; the message names it.
        """

    @abstractmethod
    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch: ...

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        """What the metrics take, by the kind of answer: an entry for each example. The kinds are among the ``answers``
        of the task's ``TaskInfo``.

        Args:
            outcomes: of some examples.
            examples: these examples, in the same order, as ``encode`` made them.
        """
        del examples
        return self.recorded(outcomes)

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        """The same, of tasks whose records alone tell it, without the model and the data; {} of others."""
        del outcomes
        return {}

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """The predictions, and the references they are held to, as any other metric takes them."""
        [columns, *_] = self.columns(outcomes, examples).values()
        return columns["predictions"].tolist(), columns["references"].tolist()

    def metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The task's metrics by name, and the other metric's numbers.

        Raises:
            EvaluationError: the other metric does not take what this task predicts.
        """
        found = measured(rows_of(self.columns(outcomes, self.examples)))
        return found if self.extra is None else self.with_extra(found, *self.pairs(outcomes, self.examples))

    def with_extra(
        self, metrics: Mapping[str, float], predictions: list[Any], references: list[Any]
    ) -> dict[str, float]:
        """The task's metrics and the other metric's numbers; arguments from ``pairs``, errors as for ``metrics``."""
        assert self.extra is not None
        found = dict(metrics)
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
        return shortened(self.examples[example]["shown"])

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

    def batches(self, size: int) -> Batches:
        """All examples in batches of ``size`` or less, of one shape each, the longest first: the same for any number of
        processes. Each is made when it is asked for."""
        return Batches(self, size)

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Logits [examples, positions, classes]. What is timed."""
        logits: Tensor = model(**batch.inputs).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        """Run the model, and read off an outcome for each example."""
        logits = self.forward(model, batch)
        return Prediction(logits, tuple(Outcome(*read) for read in read_logits(logits, batch.targets)))

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """What training makes small, with its gradient: Σ −log softmax(logits)[target] over the positions that count,
        in nats, and how many these are. It is computed in float32, or in float64 where the logits are.

        Args:
            model: in training mode; parallel wrappers are none of its matter.
            batch: on the model's device.
        """
        logits, counts = self.forward(model, batch), batch.targets != IGNORED
        return cross_entropy(widened(logits[counts]), batch.targets[counts], reduction="sum"), int(counts.sum())

    def not_learnable(self) -> str | None:
        """Why there is nothing to train on in the examples, and the remedy; None if there is."""
        return None if self.answered else "has no right answers to learn from: name another --task."

    def digest(self, data: datasets.Dataset) -> str:
        """A hash of the columns that count: of inputs and right answers as they were before anything was made of
        them."""
        return rows_digest(data, [*dict.fromkeys(self.subject.columns)], self.file)

    def file(self, name: str) -> Path | None:
        """The file of that name, beside the data or from here; None where there is none."""
        if not self.names_files or len(name) > _MAX_NAME:
            return None
        try:
            return next((path for path in file_places(name, self.subject.data) if path.is_file()), None)
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
        kept.examples = self.examples.without(kept._bad)
        kept.skipped = tuple((row + 1, reason) for row, reason in sorted(kept._bad.items()))
        if not kept.examples:
            raise kept._nothing_left()
        return kept

    def _nothing_left(self) -> EvaluationError:
        [(row, reason), *_] = self.skipped
        return EvaluationError(f"{self.subject.name}: {self.subject.data}: no row can be used; row {row} {reason}.")

    def _check_known(self) -> None:
        """See that there is some word in the data that the tokenizer knows."""
        if "input_ids" not in self.examples[0]:
            return
        special, unknown = set(self.processor.all_special_ids), getattr(self.processor, "unk_token_id", None)
        some_unknown = False
        for example in self.examples:
            ids = example["shown_ids"] if "shown_ids" in example else example["input_ids"]
            if not all(token in special for token in ids):
                return
            some_unknown = some_unknown or unknown in ids
        if not some_unknown:
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
        return [row for rows in self.parts(data) for row in rows]

    def parts(self, data: datasets.Dataset, size: int = _PART) -> Iterator[list[int]]:
        """The same, some of them at a time: for ``encode`` to give their examples before it looks at the next ones."""
        for start in range(0, len(data), size):
            rows = range(start, min(start + size, len(data)))
            problems = data[PROBLEM][start : rows.stop] if PROBLEM in data.column_names else [None] * len(rows)
            for row, reason in zip(rows, problems, strict=True):
                if reason is not None:
                    self.leave_out(row, reason)
            yield [row for row, reason in zip(rows, problems, strict=True) if reason is None]

    def values(self, data: datasets.Dataset, column: str | None, rows: Iterable[int]) -> dict[int, Any]:
        """What stands in a column, by row. Nothing before the first of the rows or behind the last one is read."""
        rows = list(rows)
        first = min(rows, default=0)
        found = data[column][first : max(rows) + 1] if rows else []
        return {row: found[row - first] for row in rows}

    def texts(self, data: datasets.Dataset, column: str | None, rows: Iterable[int]) -> dict[int, str]:
        """The texts of a column, by row."""
        found = {}
        for row, value in self.values(data, column, rows).items():
            if isinstance(value, str):
                found[row] = value
            else:
                self.leave_out(row, f"of the column {column!r} is no text: {shortened(repr(value))}")
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


def shortened(text: str) -> str:
    text = " ".join(text[:400].split())
    return text if len(text) <= 100 else text[:99] + "…"


def first_rows(data: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    return data if limit is None else data.select(range(min(limit, len(data))))


def file_places(name: str | Path, data: Path | str) -> tuple[Path, Path]:
    """Where a file that the data name may be: beside them, or from here."""
    return Path(data).parent / name, Path(name)
