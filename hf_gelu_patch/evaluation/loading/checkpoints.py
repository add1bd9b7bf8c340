"""Where a model is, and what its config says before it is loaded."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.hub import HUB_ID, ask_hub, stored_file
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.reference import REFERENCES, Reference, ReferenceUnavailableError

__all__ = [
    "Checkpoint",
    "adapter_config",
    "checkpoint",
    "close_name",
    "gguf_architecture",
    "locate",
    "locate_config",
    "read_config",
    "sentence_modules",
    "unavailable_told",
]

_ADAPTER = "adapter_config.json"
_MODULES = "modules.json"


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model.

    Attributes:
        place: the folder, or the id on the hub, of the model itself.
        subfolder: of a repository on the hub; "" for none. A folder's own is part of ``place``.
        revision: likewise.
        gguf_file: the file in ``place`` that holds weights and config; None where they are transformers' own.
        adapter: the folder, or the id on the hub, of an adapter for it.
    """

    place: str
    subfolder: str = ""
    revision: str | None = None
    gguf_file: str | None = None
    adapter: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What each ``from_pretrained`` is told beside the place."""
        found = {"subfolder": self.subfolder, "revision": self.revision, "gguf_file": self.gguf_file}
        return {name: value for name, value in found.items() if value}

    def file(self, name: str) -> Path | None:
        """A file of it; None where it isn't there."""
        return stored_file(self.place, f"{self.subfolder}/{name}" if self.subfolder else name, self.revision)


def locate(model: str, loading: Loading | None = None, *, allow_download: bool = False) -> str:
    """Where a model is: the folder of a reference model, a checkpoint folder as it is, a GGUF file, or an id on the hub
    that is in the cache (or may be fetched). A folder that is called as a reference model is goes by ``./name``.

    Raises:
        EvaluationError: it is none of them, or the reference model cannot be had.
    """
    loading = loading or Loading()
    if (reference := REFERENCES.get(model)) is not None:
        with unavailable_told(reference):
            return str(reference.model_path())
    path = Path(model).expanduser()
    if path.is_dir() or path.suffix == ".gguf":
        checkpoint(str(path), loading, allow_download=allow_download)
        return str(path)
    hint = f"Reference models: {', '.join(REFERENCES)}."
    if path.exists():
        raise EvaluationError(f"{model} is a file: name the checkpoint folder that holds config.json. {hint}")
    if model.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(model):
        raise EvaluationError(f"there is no model folder {model}.{close_name(model, REFERENCES)} {hint}")
    if not allow_download:
        wanted = loading.gguf_file or "config.json"
        here = Checkpoint(model, loading.subfolder or "", loading.revision)
        if here.file(wanted) is None and here.file(_ADAPTER) is None:
            raise EvaluationError(
                f"{model!r} is no folder here, no reference model and not in the hub's cache"
                f"{f' with {wanted}' if here.options or loading.gguf_file else ''}."
                f"{close_name(model, REFERENCES)} {hint} To fetch it from the hub, add --allow_download."
            )
    else:
        ask_hub()
        _fetch(model, loading)
    checkpoint(model, loading, allow_download=allow_download)
    return model


def locate_config(model: str, loading: Loading | None = None, *, allow_download: bool = False) -> str:
    """Where a model's config is, as ``locate`` says; of a reference model neither are the weights read nor is anything
    unpacked that its config does not need. Errors as for ``locate``."""
    if (reference := REFERENCES.get(model)) is None:
        return locate(model, loading, allow_download=allow_download)
    with unavailable_told(reference):
        return str(reference.config_path())


@contextmanager
def unavailable_told(reference: Reference) -> Iterator[None]:
    """Say of a reference model or its data that cannot be had, as an ``EvaluationError``."""
    try:
        yield
    except (ReferenceUnavailableError, KeyError) as error:
        raise EvaluationError(f"the reference model {reference.name!r} cannot be had: {error}") from error


def checkpoint(place: str, loading: Loading | None = None, *, allow_download: bool = False) -> Checkpoint:
    """The parts of the model that is at a place, as ``locate`` gave it. The base of an adapter is found by the
    adapter's config; the transformer of a sentence-transformers model by its list of modules.

    Raises:
        EvaluationError: a part is not there.
    """
    loading = loading or Loading()
    path = Path(place)
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise EvaluationError(f"there is no GGUF file {place}.")
        if loading.gguf_file or loading.subfolder:
            raise EvaluationError(f"{place} is a GGUF file itself: drop --gguf_file and --subfolder.")
        return Checkpoint(str(path.parent), gguf_file=path.name, adapter=_adapter(loading, allow_download))
    if path.is_dir():
        if loading.revision is not None:
            raise EvaluationError(f"--revision is for a model on the hub, and {place} is a folder: drop it.")
        if loading.subfolder and not (path / loading.subfolder).is_dir():
            there = ", ".join(sorted(one.name for one in path.iterdir() if one.is_dir())) or "none"
            raise EvaluationError(f"{place} has no folder {loading.subfolder} (--subfolder). Its folders: {there}.")
        found = Checkpoint(str(path / loading.subfolder) if loading.subfolder else place, gguf_file=loading.gguf_file)
    else:
        found = Checkpoint(place, loading.subfolder or "", loading.revision, loading.gguf_file)
    if found.gguf_file is None and found.file(_ADAPTER) is not None:
        return _base(found, loading, allow_download)
    if found.file("config.json") is None and (modules := sentence_modules(found)):
        inner = modules[0].get("path") or ""
        nested = "/".join(filter(None, (found.subfolder, inner)))
        found = (
            Checkpoint(str(Path(found.place) / inner))
            if path.is_dir()
            else Checkpoint(found.place, nested, found.revision)
        )
    if path.is_dir():
        _check_folder(Path(found.place), found.gguf_file)
    return Checkpoint(found.place, found.subfolder, found.revision, found.gguf_file, _adapter(loading, allow_download))


