"""What is measured: one record a metric, and one record a kind of answer that metrics are computed of."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.errors import EvaluationError

__all__ = [
    "ANSWERS",
    "METRICS",
    "Answers",
    "Array",
    "Columns",
    "Metric",
    "Rows",
    "lower_is_better",
    "measured",
    "metric_names",
    "register_answers",
    "register_metric",
    "rows_of",
    "statistics_of",
]

Array = np.ndarray[Any, Any]

Columns = Mapping[str, Mapping[str, Any]]
"""By the kind of answer, what a model said and what is right: arrays or lists by name, an entry an example."""

Rows = Mapping[str, Mapping[str, Array]]
"""By the kind of answer, what there is to count about each example: arrays by name, an entry an example."""


@dataclass(frozen=True)
class Answers:
    """One kind of answer.

    Attributes:
        name: a key of ``ANSWERS``.
        columns: what a task gives of its outcomes: the dtype of each column by its name; "string" for texts.
        rows: makes of these columns what the metrics count about each example. It is computed once, however often the
            examples are resampled.
        apart: whether ``rows`` tells of each example by itself what there is to count, so that it can be asked about
            some of them at a time. Labels' codes and scores' ranks depend on all.
    """

    name: str
    columns: Mapping[str, str]
    rows: Callable[..., Mapping[str, Array]] = dict
    apart: bool = False


@dataclass(frozen=True)
class Metric:
    """One figure of how good answers are.

    Attributes:
        name: its name in results; a report writes a space for "_".
        answers: the kinds of answers that it is computed of.
        statistic: gives the figure of each of several samples from ``(weights, rows)``: ``weights[sample, example]``
            is how many times an example is in a sample, and ``rows`` are those of the kind of answer.
        lower_is_better: whether less is better.
        relative: whether a margin is a share of its value before. It is for figures that know no bounds.
        counts_right: whether it counts right answers. Then the exact paired test on the answers that changed says
            whether it is worse; otherwise its own interval does.
    """

    name: str
    answers: tuple[str, ...]
    statistic: Callable[[Array, Mapping[str, Array]], Array]
    lower_is_better: bool = False
    relative: bool = False
    counts_right: bool = False

    @property
    def title(self) -> str:
        """Its name in a report."""
        return self.name.replace("_", " ")


ANSWERS: dict[str, Answers] = {}
"""Every kind of answer by name."""

METRICS: dict[str, Metric] = {}
"""Every metric by name, in the order in which reports have them."""


def register_answers(answers: Answers) -> None:
    """Add a kind of answer.

    Raises:
        EvaluationError: the name is taken.
    """
    if answers.name in ANSWERS:
        raise EvaluationError(f"the kind of answer {answers.name!r} is taken: register it under another name.")
    ANSWERS[answers.name] = answers


def register_metric(metric: Metric) -> None:
    """Add a metric: each task with an answer of its kinds is measured by it, and lists it.

    Raises:
        EvaluationError: the name is taken, or there is no such kind of answer; the message lists the valid ones.
    """
    if metric.name in METRICS:
        raise EvaluationError(f"the metric name {metric.name!r} is taken: register it under another.")
    check_answers(metric.answers)
    METRICS[metric.name] = metric


def check_answers(kinds: Iterable[str]) -> None:
    """See that there are such kinds of answers.

    Raises:
        EvaluationError: there is none of that name; the message lists the valid ones.
    """
    for kind in kinds:
        if kind not in ANSWERS:
            close = difflib.get_close_matches(kind, ANSWERS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise EvaluationError(f"unknown kind of answer {kind!r}.{hint} Valid: {', '.join(ANSWERS)}.")


def metric_names(kinds: Iterable[str]) -> tuple[str, ...]:
    """The metrics of some kinds of answers."""
    return tuple(dict.fromkeys(metric.name for kind in kinds for metric in _of(kind)))


def lower_is_better() -> list[str]:
    """The metrics of which less is better; of all others more is."""
    return sorted(metric.name for metric in METRICS.values() if metric.lower_is_better)


def rows_of(columns: Columns) -> Rows:
    """What there is to count about each example.

    Raises:
        KeyError: there is no such kind of answer, or it has no such column.
    """
    return {
        kind: ANSWERS[kind].rows(**{name: array_of(ANSWERS[kind].columns[name], given) for name, given in some.items()})
        for kind, some in columns.items()
    }


def array_of(dtype: str, values: Any) -> Array:
    """A column as an array; texts as objects."""
    return np.asarray(values, dtype=object if dtype == "string" else dtype)


def statistics_of(weights: Array, rows: Rows) -> dict[str, Array]:
    """The metrics of several samples: ``weights[sample, example]`` is how many times an example is in one."""
    return {metric.name: metric.statistic(weights, some) for kind, some in rows.items() for metric in _of(kind)}


def measured(rows: Rows) -> dict[str, float]:
    """The metrics of all examples. NaN where they are undefined, as they are without examples; none without answers."""
    sizes = [len(row) for some in rows.values() for row in some.values()]
    if not sizes:
        return {}
    return {name: float(value[0]) for name, value in statistics_of(np.ones((1, sizes[0])), rows).items()}


def _of(kind: str) -> list[Metric]:
    return [metric for metric in METRICS.values() if kind in metric.answers]
