"""A subject's task on its data."""

from __future__ import annotations

from typing import Any

import datasets

from hf_gelu_patch.evaluation.subject import Subject
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.causal import CausalLM
from hf_gelu_patch.evaluation.tasks.classification import ImageClassification, TextClassification
from hf_gelu_patch.evaluation.tasks.features import FeatureDrift
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.masked import MaskedLM
from hf_gelu_patch.evaluation.tasks.own import OwnTask
from hf_gelu_patch.evaluation.tasks.own_file import own_file
from hf_gelu_patch.evaluation.tasks.pairs import SentenceSimilarity
from hf_gelu_patch.evaluation.tasks.seq2seq import Seq2Seq

_CLASSES: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "sentence-similarity": SentenceSimilarity,
    "masked-lm": MaskedLM,
    "causal-lm": CausalLM,
    "seq2seq": Seq2Seq,
    "image-classification": ImageClassification,
    "feature-drift": FeatureDrift,
}


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
    kind = OwnTask if own_file(subject.task) else _CLASSES[subject.task]
    return kind(subject, config, processor, data, limit, limits=limits or Limits(), skip_bad_rows=skip_bad_rows)
