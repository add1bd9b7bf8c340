"""scripts/benchmark.py kernels, on the CPU and tiny: what it writes agrees with its samples. No time is judged."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.speed import Ratio, judge

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
MOVED = {"forward": 2, "backward": 3, "gated_forward": 3, "gated_backward": 5}
QUICK = ("--device", "cpu", "--rounds", "3", "--seconds", "0")


def run(*arguments: str, interpreted: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    command = [sys.executable, str(SCRIPT), "kernels", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


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
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


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
    assert written.count("\n| ") == sum(len(cell["candidates"]) for cell in cells) + len(MOVED)
    assert (folder / "kernels.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((folder / "kernels.json").read_text())["environment"]
    assert about["torch"] == torch.__version__
    assert about["threads"] == 1
    assert about["seed"] == 0
    assert {"triton", "transformers", "device_name", "revision", "python", "interpreted"} <= about.keys()


def test_without_the_interpreter_triton_is_absent(tmp_path: Path) -> None:
    tiny = ("--activations", "silu", "--forms", "forward", "--dtypes", "float16", "--elements", "1000")
    done = run(*QUICK, *tiny, "--implementations", "triton", "--output", str(tmp_path), interpreted=False)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((tmp_path / "kernels.json").read_text())["cells"]
    assert set(cell["candidates"]) == {"eager"}
    assert "TRITON_INTERPRET=1" in cell["absent"]["triton"]
    assert "TRITON_INTERPRET=1" in (tmp_path / "kernels.md").read_text()


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
def test_what_it_refuses(arguments: tuple[str, ...], told: str) -> None:
    done = run(*QUICK, *arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda() -> None:
    done = run("--device", "cuda", interpreted=False)
    assert done.returncode != 0
    assert "torch sees no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr


def planted(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def infinite(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x) + torch.where(x > 1e30, torch.inf, 0.0).to(x.dtype)


@pytest.mark.parametrize("form", ["forward", "backward"])
def test_a_wrong_candidate_fails(script: ModuleType, form: str) -> None:
    functions = {"eager": torch.nn.functional.gelu, "planted": planted}
    with pytest.raises(script.WrongCandidateError, match=f"planted is wrong: gelu, {form}, float32: off by"):
        script.check(functions, "gelu", form, torch.float32, "cpu", 0)


def test_a_candidate_that_loses_large_values_fails(script: ModuleType) -> None:
    functions = {"eager": torch.nn.functional.gelu, "planted": infinite}
    with pytest.raises(script.WrongCandidateError, match="not finite"):
        script.check(functions, "gelu", "forward", torch.bfloat16, "cpu", 0)


def test_a_wrong_gradient_of_up_fails(script: ModuleType) -> None:
    functions = {
        "eager": lambda gate, up: torch.nn.functional.silu(gate) * up,
        "planted": lambda gate, up: torch.nn.functional.silu(gate) * up.detach() + 0 * up,
    }
    with pytest.raises(script.WrongCandidateError, match="planted is wrong: silu, gated_backward"):
        script.check(functions, "silu", "gated_backward", torch.bfloat16, "cpu", 0)


def test_errors_in_ulp(script: ModuleType) -> None:
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    found = script.errors([x + torch.tensor([0.0, 0.015625, 0.0], dtype=torch.bfloat16)], [x.double()], x)
    assert found == {"ulp": 1.0, "judged": 1.0}
