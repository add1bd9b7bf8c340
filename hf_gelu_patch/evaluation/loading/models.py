"""Models loaded, or built without their weights."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.loading.adapters import brought_by, with_adapter
from hf_gelu_patch.evaluation.loading.checkpoints import Checkpoint, checkpoint, read_config
from hf_gelu_patch.evaluation.loading.placing import check_modules, check_room, named_device, placement
from hf_gelu_patch.evaluation.loading.quantizing import quantization_config
from hf_gelu_patch.evaluation.loading.sentences import sentence_head
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.tasks.registry import task_info
from hf_gelu_patch.evaluation.tasks.user_file import own_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_GIVEN = {"input_ids": "texts", "pixel_values": "images", "input_values": "sounds", "input_features": "sounds"}
"""What a model is given, by the names of arguments."""


def quieten() -> None:
    """Advice and progress bars of the libraries have no place beside our own."""
    import logging

    import transformers

    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_model(
    place: str,
    task: str,
    loading: Loading | None = None,
    *,
    allow_download: bool = False,
    device: torch.device | None = None,
    processes: int = 1,
) -> PreTrainedModel:
    """The model in evaluation mode. Where a task reads the last hidden state alone, a pooler may be missing.

    Args:
        place: as ``locate`` gave it.
        task: its name.
        loading: how; as usual where it is None.
        allow_download: fetch what is not here.
        device: to put it on, where ``loading`` does not say.
        processes: that do the same.

    Raises:
        EvaluationError: the checkpoint is corrupt, or is not for this task: weights of its head are missing, or it
            takes none of what the task has to give; or it does not fit; or what ``loading`` asks for is not to be had.
    """
    import torch
    import transformers

    quieten()
    loading, info = loading or Loading(), task_info(task)
    found = checkpoint(place, loading, allow_download=allow_download)
    device = _device(loading, device)
    check_room(found.place, loading, device or torch.device("cpu"))
    architecture = _architecture(found)
    name = info.class_for(architecture)
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        raise EvaluationError(f"{task}: AUTO_CLASS = {name!r} is no AutoModel… class in transformers.")
    loader = _loader(name, architecture)
    options = _options(loading, found, device, processes, allow_download=allow_download)
    if isinstance(options.get("device_map"), dict) and loading.device_map is not None:
        check_modules(options["device_map"], _names(loader, found, loading), place)
    try:
        model, loaded = loader.from_pretrained(
            found.place,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below
            **options,
        )
    except EvaluationError:
        raise
    except Exception as error:  # safetensors, pickle, json and transformers each raise their own kinds
        raise EvaluationError(f"{place} cannot be loaded for {task}: {reason_of(error, name)}") from error
    brought = () if found.adapter is None else brought_by(found.adapter)
    if trouble := _lacking(loaded, pooler=name != "AutoModel", brought=brought):
        named = ", ".join(map(str, model.config.architectures or ["no architecture"]))
        raise EvaluationError(
            f"{place} {trouble}, which would be drawn at random. It is a model for another task (--task; its config "
            f"names {named}), or is incomplete: fetch the checkpoint again."
        )
    if beyond := _beyond(loaded, model):
        raise EvaluationError(
            f"{place} has weights for more layers than its config says, {beyond} among them: they would not be "
            "run. Mend the number of layers in config.json, or save the model that is meant with save_pretrained."
        )
    if found.adapter is not None:
        model = with_adapter(model, found.adapter, merged=loading.merge_adapter, allow_download=allow_download)
    if info.embeds and (head := sentence_head(found, allow_download=allow_download)) is not None:
        from hf_gelu_patch.evaluation.makes import device_of

        model.sentence_head = head.to(device_of(model), model.dtype)
    _check_takes(model, task, place)
    _check_split(model, loading)
    if "device_map" in options or loading.tp_plan is not None:  # its parts are where they belong
        return model.eval()  # type: ignore[no-any-return]
    try:
        return model.to(device).eval()  # type: ignore[no-any-return]
    except RuntimeError as error:  # torch's, where the memory of a GPU does not do
        raise EvaluationError(
            f"{place} cannot be put on {device}: {first_line(error)} Free its memory, take --dtype bfloat16 or "
            "--quantization bitsandbytes-4bit, or spread it with --device_map auto."
        ) from error


def _check_takes(model: PreTrainedModel, task: str, place: str) -> None:
    """See that the model takes some of what the task has to give."""
    takes, inputs = inspect.signature(model.forward).parameters, task_info(task).inputs
    if not own_file(task) and model.main_input_name in takes and not inputs & set(takes):
        given = " or ".join(dict.fromkeys(_GIVEN[name] for name in sorted(inputs)))
        raise EvaluationError(
            f"{place} takes {model.main_input_name}, and {task} has {given} to give: name another --task, or a Python "
            "file of your own, --task FILE.py, which can ask anything."
        )


def _check_split(model: PreTrainedModel, loading: Loading) -> None:
    """See that layers were split, where they are to be: of a model that has no plan transformers makes a whole one in
    each process."""
    from hf_gelu_patch.evaluation.makes import is_split

    if loading.tp_plan is not None and not any(map(is_split, model.parameters())):
        name = type(model).__name__
        raise EvaluationError(f"transformers has no plan to split the layers of {name}: drop --tp_plan.")


def _device(loading: Loading, device: torch.device | None) -> torch.device | None:
    """Where a model goes as a whole: where it was said, or to one of that kind that a process was given."""
    if loading.device is None or (device is not None and loading.device == device.type):
        return device
    return named_device(loading.device)


def _options(
    loading: Loading, found: Checkpoint, device: torch.device | None, processes: int, *, allow_download: bool
) -> dict[str, Any]:
    """What ``from_pretrained`` is told."""
    import torch

    options: dict[str, Any] = {
        "dtype": loading.dtype if loading.dtype == "auto" else getattr(torch, loading.dtype),
        "trust_remote_code": loading.trust_remote_code,
        "local_files_only": not allow_download,
        **found.options,
        **placement(loading, processes),
    }
    if loading.attn_implementation:
        options["attn_implementation"] = loading.attn_implementation
    if loading.tp_plan is not None:
        options |= _split(loading.tp_plan)
    if loading.quantization is not None:
        options["quantization_config"] = quantization_config(loading.quantization)
        if device is not None:  # what is quantized is not moved afterwards
            options.setdefault("device_map", {"": str(device)})
    return options


def _split(plan: str) -> dict[str, Any]:
    """How ``from_pretrained`` is told to split layers: 5.24 has a class for it, and warns of the older argument."""
    try:
        config: Any = importlib.import_module("transformers.distributed").DistributedConfig
        return {"distributed_config": config(tp_plan=plan)}
    except (ImportError, AttributeError, TypeError):
        return {"tp_plan": plan}


def _names(loader: Any, found: Checkpoint, loading: Loading) -> list[str]:
    """The paths of all modules and weights of a model that is not loaded yet."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            found.place, trust_remote_code=loading.trust_remote_code, **found.options
        )
        make = getattr(loader, "from_config", None) or loader._from_config
        with torch.device("meta"):
            model = make(config, trust_remote_code=True) if loading.trust_remote_code else make(config)
    except Exception as error:  # each model's constructor has its own
        raise EvaluationError(f"no model can be made of {found.place}: {reason_of(error, loader.__name__)}") from error
    weights = (name for name, _ in (*model.named_parameters(), *model.named_buffers()))
    return [*(name for name, _ in model.named_modules()), *weights]


