"""What the user names, found and loaded: models, their tokenizers or image processors, metrics and tasks of one's own.

A name is told apart by its form, before anything heavy is imported and without the network: a reference model, a
folder, or an id on the hub. Whatever is wrong is an ``EvaluationError`` that names the remedy.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.data import EvaluationError, ask_hub, data_file, first_line, load_data
from hf_gelu_patch.evaluation.reference import REFERENCES, Reference, ReferenceUnavailableError

if TYPE_CHECKING:
    import datasets
    import evaluate
    import torch
    from transformers import PreTrainedModel

__all__ = [
    "TASKS",
    "EvaluationError",
    "Subject",
    "TaskInfo",
    "data_file",
    "find_metric",
    "load_data",
    "load_metric",
    "load_model",
    "load_processor",
    "load_rows",
    "locate",
    "own_task",
    "reference_subject",
    "skeleton",
    "subject",
    "task_info",
]


@dataclass(frozen=True)
class TaskInfo:
    """A task in short.

    Attributes:
        summary: what it is, in one line.
        auto_class: the class in transformers that loads its models.
        input_column: the column that holds what the model is given, unless another is named.
        second_column: the one that holds a second text; None where there is none by default.
        target_column: the one that holds the right answer; None where the input is its own, or there is none.
        metrics: what is measured, besides loss and drift.
    """

    summary: str
    auto_class: str
    input_column: str | None
    second_column: str | None
    target_column: str | None
    metrics: tuple[str, ...]


TASKS: dict[str, TaskInfo] = {
    "text-classification": TaskInfo(
        "a label for a text, or for a pair of texts (--second_column)",
        "AutoModelForSequenceClassification",
        "text",
        None,
        "label",
        ("accuracy", "macro_f1"),
    ),
    "sentence-similarity": TaskInfo(
        "cosine of the mean-pooled last hidden states of two texts, against a score",
        "AutoModel",
        "text1",
        "text2",
        "score",
        ("spearman", "pearson"),
    ),
    "masked-lm": TaskInfo(
        "15 % of a text's tokens, drawn once by a seed, to be told from the rest",
        "AutoModelForMaskedLM",
        "text",
        None,
        None,
        ("perplexity", "token_accuracy"),
    ),
    "causal-lm": TaskInfo(
        "each token of running text from those before it, in blocks or a sliding window (--stride)",
        "AutoModelForCausalLM",
        "text",
        None,
        None,
        ("perplexity", "token_accuracy"),
    ),
    "seq2seq": TaskInfo(
        "a text from another: generated greedily, and its loss token by token",
        "AutoModelForSeq2SeqLM",
        "source",
        None,
        "target",
        ("exact_match", "edit_error_rate", "loss"),
    ),
    "image-classification": TaskInfo(
        "a label for an image",
        "AutoModelForImageClassification",
        "image",
        None,
        "label",
        ("accuracy", "macro_f1", "top5_accuracy"),
    ),
    "feature-drift": TaskInfo(
        "how far the last hidden states of a text (or an image) move; no right answers",
        "AutoModel",
        "text",
        None,
        None,
        (),
    ),
}
"""Every task by name. A file of one's own, ``path/to/file.py``, is one more: ``own_task``."""

