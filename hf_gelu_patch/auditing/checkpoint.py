"""What the files of a checkpoint say of its activations, as it stands in them."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_gelu_patch.errors import PatchError, first_line

__all__ = ["Gguf", "Stored", "read_checkpoint"]


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says.

    Attributes:
        architecture: ``general.architecture``, which names the graph that llama.cpp runs.
        gated: whether there are matrices of gates (``ffn_gate``).
        texts: those of its keys whose value is a text.
    """

    architecture: str
    gated: bool
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says.

    Attributes:
        path: the file.
        config: what config.json holds; empty where the file is another.
        gguf: what a GGUF file says; None where the file is another.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    gguf: Gguf | None = None


def read_checkpoint(place: str | os.PathLike[str]) -> Stored:
    """What a folder's config.json says, or a GGUF file.

    Raises:
        PatchError: there is none, it cannot be read, or gguf is missing.
    """
    path = Path(place)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise PatchError(f"there is no {path}: name the folder that holds config.json, or a GGUF file.")
    if path.suffix == ".gguf":
        return Stored(path, gguf=_gguf(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise PatchError(f"{path} cannot be read ({first_line(error)}): fetch the checkpoint again.") from error
    return Stored(path, config)


def _gguf(path: Path) -> Gguf:
    if importlib.util.find_spec("gguf") is None:
        raise PatchError(f"{path} needs gguf to be read, not installed here: pip install gguf")
    from gguf import GGUFReader, GGUFValueType

    try:
        reader = GGUFReader(str(path))
        texts = {key: str(one.contents()) for key, one in reader.fields.items() if one.types == [GGUFValueType.STRING]}
        gated = any(".ffn_gate." in tensor.name for tensor in reader.tensors)
    except Exception as error:  # gguf's and numpy's own kinds
        raise PatchError(f"the GGUF file {path} cannot be read ({first_line(error)}): fetch it again.") from error
    return Gguf(texts.get("general.architecture", ""), gated, texts)
