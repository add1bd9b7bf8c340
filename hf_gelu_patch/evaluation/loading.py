"""What the user names, found and loaded: models, their tokenizers or image processors, metrics and tasks of one's own.

A name is told apart by its form, before anything heavy is imported and without the network: a reference model, a
folder, or an id on the hub. Whatever is wrong is an ``EvaluationError`` that names the remedy.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.data import EvaluationError, ask_hub, data_file, first_line, load_data
from hf_gelu_patch.evaluation.labels import READINGS
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
        metrics: what is measured, besides loss and drift; of a classifier, those for its kind of head.
    """

    summary: str
    auto_class: str
    input_column: str | None
    second_column: str | None
    target_column: str | None
    metrics: tuple[str, ...]


_OF_HEADS = ("accuracy", "macro_f1", "subset_accuracy", "micro_f1", "spearman", "pearson", "mse")

TASKS: dict[str, TaskInfo] = {
    "text-classification": TaskInfo(
        "a label for a text, or for a pair of texts (--second_column); or several, or a number, as the head has it",
        "AutoModelForSequenceClassification",
        "text",
        None,
        "label",
        _OF_HEADS,
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
        ("perplexity", "token_accuracy", "bits_per_byte"),
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
        "a label for an image; or several, or a number, as the head has it",
        "AutoModelForImageClassification",
        "image",
        None,
        "label",
        ("top5_accuracy", *_OF_HEADS),
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

_CALLED_ELSEWHERE = {
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "natural-language-inference": "text-classification",
    "semantic-textual-similarity": "sentence-similarity",
    "fill-mask": "masked-lm",
    "text-generation": "causal-lm",
    "language-modeling": "causal-lm",
    "text2text-generation": "seq2seq",
    "seq2seq-lm": "seq2seq",
    "summarization": "seq2seq",
    "translation": "seq2seq",
    "feature-extraction": "feature-drift",
}
"""What transformers' pipelines and the hub call the same tasks."""

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
            f"unknown task {task!r}.{_near_task(task)} Tasks: {', '.join(TASKS)}, or a Python file of your own."
        )
    return TASKS[task]


def _near_task(name: str) -> str:
    """The task that does what is asked for under another name, or whose name is mistyped: each word of it has to be
    near, for token-classification is no text-classification."""
    words = re.split(r"[-_ ]", name.lower())
    if (same := _CALLED_ELSEWHERE.get("-".join(words))) is not None:
        return f" It is called {same!r} here."
    for task in TASKS:
        own = task.split("-")
        if len(own) == len(words) and all(map(difflib.get_close_matches, words, ([word] for word in own))):
            return f" Did you mean {task!r}?"
    return ""


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
        _check_folder(path)
        return str(path)
    hint = f"Reference models: {', '.join(REFERENCES)}."
    if path.exists():
        raise EvaluationError(f"{model} is a file: name the checkpoint folder that holds config.json. {hint}")
    if model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        raise EvaluationError(f"there is no model folder {model}.{_close(model, REFERENCES)} {hint}")
    if not allow_download:
        if (adapter := _stored(model, "adapter_config.json")) is not None:
            raise EvaluationError(_adapter(model, adapter))
        if _stored(model, "config.json") is None:
            raise EvaluationError(
                f"{model!r} is no folder here, no reference model and not in the hub's cache."
                f"{_close(model, REFERENCES)} {hint} To fetch it from the hub, add --allow_download."
            )
    else:
        ask_hub()
        _fetch(model)
    return model


def _check_folder(path: Path) -> None:
    """See that a folder holds a checkpoint that is complete by itself."""
    if (adapter := path / "adapter_config.json").is_file():
        raise EvaluationError(_adapter(str(path), adapter))
    if not (path / "config.json").is_file():
        inside = sorted(str(config.parent) for config in path.glob("*/config.json"))
        remedy = f"Name a folder in it: {', '.join(inside[:5])}." if inside else "Name the folder that holds one."
        raise EvaluationError(f"{path} is no checkpoint: it has no config.json. {remedy}")


def _adapter(model: str, config: Path) -> str:
    """What is said of an adapter of PEFT's, by itself or beside a model: what would be run depends on what is
    installed."""
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "another model"
    return (
        f"{model} holds a PEFT adapter for {base} (adapter_config.json), which is no model by itself. Merge the two "
        "with the peft package: load the base model with its task's AutoModel class, and call "
        f"PeftModel.from_pretrained(base, {model!r}).merge_and_unload().save_pretrained(folder); save the tokenizer to "
        "that folder too, and name it."
    )


def _stored(place: str, name: str) -> Path | None:
    """A file of a checkpoint, in its folder or in the hub's cache; None where it isn't there."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(place, name)
    return Path(cached) if isinstance(cached, str) else None


def _close(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _task_of(model: str, place: str) -> str:
    config = _config(place)
    architectures = list(map(str, config.get("architectures") or []))
    for architecture in architectures:
        for suffix, task in _ARCHITECTURES.items():
            if architecture.endswith(suffix):
                return task
    # Code that comes with a model says which of transformers' classes its own stand for.
    own = set(config.get("auto_map") or {}) - {"AutoModel"}
    mapped = [name for name, info in TASKS.items() if info.auto_class in own]
    if len(mapped) == 1:
        return mapped[0]
    raise EvaluationError(
        f"the architecture of {model!r} ({', '.join(architectures) or 'none named'}) belongs to no task here: "
        f"{', '.join(TASKS)}. A Python file of your own, --task FILE.py, can ask anything. --task feature-drift looks "
        "at the hidden states of any model. Name another --task where the checkpoint has its head too."
    )


def _fetch(model: str) -> None:
    """A model's config out of the hub into its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(model, "config.json")
    except EntryNotFoundError:
        try:
            adapter = hf_hub_download(model, "adapter_config.json")
        except Exception as error:
            raise EvaluationError(f"{model} on the hub is no checkpoint: it has no config.json.") from error
        raise EvaluationError(_adapter(model, Path(adapter))) from None
    except Exception as error:  # the network's, the hub's
        raise EvaluationError(
            f"{model} cannot be fetched from the hub: {first_line(error).rstrip('.')}. Check the name and the "
            "connection, and for a gated model log in with: hf auth login"
        ) from error


def _config(place: str) -> dict[str, Any]:
    """A checkpoint's config as it stands in its file."""
    path = _stored(place, "config.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object" if path is not None else "there is none")
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"the config.json of {place} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error
    return found


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
        EvaluationError: the checkpoint is corrupt, or is not for this task: weights of its head are missing, or it
            takes neither texts nor images.
    """
    import torch
    import transformers

    _quieten()
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    name = task_info(task).auto_class
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise EvaluationError(f"{task}: AUTO_CLASS = {name!r} is no AutoModel… class in transformers.")
    loader = _loader(name, place)
    try:
        model, info = loader.from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=not allow_download,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below
            **options,
        )
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise EvaluationError(f"{place} cannot be loaded for {task}: {_reason(error, name)}") from error
    if trouble := _lacking(info, pooler=name != "AutoModel"):
        named = ", ".join(map(str, model.config.architectures or ["no architecture"]))
        raise EvaluationError(
            f"{place} {trouble}, which would be drawn at random. It is a model for another task (--task; its config "
            f"names {named}), or is incomplete: fetch the checkpoint again."
        )
    takes = inspect.signature(model.forward).parameters
    if not own_file(task) and model.main_input_name in takes and not {"input_ids", "pixel_values"} & set(takes):
        raise EvaluationError(
            f"{place} takes {model.main_input_name}, and {task} has texts or images to give: a Python file of your "
            "own, --task FILE.py, can ask it."
        )
    try:
        return model.to(device).eval()  # type: ignore[no-any-return]
    except RuntimeError as error:  # torch's, where the memory of a GPU does not do
        raise EvaluationError(
            f"{place} cannot be put on {device}: {first_line(error)} Free its memory, or take --dtype bfloat16."
        ) from error


def _lacking(info: Mapping[str, Any], *, pooler: bool) -> str:
    """Which parameters got no weights from a checkpoint; "" if none."""
    missing = sorted(key for key in info["missing_keys"] if pooler or "pooler" not in key)
    shapes = sorted(
        f"{key}: {list(there)} instead of {list(own)}"
        for key, there, own in info["mismatched_keys"]
        if pooler or "pooler" not in key
    )
    for said, found in (("no weights for", missing), ("weights of other shapes for", shapes)):
        if found:
            shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            return f"has {said} {len(found)} of the parameters that are needed ({shown})"
    return ""


def _loader(auto_class: str, place: str) -> Any:
    """The class in transformers that loads a checkpoint: an encoder that was saved without its decoder has one of its
    own (T5EncoderModel), which AutoModel does not know."""
    import transformers

    [architecture, *_] = [*map(str, _config(place).get("architectures") or []), ""]
    if auto_class == "AutoModel" and architecture.endswith("EncoderModel"):
        return getattr(transformers, architecture, transformers.AutoModel)
    return getattr(transformers, auto_class)


def _reason(error: Exception, auto_class: str) -> str:
    """Why a checkpoint cannot be loaded, and what to do about it."""
    said = str(error)
    if "trust_remote_code" in said:
        return "it comes with Python code of its own. Read that code, and add --trust_remote_code to run it."
    if said.startswith("Unrecognized configuration class"):
        return f"transformers has no {auto_class} for models of its type. Name another --task."
    if isinstance(error, ImportError):
        return f"{first_line(error)}\nInstall what is missing, or leave out what needs it."
    return f"{first_line(error)}\nCheck --task and --attn_implementation, or fetch the checkpoint again."


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
        with torch.device("meta"):
            return _made(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # each model's constructor has its own
        raise EvaluationError(f"no model can be made of {place}: {_reason(error, 'AutoModel')}") from error


def _made(config: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model of a config's architecture: of its class in transformers, or, where its code comes with it, by the auto
    class that its code stands for."""
    import transformers

    [architecture, *_] = [*map(str, config.architectures or []), ""]
    own = {str(name).rpartition(".")[2]: auto for auto, name in (getattr(config, "auto_map", None) or {}).items()}
    autos = {name: auto for name, auto in own.items() if auto.startswith("AutoModel")}
    if hasattr(transformers, architecture) and not (autos and trust_remote_code):
        return getattr(transformers, architecture)(config)  # type: ignore[no-any-return]
    auto = getattr(transformers, autos.get(architecture, next(iter(autos.values()), "AutoModel")))
    return auto.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]


