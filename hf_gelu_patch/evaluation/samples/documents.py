"""What a run said of each document of a task, whoever wrote it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome

__all__ = ["Document", "Measure", "Samples"]


@dataclass(frozen=True)
class Document:
    """One document of a task, and what a model said of it.

    Attributes:
        number: by which its task knows it; texts and numbers alike, as text.
        content: a hash of what the document is; "" where nobody knows.
        prompt: a hash of what the model was asked; "" likewise.
        answers: what the model said; () where it gave a likelihood and no answer.
        targets: what is right, one for each answer; () where that is not known. It is compared with nothing, but shown.
        text: the document's beginning, for people.
        values: what each metric makes of the answer, by the metric's name: a number, or what its aggregation takes.
    """

    number: str
    content: str
    prompt: str
    answers: tuple[Any, ...]
    targets: tuple[Any, ...]
    text: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a metric's values become a score.

    Attributes:
        aggregation: its name; a function of the task's own has the name that the function has.
        lower_is_better: None where that is not known.
        call: the aggregation itself, from a list of values; None to find it by its name.
        columns: of a metric of our own, where the values are outcomes: what it is computed of, from a list of them.
            Then ``aggregation`` is the metric's name.
    """

    aggregation: str = "mean"
    lower_is_better: bool | None = None
    call: Callable[[list[Any]], float] | None = None
    columns: Callable[[Sequence[Outcome]], Columns] | None = None


@dataclass(frozen=True)
class Samples:
    """All that a run said of one task's documents, as one filter has read the answers.

    Attributes:
        task: its name.
        filter: which part of an answer counts, where a task has several ways to find it; "" where it has one.
        documents: in the order of the data.
        measures: by the metric's name; a metric that is not there is a mean.
        place: the file or folder that they come from, for messages.
        notes: what whoever reads the result should know of them.
    """

    task: str
    filter: str
    documents: tuple[Document, ...]
    measures: Mapping[str, Measure] = field(default_factory=dict)
    place: str = ""
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The task with its filter, as reports call it."""
        return f"{self.task} ({self.filter})" if self.filter else self.task
