"""A reference model made, measured and written, with its card and checksums."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.evaluation.reference import (
    MANIFEST,
    REFERENCES,
    Reference,
    load_references,
    sha256,
)
from scripts.training.card import model_card
from scripts.training.digits import VIT
from scripts.training.injections import BERT
from scripts.training.loop import train
from scripts.training.moby_dick import GPT2, LLAMA
from scripts.training.pronunciations import T5
from scripts.training.recipe import Recipe

RECIPES: Mapping[str, Recipe] = {"bert": BERT, "gpt2": GPT2, "t5": T5, "vit": VIT, "llama": LLAMA}


def build(
    name: str, data: Path | None, output: Path, steps: int | None, seconds: float | None, seed: int, *, keep: bool
) -> Mapping[str, float]:
    """Make one reference beside ``output``'s other files and put it in their place once it is complete. With ``keep``
    its files stay as they are, and only measurement, model card and checksums are made anew.

    Returns:
        its quality.
    """
    from hf_gelu_patch.evaluation.reference.materialise import package_weights

    recipe, package = RECIPES[name], REFERENCES[name].package
    entry: dict[str, Any] = {
        "package_sha256": sha256(package_weights(package)) if package else None,
        "training": None,
        "versions": {module: importlib.metadata.version(module) for module in ("torch", "transformers")},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=output) as temporary:
        root = Path(temporary)
        folder = root / name
        folder.mkdir()
        if keep:
            load_references(output)[name].data_path()
            load_references(output)[name].model_path()
            kept = shutil.ignore_patterns("README.md")
            shutil.copytree(output / name, folder, dirs_exist_ok=True, ignore=kept)
            entry["training"] = manifest[name]["training"]
        else:
            recipe.prepare(data, folder)
        if recipe.trainee and recipe.optimisation and not keep:
            torch.manual_seed(seed)
            trainee = recipe.trainee(data, folder, seed)
            taken, duration = train(trainee, recipe.optimisation, steps, seconds)
            trainee.save(folder)
            entry["training"] = {
                "steps": taken,
                "seconds": round(duration),
                "seed": seed,
                "examples": trainee.examples,
            }
        for file in folder.iterdir():
            file.chmod(0o644)
        entry["files"] = {f"{name}/{file.name}": sha256(file) for file in sorted(folder.iterdir())}
        _write_manifest(root, {name: entry})
        reference = load_references(root)[name]
        entry["quality"] = {metric: round(value, 6) for metric, value in _measure(reference).items()}
        entry["parameters"] = _parameters(reference.model_path() / "model.safetensors")
        (folder / "README.md").write_text(model_card(reference, recipe, entry), encoding="utf-8", newline="\n")
        shutil.rmtree(output / name, ignore_errors=True)
        folder.rename(output / name)
        _write_manifest(output, {**manifest, name: entry})
    quality: Mapping[str, float] = entry["quality"]
    return quality


def _measure(reference: Reference) -> dict[str, float]:
    """On all of its data, in float32 on the CPU, as ``hf-gelu-patch evaluate`` does."""
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.loading.subjects import reference_subject
    from hf_gelu_patch.evaluation.options.loading import Loading
    from hf_gelu_patch.evaluation.options.settings import Settings
    from hf_gelu_patch.evaluation.run import unpatched_metrics

    return unpatched_metrics(
        reference_subject(reference), Settings(loading=Loading(dtype="float32")), Accelerator(cpu=True)
    )


def _write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(dict(sorted(manifest.items())), indent=2)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