def load_processor(place: str, task: str, *, trust_remote_code: bool = False, allow_download: bool = False) -> Any:
    """The checkpoint's tokenizer, or image processor; whichever it has, where the task could do with either.

    Raises:
        EvaluationError: it has none that can be loaded.
    """
    import transformers

    _quieten()
    kinds = ["AutoTokenizer"]
    if own_file(task) or task == "feature-drift":
        kinds = ["AutoProcessor", "AutoImageProcessor", "AutoTokenizer"]
    elif task == "image-classification":
        kinds = ["AutoImageProcessor"]
    failed: list[Exception] = []
    for kind in kinds:
        try:
            found = getattr(transformers, kind).from_pretrained(
                place, trust_remote_code=trust_remote_code, local_files_only=not allow_download
            )
        except Exception as error:  # each has its own kinds, and so have the libraries beneath
            failed.append(error)
        else:
            if hasattr(found, "get_vocab"):
                check_vocabulary(found, place)
            return found
    remedy = f"Save the model's own there: {kinds[-1]}.from_pretrained(original).save_pretrained({place!r})."
    if "trust_remote_code" in str(failed[0]):
        remedy = "It comes with Python code of its own: read that code, and add --trust_remote_code to run it."
    what = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image processor"}
    names = " or ".join(what[kind] for kind in kinds if kind in what)
    raise EvaluationError(f"{place} has no {names} that can be loaded: {first_line(failed[0])}\n{remedy}") from failed[
        0
    ]


def check_vocabulary(tokenizer: Any, name: str) -> None:
    """See that a tokenizer knows words. transformers makes an empty one of a folder without a tokenizer's files: of
    special tokens, and the mark of a word's beginning.

    Raises:
        EvaluationError: it knows none.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if len(set(tokenizer.get_vocab()) - special - set(tokenizer.all_special_tokens)) < 2:
        raise EvaluationError(
            f"{name} has no tokenizer: without its files (tokenizer.json, vocab.txt, …), transformers makes an empty "
            "one, to which every word is unknown. Save the model's own there: "
            f"AutoTokenizer.from_pretrained(original).save_pretrained({name!r})."
        )
