"""python -m scripts.benchmarking kernels, noise and exports, on the CPU and tiny: what each writes agrees with its
samples."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import torch
import torch._dynamo.config
import torch._functorch.config
from torch import Tensor

from hf_gelu_patch.evaluation import environment
from hf_gelu_patch.evaluation.speed.verdict import Ratio, judge
from scripts.benchmarking import __main__ as benchmarking
from scripts.benchmarking import timing as timing_module
from scripts.benchmarking.exports import command as exports
from scripts.benchmarking.kernels import candidates, checking, command
from scripts.benchmarking.kernels import cells as timing_cells

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "scripts.benchmarking")
MOVED = {"forward": 2, "backward": 3, "gated_forward": 3, "gated_backward": 5}
QUICK = ("--device", "cpu", "--rounds", "3", "--seconds", "0")


def run(*arguments: str, interpreted: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    return processes.run(*COMMAND, "kernels", *arguments, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("benchmark") / "new" / "folder"
    tiny = ("--activations", "gelu_tanh", "swiglu_oai", "--dtypes", "bfloat16", "--elements", "4K", "1000")
    done = run(*QUICK, *tiny, "--implementations", "aten", "triton", "liger", "--output", str(found))
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def cells(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "kernels.json").read_text())["cells"]


@pytest.fixture(scope="module")
def checks(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "kernels.json").read_text())["checks"]


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    return timing_module


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """The script's command, in this process, whose torch it sets up for itself."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmarking", "kernels", *QUICK, *arguments])
        benchmarking.main()

    graphs, dynamo = torch._functorch.config, torch._dynamo.config
    with (
        graphs.patch(donated_buffer=graphs.donated_buffer),
        dynamo.patch(
            recompile_limit=dynamo.recompile_limit, accumulated_recompile_limit=dynamo.accumulated_recompile_limit
        ),
    ):
        yield run


def test_every_cell_is_there(cells: list[dict[str, Any]]) -> None:
    found = {(cell["activation"], cell["form"], cell["elements"]) for cell in cells}
    gated_only = {form for form in MOVED if form.startswith("gated")}
    expected = {("gelu_tanh", form, size) for form in MOVED for size in (1000, 4096)}
    expected |= {("swiglu_oai", form, size) for form in gated_only for size in (1000, 4096)}
    assert found == expected
    assert len(cells) == len(expected)
    for cell in cells:
        names = {"eager", "triton"} if cell["activation"] == "swiglu_oai" else {"eager", "triton", "aten"}
        assert set(cell["candidates"]) == names
        assert "Liger-Kernel" in cell["absent"]["liger"]


def test_all_values_are_checked(checks: list[dict[str, Any]], cells: list[dict[str, Any]]) -> None:
    assert [check["values"] for check in checks] == [2 * 255 * 128] * 6  # signs, exponents but that of ∞, mantissas
    for cell in cells:
        (errors,) = [
            check["error_ulp"]
            for check in checks
            if all(check[key] == cell[key] for key in ("activation", "dtype", "form"))
        ]
        assert errors == {name: row["error_ulp"] for name, row in cell["candidates"].items()}


