"""What the user names, found and loaded: models, their tokenizers or image processors, and data files.

A name is told apart by its form, before anything heavy is imported and without the network: a reference model, a
folder, or an id on the hub. Whatever is wrong is an ``EvaluationError`` that names the remedy.
"""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.reference import REFERENCES, Reference, ReferenceUnavailableError

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedModel

__all__ = [
    "COLUMNS",
    "TASKS",
    "EvaluationError",
    "Subject",
    "data_file",
    "load_data",
    "load_model",
    "load_processor",
    "locate",
    "reference_subject",
    "skeleton",
    "subject",
]


class EvaluationError(ValueError):
    """Something that was named for evaluation cannot be used; the message names the remedy. No model was changed."""


TASKS = {
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
}
"""Every task by name, with the class in transformers that loads its models."""

COLUMNS: dict[str, tuple[str, str | None]] = {
    "text-classification": ("text", "label"),
    "causal-lm": ("text", None),
    "seq2seq": ("source", "target"),
    "image-classification": ("image", "label"),
}
"""The columns that each task reads unless others are named: what the model is given, and the right answer."""

_ARCHITECTURES = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForConditionalGeneration": "seq2seq",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}

# pandas would turn texts such as "null" and "NA" into nothing.
_READING: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False}, "text": {"sample_by": "document"}}


@dataclass(frozen=True)
class Subject:
    """One model, and the data to evaluate it on.

    Attributes:
        name: what it is called in results.
        title: the name for people.
        model: a checkpoint folder, or an id on the hub.
        task: a key of ``TASKS``.
        data: a csv, json, jsonl, parquet or txt file.
        input_column: the column that holds what the model is given.
        target_column: the column that holds the right answer; None where the input is its own answer.
        max_length: tokens in an example; None for the model's own limit, at most 512.
    """

    name: str
    title: str
    model: str
    task: str
    data: Path
    input_column: str
    target_column: str | None
    max_length: int | None = None


def subject(
    model: str,
    *,
    task: str | None = None,
    validation_file: str | None = None,
    input_column: str | None = None,
    target_column: str | None = None,
    max_length: int | None = None,
    allow_download: bool = False,
) -> Subject:
    """Complete what was named to all that an evaluation needs; no model is loaded.

    Args:
        model: a reference's name, a checkpoint folder, or an id on the hub.
        task: None to read it off the model: a reference's own, or by the architecture that its config names.
        validation_file: None for a reference's own data.
        input_column, target_column: None for a reference's own, or the task's usual ones.
        max_length: None for a reference's own, or the model's limit.
        allow_download: whether an id on the hub may be fetched; otherwise it has to be in the cache.

    Raises:
        EvaluationError: model or file isn't there, no task can be told, or the data are not known.
    """
    if task is not None and task not in TASKS:
        raise EvaluationError(f"unknown task {task!r}.{_close(task, TASKS)} Tasks: {', '.join(TASKS)}.")
    data = data_file(validation_file) if validation_file is not None else None
    if (reference := REFERENCES.get(model)) is not None:
        if task not in (None, reference.task):
            raise EvaluationError(
                f"the reference model {model!r} is for {reference.task}, not for {task}: drop --task."
            )
        own = reference_subject(reference)
        return replace(
            own,
            data=data or own.data,
            input_column=input_column or own.input_column,
            target_column=target_column or own.target_column,
            max_length=max_length or own.max_length,
        )
    place = locate(model, allow_download=allow_download)
    task = task or _task_of(model, place, allow_download=allow_download)
    if data is None:
        raise EvaluationError(
            f"there are no data for {model!r}: name them with --validation_file FILE "
            f"({', '.join(_DATA_FORMATS)}; columns: {', '.join(filter(None, COLUMNS[task]))})."
        )
    usual_input, usual_target = COLUMNS[task]
    return Subject(
        name=model if not Path(model).is_dir() else Path(model).resolve().name,
        title=model,
        model=place,
        task=task,
        data=data,
        input_column=input_column or usual_input,
        target_column=None if task == "causal-lm" else target_column or usual_target,
        max_length=max_length,
    )


def reference_subject(reference: Reference) -> Subject:
    """A reference model on its own data.

    Raises:
        EvaluationError: the model or its data cannot be had.
    """
    try:
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
    except (ReferenceUnavailableError, KeyError) as error:
        raise EvaluationError(f"the reference model {reference.name!r} cannot be had: {error}") from error


