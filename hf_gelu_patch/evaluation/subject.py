"""One model, the data to evaluate it on, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """One model, and the data to evaluate it on.

    Attributes:
        name: what it is called in results.
        title: the name for people.
        model: a checkpoint folder, or an id on the hub.
        task: a key of ``TASKS``, or the path of a Python file (``own_task``).
        data: a file or folder, or (a str) an id on the hub, as ``load_data`` takes it.
        input_column: the column that holds what the model is given; None where a task of one's own knows.
        target_column: the column that holds the right answer; None where the input is its own answer.
        max_length: tokens in an example; None for the model's own limit, at most 512.
        second_column: the column that holds a second text; None where there is none.
        split, config_name: of the data, as ``load_data`` takes them.
        metric: another metric, besides the task's own, by the path of its script or its name on the hub.
        stride: for causal-lm, the tokens that a sliding window moves on by; None for blocks that do not overlap.
        labels: how labels are written in the data, one of ``labels.READINGS``; None to tell it from them.
        threshold: for a classifier's head that gives a number, the answer is 1 above it and else 0, and measured as
            such too; for one of several labels, the logit above which a label holds. None for no such answer, and for
            0, a probability of ½.
        allow_download: whether what isn't here may be fetched from the hub.
    """

    name: str
    title: str
    model: str
    task: str
    data: Path | str
    input_column: str | None
    target_column: str | None
    max_length: int | None = None
    second_column: str | None = None
    split: str | None = None
    config_name: str | None = None
    metric: str | None = None
    stride: int | None = None
    labels: str | None = None
    threshold: float | None = None
    allow_download: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the data have to have."""
        return tuple(filter(None, (self.input_column, self.second_column, self.target_column)))
