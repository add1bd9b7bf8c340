"""The README's code runs as it stands there."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import transformers

from hf_gelu_patch import IMPLEMENTATIONS
from hf_gelu_patch.evaluation.reference import REFERENCES
from scripts.benchmarking.gpu import record, report
from scripts.benchmarking.planted import command as planted

ROOT = Path(__file__).parent.parent
BENCHMARKING = ROOT / "scripts" / "benchmarking"
README_TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README_TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def _models_by_their_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a model's name in the working directory is what from_pretrained loads."""
    shutil.copytree(REFERENCES["gpt2"].model_path(), tmp_path / "openai-community" / "gpt2")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_models_by_their_hub_names")
def test_every_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_error()
    assert len(BLOCKS) >= 3
    names: dict[str, object] = {}
    known = set(IMPLEMENTATIONS)
    try:
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, block {number + 1}", "exec"), names)
    finally:
        for added in set(IMPLEMENTATIONS) - known:
            del IMPLEMENTATIONS[added]
    printed = capsys.readouterr().out
    assert "3 × GPT2MLP.act  linear  gelu_new → gelu_tanh  aten, rounding; 8 aten ops become one, in place" in printed
    diff = README_TEXT.partition("```diff\n")[2].partition("```")[0].splitlines()
    assert len(diff) > 8
    assert [line for line in diff if not line.startswith(("---", "+++", "@@"))] == [
        line for line in printed.splitlines() if line in diff and not line.startswith(("---", "+++", "@@"))
    ][: len(diff) - 3]
    shown = re.findall(r"^# > (.*)$", "\n".join(BLOCKS), re.MULTILINE)
    assert len(shown) == 4
    assert all(line in printed for line in shown)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_qualities_shown_are_those_recorded(name: str) -> None:
    (row,) = re.findall(rf"^\| {name}<br>.*$", README_TEXT, re.MULTILINE)
    for metric, value in REFERENCES[name].quality.items():
        assert f"{metric.replace('_', ' ')} {value:.4f} → {value:.4f}" in row


def test_the_coverage_shown_is_that_of_the_table() -> None:
    totals = (ROOT / "scripts" / "covering" / "coverage.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert len(totals) == 5
    for line in totals:
        assert line in " ".join(README_TEXT.split())


def test_what_is_said_of_other_tools_is_that_of_the_table() -> None:
    totals = (BENCHMARKING / "tools" / "tools.md").read_text(encoding="utf-8").split("\n\n")[2]
    assert "tools, " in totals
    assert f"`scripts/benchmarking/tools/tools.md` is the table: {totals}" in " ".join(README_TEXT.split())


def test_the_verdicts_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "benchmark.json").read_text(encoding="utf-8"))["noise"]
    runs = recorded["runs"]
    verdicts = {name: Counter(run[name]["verdict"] for run in runs) for name in ("eager", "slowed")}
    covered = sum(run["eager"]["ratio"]["low"] <= 1 <= run["eager"]["ratio"]["high"] for run in runs)
    assert covered == recorded["cover_one"]
    same = verdicts["eager"]["no difference detected"]
    shown = (
        f'against itself "no difference detected" in {same} of {len(runs)} runs, '
        f"the interval covers 1 in {covered} of {len(runs)}; "
        f'the planted delay is "slower" in {verdicts["slowed"]["slower"]} of {len(runs)}.'
    )
    assert shown in " ".join(README_TEXT.split())


def test_the_faults_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "planted" / "planted.json").read_text(encoding="utf-8"))
    faults, entries, right = recorded["faults"], recorded["planted"], recorded["right"]
    models = {entry["model"] for entry in entries}
    held = [entry for entry in entries if faults[entry["fault"]]["held_out"]]
    every, aside, alarms = map(planted.caught, (entries, held, right))
    assert alarms["by neither"] == alarms["all"]
    shown = (
        f"{len(faults)} faults of known kinds in {len(models)} tiny models, each in those that can have it: "
        f"{every['all']} in all. `verify=` with `gradients=True` catches {every['by verify']}, the "
        f"evaluation's verdict {every['by evaluate']}, neither {every['by neither']}. Of {aside['all']} that were kept "
        f"for judging, {aside['by neither']} are caught by neither. None of {alarms['all']} right patches is called "
        "wrong, over implementations, dtypes, modes and wrappers."
    )
    assert shown in " ".join(README_TEXT.split())


def shown_of(runs: Sequence[Path]) -> str:
    """What the README has to say of a GPU, from the records of the gpu command that there are: the goals, and
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


def test_the_times_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "benchmark.json").read_text(encoding="utf-8"))["patching"]
    for model, name in (("gpt2", "GPT-2 small"), ("llama-405b", "Llama 405B without weights")):
        median = recorded[model]["median_ms"]
        shown = f"{name} {median['first']:.1f} ms the first time and {median['again']:.1f} ms again"
        assert shown in " ".join(README_TEXT.split())


def test_the_costs_of_a_launch_shown_are_those_recorded() -> None:
    recorded = json.loads((BENCHMARKING / "launch" / "launch.json").read_text(encoding="utf-8"))
    calls, about = recorded["launch"]["calls"], recorded["environment"]
    names = ("ops.pointwise", "ops.pointwise, to be differentiated", "F.gelu")
    plain, differentiable, aten = (calls[name]["least_us"] for name in names)
    assert all(one["least_us"] == min(one["samples_us"]) for one in calls.values())
    torch_version, triton_version = (about["versions"][name].rsplit(".", 1)[0] for name in ("torch", "triton"))
    shown = (
        f"the least of {recorded['launch']['rounds']} rounds, torch {torch_version}, triton {triton_version}): "
        f"{plain:.1f} µs a call, {differentiable:.1f} µs with what autograd keeps, "
        f"where `F.gelu` of eight elements takes {aten:.1f} µs."
    )
    assert shown in " ".join(README_TEXT.split())
