"""What a classifier's head answers: one label, several labels, or a number.

A head reads the right answers from a column of the data, and the model's answers from its logits.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.labels import BadLabelError, Labels, LabelsError, as_number, class_names, shown
from hf_gelu_patch.evaluation.tasks.logits import read_logits, widened

__all__ = [
    "Head",
    "MultiLabel",
    "Regression",
    "SingleLabel",
    "head_of",
    "label_columns",
    "label_names",
    "recorded_columns",
]


class Head(ABC):
    """What one kind of head answers.

    Attributes:
        outputs: the numbers it gives an example.
        softmax: whether their softmax means something.
    """

    softmax = False

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    @abstractmethod
    def reader(self, values: Iterable[Any], feature: Any) -> Callable[[Any], Any]:
        """What gives the right answer that a value of a column is.

        Args:
            values: the whole column, of which not all need be in memory; it is gone through once or twice.
            feature: what datasets says of it.

        Raises:
            LabelsError: the column as a whole cannot be read. What is given raises ``BadLabelError`` for a value that
                cannot be.
        """

    def targets(self, right: Sequence[Any]) -> Tensor:
        """[examples, 1], for a batch: 0 where an answer is no class."""
        return torch.zeros(len(right), 1, dtype=torch.long)

    @abstractmethod
    def outcomes(self, logits: Tensor, right: Sequence[Any]) -> list[Outcome]:
        """From [examples, outputs]."""

    @abstractmethod
    def loss(self, logits: Tensor, right: Sequence[Any]) -> Tensor:
        """What training makes small, of [examples, outputs]: summed over examples, in float32 or more."""

    @abstractmethod
    def columns(self, outcomes: Sequence[Outcome], right: Sequence[Any]) -> Columns:
        """What the metrics take, by the kind of answer."""

    def pairs(self, columns: Columns) -> tuple[list[Any], list[Any]]:
        """The predictions and references, as another metric takes them."""
        [first, *_] = columns.values()
        return first["predictions"].tolist(), first["references"].tolist()

    def named(self, answer: str) -> str:
        """An answer as people know it."""
        return answer


class SingleLabel(Head):
    """The likeliest label.

    Args:
        labels: the model's.
        likeliest: whether the right one is among so many likeliest is looked at too, where there are more labels; None
            not to look.
    """

    softmax = True

    def __init__(self, labels: Labels, likeliest: int | None = None) -> None:
        super().__init__(len(labels))
        self._labels = labels
        self._likeliest = likeliest if likeliest is not None and len(labels) > likeliest else None

    def reader(self, values: Iterable[Any], feature: Any) -> Callable[[Any], int]:
        return self._labels.reader(values, class_names(feature))

    def targets(self, right: Sequence[int]) -> Tensor:
        return torch.tensor(right)[:, None]

    def outcomes(self, logits: Tensor, right: Sequence[int]) -> list[Outcome]:
        targets = self.targets(right).to(logits.device)
        read = read_logits(logits[:, None], targets)
        if self._likeliest is None:
            return [Outcome(*one) for one in read]
        among = (logits.topk(self._likeliest, sorted=False).indices == targets).any(-1).tolist()
        return [Outcome(*one, top5=(is_,)) for one, is_ in zip(read, among, strict=True)]

    def loss(self, logits: Tensor, right: Sequence[int]) -> Tensor:
        """−log softmax(logits)[right]."""
        return cross_entropy(widened(logits), self.targets(right)[:, 0].to(logits.device), reduction="sum")

    def columns(self, outcomes: Sequence[Outcome], right: Sequence[int]) -> Columns:
        del right
        return label_columns(outcomes)

    def named(self, answer: str) -> str:
        return self._labels.names[int(answer)]


def label_columns(outcomes: Sequence[Outcome]) -> Columns:
    """What the metrics of labels take, from outcomes of one answer each."""
    columns = {
        "predictions": np.array([outcome.answers[0] for outcome in outcomes], dtype=np.int64),
        "references": np.array([outcome.targets[0] for outcome in outcomes], dtype=np.int64),
    }
    if not any(outcome.top5 for outcome in outcomes):
        return {"label": columns}
    return {"ranked label": {**columns, "top5": np.array([outcome.top5[0] for outcome in outcomes], dtype=np.bool_)}}


def recorded_columns(outcomes: Sequence[Outcome]) -> Columns:
    """What the metrics of labels take, from outcomes alone, which tell what kind of head gave them: a label, or a text
    of 0 and 1 for several. {} where there is neither: of a number, records do not hold what is right."""
    answers = [answer for one in outcomes for answer in (*one.answers, *one.targets)]
    if not outcomes or len(answers) < 2 * len(outcomes) or any(len(one.answers) != 1 for one in outcomes):
        return {}
    if all(isinstance(answer, str) for answer in answers):
        return _set_columns(outcomes, [str(one.targets[0]) for one in outcomes])
    return label_columns(outcomes) if all(isinstance(answer, int) for answer in answers) else {}


def _set_columns(outcomes: Sequence[Outcome], right: Sequence[str]) -> Columns:
    """What the metrics of sets of labels take."""
    said = np.array([outcome.answers[0] for outcome in outcomes], dtype=object)
    return {"label set": {"predictions": said, "references": np.array(right, dtype=object)}}


class MultiLabel(Head):
    """Every label whose logit is above a threshold. The answer is a text of 0 and 1, one for each label: what is right
    or wrong is the whole set.

    Args:
        labels: the model's.
        threshold: 0 is a probability of ½.
    """

    def __init__(self, labels: Labels, threshold: float = 0.0) -> None:
        super().__init__(len(labels))
        self._labels = labels
        self._threshold = threshold

    def reader(self, values: Iterable[Any], feature: Any) -> Callable[[Any], str]:
        read = self._labels.set_reader(values, class_names(feature))

        def bits(value: Any) -> str:
            held = set(read(value))
            return "".join("1" if index in held else "0" for index in range(self.outputs))

        return bits

    def loss(self, logits: Tensor, right: Sequence[str]) -> Tensor:
        """Of each label the binary cross-entropy, and their mean."""
        logits = widened(logits)
        held = _held(right).to(logits)
        return binary_cross_entropy_with_logits(logits, held, reduction="sum") / self.outputs

    def outcomes(self, logits: Tensor, right: Sequence[str]) -> list[Outcome]:
        held = _held(right)
        logits = logits.double().cpu()
        losses = binary_cross_entropy_with_logits(logits, held, reduction="none").sum(1).tolist()
        said = ["".join(map(str, row)) for row in (logits > self._threshold).int().tolist()]
        return [
            Outcome((answer,), (target,), loss, self.outputs)
            for answer, target, loss in zip(said, right, losses, strict=True)
        ]

    def columns(self, outcomes: Sequence[Outcome], right: Sequence[str]) -> Columns:
        return _set_columns(outcomes, right)

    def pairs(self, columns: Columns) -> tuple[list[Any], list[Any]]:
        """Vectors of 0 and 1."""
        sets = columns["label set"]
        said, right = ([list(map(int, bits)) for bits in sets[name]] for name in ("predictions", "references"))
        return said, right

    def named(self, answer: str) -> str:
        held = [name for name, bit in zip(self._labels.names, answer, strict=True) if bit == "1"]
        return ", ".join(held) or "none"


def _held(right: Sequence[str]) -> Tensor:
    """[examples, labels] of 0 and 1, in float64."""
    return torch.tensor([[bit == "1" for bit in bits] for bits in right], dtype=torch.float64)


class Regression(Head):
    """A number, as the head gives it.

    Args:
        threshold: an answer, and a right one, is 1 above it and else 0, which is measured too; None not to.
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(1)
        self._threshold = threshold

    def reader(self, values: Iterable[Any], feature: Any) -> Callable[[Any], float]:
        names = class_names(feature)
        if names is not None and any(as_number(name) is None for name in names):
            raise LabelsError(
                f"the labels of the data are classes, {shown(names)}, and the model's head gives a number: write "
                "numbers, as in a column of floats."
            )

        def read(value: Any) -> float:
            number = as_number(value)
            if number is not None and names is not None:
                number = as_number(names[int(number)]) if 0 <= number < len(names) else None
            if number is None:
                raise BadLabelError(f"has no score that is a number: {reprlib.repr(value)}")
            return number

        if self._threshold is not None:
            self._check_sides(values, read, self._threshold)
        return read

    def _check_sides(self, values: Iterable[Any], read: Callable[[Any], float], threshold: float) -> None:
        least, most = math.inf, -math.inf
        for value in values:
            try:
                number = read(value)
            except BadLabelError:
                continue
            least, most = min(least, number), max(most, number)
        if least < most and (least > threshold) == (most > threshold):
            raise LabelsError(
                f"all right answers, {least:g} to {most:g}, lie on one side of the threshold {threshold:g}: "
                "take a --threshold between them."
            )

    def loss(self, logits: Tensor, right: Sequence[float]) -> Tensor:
        """(logit − right)²."""
        found = widened(logits[:, 0])
        return (found - torch.tensor(right, dtype=found.dtype, device=found.device)).square().sum()

    def outcomes(self, logits: Tensor, right: Sequence[float]) -> list[Outcome]:
        scores = logits[:, 0].double().tolist()
        if self._threshold is None:
            return [Outcome((), (), 0.0, 0, score=score) for score in scores]
        return [
            Outcome((int(score > self._threshold),), (int(target > self._threshold),), 0.0, 0, score=score)
            for score, target in zip(scores, right, strict=True)
        ]

    def columns(self, outcomes: Sequence[Outcome], right: Sequence[float]) -> Columns:
        said = np.array([outcome.score for outcome in outcomes], dtype=np.float64)
        numbers = {"number": {"predictions": said, "references": np.array(right, dtype=np.float64)}}
        return numbers if self._threshold is None else {**numbers, **label_columns(outcomes)}

    def named(self, answer: str) -> str:
        if self._threshold is None:
            return answer
        return f"above {self._threshold:g}" if answer == "1" else f"not above {self._threshold:g}"


