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
from hf_gelu_patch.implementations.measured import FOLDER, tables
from scripts.benchmarking.cpu import report as cpu_report
from scripts.benchmarking.gpu import goals, record, report
from scripts.benchmarking.memory import found as found_of_memory
from scripts.benchmarking.memory import report as memory_report
from scripts.benchmarking.memory.subjects import LONG, MLP
from scripts.benchmarking.scale import command as scale
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
    told = " ".join(guide.split())
    assert (
        "GPT-2 and T5 have the most to gain, because their `gelu_new` is eight operations: both became faster." in told
    )
    speeds = {model["subject"]["name"]: model["variants"][0]["speed"]["forward"] for model in RECORDED["models"]}
    verdicts = {name: speed["verdict"] for name, speed in speeds.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "faster"} == {"gpt2", "t5"}
    assert {*verdicts.values()} <= {"faster", "no difference detected", "nothing patched"}
    assert "In the demo GPT-2 and T5 became faster, and no model slower." in README_TEXT


def shown_of(runs: Sequence[Path]) -> str:
    """How the last card that there are records of, all those in full size put together, meets the goals."""
    cards: dict[str, list[Path]] = {}
    for run in runs:
        if report.goals.card_of(found := record.read([run.parent])):
            cards.setdefault(found.card["name"], []).append(run.parent)
    if not cards:
        return ""
    *_, folders = cards.values()
    *_, goals = report.summary(record.read(folders)).split("\n\n")
    return goals.strip()


def test_the_figures_of_a_gpu_are_those_recorded() -> None:
    page = (BENCHMARKING / "gpu" / "README.md").read_text(encoding="utf-8")
    shown = shown_of(sorted((BENCHMARKING / "gpu").rglob("gpu.jsonl")))
    assert shown
    assert page.endswith(f"\n\n{shown}\n")


@pytest.mark.parametrize("run", sorted((BENCHMARKING / "gpu").rglob("gpu.jsonl")), ids=lambda run: run.parent.name)
def test_the_page_beside_a_record_is_of_that_record(run: Path) -> None:
    page = run.with_name(report.NAME).read_text(encoding="utf-8")
    assert page == report.summary(record.read([run.parent])), "run python -m scripts.benchmarking report"


def test_the_models_on_a_gpu_are_those_recorded() -> None:
    first, second = (record.read([BENCHMARKING / "gpu" / "h200" / run]) for run in ("first", "second"))
    columns = {
        "`aten`": (first, "auto"),  # before there was a table for it to go by
        "`triton`": (second, "triton"),
        "`epilogue`": (second, "epilogue"),
        "Liger-Kernel": (second, "liger"),
        "no activation": (second, "bound"),
    }
    guide = (ROOT / "hf_gelu_patch" / "guides" / "speed.md").read_text(encoding="utf-8")
    assert report.compact(columns) in guide
    forward = {name: first.models[name, "large", "forward", False]["variants"]["auto"] for name in ("gpt2", "t5")}
    told = {name: f"{own['ratio']['value']:.2f} times" for name, own in forward.items()}
    assert f"`auto` made GPT-2 {told['gpt2']} as fast, T5 v1.1 {told['t5']} (32 × 512 tokens)." in " ".join(
        README_TEXT.split()
    )
    assert all("aten" in first.about[name]["reports"]["auto"] for name in forward)
    saved = {
        (name, variant): found.models[name, "large", "training step", False]["variants"][variant]["peak_bytes"]
        for name, found in (("gpt2", first), ("t5", first), ("llama", second))
        for variant in ("eager", "auto", "triton")
    }
    less = {key: f"{1 - saved[key] / saved[key[0], 'eager']:.0%}".replace("%", " %") for key in saved}
    flat = " ".join(guide.split())
    assert f"Training of GPT-2 also takes {less['gpt2', 'auto']} less memory, of T5 {less['t5', 'auto']} less." in flat
    assert f"its training takes {less['llama', 'triton']} less memory" in flat
    peaks = {name: first.models[name, "large", "forward", False]["variants"] for name in ("bert", "vit")}
    kept = {name: 1 - own["auto"]["peak_bytes"] / own["eager"]["peak_bytes"] for name, own in peaks.items()}
    shown = {name: f"{share:.0%}".replace("%", " %") for name, share in kept.items()}
    assert f"{shown['bert']} less in inference of BERT on the large batch, {shown['vit']} less of ViT" in flat


