"""What was named, completed to all that an evaluation needs; no model is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.data.places import data_file
from hf_gelu_patch.evaluation.data.reading import load_data
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.checkpoints import locate, read_config, unavailable_told
from hf_gelu_patch.evaluation.metrics.plugged import find_metric
from hf_gelu_patch.evaluation.reference import REFERENCES, Reference
from hf_gelu_patch.evaluation.subject import Subject
from hf_gelu_patch.evaluation.tasks.labels import READINGS
from hf_gelu_patch.evaluation.tasks.own_file import own_file
from hf_gelu_patch.evaluation.tasks.registry import TASKS, task_info

if TYPE_CHECKING:
    import datasets


def subject(
    model: str,
    *,
    task: str | None = None,
    validation_file: str | None = None,
    input_column: str | None = None,
    second_column: str | None = None,
    target_column: str | None = None,
    max_length: int | None = None,
    split: str | None = None,
    config_name: str | None = None,
    metric: str | None = None,
    stride: int | None = None,
    labels: str | None = None,
    threshold: float | None = None,
    allow_download: bool = False,
) -> Subject:
    """Complete what was named to all that an evaluation needs; no model is loaded.

    Args:
        model: a reference's name, a checkpoint folder, or an id on the hub.
        task: None to read it off the model: a reference's own, or by the architecture that its config names.
        validation_file: a file, a folder, or an id on the hub; None for a reference's own data.
        input_column, second_column, target_column: None for a reference's own, or the task's usual ones.
        max_length: None for a reference's own, or the model's limit.
        split, config_name, metric, stride, labels, threshold: as in ``Subject``.
        allow_download: whether an id on the hub may be fetched; otherwise it has to be in the cache.

    Raises:
        EvaluationError: model, data or metric aren't there, no task can be told, or the data are not known.
    """
    if task is not None:
        task_info(task)
    data = data_file(validation_file, allow_download=allow_download) if validation_file is not None else None
    if metric is not None:
        find_metric(metric, allow_download=allow_download)
    if (reference := REFERENCES.get(model)) is not None and (data is None or task in (None, reference.task)):
        if task not in (None, reference.task):
            raise EvaluationError(
                f"the data of the reference model {model!r} are for {reference.task}, not for {task}: drop --task, or "
                "name data with --validation_file."
            )
        own = reference_subject(reference)
        found = replace(
            own,
            data=data or own.data,
            input_column=input_column or own.input_column,
            target_column=target_column or own.target_column,
            max_length=max_length or own.max_length,
        )
    else:
        place = locate(model, allow_download=allow_download)
        task = task or _task_of(model, place)
        usual = task_info(task)
        if data is None:
            columns = ", ".join(filter(None, (usual.input_column, usual.second_column, usual.target_column)))
            raise EvaluationError(
                f"there are no data for {model!r}: name them with --validation_file FILE (csv, json, jsonl, parquet, "
                f"arrow, txt, a folder, or owner/name on the hub{'; columns: ' if columns else ''}{columns})."
            )
        found = Subject(
            name=model if not Path(model).is_dir() else Path(model).resolve().name,
            title=model,
            model=place,
            task=task,
            data=data,
            input_column=input_column or usual.input_column,
            second_column=usual.second_column,
            target_column=(target_column or usual.target_column) if usual.target_column or own_file(task) else None,
            max_length=max_length,
        )
    if second_column is not None and found.task not in ("text-classification", "sentence-similarity"):
        raise EvaluationError(f"{found.task} reads no second text: drop --second_column.")
    if stride is not None and found.task != "causal-lm":
        raise EvaluationError(f"{found.task} has no sliding window, only causal-lm has: drop --stride.")
    if found.task not in ("text-classification", "image-classification"):
        for option, value in (("labels", labels), ("threshold", threshold)):
            if value is not None:
                raise EvaluationError(f"{found.task} is no classification: drop --{option}.")
    if labels is not None and labels not in READINGS:
        raise EvaluationError(f"labels are read as {', '.join(READINGS)}; got {labels!r}.")
    return replace(
        found,
        second_column=second_column or found.second_column,
        split=split,
        config_name=config_name,
        metric=metric,
        stride=stride,
        labels=labels,
        threshold=threshold,
        allow_download=allow_download,
    )


def load_rows(subject: Subject, *, skip_bad_rows: bool = False) -> datasets.Dataset:
    """The subject's data with every column it needs; arguments and errors as for ``load_data``."""
    return load_data(
        subject.data,
        subject.columns,
        split=subject.split,
        config_name=subject.config_name,
        allow_download=subject.allow_download,
        skip_bad_rows=skip_bad_rows,
    )


def _task_of(model: str, place: str) -> str:
    config = read_config(place)
    architectures = list(map(str, config.get("architectures") or []))
    for architecture in architectures:
        for task, info in TASKS.items():
            if architecture.endswith(info.architectures):
                return task
    # Code that comes with a model says which of transformers' classes its own stand for.
    own = set(config.get("auto_map") or {}) - {"AutoModel"}
    mapped = [name for name, info in TASKS.items() if info.architectures and info.auto_class in own]
    if len(mapped) == 1:
        return mapped[0]
    raise EvaluationError(
        f"the architecture of {model!r} ({', '.join(architectures) or 'none named'}) belongs to no task here: "
        f"{', '.join(TASKS)}. A Python file of your own, --task FILE.py, can ask anything. --task feature-drift looks "
        "at the hidden states of any model. Name another --task where the checkpoint has its head too."
    )


def reference_subject(reference: Reference) -> Subject:
    """A reference model on its own data.

    Raises:
        EvaluationError: the model or its data cannot be had.
    """
    with unavailable_told(reference):
        return Subject(
            name=reference.name,
            title=reference.title,
            model=str(reference.model_path()),
            task=reference.task,
            data=reference.data_path(),
            input_column=reference.input_column,
            target_column=reference.target_column,
            max_length=reference.max_length,
        )
