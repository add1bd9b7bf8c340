"""Planted faults that verify= and the evaluation catch, right patches that they let pass, and what was recorded of all
of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.benchmarking import __main__ as benchmarking
from scripts.benchmarking.planted import command as PLANTED

pytestmark = pytest.mark.slow

FOLDER = Path(PLANTED.__file__).parent
FAULTS = {fault.name: fault for fault in PLANTED.FAULTS}
RIGHT = {right.name: right for right in PLANTED.RIGHT}
RECORD = json.loads((FOLDER / "planted.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------- for real


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bert", "the tanh form for exact GELU"),
        ("gpt2", "bias dropped"),
        ("t5", "gate and up swapped"),
        ("llama", "one element in 10,000 is off by 0.1"),
        ("llama", "up's gradient left out"),
        ("vit", "the gradient too large by 1 %"),
        ("whisper", "the last tile is zero"),
        ("mixtral", "detached"),
        ("gemma", "0 beyond x = 6"),
        ("phi3", "strides not looked at"),
        ("opt", "stale weights, after a training step"),
        ("opt", "too large by 5 %, in bf16 only"),
        ("gpt2", "dropout's numbers drawn"),
        ("gpt2", "one buffer for all results"),
        ("gpt2", "too large, of a single token only"),
    ],
)
def test_verify_catches(model: str, name: str) -> None:
    assert model in FAULTS[name].models
    assert PLANTED.verify_fault(FAULTS[name], PLANTED.SPECIMENS[model]).caught


@pytest.mark.parametrize("name", ["−0 for 0", "stale weights, before any"])
def test_nothing_can_be_seen_of_some(name: str) -> None:
    """So that what catches the others is the fault, and not that it was planted."""
    assert FAULTS[name].unseen
    assert not PLANTED.verify_fault(FAULTS[name], PLANTED.SPECIMENS["opt"]).caught


@pytest.fixture
def _implementations() -> Iterator[None]:
    with PLANTED.right_patches.implementations():
        yield


@pytest.mark.usefixtures("_implementations")
@pytest.mark.parametrize(
    "name",
    [
        "bert, float32, aten, evaluation mode",
        "gpt2, bfloat16, rounded once, evaluation mode",
        "t5, float16, rounded once, evaluation mode",
        "llama, bfloat16, triton, evaluation mode",
        "vit, float64, rounded once, evaluation mode",
        "whisper, float32, written out, evaluation mode",
        "mixtral, bfloat16, aten, training mode",
        "gemma, float32, rounded once, a cache given",
        "phi3, float32, rounded once, under autocast",
        "opt, float32, rounded once, masked logits",
        "bert, float32, rounded once, adapters",
        "gpt2, float32, rounded once, padded",
        "vit, float32, rounded once, accelerate's hooks",
        "bert, float32, rounded once, outliers",
        "vit, float32, rounded once, outliers",
        "mixtral, float32, rounded once, outliers",
    ],
)
def test_right_patches_pass(name: str) -> None:
    verdict = PLANTED.verify_right(RIGHT[name])
    assert not verdict.caught, verdict.said


@pytest.mark.usefixtures("_implementations")
def test_the_evaluation_tells_them_apart() -> None:
    names = ("quick_gelu for GELU", "another shape given back", "NaN beyond x = 8", "half of the gradient")
    found = PLANTED.evaluate_faults(PLANTED.SPECIMENS["bert"], [FAULTS[name] for name in names])
    assert [found[name].caught for name in names] == [True, True, True, False]
    right = [one for one in RIGHT.values() if one.specimen.name == "bert" and one.dtype == torch.float32]
    found = PLANTED.evaluate_rights(right)
    assert len(found) >= 3
    assert not any(verdict.caught for verdict in found.values())


def test_the_command_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"ReLU", "gate and up swapped", "detached"}
    monkeypatch.setattr(PLANTED, "FAULTS", tuple(FAULTS[name] for name in sorted(few)))
    monkeypatch.setattr(PLANTED, "RIGHT", (RIGHT["llama, float32, rounded once, evaluation mode"],))
    monkeypatch.setattr(
        sys, "argv", ["benchmarking", "planted", "--models", "llama", "--output", str(tmp_path / "x.json")]
    )
    benchmarking.main()
    record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert {entry["fault"] for entry in record["planted"] if entry["verify"]["caught"]} == few
    written = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert written == PLANTED.report(record)
    assert "3 faults in 1 models (llama): 3 of 3 planted faults caught" in written


# ------------------------------------------------------------------------------------------------------------ recorded


def test_the_record_is_of_these_faults() -> None:
    assert RECORD["faults"] == {fault.name: PLANTED.about(fault) for fault in PLANTED.FAULTS}
    planted = [(entry["fault"], entry["model"]) for entry in RECORD["planted"]]
    assert sorted(planted) == sorted((fault.name, model) for fault in PLANTED.FAULTS for model in fault.models)
    assert {entry["patch"] for entry in RECORD["right"]} == RIGHT.keys()
    assert len(RECORD["faults"]) >= 60
    assert len(PLANTED.SPECIMENS) >= 8
    assert (FOLDER / "planted.md").read_text(encoding="utf-8") == PLANTED.report(RECORD)


def test_what_was_promised_is_recorded() -> None:
    held = [entry for entry in RECORD["planted"] if FAULTS[entry["fault"]].held_out]
    assert 0.2 <= len({entry["fault"] for entry in held}) / len(FAULTS) <= 0.3
    for entries in (RECORD["planted"], held):
        counts = PLANTED.caught(entries)
        assert counts["by neither"] <= 0.05 * counts["all"]
    missed = {entry["fault"] for entry in RECORD["planted"] if not PLANTED.ways_of(entry)}
    assert all(FAULTS[name].unseen for name in missed)
    assert len(RECORD["right"]) >= 200
    assert not [entry for entry in RECORD["right"] if PLANTED.ways_of(entry)]