@pytest.mark.parametrize("run", sorted((BENCHMARKING / "cpu").rglob("cpu.jsonl")), ids=lambda run: run.parent.name)
def test_the_page_beside_a_record_of_a_cpu_is_of_that_record(run: Path) -> None:
    page = run.with_name(cpu_report.NAME).read_text(encoding="utf-8")
    assert page == cpu_report.summary(record.read([run.parent])), "run python -m scripts.benchmarking report"


CPUS = {"amd-avx2": "AMD CPU with AVX2", "amd-avx512": "AMD CPU with AVX512, bf16"}
"""The records of CPUs → what they are of."""


def test_what_was_measured_on_cpus_is_what_is_recorded() -> None:
    guide = (ROOT / "hf_gelu_patch" / "guides" / "speed.md").read_text(encoding="utf-8")
    told = " ".join(guide.split())
    by_name = {table.processor: table for table in tables(FOLDER) if table.device == "cpu"}
    assert by_name.keys() == {*CPUS.values()}
    found = {name: record.read([BENCHMARKING / "cpu" / name]) for name in CPUS}
    extremes = []
    for name, processor in CPUS.items():
        about, choices = found[name].environment, by_name[processor].choices
        assert (about["cpu"], about["processor"], about["threads"]) == ("AMD EPYC", processor, 1)
        for package in ("torch", "transformers"):
            assert f"{package} {about['versions'][package].partition('+')[0]}" in told
        taken = {key[:2]: own for key, own in choices.items() if own.able and (key[0], key[3]) == ("gelu_tanh", 8)}
        assert taken.keys() == {("gelu_tanh", kind) for kind in ("pointwise", "linear", "gated")}
        best = [own.able[0] for key, own in choices.items() if own.able and (key[0], key[3]) == ("gelu_tanh", 8)]
        values = [times.value for one in best for times in one.times.values()]
        extremes += [f"{min(values):.2f} to {max(values):.1f}"]
        few = [cell["variants"] for (kind, _, _, *cell_of), cell in found[name].sites.items()
               if (kind, *cell_of) == ("linear", "small", "forward")
               and cell["ops"] == 1 and cell["dtype"] == "float32"]  # fmt: skip
        slower = [own["epilogue"]["ratio"]["high"] < 1 for own in few if "epilogue" in own]
        assert slower
        assert all(slower), "oneDNN's products are slower with few tokens"
    assert f"was {extremes[0]} times as fast with AVX2, and {extremes[1]} times as fast with AVX-512" in told


def test_the_models_on_a_cpu_are_those_recorded() -> None:
    guide = (ROOT / "hf_gelu_patch" / "guides" / "speed.md").read_text(encoding="utf-8")
    told = " ".join(guide.split())
    found = record.read([BENCHMARKING / "cpu" / "amd-avx512"])
    assert cpu_report.compact(found) in guide
    compiling = [cell["made_s"]["compiled"] for cell in found.cpu.values()]
    assert f"It took {min(compiling):.0f} to {max(compiling):.0f} seconds to compile." in told
    faster = set()
    for (model, dtype, _, size), cell in found.cpu.items():
        own = cell["variants"]
        assert not own["auto"]["verdict"].startswith("slower"), (model, dtype, size)
        if own["compiled"]["verdict"] == "faster":
            faster.add(size)
        if size == "large":
            assert cpu_report.share_of(own["auto"]) != "slower than the bound"
            if "share_of_gain" in own["auto"]:
                assert (model, dtype) == ("gpt2", "bfloat16")
                share = f"{own['auto']['share_of_gain']:.0%}".replace("%", " %")
                assert f"`auto` has {share} of that gain." in told
    assert "small" in faster
    merged = {cell["rows"]: cell["variants"]["merged"] for cell in found.merged.values()}
    values = {rows: own["ratio"]["value"] for rows, own in merged.items()}
    assert f"{values[1024]:.3f} times as fast with 1,024 tokens, {values[16]:.3f} with 16" in told
    assert all(own["verdict"].startswith("no ") for own in merged.values())