def _check_folder(path: Path, gguf_file: str | None) -> None:
    """See that a folder holds a checkpoint."""
    wanted = gguf_file or "config.json"
    if not (path / wanted).is_file():
        inside = sorted(str(config.parent) for config in path.glob("*/config.json"))
        files = sorted(file.name for file in path.glob("*.gguf"))
        remedy = f"Name a folder in it: {', '.join(inside[:5])}." if inside else "Name the folder that holds one."
        if files:
            remedy = f"Name one of its GGUF files with --gguf_file: {', '.join(files[:5])}."
        raise EvaluationError(f"{path} is no checkpoint: it has no {wanted}. {remedy}")


# ------------------------------------------------------------------------------------------------------------ adapters


def _adapter(loading: Loading, allow_download: bool) -> str | None:
    """Where the adapter is that was named."""
    if loading.adapter is None:
        if loading.merge_adapter:
            raise EvaluationError("--merge_adapter has nothing to merge: name the adapter with --adapter.")
        return None
    path = Path(loading.adapter).expanduser()
    if path.is_dir():
        if not (path / _ADAPTER).is_file():
            raise EvaluationError(f"--adapter {loading.adapter} is no PEFT adapter: it has no {_ADAPTER}.")
        return str(path)
    if not HUB_ID.fullmatch(loading.adapter) or (stored_file(loading.adapter, _ADAPTER) is None and not allow_download):
        raise EvaluationError(
            f"there is no adapter {loading.adapter}: name its folder, or its id on the hub with --allow_download."
        )
    return loading.adapter


def _base(adapter: Checkpoint, loading: Loading, allow_download: bool) -> Checkpoint:
    """An adapter with the model that it is for, where an adapter was named as the model."""
    if loading.adapter is not None:
        raise EvaluationError(
            f"{adapter.place} is a PEFT adapter itself: name the model that both are for, and one with --adapter."
        )
    named = adapter_config(adapter.place)
    base, revision = named.get("base_model_name_or_path"), named.get("revision")
    if not isinstance(base, str) or not base:
        raise EvaluationError(
            f"{adapter.place} is a PEFT adapter, and does not say for which model: name that with "
            f"--model_name_or_path, and --adapter {adapter.place}."
        )
    beside = Path(base).expanduser()
    of_base = Loading(revision=None if beside.is_dir() else revision)
    try:
        place = str(beside) if beside.is_dir() else locate(base, of_base, allow_download=allow_download)
        found = checkpoint(place, of_base, allow_download=allow_download)
    except EvaluationError as error:
        raise EvaluationError(
            f"{adapter.place} is a PEFT adapter for {base}, which is not there: {error}\nName the model where it is "
            f"with --model_name_or_path, and --adapter {adapter.place}."
        ) from error
    if found.adapter is not None:
        raise EvaluationError(f"{adapter.place} is an adapter for {base}, which is an adapter itself: merge that one.")
    return Checkpoint(found.place, found.subfolder, found.revision, found.gguf_file, adapter.place)


def adapter_config(adapter: str) -> dict[str, Any]:
    """An adapter's config as it stands in its file.

    Raises:
        EvaluationError: it cannot be read.
    """
    path = stored_file(adapter, _ADAPTER)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"the {_ADAPTER} of {adapter} cannot be read ({first_line(error)}): fetch the adapter again."
        ) from error
    return found


# ------------------------------------------------------------------------------------------------------------- configs


def sentence_modules(found: Checkpoint) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers model, as they follow each other; none for another model."""
    path = found.file(_MODULES)
    if path is None:
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return [{"type": str(one["type"]), "path": str(one.get("path") or "")} for one in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"the {_MODULES} of {found.place} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error


def close_name(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _fetch(model: str, loading: Loading) -> None:
    """A model's config out of the hub into its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    how: dict[str, Any] = {"subfolder": loading.subfolder, "revision": loading.revision}
    try:
        hf_hub_download(model, loading.gguf_file or "config.json", **how)
    except EntryNotFoundError:
        for name in (_ADAPTER, _MODULES):
            try:
                hf_hub_download(model, name, **how)
            except Exception:  # the network's, the hub's
                continue
            return
        raise EvaluationError(f"{model} on the hub is no checkpoint: it has no config.json.") from None
    except Exception as error:  # the network's, the hub's
        raise EvaluationError(
            f"{model} cannot be fetched from the hub: {first_line(error).rstrip('.')}. Check the name and the "
            "connection, and for a gated model log in with: hf auth login"
        ) from error


def read_config(found: Checkpoint) -> dict[str, Any]:
    """A checkpoint's config as it stands in its file."""
    path = found.file("config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object" if path is not None else "there is none")
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"the config.json of {found.place} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error
    return config


def gguf_architecture(found: Checkpoint) -> str:
    """What a GGUF file calls the architecture of the model in it: "llama", "gpt2", "t5", …

    Raises:
        EvaluationError: the file cannot be read, or gguf is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise EvaluationError(f"{found.gguf_file} needs gguf to be read, not installed here: pip install gguf")
    path = found.file(found.gguf_file or "")
    try:
        from gguf import GGUFReader

        field: Any = GGUFReader(str(path)).get_field("general.architecture")
        return str(field.contents())
    except Exception as error:  # gguf's and numpy's own kinds
        raise EvaluationError(
            f"the GGUF file {path or found.gguf_file} cannot be read ({first_line(error)}): fetch it again."
        ) from error