def locate(model: str, *, allow_download: bool = False) -> str:
    """Where a model is: the folder of a reference model, a checkpoint folder as it is, or an id on the hub that is in
    the cache (or may be fetched). A folder that is called as a reference model is goes by ``./name``.

    Raises:
        EvaluationError: it is none of them, or the reference model cannot be had.
    """
    if (reference := REFERENCES.get(model)) is not None:
        return reference_subject(reference).model
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EvaluationError(f"{model} is no checkpoint: it has no config.json. Name the folder that holds one.")
        return str(path)
    hint = f"Reference models: {', '.join(REFERENCES)}."
    if path.exists():
        raise EvaluationError(f"{model} is a file: name the checkpoint folder that holds config.json. {hint}")
    if model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        raise EvaluationError(f"there is no model folder {model}.{_close(model, REFERENCES)} {hint}")
    if not allow_download:
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(model, "config.json"), str):
            raise EvaluationError(
                f"{model!r} is no folder here, no reference model and not in the hub's cache."
                f"{_close(model, REFERENCES)} {hint} To fetch it from the hub, add --allow_download."
            )
    return model


def _close(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _task_of(model: str, place: str, *, allow_download: bool) -> str:
    try:
        if Path(place).is_dir():
            config = Path(place) / "config.json"
        else:
            from huggingface_hub import hf_hub_download

            config = Path(hf_hub_download(place, "config.json", local_files_only=not allow_download))
        architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"the config.json of {model} cannot be read ({_first_line(error)}): fetch the checkpoint again."
        ) from error
    for architecture in architectures:
        for suffix, task in _ARCHITECTURES.items():
            if str(architecture).endswith(suffix):
                return task
    raise EvaluationError(
        f"cannot tell the task of {model!r} from its architecture "
        f"({', '.join(map(str, architectures)) or 'none named'}): name one with --task: {', '.join(TASKS)}."
    )


def data_file(name: str) -> Path:
    """The data file of that name.

    Raises:
        EvaluationError: it isn't there, or is of no known format.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise EvaluationError(f"{name} is a folder: name a file in it ({', '.join(_DATA_FORMATS)}).")
    if not path.is_file():
        raise EvaluationError(f"there is no data file {name}: name one that is here with --validation_file.")
    if path.suffix.lower() not in _DATA_FORMATS:
        raise EvaluationError(f"{name}: data come as {', '.join(_DATA_FORMATS)}; convert it to one of these.")
    return path


def load_data(path: Path, columns: tuple[str, ...]) -> datasets.Dataset:
    """A data file as a dataset in memory; nothing is left in a cache. A text file is one row with the column ``text``.

    Args:
        path: a csv, json, jsonl, parquet or txt file.
        columns: those that have to be there.

    Raises:
        EvaluationError: it cannot be read, has no rows, or lacks a column; the message lists those there.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    kind = _DATA_FORMATS[path.suffix.lower()]
    options = _READING.get(kind, {})
    with tempfile.TemporaryDirectory() as cache:
        try:
            data = datasets.load_dataset(
                kind, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:  # whatever the readers raise: each has its own kinds
            reason = error.__cause__ or error
            raise EvaluationError(f"{path} cannot be read as {kind}: {_first_line(reason)}") from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise EvaluationError(
            f"{path} has no column {' and no column '.join(map(repr, missing))}; "
            f"it has: {', '.join(data.column_names)}. Name the right ones with --input_column and --target_column."
        )
    if len(data) == 0:
        raise EvaluationError(f"{path} has no rows: there is nothing to evaluate on.")
    return data


def _quieten() -> None:
    """transformers' advice and progress bars have no place beside our own."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_model(
    place: str,
    task: str,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode.

    Raises:
        EvaluationError: the checkpoint is corrupt, or is not for this task: weights of its head are missing.
    """
    import torch
    import transformers

    _quieten()
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        model, info = getattr(transformers, TASKS[task]).from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise EvaluationError(
            f"{place} cannot be loaded for {task}: {_first_line(error)}\n"
            f"Check --task and --attn_implementation, or fetch the checkpoint again."
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise EvaluationError(
            f"{place} has no weights for {len(missing)} of the parameters that {task} needs ({shown}): "
            "it is a model for another task (--task), or is incomplete."
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def skeleton(place: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that a checkpoint's config describes, on the meta device: its modules without its weights.

    Raises:
        EvaluationError: there is no such model.
    """
    import torch
    import transformers

    _quieten()
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        named: Any = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        with torch.device("meta"):
            auto = named is transformers.AutoModel
            model: PreTrainedModel = (
                named.from_config(config, trust_remote_code=trust_remote_code) if auto else named(config)
            )
        return model
    except Exception as error:  # each model's constructor has its own
        raise EvaluationError(f"no model can be made of {place}: {_first_line(error)}") from error


def load_processor(place: str, task: str, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's tokenizer, or image processor.

    Raises:
        EvaluationError: it has none that can be loaded.
    """
    import transformers

    _quieten()
    kind = "AutoImageProcessor" if task == "image-classification" else "AutoTokenizer"
    try:
        return getattr(transformers, kind).from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:
        what = "image processor" if task == "image-classification" else "tokenizer"
        raise EvaluationError(
            f"{place} has no {what} that can be loaded: {_first_line(error)}\n"
            f"Save one there with {what.replace(' ', '_')}.save_pretrained(folder)."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}"[:300]