_ARCHITECTURES = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForConditionalGeneration": "seq2seq",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
    allow_download: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the data have to have."""
        return tuple(filter(None, (self.input_column, self.second_column, self.target_column)))


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
    allow_download: bool = False,
) -> Subject:
    """Complete what was named to all that an evaluation needs; no model is loaded.

    Args:
        model: a reference's name, a checkpoint folder, or an id on the hub.
        task: None to read it off the model: a reference's own, or by the architecture that its config names.
        validation_file: a file, a folder, or an id on the hub; None for a reference's own data.
        input_column, second_column, target_column: None for a reference's own, or the task's usual ones.
        max_length: None for a reference's own, or the model's limit.
        split, config_name, metric, stride: as in ``Subject``.
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
        task = task or _task_of(model, place, allow_download=allow_download)
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
    return replace(
        found,
        second_column=second_column or found.second_column,
        split=split,
        config_name=config_name,
        metric=metric,
        stride=stride,
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


def own_file(task: str) -> bool:
    """Whether a task is named by a Python file, rather than as one of ``TASKS``."""
    return task.endswith(".py")


def task_info(task: str) -> TaskInfo:
    """A task in short, one of ``TASKS`` or one of one's own.

    Raises:
        EvaluationError: there is no such task, or no such file.
    """
    if own_file(task):
        path = Path(task).expanduser()
        if not path.is_file():
            raise EvaluationError(f"there is no file {task} that could hold a task. Tasks: {', '.join(TASKS)}.")
        return TaskInfo(path.stem, getattr(_module(path), "AUTO_CLASS", "AutoModel"), None, None, None, ())
    if task not in TASKS:
        raise EvaluationError(
            f"unknown task {task!r}.{_close(task, TASKS)} Tasks: {', '.join(TASKS)}, or a Python file of your own."
        )
    return TASKS[task]


def own_task(task: str) -> Callable[..., Any]:
    """The function ``batch`` out of a Python file: a task of one's own. It makes of some rows what the model is given,
    and what is right::

        # emotions.py, for --task emotions.py
        AUTO_CLASS = "AutoModelForSequenceClassification"  # in transformers; AutoModel where it isn't named


        def batch(rows, processor, config):
            texts = [row["title"] + ": " + row["body"] for row in rows]
            inputs = processor(texts, padding=True, truncation=True, return_tensors="pt")
            return inputs, [config.label2id[row["emotion"]] for row in rows]

    ``rows`` are dicts as they stand in the data (cells of a csv file are texts), ``processor`` is the model's tokenizer
    or image processor, and ``config`` the model's config. What comes first are the model's keyword arguments, whose
    tensors have a row for each of ``rows``; then the right classes: a number for each row, or a row of numbers for the
    positions of its logits, −100 where none counts; or None, where only the drift is looked at. The model's ``logits``
    (or its last hidden state) are what is compared. The function has to give the same for the same rows.

    Raises:
        EvaluationError: there is no such file, it cannot be run, or has no such function.
    """
    path = Path(task).expanduser()
    function = getattr(_module(path), "batch", None)
    if not callable(function):
        raise EvaluationError(f"{task} has no function batch(rows, processor, config): a task of one's own is one.")
    return function  # type: ignore[no-any-return]


def _module(path: Path) -> Any:
    import importlib.util

    specification = importlib.util.spec_from_file_location(f"_own_task_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # it is the user's own code
        raise EvaluationError(f"{path} cannot be run: {type(error).__name__}: {first_line(error)}") from error
    return module


def find_metric(name: str, *, allow_download: bool) -> str:
    """The path of a metric's script, or its name on the hub, where it is cached or may be fetched.

    Raises:
        EvaluationError: it is neither.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py" or path.is_dir():
        script = path if path.suffix == ".py" else path / f"{path.resolve().name}.py"
        if not script.is_file():
            raise EvaluationError(
                f"there is no metric's script {script}: name the file, or a folder that is called so."
            )
        return str(script.resolve())
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise EvaluationError(f"{name} is no metric's script (.py), and no name on the hub.")
    if not allow_download:
        from huggingface_hub import constants

        modules = Path(os.environ.get("HF_MODULES_CACHE", Path(constants.HF_HOME) / "modules")) / "evaluate_modules"
        stored = [f"evaluate-{kind}--{name}" for kind in ("metric", "comparison", "measurement")]
        stored = [name.replace("/", "--")] if "/" in name else stored
        if not any((modules.expanduser() / "metrics" / folder).is_dir() for folder in stored):
            raise EvaluationError(
                f"the metric {name!r} is no script here, and is not in the hub's cache. Name a script with "
                "--metric path/to/metric.py, or add --allow_download to fetch it."
            )
    else:
        ask_hub()
    return name


def load_metric(name: str, *, allow_download: bool = False) -> evaluate.EvaluationModule:
    """Another metric, by the path of its script or folder, or its name on the hub.

    Raises:
        EvaluationError: it isn't there, or cannot be loaded.
    """
    found = find_metric(name, allow_download=allow_download)
    import evaluate

    offline = evaluate.config.HF_EVALUATE_OFFLINE
    evaluate.config.HF_EVALUATE_OFFLINE = offline or not allow_download
    try:
        return evaluate.load(found, keep_in_memory=True)
    except Exception as error:  # it is someone else's code, fetched or not
        missing = f" Install {error.name}." if isinstance(error, ModuleNotFoundError) else ""
        raise EvaluationError(f"the metric {name} cannot be loaded: {first_line(error)}{missing}") from error
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = offline


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
    else:
        ask_hub()
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
            f"the config.json of {model} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error
    for architecture in architectures:
        for suffix, task in _ARCHITECTURES.items():
            if str(architecture).endswith(suffix):
                return task
    raise EvaluationError(
        f"cannot tell the task of {model!r} from its architecture "
        f"({', '.join(map(str, architectures)) or 'none named'}): name one with --task: {', '.join(TASKS)}."
    )


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
    allow_download: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode. Where a task reads the last hidden state alone, a pooler may be missing.

    Raises:
        EvaluationError: the checkpoint is corrupt, or is not for this task: weights of its head are missing.
    """
    import torch
    import transformers

    _quieten()
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    name = task_info(task).auto_class
    auto = getattr(transformers, name, None)
    if not name.startswith("AutoModel") or auto is None:
        raise EvaluationError(f"{task}: AUTO_CLASS = {name!r} is no AutoModel… class in transformers.")
    try:
        model, info = auto.from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=not allow_download,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise EvaluationError(
            f"{place} cannot be loaded for {task}: {first_line(error)}\n"
            f"Check --task and --attn_implementation, or fetch the checkpoint again."
        ) from error
    missing = sorted(key for key in info["missing_keys"] if name != "AutoModel" or "pooler" not in key) + sorted(
        str(key[0]) for key in info["mismatched_keys"]
    )
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
        raise EvaluationError(f"no model can be made of {place}: {first_line(error)}") from error


def load_processor(place: str, task: str, *, trust_remote_code: bool = False, allow_download: bool = False) -> Any:
    """The checkpoint's tokenizer, or image processor; whichever it has, where the task could do with either.

    Raises:
        EvaluationError: it has none that can be loaded.
    """
    import transformers

    _quieten()
    if own_file(task) or task == "feature-drift":
        kind, what, method = "AutoProcessor", "tokenizer or image processor", "processor"
    elif task == "image-classification":
        kind, what, method = "AutoImageProcessor", "image processor", "image_processor"
    else:
        kind, what, method = "AutoTokenizer", "tokenizer", "tokenizer"
    try:
        return getattr(transformers, kind).from_pretrained(
            place, trust_remote_code=trust_remote_code, local_files_only=not allow_download
        )
    except Exception as error:
        raise EvaluationError(
            f"{place} has no {what} that can be loaded: {first_line(error)}\n"
            f"Save one there with {method}.save_pretrained(folder)."
        ) from error
