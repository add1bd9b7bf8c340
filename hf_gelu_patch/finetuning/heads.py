"""A new head for a classifier: drawn at random, for the labels that the training data have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import torch
import transformers

from hf_gelu_patch.evaluation.loading.checkpoints import checkpoint
from hf_gelu_patch.evaluation.loading.models import quieten, reason_of
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.tasks.classification import Classification
from hf_gelu_patch.evaluation.tasks.labels import class_names, shown
from hf_gelu_patch.evaluation.tasks.registry import TASKS, task_info
from hf_gelu_patch.finetuning.errors import FinetuningError

__all__ = ["with_new_head"]

_MOST = 1000  # labels: more of them are no labels


@contextmanager
def with_new_head(subject: Subject, data: datasets.Dataset, settings: Settings) -> Iterator[Subject]:
    """The subject with a head for the labels of the data, as a checkpoint of its own for the length of a ``with``
    block. The head is drawn by the seed.

    Args:
        subject: a classifier, or an encoder that is to become one.
        data: to train on.
        settings: how to load the model, and the seed.

    Raises:
        FinetuningError: the task is no classification, or the labels are none; or the model cannot be loaded.
    """
    info = task_info(subject.task)
    if not issubclass(info.load(), Classification):
        able = [name for name, one in TASKS.items() if issubclass(one.load(), Classification)]
        raise FinetuningError(
            f"{subject.task}: --new_head makes heads for {', '.join(able)} alone. Drop it, and name a model that has a "
            "head for this task."
        )
    names = _labels(subject, data)
    loading = settings.loading
    processor = load_processor(subject.model, subject.task, loading, allow_download=subject.allow_download)
    found = checkpoint(subject.model, loading, allow_download=subject.allow_download)
    quieten()
    torch.manual_seed(settings.seed)
    try:
        model = getattr(transformers, info.auto_class).from_pretrained(
            found.place,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            trust_remote_code=loading.trust_remote_code,
            local_files_only=not subject.allow_download,
            ignore_mismatched_sizes=True,
            **found.options,
        )
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise FinetuningError(
            f"{subject.model} cannot be loaded for {subject.task}: {reason_of(error, info.auto_class)}"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        del model
        yield replace(subject, model=str(Path(folder)))


def _labels(subject: Subject, data: datasets.Dataset) -> list[str]:
    """The labels' names: those of the column's classes, or the different texts in it, in their order."""
    column = subject.target_column or ""
    if (names := class_names(data.features[column])) is not None:
        return names
    found = {str(value).strip() for value in data[column][:] if value is not None and not isinstance(value, list)}
    found -= {""}
    if not 2 <= len(found) <= _MOST:
        raise FinetuningError(
            f"{subject.name}: the column {column!r} of the training data has {len(found)} different labels "
            f"({shown(sorted(found))}): a new head has 2 to {_MOST}."
        )
    whole = all(name.isdecimal() for name in found)
    return sorted(found, key=(lambda name: (int(name), name)) if whole else str)
