"""A subject's task on its data."""

from __future__ import annotations

from typing import Any

import datasets

from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.registry import task_info


def make_task(
    subject: Subject,
    config: Any,
    processor: Any,
    data: datasets.Dataset,
    *,
    limit: int | None = None,
    limits: Limits | None = None,
    skip_bad_rows: bool = False,
) -> Task:
    """The subject's task on its data.

    Args:
        config: the model's.
        processor: its tokenizer, or image processor.
        data: from ``load_rows``.
        limit: use the first so many rows, or blocks of text; None for all.
        limits: what the model takes; None where that is not known.
        skip_bad_rows: leave out rows that the task cannot take, and note them in ``Task.skipped``.

    Raises:
        EvaluationError: a row holds what the task cannot take, or the other metric cannot be loaded.
    """
    kind = task_info(subject.task).load()
    return kind(subject, config, processor, data, limit, limits=limits or Limits(), skip_bad_rows=skip_bad_rows)
