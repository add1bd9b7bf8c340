"""Models loaded, or built without their weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.loading.checkpoints import read_config
from hf_gelu_patch.evaluation.tasks.registry import task_info
from hf_gelu_patch.evaluation.tasks.user_file import own_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_GIVEN = {"input_ids": "texts", "pixel_values": "images", "input_values": "sounds", "input_features": "sounds"}
"""What a model is given, by the names of arguments."""


def quieten() -> None:
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
            takes none of what the task has to give.
    """
    import torch
    import transformers

    quieten()
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    info = task_info(task)
    [architecture, *_] = [*map(str, read_config(place).get("architectures") or []), ""]
    name = info.class_for(architecture)
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise EvaluationError(f"{task}: AUTO_CLASS = {name!r} is no AutoModel… class in transformers.")
    loader = _loader(name, architecture)
    try:
        model, loaded = loader.from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=not allow_download,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below
            **options,
        )
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise EvaluationError(f"{place} cannot be loaded for {task}: {reason_of(error, name)}") from error
    if trouble := _lacking(loaded, pooler=name != "AutoModel"):
        named = ", ".join(map(str, model.config.architectures or ["no architecture"]))
        raise EvaluationError(
            f"{place} {trouble}, which would be drawn at random. It is a model for another task (--task; its config "
            f"names {named}), or is incomplete: fetch the checkpoint again."
        )
    takes = inspect.signature(model.forward).parameters
    if not own_file(task) and model.main_input_name in takes and not info.inputs & set(takes):
        given = " or ".join(dict.fromkeys(_GIVEN[name] for name in sorted(info.inputs)))
        raise EvaluationError(
            f"{place} takes {model.main_input_name}, and {task} has {given} to give: name another --task, or a Python "
            "file of your own, --task FILE.py, which can ask anything."
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


def _loader(auto_class: str, architecture: str) -> Any:
    """The class in transformers that loads a checkpoint: an encoder that was saved without its decoder has one of its
    own (T5EncoderModel), which AutoModel does not know."""
    import transformers

    if auto_class == "AutoModel" and architecture.endswith("EncoderModel"):
        return getattr(transformers, architecture, transformers.AutoModel)
    return getattr(transformers, auto_class)


def reason_of(error: Exception, auto_class: str) -> str:
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

    quieten()
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return _made(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # each model's constructor has its own
        raise EvaluationError(f"no model can be made of {place}: {reason_of(error, 'AutoModel')}") from error


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
