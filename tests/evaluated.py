"""One evaluation through the command line, in this process, and all that it wrote, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation import records
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.variants import BEFORE

VARIANT = "activation=silu"


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation wrote.

    Attributes:
        found: evaluation.json's only model.
        outcomes: from the records, in the order of the examples: of the unpatched model as "before", and of the
            variant, another function in all sites.
    """

    found: dict[str, Any]
    outcomes: dict[str, list[Outcome]]

    @property
    def before(self) -> dict[str, float]:
        """The unpatched model's metrics."""
        return {name: float(value) for name, value in self.found["unpatched"].items()}

    @property
    def after(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.found["variants"][0]["quality"]["after"].items()}


def evaluated(model: Path, data: Path, output: Path, *options: str, size: int = 8) -> Evaluated:
    """Evaluate a model with another function in all its sites, and see that every report has its task and metrics."""
    asked = ["--model_name_or_path", str(model), "--validation_file", str(data), "--output_dir", str(output)]
    more = ["--per_device_eval_batch_size", str(size), "--timing_seconds", "0.01", "--variant", VARIANT]
    assert main(["evaluate", *asked, *more, *options]) == 0
    [found] = json.loads((output / "evaluation.json").read_text())["models"]
    told, page, card = ((output / name).read_text() for name in ("evaluation.md", "evaluation.html", "model-card.md"))
    assert found["unpatched"]
    assert f"type: {found['subject']['task']}" in card
    for name in found["unpatched"]:
        assert name.replace("_", " ") in told
        assert name.replace("_", " ") in page
        assert f"type: {name}" in card
    rows = records.read(output / found["records"])[1]
    return Evaluated(
        found,
        {
            name: [row.outcome for (_, variant), row in sorted(rows.items()) if variant == name]
            for name in (BEFORE, VARIANT)
        },
    )


def refusal(model: Path, data: Path, output: Path, capsys: Any, *options: str) -> str:
    """What is said where an evaluation is refused."""
    capsys.readouterr()
    asked = ["--model_name_or_path", str(model), "--validation_file", str(data), "--output_dir", str(output)]
    assert main(["evaluate", *asked, "--timing_seconds", "0.01", *options]) == 1
    said: str = capsys.readouterr().err
    return " ".join(said.split())