def test_auto_on_the_card_that_was_measured_is_what_is_said() -> None:
    [found] = [table for table in tables(FOLDER) if table.processor == "NVIDIA H200"]
    taken = {(name, ops, choice.implementation) for (name, _, _, ops), choice in found.choices.items()}
    assert {(name, ops, by) for name, ops, by in taken if by != "eager"} == {("gelu_tanh", 8, "aten")}


@pytest.mark.parametrize(("card", "wanted"), [("NVIDIA H200", True), ("CPU", False)])
def test_figures_of_a_gpu_would_be_wanted(tmp_path: Path, card: str, wanted: bool) -> None:
    """As soon as there is a record of one."""
    run = record.Record(tmp_path)
    run.write("settings", tiny=False)
    run.write("card", name=card, free_gib=139.0, total_gib=140.0)
    shown = shown_of([run.path])
    if wanted:
        assert shown.startswith("| goal | at least, H100 | at least, H200 | measured | outcome |")
        assert shown.count("\n") == 1 + len(goals.GOALS)
    else:
        assert not shown


def test_what_a_million_examples_take_is_what_was_recorded() -> None:
    found = json.loads((BENCHMARKING / "scale" / scale.RECORD).read_text(encoding="utf-8"))
    guide = (ROOT / "hf_gelu_patch" / "guides" / "evaluating.md").read_text(encoding="utf-8")
    assert scale.table(found) in guide
    assert scale.of_killed(found) in " ".join(guide.split())
    assert "the report was another one" not in guide
    most = [one["through"]["most of its own"] for count, one in found["runs"].items() if int(count) >= 2**15]
    assert max(most) - min(most) < 400 * 1_000_000, "what an example more takes, as the guide says it"


def test_the_memory_that_the_guide_shows_is_that_recorded() -> None:
    folder = BENCHMARKING / "memory" / "amd-avx512"
    found = found_of_memory.read(folder)
    assert (folder / memory_report.NAME).read_text(encoding="utf-8") == memory_report.summary(found)
    guide = (ROOT / "hf_gelu_patch" / "guides" / "memory.md").read_text(encoding="utf-8")
    assert memory_report.compact(found, "saved") in guide
    assert memory_report.compact(found, "peak") in guide
    assert memory_report.compact_times(found) in guide
    flat = " ".join(guide.split())
    layer, long = (
        {variant: one for variant, one in found.bytes[name].items() if "peak" in one} for name in (MLP, LONG)
    )
    of_layer = {variant: f"{one['peak'] / layer['eager']['peak']:.2f}" for variant, one in layer.items()}
    assert f"takes {of_layer['tiles']} of its peak in tiles, and {of_layer['liger_tiled']} in Liger-Kernel's" in flat
    assert f"lone MLP is {of_layer['recompute']} of what it was" in flat
    assert f"8 × 2,048 tokens takes {long['tiles']['peak'] / long['eager']['peak']:.2f} of its peak in tiles" in flat
    assert (
        len({one["peak"] for variant, one in found.bytes["gpt2"].items() if variant != "eager"}) == 1
    )  # the gradients
    timed = [line["variants"]["recompute"] for line in found.steps.values() if "recompute" in line["variants"]]
    assert {row["verdict"] for row in timed} == {"no difference detected"}
    kept = {variant: f"{one['saved'] / 2**20:.0f}" for variant, one in found.bytes["gpt2"].items()}
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = f"Of GPT-2's {kept['eager']} MiB, the first keeps {kept['recompute']} and the second {kept['tiles']}."
    assert told in readme
