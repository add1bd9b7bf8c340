"""What was named, completed to all that an evaluation needs; no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.data.columns import Wanted
from hf_gelu_patch.evaluation.data.paths import data_file
from hf_gelu_patch.evaluation.data.reading import TRAINING, load_data
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.checkpoints import (
    Checkpoint,
    adapter_config,
    checkpoint,
    gguf_architecture,
    locate,
    read_config,
    unavailable_told,
)
from hf_gelu_patch.evaluation.loading.models import reads_images
from hf_gelu_patch.evaluation.loading.sentences import sentence_length
from hf_gelu_patch.evaluation.metrics.user_metric import find_metric
from hf_gelu_patch.evaluation.options.declaring import declared
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.reference import REFERENCES, Reference
from hf_gelu_patch.evaluation.tasks.labels import READINGS
from hf_gelu_patch.evaluation.tasks.registry import TASKS, check_options, task_info
from hf_gelu_patch.evaluation.tasks.user_file import own_file

if TYPE_CHECKING:
    import datasets


def subject(model: str, loading: Loading | None = None, **asked: Any) -> Subject:
    """Complete what was named to all that an evaluation needs; no model is loaded.

    Args:
        model: a reference's name, a checkpoint folder, a GGUF file, or an id on the hub.
        loading: which of its files are meant.
        asked: options of ``Subject`` as the command line spells them (``validation_file`` for its data), those that
            are not None or empty. What is not asked for is a reference's own, read off the model, or usual for the
            task.

    Raises:
        TypeError: there is no such option.
        EvaluationError: model, data or metric aren't there, no task can be told, or the data are not known.
    """
    asked = look_up(asked)
    reference = REFERENCES.get(model)
    if reference is not None and ("data" not in asked or asked.get("task", reference.task) == reference.task):
        if asked.get("task", reference.task) != reference.task:
            raise EvaluationError(
                f"the data of the reference model {model!r} are for {reference.task}, not for {asked['task']}: drop "
                "--task, or name data with --validation_file."
            )
        found = reference_subject(reference)
    else:
        found = _named(model, loading or Loading(), asked)
        if found.target_column is None and not own_file(found.task):
            asked.pop("target_column", None)  # the input is its own answer, or there is none
    task_info(found.task).check_libraries()
    check_options(found.task, asked)
    if asked.get("labels", READINGS[0]) not in READINGS:
        raise EvaluationError(f"labels are read as {', '.join(READINGS)}; got {asked['labels']!r}.")
    return replace(found, **asked)


def look_up(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Find what was asked for besides the model: its task, data and metric.

    Args:
        asked: as for ``subject``.

    Returns:
        What is not None or empty, with ``data`` in place of ``validation_file``.

    Raises:
        TypeError: there is no such option.
        EvaluationError: a task, data or a metric of that name aren't there.
    """
    if unknown := asked.keys() - declared(Subject).keys():
        raise TypeError(f"a subject has no {', '.join(sorted(unknown))}; there are {', '.join(declared(Subject))}.")
    found = {name: value for name, value in asked.items() if value not in (None, "")}
    download = found.get("allow_download", False)
    if "validation_file" in found:
        found["data"] = data_file(found.pop("validation_file"), allow_download=download)
    if "task" in found:
        task_info(found["task"]).check_libraries()
    if "metric" in found:
        find_metric(found["metric"], allow_download=download)
    return found


def _named(model: str, loading: Loading, asked: Mapping[str, Any]) -> Subject:
    """A model by itself, with what its task usually takes."""
    download = asked.get("allow_download", False)
    place = locate(model, loading, allow_download=download)
    task = asked.get("task") or _task_of(model, checkpoint(place, loading, allow_download=download))
    usual = task_info(task)
    length = sentence_length(checkpoint(place, loading, allow_download=download)) if usual.embeds else None
    if "data" not in asked:
        columns = ", ".join(usual.columns)
        raise EvaluationError(
            f"there are no data for {model!r}: name them with --validation_file FILE (csv, tsv, json, jsonl, "
            f"parquet, arrow, txt, a folder, or owner/name on the hub{'; columns: ' if columns else ''}{columns})."
        )
    return Subject(
        name=model if not Path(model).is_dir() else Path(model).resolve().name,
        title=model,
        model=place,
        task=task,
        data=asked["data"],
        input_column=usual.input_column,
        second_column=usual.second_column,
        target_column=usual.target_column,
        max_length=length,
    )


def load_rows(subject: Subject, *, skip_bad_rows: bool = False, training: bool = False) -> datasets.Dataset:
    """The subject's data with every column it needs; arguments and errors as for ``load_data``.

    Args:
        training: of several splits, take the one to train on.
    """
    info = task_info(subject.task)
    return load_data(
        subject.data,
        Wanted(subject.columns, info.also, info.optional),
        split=subject.split,
        config_name=subject.config_name,
        allow_download=subject.allow_download,
        skip_bad_rows=skip_bad_rows,
        **({"usual": TRAINING} if training else {}),
    )


_OF_GGUF = {"t5": "seq2seq"}  # of all others a language model is read
_OF_ADAPTERS = {
    "SEQ_CLS": "text-classification",
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-drift",
}
"""PEFT's task_type → the task here."""


def _task_of(model: str, found: Checkpoint) -> str:
    if found.gguf_file is not None:
        return _OF_GGUF.get(gguf_architecture(found), "causal-lm")
    if found.adapter is not None and (task := _OF_ADAPTERS.get(str(adapter_config(found.adapter).get("task_type")))):
        return task
    config = read_config(found)
    architectures = list(map(str, config.get("architectures") or []))
    for architecture in architectures:
        ends = [(end, task) for task, info in TASKS.items() for end in info.architectures if architecture.endswith(end)]
        if ends and reads_images(architecture) and "seq2seq" in dict(ends).values():
            return "causal-lm"  # the part of it that reads texts
        if ends:
            return max(ends, key=lambda one: len(one[0]))[1]  # "WhisperForConditionalGeneration" says more than its end
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
