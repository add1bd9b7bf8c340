"""Hashes of what answers depend on: weights, rows of data, plain data."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.verification.restoring import mark

if TYPE_CHECKING:
    import datasets

_LEADING = 2**16  # elements of a tensor that are hashed in their order
_ROWS_AT_A_TIME = 256


def content_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors by name: of dtypes, shapes, the first 65,536 elements, and ``mark`` of them all, which reads
    them about as fast as memory gives them."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        if tensor.numel():
            leading = tensor.detach().reshape(-1)[:_LEADING].contiguous().cpu()
            found.update(leading.view(torch.uint8).numpy().tobytes())
            found.update(f"{mark(tensor)}".encode())
    return found.hexdigest()


def code_digest(model: nn.Module) -> str:
    """A hash of the files that the classes of a model's modules stand in, and of those that these import from beside
    them; but for torch's and transformers', whose versions tell of them."""
    named = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    own = {name for name in named if name.partition(".")[0] not in _BY_VERSION}
    for name in list(own):
        used = {str(getattr(value, "__module__", "")) for value in vars(sys.modules.get(name, _NOTHING)).values()}
        own |= {other for other in used if other and other.rpartition(".")[0] == name.rpartition(".")[0]}
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(own):
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        if path.suffix == ".py" and path.is_file():
            found.update(f"{name} ".encode() + path.read_bytes())
    return found.hexdigest()


_BY_VERSION = frozenset({"torch", "transformers", "builtins", "typing", "abc"})
_NOTHING = ModuleType("")


def processor_digest(processor: Any) -> str:
    """A hash of what a tokenizer, or that of a processor, makes of ids and of texts."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    made = {} if backend is None else json.loads(backend.to_str())
    for key in ("truncation", "padding"):  # of the last call
        made.pop(key, None)
    kept = {name: getattr(tokenizer, name, None) for name in ("special_tokens_map", "clean_up_tokenization_spaces")}
    return text_digest([type(processor).__name__, type(tokenizer).__name__, made, kept])


def text_digest(value: Any) -> str:
    """A hash of plain data."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def list_digest(values: Iterable[Any]) -> str:
    """``text_digest`` of a list, of which it holds one value at a time."""
    found = hashlib.blake2b(b"[", digest_size=8)
    for number, value in enumerate(values):
        text = json.dumps(value, sort_keys=True, default=str)
        found.update(f"{', ' if number else ''}{text}".encode())
    found.update(b"]")
    return found.hexdigest()


def rows_digest(rows: datasets.Dataset, columns: Sequence[str], find: Callable[[str], Path | None]) -> str:
    """A hash of what stands in some columns, row by row: texts and numbers as they are, labels with their names, images
    and sounds by the bytes that they are stored in.

    Args:
        rows: in their order.
        columns: which count.
        find: the file that a text names, whose bytes count instead; None where it names none.
    """
    found = hashlib.blake2b(digest_size=8)
    stored = rows.select_columns([*columns]).with_format("arrow")  # as it is stored: nothing is decoded

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if isinstance(value, str) and (path := find(value)) is not None:
            value = path.read_bytes()
        if isinstance(value, bytes):
            return hashlib.blake2b(value, digest_size=8).hexdigest()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    for name in columns:
        found.update(f"{name} {getattr(rows.features[name], 'names', '')}\n".encode())
    for part in stored.iter(_ROWS_AT_A_TIME):
        for row in part.to_pylist():
            found.update(json.dumps([plain(row[name]) for name in columns], default=str).encode() + b"\n")
    return found.hexdigest()