def head_of(config: Any, subject: Subject, *, likeliest: int | None = None) -> Head:
    """The head that a model's config tells: a number where ``num_labels`` is 1, labels that hold apart from each other
    where ``problem_type`` says so, else one label.

    Args:
        config: the model's.
        subject: with what was asked for, its ``labels`` and ``threshold``.
        likeliest: as for ``SingleLabel``.

    Raises:
        EvaluationError: the config contradicts itself, the head is of another kind, or it has no use for what was
            asked for.
    """
    outputs = int(config.num_labels or 1)
    problem = getattr(config, "problem_type", None)
    several = problem == "multi_label_classification"
    if outputs > 1 and problem == "regression":
        raise EvaluationError(
            f"{subject.name} gives {outputs} numbers for an example (num_labels, problem_type in its config), and only "
            "heads with one are measured: a --task of your own that gives None for what is right compares its outputs."
        )
    if outputs == 1 and not several:
        if subject.labels is not None:
            raise EvaluationError(f"{subject.name} gives a number, and no label (num_labels is 1): drop --labels.")
        return Regression(subject.threshold)
    if subject.labels == "vector" and not several:
        raise EvaluationError(
            f"{subject.name} gives one label an example: --labels is names or ids, or set problem_type to "
            "multi_label_classification in its config.json."
        )
    labels = Labels(label_names(config, subject.name, outputs), subject.labels)
    if several:
        return MultiLabel(labels, subject.threshold or 0.0)
    if subject.threshold is not None:
        raise EvaluationError(f"{subject.name} gives the likeliest of {outputs} labels: drop --threshold.")
    return SingleLabel(labels, likeliest)


def label_names(config: Any, model: str, outputs: int) -> list[str]:
    """The labels' names by their ids, which ``id2label`` and ``label2id`` have to agree on.

    Args:
        config: the model's.
        model: its name, for messages.
        outputs: how many labels there are.

    Raises:
        EvaluationError: they contradict each other, or are not so many.
    """
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(outputs)):
        raise EvaluationError(
            f"id2label in the config.json of {model} names the ids {shown(map(str, sorted(names)))}, where its "
            f"{outputs} outputs have the ids 0 to {outputs - 1}: mend it."
        )
    for name, index in (config.label2id or {}).items():
        own = [one for one, other in names.items() if other == str(name)]
        if own and int(index) not in own:
            raise EvaluationError(
                f"id2label and label2id in the config.json of {model} contradict each other: {name!r} is {own[0]} in "
                f"one and {index} in the other. Mend them."
            )
    return [names[index] for index in range(outputs)]