def test_figures_follow_from_the_samples(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        copy = cell["copy"]
        assert copy["bytes"] == 2 * 2 * cell["elements"]
        assert cell["bytes"] == MOVED[cell["form"]] * 2 * cell["elements"]
        assert copy["median_s"] == statistics.median(copy["samples_s"])
        bandwidth = copy["bytes"] / copy["median_s"]
        assert copy["gb_per_s"] == pytest.approx(bandwidth / 1e9)
        rounds = len(copy["samples_s"])
        assert rounds >= 3
        assert len(cell["floor"]["samples_s"]) == rounds
        eager = cell["candidates"]["eager"]["samples_s"]
        for row in cell["candidates"].values():
            assert len(row["samples_s"]) == rounds
            assert row["median_s"] == statistics.median(row["samples_s"])
            assert row["gb_per_s"] == pytest.approx(cell["bytes"] / row["median_s"] / 1e9)
            assert row["share_of_copy"] == pytest.approx(cell["bytes"] / row["median_s"] / bandwidth)
            if row["ratio"] is not None:
                paired = sorted(a / b for a, b in zip(eager, row["samples_s"], strict=True))
                if rounds % 2:
                    assert row["ratio"]["value"] == pytest.approx(paired[rounds // 2])
                floor = Ratio(*(cell["floor"][key] for key in ("value", "low", "high")))
                assert row["verdict"] == judge(Ratio(**row["ratio"]), floor)


def test_interpreted_rows_are_no_speeds(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        for name, row in cell["candidates"].items():
            assert row["interpreted"] == (name == "triton")
        triton = cell["candidates"]["triton"]
        assert triton["ratio"] is None
        assert triton["verdict"] == "interpreted: not a speed"
        assert triton["error_ulp"]["judged"] < 1
        assert triton["eager_error_ulp"] == cell["candidates"]["eager"]["error_ulp"]


def test_table_plot_and_environment(folder: Path, cells: list[dict[str, Any]]) -> None:
    written = (folder / "kernels.md").read_text()
    assert written.count("\n| gelu_tanh | bfloat16 | 4K | eager |") == 4
    assert "not a speed" in written
    assert written.count("\n| ") == sum(len(cell["candidates"]) for cell in cells) + 2 * len(MOVED)  # headings, rules
    assert (folder / "kernels.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((folder / "kernels.json").read_text())["environment"]
    assert about["versions"]["torch"] == torch.__version__
    assert about["threads"] == 1
    assert about["seed"] == 0
    assert {"gpu", "cpu", "git", "sources", "nvidia_smi", "interpreted"} <= about.keys()
    assert {"triton", "transformers", "python"} <= about["versions"].keys()


def test_without_the_interpreter_triton_is_absent(tmp_path: Path) -> None:
    tiny = ("--activations", "silu", "--forms", "forward", "--dtypes", "float16", "--elements", "1000")
    output = tmp_path / "new" / "own.json"
    done = run(*QUICK, *tiny, "--implementations", "triton", "--output", str(output), interpreted=False)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(output.read_text())["cells"]
    assert set(cell["candidates"]) == {"eager"}
    assert "TRITON_INTERPRET=1" in cell["absent"]["triton"]
    assert "TRITON_INTERPRET=1" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").exists()


def test_needs_only_what_it_measures() -> None:
    tiny = ("--activations", "relu", "--forms", "forward", "--dtypes", "bfloat16", "--elements", "100")
    code = (
        "import runpy, sys\n"
        f"sys.argv = {['benchmarking', 'kernels', *QUICK, *tiny, '--implementations', 'aten']}\n"
        "runpy.run_module('scripts.benchmarking', run_name='__main__')\n"
        "loaded = {'datasets', 'evaluate', 'matplotlib', 'sklearn'} & sys.modules.keys()\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TINY = ("--activations", "silu", "relu", "--forms", "forward", "--dtypes", "bfloat16", "--elements", "64", "128")


def test_without_matplotlib(main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"matplotlib is not installed: pip install .*\[evaluation\]"):
        main(*TINY, "--output", str(tmp_path))


def test_out_of_memory_is_absence(main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = timing_cells.timed_cell

    def small(functions: Any, form: str, dtype: torch.dtype, elements: int, options: Any) -> dict[str, Any]:
        if elements > 64:
            raise torch.OutOfMemoryError
        return timed(functions, form, dtype, elements, options)

    monkeypatch.setattr(timing_cells, "timed_cell", small)
    main(*TINY, "--implementations", "aten", "--output", str(tmp_path))
    cells = json.loads((tmp_path / "kernels.json").read_text())["cells"]
    assert [bool(cell["candidates"]) for cell in cells] == [True, False, True, False]
    assert all("out of memory" in cell["absent"]["aten"] for cell in cells if not cell["candidates"])
    assert "aten: out of memory from 128 on" in (tmp_path / "kernels.md").read_text()


def test_what_is_there_is_kept_when_it_is_stopped(
    main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = timing_cells.timed_cell

    def stopped(functions: Any, form: str, dtype: torch.dtype, elements: int, options: Any) -> dict[str, Any]:
        if elements > 64:
            raise KeyboardInterrupt
        return timed(functions, form, dtype, elements, options)

    monkeypatch.setattr(timing_cells, "timed_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(*TINY, "--implementations", "aten", "--output", str(tmp_path))
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert (len(found["checks"]), len(found["cells"])) == (2, 1)


def test_nothing_is_timed_before_all_is_checked(
    main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def candidate(_name: str, activation: str, *_: str) -> Callable[[Tensor], Tensor]:
        return torch.nn.functional.silu if activation == "silu" else torch.nn.functional.gelu

    monkeypatch.setattr(timing_cells, "candidate", candidate)
    monkeypatch.setattr(timing_cells, "timed_cell", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="aten is wrong: relu, forward, bfloat16: off by"):
        main(*TINY, "--implementations", "aten", "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--activations", "gelo"), "unknown activation 'gelo'. Did you mean 'gelu'?"),
        (("--forms", "sideways"), "unknown form 'sideways'"),
        (("--implementations", "trition"), "Did you mean 'triton'?"),
        (("--dtypes", "float8"), "unknown dtype 'float8'"),
        (("--elements", "many"), "'many' is no number of elements"),
        (("--activations", "swiglu_oai", "--forms", "forward"), "nothing to measure"),
    ],
)
def test_what_it_refuses(
    main: Callable[..., None], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(*arguments)
    assert stopped.value.code
    assert told in f"{capsys.readouterr().err}{stopped.value}"


@pytest.mark.parametrize(
    ("available", "told"), [(False, "torch sees no CUDA device"), (True, "unset TRITON_INTERPRET")]
)
def test_cuda_that_cannot_be(
    main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, available: bool, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with pytest.raises(SystemExit, match=told):
        main("--device", "cuda")


def planted(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def infinite(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x) + torch.where(x > 1e30, torch.inf, 0.0).to(x.dtype)


def clamped(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x).clamp(max=1e38)


@pytest.mark.parametrize("form", ["forward", "backward"])
def test_a_wrong_candidate_fails(form: str) -> None:
    functions = {"eager": torch.nn.functional.gelu, "planted": planted}
    with pytest.raises(candidates.WrongCandidateError, match=f"planted is wrong: gelu, {form}, float32: off by"):
        checking.check(functions, "gelu", form, torch.float32, "cpu", 0)


@pytest.mark.parametrize(("wrong", "off"), [(infinite, "inf ulp at x = 1.0"), (clamped, r"1\d\d ulp at x = \S+e\+38")])
def test_a_candidate_that_loses_large_values_fails(wrong: Any, off: str) -> None:
    functions = {"eager": torch.nn.functional.gelu, "planted": wrong}
    with pytest.raises(candidates.WrongCandidateError, match=f"planted is wrong: .* off by {off}"):
        checking.check(functions, "gelu", "forward", torch.bfloat16, "cpu", 0)


def test_eager_losing_large_values_is_allowed() -> None:
    """The candidate that keeps them is as right as the one that does not."""
    gelu = torch.nn.functional.gelu
    found = checking.check(
        {"eager": infinite, "kept": gelu, "lost": infinite}, "gelu", "forward", torch.bfloat16, "cpu", 0
    )
    assert found["kept"] == found["lost"]


def test_a_wrong_gradient_of_up_fails() -> None:
    functions = {
        "eager": lambda gate, up: torch.nn.functional.silu(gate) * up,
        "planted": lambda gate, up: torch.nn.functional.silu(gate) * up.detach() + 0 * up,
    }
    with pytest.raises(candidates.WrongCandidateError, match="planted is wrong: silu, gated_backward"):
        checking.check(functions, "silu", "gated_backward", torch.bfloat16, "cpu", 0)


def test_errors_in_ulp() -> None:
    x = torch.tensor([1.0, 2.0, 2.0**-20, 3.0], dtype=torch.bfloat16)
    y = x + torch.tensor([0.0, 2.0**-6, 2.0**-27, torch.inf], dtype=torch.bfloat16)
    assert checking.errors([y, x], [x.double()] * 2).tolist() == [[0.0, 1.0, 1.0, torch.inf], [0.0] * 4]
    assert checking.errors([y], [x.double()], 1 / 64).tolist() == [[0.0, 1.0, 2.0**-14, torch.inf]]


@pytest.mark.parametrize(
    ("slowest", "rounds", "seconds", "count"),
    [
        (1e-6, 50, 0.2, 1000),  # no more than is worth it
        (1e-6, 2000, 0.2, 2000),  # unless asked for
        (1e-3, 50, 0.2, 200),  # the seconds asked for
        (1e-1, 50, 0.2, 13),  # two calls, 2.6 s in all
        (10.0, 50, 0.0, 3),
    ],
)
def test_rounds(timing: ModuleType, slowest: float, rounds: int, seconds: float, count: int) -> None:
    assert timing.enough({"copy": [slowest] * 3, "eager": [slowest, slowest, 100.0]}, rounds, seconds) == count


class Gpu:
    """A stand-in for torch.cuda, on whose clock each thing that is queued takes as long as it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.held = self.peak = 0
        self.waits: list[float] = []
        gpu = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def elapsed_time(self, other: Event) -> float:
                return (other.at - self.at) / 1000  # milliseconds; the clock counts microseconds

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "_sleep", self.wait)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: setattr(self, "peak", self.held))

    def wait(self, cycles: int) -> None:
        self.waits.append(cycles / 3e9)
        self.now += cycles

    def work(self, microseconds: int, held: int = 0) -> None:
        self.now += microseconds
        self.peak = max(self.peak, self.held + held)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


@pytest.mark.parametrize("flushed", [False, True])
def test_rounds_on_cuda(timing: ModuleType, gpu: Gpu, flushed: bool) -> None:
    """Neither the wait at a round's start nor the overwriting of the cache is in a sample."""
    order: list[str] = []

    def call(name: str, microseconds: int) -> Callable[[], None]:
        return lambda: (time.sleep(0.001), order.append(name), gpu.work(microseconds))

    class Flush:
        def zero_(self) -> None:
            order.append("flush")
            gpu.work(70)

    calls = {"copy": call("copy", 5), "eager": call("eager", 11)}
    samples = timing.rounds_on_cuda(calls, 20, 0, flush=Flush() if flushed else None)
    assert samples == {"copy": [pytest.approx(5e-6)] * 20, "eager": [pytest.approx(11e-6)] * 20}
    if flushed:
        assert order[::2] == ["flush"] * 40
        del order[::2]
    rounds = [tuple(order[i : i + 2]) for i in range(0, 40, 2)]
    assert set(rounds) == {("copy", "eager"), ("eager", "copy")}
    assert len(gpu.waits) == 20
    assert gpu.waits[0] == 0  # nothing is known yet
    assert all(0.002 <= wait <= 0.01 for wait in gpu.waits[1:])  # as long as Python took, which slept


def test_peak_memory(timing: ModuleType, gpu: Gpu) -> None:
    gpu.held, gpu.peak = 1000, 5000
    assert timing.peak(lambda: gpu.work(1, held=300)) == 300


def test_clocks_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._nvidia_smi() is None
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$1"\n')
    program.chmod(0o755)
    (line,) = environment._nvidia_smi()
    assert line.startswith("--query-gpu=")
    assert {"driver_version", "clocks.sm", "clocks.mem"} <= set(line.partition("=")[2].split(","))


def test_noise_says_how_often_each_verdict_came(tmp_path: Path) -> None:
    """Which ones came is up to the machine."""
    options = ("--runs", "2", "--seconds", "0.02", "--examples", "8", "--delay", "5")
    done = processes.run(*COMMAND, "noise", *options, "--output", tmp_path / "noise.json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "noise.json").read_text())["noise"]
    for name, told in (("eager", "itself"), ("slowed", "itself with 500% of delay")):
        verdicts = [run[name]["verdict"] for run in found["runs"]]
        assert len(verdicts) == 2
        for verdict in verdicts:
            assert re.search(rf"^against {told}: .*{verdict} {verdicts.count(verdict)}", done.stdout, re.MULTILINE)
    covered = sum(run["eager"]["ratio"]["low"] <= 1 <= run["eager"]["ratio"]["high"] for run in found["runs"])
    assert found["cover_one"] == covered
    assert f"cover 1: {covered} of 2" in done.stdout


def test_rounds_that_launch_is_part_of(timing: ModuleType, gpu: Gpu) -> None:
    calls = {"one": lambda: gpu.work(5), "two": lambda: gpu.work(11)}
    samples = timing.rounds_on_cuda(calls, 4, 0, with_launch=True)
    assert samples == {"one": [pytest.approx(5e-6)] * 4, "two": [pytest.approx(11e-6)] * 4}
    assert not gpu.waits


def test_exports_say_what_they_need() -> None:
    if all(importlib.util.find_spec(name) for name in exports.NEEDED):
        pytest.skip("it is all here")
    done = processes.run(*COMMAND, "exports", cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"exports: onnx\w* is missing: python -m pip install onnx onnxscript onnxruntime", done.stderr)


def test_exports_are_told_as_measured(tmp_path: Path) -> None:
    for name in exports.NEEDED:
        pytest.importorskip(name)
    quick = ("--tiny", "--models", "gpt2", "--opsets", "22", "--length", "8", "--rounds", "3", "--seconds", "0")
    done = processes.run(*COMMAND, "exports", *quick, "--output", tmp_path / "exports.json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "exports.json").read_text())
    assert found["environment"]["versions"].keys() >= set(exports.NEEDED)
    (cell,) = found["exports"]["cells"]
    assert exports.table([cell]) in done.stdout
    variants = cell["variants"]
    assert variants["own"]["exported"] == variants["patched"]["exported"]
    assert variants["own"]["run"] == variants["patched"]["run"]
    assert variants["one operation"]["exported"]["Gelu"] == 2
    assert "Gelu" not in variants["own"]["exported"]
    assert all(0 <= one["drift"] <= 1e-5 for one in variants.values())
    assert {len(own) for own in cell["seconds"].values()} == {3}
    assert cell["compared"].keys() == {"patched", "one operation"}
    assert cell["floor"]["low"] <= cell["floor"]["value"] <= cell["floor"]["high"]