def _lacking(info: Mapping[str, Any], *, pooler: bool, brought: Sequence[str] = ()) -> str:
    """Which parameters got no weights from a checkpoint, and get none from the modules that an adapter brings; "" if
    none."""

    def needed(key: str) -> bool:
        return (pooler or "pooler" not in key) and not set(brought) & set(key.split("."))

    missing = sorted(filter(needed, info["missing_keys"]))
    shapes = sorted(
        f"{key}: {list(there)} instead of {list(own)}" for key, there, own in info["mismatched_keys"] if needed(key)
    )
    for said, found in (("no weights for", missing), ("weights of other shapes for", shapes)):
        if found:
            shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            return f"has {said} {len(found)} of the parameters that are needed ({shown})"
    return ""


def _beyond(info: Mapping[str, Any], model: PreTrainedModel) -> str | None:
    """A weight of a checkpoint that is of a layer behind the last one that the model has, or None."""
    own = {_NUMBER.sub("", name) for name, _ in (*model.named_parameters(), *model.named_buffers())}
    prefix = f"{model.base_model_prefix}."
    own |= {name.removeprefix(prefix) for name in own}
    for key in sorted(info["unexpected_keys"]):
        if _NUMBER.search(key) and own & {stem := _NUMBER.sub("", key), stem.removeprefix(prefix)}:
            return str(key)
    return None


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer


