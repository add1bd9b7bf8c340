"""The benchmarks models, sites and merged on a CPU, tiny: what they measure, write and go on with."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
from conftest import OWN_CPU

from hf_gelu_patch import planning
from hf_gelu_patch.implementations import measured
from scripts.benchmarking import timing
from scripts.benchmarking.cpu import command, merged, models, report
from scripts.benchmarking.cpu.earlier import Earlier, EarlierError
from scripts.benchmarking.gpu import record
from scripts.benchmarking.gpu.schedule import Step, Work

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = ("--tiny", "--threads", "1", "--rounds", "5")
VARIANTS = ("eager", "auto", "aten", "tuned", "compiled", "compiled_patched", "bound", "earlier")
FEW = ("eager", "auto", "bound")
GPT2 = ("--models", "gpt2", "--dtypes", "float32", "--backend", "aot_eager", "--variants")
SITES = ("--kinds", "linear", "pointwise", "--activations", "gelu_new", "--dtypes", "float32")


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return processes.run("-m", "scripts.benchmarking", name, *arguments, cwd=ROOT, env=own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each command once, this checkout in the place of an earlier one."""
    found = tmp_path_factory.mktemp("cpu") / "new" / "folder"
    for name, more in (
        ("models", (*GPT2, *VARIANTS, "--earlier", ROOT, "--sizes", "large")),
        ("models", (*GPT2, *FEW, "--sizes", "small")),
        ("sites", SITES),
        ("merged", ()),
    ):
        done = run(name, *TINY, *more, "--output", found)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (found / "cpu.md").read_text(encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    return record.read([folder])


def test_every_variant_in_every_cell(found: Any) -> None:
    assert list(found.cpu) == [("gpt2", "float32", 1, size) for size in ("large", "small")]
    for cell in found.cpu.values():
        rows, large = cell["variants"], cell["size"] == "large"
        assert rows.keys() == {"again", *(VARIANTS if large else FEW)}
        assert cell["shape"] == list(models.TINY_SHAPES[cell["size"]])
        assert {len(row["samples_s"]) for row in rows.values()} == {5}
        for name, row in rows.items():
            assert row["median_s"] == statistics.median(row["samples_s"])
            if name not in ("eager", "again"):
                pairs = zip(rows["eager"]["samples_s"], row["samples_s"], strict=True)
                assert row["ratio"]["value"] == pytest.approx(sorted(one / other for one, other in pairs)[2])
                assert ("share_of_gain" in row) + ("within_bound" in row) == (name != "bound")
        assert cell["made_s"].keys() == ({"tuned", "compiled", "compiled_patched"} if large else set())
        assert all(seconds > 0 for seconds in cell["made_s"].values())
        sites = {name: sum(counts.values()) for name, counts in cell["taken"].items()}
        assert sites == dict.fromkeys(rows.keys() - {"eager", "again", "compiled"}, 2)
        assert cell["taken"].get("aten", {"aten": 2}) == {"aten": 2}
        assert not cell["absent"]
    assert {"cpu", "versions", "date", "sources", "processor"} <= found.environment.keys()
    assert found.environment["processor"] == found.card["name"] == OWN_CPU()


def test_every_cell_of_the_layers_and_products(found: Any) -> None:
    modes = ("forward", "training step")
    cells = [(size, mode) for size in ("large", "medium", "small") for mode in modes]
    assert list(found.sites) == [
        (kind, "gelu_new", "float32", *cell) for kind in ("linear", "pointwise") for cell in cells
    ]
    for cell in found.sites.values():
        assert {"eager", "again", "aten"} <= cell["variants"].keys()
        assert "triton" not in cell["variants"]
        assert (cell["threads"], cell["ops"]) == (1, 8)
    assert list(found.merged) == [("float32", 1, rows) for rows in merged.TINY_ROWS]
    for cell in found.merged.values():
        assert "ratio" in cell["variants"]["merged"]


def test_what_it_tells(folder: Path, found: Any) -> None:
    told = (folder / "cpu.md").read_text(encoding="utf-8")
    assert told.count("\n| gpt2 | 2 × 16 | float32 | 1 |") == 3 + 3  # what auto, tuned and earlier took
    assert told.count("\n| gpt2 | 1 × 8 | float32 | 1 |") == 2 + 1
    assert told.count("\n| linear | gelu_new | float32 |") == 6
    assert "\n| 16 × 8 → 2 × 32 | float32 | 1 |" in told
    assert "Went wrong" not in told
    assert (folder / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert report.compact(found).count("| gpt2 |") == 2
    (folder / "cpu.md").unlink()
    done = run("report", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == told == (folder / "cpu.md").read_text(encoding="utf-8")


def test_the_table_of_a_cpu(folder: Path, tmp_path: Path) -> None:
    done = run("choices", folder, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    table = measured.table_of(OWN_CPU(), "cpu", tmp_path)
    assert {(kind, ops) for _, kind, _, ops in table.choices} == {("linear", 8), ("pointwise", 8)}
    assert table.source["threads"] == "1"
    assert done.stdout.splitlines()[1:] == table.lines()


def test_what_is_in_the_record_is_not_measured_again(folder: Path) -> None:
    path = folder / "cpu.jsonl"
    whole = path.read_bytes()
    try:
        for name, more in (("models", (*GPT2, *FEW)), ("sites", SITES)):
            done = run(name, *TINY, *more, "--output", folder)
            assert done.returncode == 0, done.stderr
            assert "measured" not in done.stderr
        # A kill within a line costs that line alone.
        lines = whole.splitlines(keepends=True)
        cells = [number for number, line in enumerate(lines) if json.loads(line)["kind"] == "cpu"]
        path.write_bytes(b"".join(lines[: cells[1]]) + lines[cells[1]][:-40])
        done = run("models", *TINY, *GPT2, "eager", "auto", "--output", folder)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "measured" in line] == [
            "measured models: gpt2, float32, 1 thread, small"
        ]
        # Of other code, or without what is asked for now, it counts for nothing.
        path.write_bytes(whole.replace(b'"sources": "', b'"sources": "0'))
        done = run("models", *TINY, *GPT2, "eager", "--sizes", "small", "--output", folder)
        assert done.stderr.count("measured") == 1
        done = run("models", *TINY, *GPT2, "eager", "auto", "--sizes", "small", "--output", folder)
        assert done.stderr.count("measured") == 1
    finally:
        path.write_bytes(whole)


def test_another_cpu_wants_another_folder(folder: Path, tmp_path: Path) -> None:
    text = (folder / "cpu.jsonl").read_text(encoding="utf-8")
    (tmp_path / "cpu.jsonl").write_text(text.replace(OWN_CPU(), "Intel CPU with AVX512"), encoding="utf-8")
    done = run("merged", *TINY, "--output", tmp_path)
    assert done.returncode == 1
    assert f"the record there is of Intel CPU with AVX512, and this is {OWN_CPU()}: another --output" in done.stderr
    (folder / "gpu.jsonl").touch()
    done = run("report", folder)
    (folder / "gpu.jsonl").unlink()
    assert "has gpu.jsonl and cpu.jsonl: move one of them" in done.stderr


def test_no_time_is_no_failure(tmp_path: Path) -> None:
    done = run("models", *TINY, *GPT2, "eager", "--minutes", "0", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 left out, no time: the same command goes on with them" in done.stderr
    assert not record.read([tmp_path]).cpu


def work_in(folder: Path, **more: Any) -> Work:
    options = {"tiny": True, "seed": 0, "rounds": 5, "cell_seconds": 0.0, "backend": "aot_eager", "sources": "none"}
    options["clock"] = "wall"
    options |= {"dtypes": ["float32"], "threads": [1], "models": ["gpt2"], "sizes": ["small"], "earlier": None, **more}
    step = Step("models", "models", lambda _: None, 0.0, 600.0)
    return Work(step, 600.0, record.Record(folder, record.CPU_NAME), SimpleNamespace(**options))


def measured_here(folder: Path, *variants: str, **more: Any) -> tuple[Any, Any]:
    """A cell, and what else the record says."""
    models.measure(work_in(folder, variants=["eager", *variants], **more), record.Found())
    found = record.read([folder])
    (cell,) = found.cpu.values()
    return cell, found


def test_what_cannot_run_is_absent_and_what_fails_costs_itself_alone(tmp_path: Path) -> None:
    cell, found = measured_here(tmp_path / "one", "auto", "epilogue", "earlier", dtypes=["bfloat16"])
    assert cell["absent"]["earlier"] == "no --earlier FOLDER was given"
    assert "auto" in cell["variants"]
    assert not found.of("failure")
    cell, found = measured_here(tmp_path / "two", "aten", "compiled", backend="nonsense")
    assert "nonsense" in cell["absent"]["compiled"]
    assert "ratio" in cell["variants"]["aten"]
    (failure,) = found.of("failure")
    assert failure["what"] == "gpt2, compiled"


def test_a_model_that_is_left_alone_is_timed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measured CPU leaves whole models alone: the patch says so with a warning, which is an error in tests."""
    nothing = measured.Times(1.0, 0.9, 1.1)
    slow = measured.Candidate("aten", dict.fromkeys(measured.CELLS, nothing))
    left = {("gelu_tanh", "linear", "float32", 8): measured.Choice((), slow)}
    table = measured.Table("a CPU", "cpu", None, {}, left)
    monkeypatch.setattr(planning, "measured_on", lambda _: table)
    cell, found = measured_here(tmp_path, "auto")
    assert cell["taken"]["auto"] == {"left alone": 2}
    assert "ratio" in cell["variants"]["auto"]
    assert not found.of("failure")


def test_outputs_that_are_wrong_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WITHOUT", {"activation": "silu", "implementation": "aten"})
    monkeypatch.setattr(models, "BOUND", "swapped")
    monkeypatch.setattr(models, "VARIANTS", ("eager", "aten", "swapped"))
    monkeypatch.setattr(models.Bench, "_made", _swapping(models.Bench._made))
    cell, found = measured_here(tmp_path, "aten")
    assert "away from the model's own" in cell["absent"]["aten"]
    assert len(found.of("failure")) == 1


def _swapping(made: Any) -> Any:
    """Every variant as another function."""
    return lambda bench, _: made(bench, "swapped")


def test_no_checkout_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(EarlierError, match="there is no hf_gelu_patch in"):
        Earlier(tmp_path)
    done = run("models", *TINY, *GPT2, "eager", "--earlier", tmp_path, "--output", tmp_path)
    assert done.returncode == 1
    assert "name the root of a checkout" in done.stderr


def test_an_earlier_checkout_is_another_and_leaves_this_one_alone(gpt2: Any) -> None:
    import hf_gelu_patch

    own = hf_gelu_patch.patch
    told = Earlier(ROOT).patch(gpt2)
    assert {site.implementation for site in told.sites} <= {"aten", "cpp"}  # the latter on a measured CPU
    assert type(told).__module__ == "hf_gelu_patch.report"
    assert type(told) is not hf_gelu_patch.Report
    import hf_gelu_patch as again

    assert again.patch is own


# What follows from samples


def samples(**times: float) -> dict[str, list[float]]:
    """Sixty rounds in which each is so many times as fast; 0.1 % of noise in turns."""
    noise = [1 + 0.001 * math.sin(7 * number) for number in range(60)]
    faster = {"eager": 1.0, **times}
    found = {name: [0.01 * off / by for off in noise] for name, by in faster.items()}
    return {**found, "again": [0.01 * (2 - off) for off in noise]}


def test_the_share_of_the_bounds_gain() -> None:
    found = models.judged(samples(bound=1.5, aten=1.4, auto=0.9), 0)
    rows = found["variants"]
    assert rows["aten"]["share_of_gain"] == pytest.approx(0.8, abs=0.01)
    assert rows["auto"]["share_of_gain"] == pytest.approx(-0.2, abs=0.01)
    assert 0 < found["noise"] < 0.003
    assert report.share_of(rows["aten"]) == "80%"
    assert report.share_of(rows["bound"]) == report.share_of(None) == ""


def test_where_the_bound_gains_hardly_more_than_noise_there_are_no_shares() -> None:
    rows = models.judged(samples(bound=1.003, aten=1.0026, auto=0.95), 0)["variants"]
    assert rows["aten"]["within_bound"]
    assert not rows["auto"]["within_bound"]
    assert report.share_of(rows["aten"]) == "within the noise of the bound"
    assert report.share_of(rows["auto"]) == "slower than the bound"


def test_one_variant_over_another() -> None:
    cell = models.judged(samples(auto=1.2, earlier=1.1), 0)
    told = models.over(cell, "earlier", "auto")
    assert told is not None
    assert told[0].value == pytest.approx(1.2 / 1.1, rel=1e-3)
    assert told[1] == "faster"
    assert models.over(cell, "compiled", "auto") is None


def test_the_own_clock_leaves_out_what_others_take() -> None:
    found = timing.rounds_on_cpu({"sleeping": lambda: time.sleep(0.05)}, 3, 0, clock="own")
    assert max(found["sleeping"]) < 0.04
    assert min(timing.rounds_on_cpu({"sleeping": lambda: time.sleep(0.05)}, 3, 0)["sleeping"]) >= 0.05
    done = run("merged", *TINY[:1], "--clock", "own", "--threads", "1", "2")
    assert done.returncode == 1
    assert "adds up the time of all threads: give it with --threads 1" in done.stderr


def test_one_product_computes_what_two_do() -> None:
    calls = merged.calls_of(5, 8, 32, 0)
    torch.testing.assert_close(calls["merged"](), calls["eager"]())


def test_the_commands_are_offered_with_their_variants() -> None:
    done = run("models", "--help")
    for name in ("auto", "aten", "cpp", "epilogue", "tuned", "compiled", "bound"):
        assert name in done.stdout
    assert command.models.THREADS == (1, 2)
