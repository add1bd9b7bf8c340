"""The README is short, and its figures are those recorded. What it shares with the guides is in ``test_docs``."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.report.plots import draw
from scripts.benchmarking.gpu import record, report
from scripts.readme import place, table

ROOT = Path(__file__).parent.parent
BENCHMARKING = ROOT / "scripts" / "benchmarking"
README_TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = json.loads((ROOT / ".github" / "demo.json").read_text(encoding="utf-8"))


def test_it_is_short() -> None:
    assert len(README_TEXT.splitlines()) <= 150


def test_the_versions_named_are_those_tested() -> None:
    def pinned(file: str, package: str) -> list[str]:
        return re.findall(rf"^{package}==([\d.]+)", (ROOT / "scripts" / file).read_text(encoding="utf-8"), re.MULTILINE)

    [torch_version], [on_310, newest] = (pinned("constraints.txt", package) for package in ("torch", "transformers"))
    [oldest] = pinned("constraints-oldest.txt", "transformers")
    text = " ".join(README_TEXT.split())
    assert f"with torch {torch_version} and transformers {newest} ({on_310} on Python 3.10)." in text
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"also run with transformers {oldest}, the oldest supported." in " ".join(contributing.split())
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"transformers>={oldest}"' in declared
    torch_at_least, python = (
        re.findall(rf'{name}>=([\d.]+)"', declared)[0] for name in ('"torch', 'requires-python = "')
    )
    assert f"On torch {torch_at_least}, the oldest supported" in text
    assert f"Python {python} or newer, torch {torch_at_least} or newer, and transformers {oldest} or newer." in text


@pytest.mark.parametrize("name", REFERENCES)
def test_the_qualities_shown_are_those_recorded(name: str) -> None:
    (row,) = re.findall(rf"^\| {name} \|.*$", README_TEXT, re.MULTILINE)
    for metric, value in REFERENCES[name].quality.items():
        assert f"{metric.replace('_', ' ')} {value:.4f} → {value:.4f}" in row


def test_the_table_is_that_of_the_recorded_demo() -> None:
    assert table(RECORDED) in README_TEXT, "run python -m scripts.readme"
    assert place(RECORDED) in " ".join(README_TEXT.split())
    assert RECORDED["environment"]["command"][:4] == ["hf-gelu-patch", "evaluate", "--timing_seconds", "5"]
    assert "evaluate --timing_seconds 5 " in (ROOT / "scripts" / "demo").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has another matplotlib, which draws otherwise")
def test_the_picture_is_that_of_the_recorded_demo() -> None:
    """Drawn anew it is the same, but for what another version of matplotlib does at edges."""
    shown, drawn = (
        np.asarray(Image.open(file).convert("L"), dtype=np.float64)
        for file in (ROOT / ".github" / "demo.png", io.BytesIO(draw(RECORDED)["speed"]))
    )
    assert shown.shape == drawn.shape
    assert (np.abs(shown - drawn) > 64).mean() < 2e-4


def test_who_has_most_to_gain_is_what_was_recorded() -> None:
    bounds = {model["subject"]["name"]: model["amdahl"] for model in RECORDED["models"]}
    assert sorted(bounds, key=lambda name: -float(bounds[name]))[:2] == ["gpt2", "t5"]
    guide = (ROOT / "hf_gelu_patch" / "guides" / "speed.md").read_text(encoding="utf-8")
    assert "GPT-2 and T5 have the most to gain" in " ".join(guide.split())


def shown_of(runs: Sequence[Path]) -> str:
    """What the README has to say of a GPU, from the records of its command that there are: the goals, and
    how the last card, all its records in full size put together, meets them."""
    cards: dict[str, list[Path]] = {}
    for run in runs:
        if report.goals.card_of(found := record.read([run.parent])):
            cards.setdefault(found.card["name"], []).append(run.parent)
    if not cards:
        return "**GPU: unmeasured.**"
    *_, folders = cards.values()
    *_, goals = report.summary(record.read(folders)).split("\n\n")
    return goals.strip()


def test_the_figures_of_a_gpu_are_those_recorded() -> None:
    assert shown_of(sorted((BENCHMARKING / "gpu").rglob("gpu.jsonl"))) in README_TEXT


@pytest.mark.parametrize(("card", "wanted"), [("NVIDIA H200", True), ("CPU", False)])
def test_figures_of_a_gpu_would_be_wanted(tmp_path: Path, card: str, wanted: bool) -> None:
    """As soon as there is a record of one."""
    run = record.Record(tmp_path)
    run.write("settings", tiny=False)
    run.write("card", name=card, free_gib=139.0, total_gib=140.0)
    shown = shown_of([run.path])
    if wanted:
        assert shown.startswith("| goal | at least, H100 | at least, H200 | measured | outcome |")
        assert shown.count("\n") == 18
    else:
        assert shown == "**GPU: unmeasured.**"
