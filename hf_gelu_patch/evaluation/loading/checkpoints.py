"""Where a model is, and what its config says before it is loaded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.hub import HUB_ID, ask_hub, stored_file
from hf_gelu_patch.evaluation.reference import REFERENCES, Reference, ReferenceUnavailableError


def locate(model: str, *, allow_download: bool = False) -> str:
    """Where a model is: the folder of a reference model, a checkpoint folder as it is, or an id on the hub that is in
    the cache (or may be fetched). A folder that is called as a reference model is goes by ``./name``.

    Raises:
        EvaluationError: it is none of them, or the reference model cannot be had.
    """
    if (reference := REFERENCES.get(model)) is not None:
        with unavailable_told(reference):
            return str(reference.model_path())
    path = Path(model).expanduser()
    if path.is_dir():
        _check_folder(path)
        return str(path)
    hint = f"Reference models: {', '.join(REFERENCES)}."
    if path.exists():
        raise EvaluationError(f"{model} is a file: name the checkpoint folder that holds config.json. {hint}")
    if model.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(model):
        raise EvaluationError(f"there is no model folder {model}.{close_name(model, REFERENCES)} {hint}")
    if not allow_download:
        if (adapter := stored_file(model, "adapter_config.json")) is not None:
            raise EvaluationError(_adapter(model, adapter))
        if stored_file(model, "config.json") is None:
            raise EvaluationError(
                f"{model!r} is no folder here, no reference model and not in the hub's cache."
                f"{close_name(model, REFERENCES)} {hint} To fetch it from the hub, add --allow_download."
            )
    else:
        ask_hub()
        _fetch(model)
    return model


def locate_config(model: str, *, allow_download: bool = False) -> str:
    """Where a model's config is, as ``locate`` says; of a reference model neither are the weights read nor is anything
    unpacked that its config does not need. Errors as for ``locate``."""
    if (reference := REFERENCES.get(model)) is None:
        return locate(model, allow_download=allow_download)
    with unavailable_told(reference):
        return str(reference.config_path())


@contextmanager
def unavailable_told(reference: Reference) -> Iterator[None]:
    """Say of a reference model or its data that cannot be had, as an ``EvaluationError``."""
    try:
        yield
    except (ReferenceUnavailableError, KeyError) as error:
        raise EvaluationError(f"the reference model {reference.name!r} cannot be had: {error}") from error


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


def close_name(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


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


def read_config(place: str) -> dict[str, Any]:
    """A checkpoint's config as it stands in its file."""
    path = stored_file(place, "config.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object" if path is not None else "there is none")
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"the config.json of {place} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error
    return found