def _architecture(found: Checkpoint) -> str:
    """The class that a checkpoint's config names; "" where there is none."""
    config = read_config(found) if found.gguf_file is None else {}
    [architecture, *_] = [*map(str, config.get("architectures") or []), ""]
    return architecture


def reads_images(architecture: str) -> bool:
    """Whether a class is that of a decoder which reads images beside texts."""
    if not architecture.endswith("ForConditionalGeneration"):
        return False
    from transformers.models.auto import modeling_auto

    def names(kind: str) -> set[str]:
        found = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").values()
        return {name for one in found for name in ([one] if isinstance(one, str) else one)}

    return architecture in names("IMAGE_TEXT_TO_TEXT") - names("SEQ_TO_SEQ_CAUSAL_LM")


def _loader(auto_class: str, architecture: str) -> Any:
    """The class in transformers that loads a checkpoint: an encoder that was saved without its decoder has one of its
    own (T5EncoderModel), which AutoModel does not know; a language model that reads images too (Llava) is loaded as a
    whole, and goes on from texts alone as well."""
    import transformers

    if auto_class == "AutoModel" and architecture.endswith("EncoderModel"):
        return getattr(transformers, architecture, transformers.AutoModel)
    if auto_class == "AutoModelForCausalLM" and reads_images(architecture):
        return transformers.AutoModelForImageTextToText
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
    if isinstance(error, MemoryError) or "not enough memory" in said or "out of memory" in said:
        return (
            f"{first_line(error)}\nThere is no memory for it. Spread it with --device_map auto, which puts on the disk "
            "what nothing else has room for, or take --quantization bitsandbytes-4bit."
        )
    if "offload_folder" in said:
        return (
            "some of its weights go to the disk, and no safetensors file holds them as they are needed. Say where to "
            "write them with --offload_folder FOLDER."
        )
    return f"{first_line(error)}\nCheck --task and --attn_implementation, or fetch the checkpoint again."


def skeleton(place: str, loading: Loading | None = None) -> PreTrainedModel:
    """The model that a checkpoint's config describes, on the meta device: its modules without its weights.

    Args:
        place: as ``locate`` gave it.
        loading: which of its files are meant, and whether code that comes with it may run.

    Raises:
        EvaluationError: there is no such model.
    """
    import torch
    import transformers

    quieten()
    loading = loading or Loading()
    found, trusted = checkpoint(place, loading), loading.trust_remote_code
    try:
        config = transformers.AutoConfig.from_pretrained(found.place, trust_remote_code=trusted, **found.options)
        if found.gguf_file is not None and not config.architectures:
            config.architectures = [_of_gguf(config)]
        with torch.device("meta"):
            return _made(config, trust_remote_code=trusted)
    except Exception as error:  # each model's constructor has its own
        raise EvaluationError(f"no model can be made of {place}: {reason_of(error, 'AutoModel')}") from error


def _of_gguf(config: Any) -> str:
    """The class of the model in a GGUF file, which names none: with a head, as there is one in most."""
    import transformers

    autos: tuple[Any, ...] = (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM)
    known: Any = next((auto for auto in autos if type(config) in auto._model_mapping), transformers.AutoModel)
    return str(known._model_mapping[type(config)].__name__)


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
