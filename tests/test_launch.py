"""The stub CUDA driver, and python -m scripts.benchmarking launch on it: what is launched, never how long it took.

What launches does so in processes of their own: this one interprets its kernels.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest

from scripts.benchmarking import __main__ as benchmarking

ROOT = Path(__file__).parents[1]
C_COMPILER = os.environ.get("CC") or next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(C_COMPILER is None, reason="the stub driver is compiled, and there is no C compiler"),
]

RECORDS = """
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from hf_gelu_patch.implementations import triton_ops
from scripts.benchmarking.launch import stub

stub = stub.activate(Path({folder!r}))
told = {{}}


def record(name, pointers, before):
    told[name] = {{"pointers": pointers, "launches": [asdict(launch) for launch in stub.since(before)]}}


def normal(*shape):
    return torch.randn(shape, dtype=torch.bfloat16)


for name, size in (("whole", 2**20), ("whole again", 2**20), ("with a tail", 2**20 + 7)):
    x, before = normal(size), stub.launches()
    y = triton_ops.pointwise(x, "gelu")
    record(name, [x.data_ptr(), y.data_ptr()], before)

x, grad_y = normal(1000).requires_grad_(), normal(1000)
y, before = triton_ops.pointwise(x, "gelu"), stub.launches()
(grad_x,) = torch.autograd.grad(y, x, grad_y)
record("pointwise backward", [grad_y.data_ptr(), x.data_ptr(), grad_x.data_ptr()], before)

gate, up, before = normal(1000), normal(1000), stub.launches()
y = triton_ops.gated(gate, up, "silu")
record("gated", [gate.data_ptr(), up.data_ptr(), y.data_ptr()], before)

gate.requires_grad_(), up.requires_grad_()
y, before = triton_ops.gated(gate, up, "silu"), stub.launches()
grads = torch.autograd.grad(y, (gate, up), grad_y)
record("gated backward", [tensor.data_ptr() for tensor in (grad_y, gate, up, *grads)], before)

both, before = normal(24, 2048), stub.launches()
y = triton_ops.gated_halves(both, "silu")
record("halves", [both.data_ptr(), both[:, 1024:].data_ptr(), y.data_ptr()], before)

told["last"] = asdict(stub.last())
for _ in range(70):
    triton_ops.pointwise(x.detach(), "gelu")
told["kept"] = len(stub.since(stub.launches() - 64))
try:
    stub.since(stub.launches() - 65)
except LookupError as error:
    told["forgotten"] = str(error)
try:
    stub_module = sys.modules["scripts.benchmarking.launch.stub"]
    stub_module.activate()
except RuntimeError as error:
    told["twice"] = str(error)
told["cuda"] = torch.cuda.is_available()

import triton

told["watched"], runtime = [], triton.knobs.runtime
x = x.detach()


def calls():
    heard = []
    hook = lambda *_: heard.append(1)
    runtime.launch_exit_hook.add(hook)
    triton_ops.pointwise(x, "gelu")
    runtime.launch_exit_hook.remove(hook)
    chain, runtime.launch_enter_hook = runtime.launch_enter_hook, hook
    triton_ops.pointwise(x, "gelu")
    runtime.launch_enter_hook = chain
    triton_ops.pointwise(x, "gelu")
    return len(heard)


told["watched"] = calls()
print(json.dumps(told))
"""


AGAIN = """
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from hf_gelu_patch.implementations import triton_launch, triton_ops
from scripts.benchmarking.launch import stub

stub = stub.activate(Path({folder!r}))
draw = random.Random(0)
base = torch.randn(3, 2**20).bfloat16()


def tensor(which, shape, layout, offset):
    whole = base[which, offset:]
    rows, columns = shape
    if layout == "dense":
        return whole[: rows * columns].view(shape)
    if layout == "longer rows":
        return whole[: rows * 2 * columns].view(rows, -1)[:, :columns]
    if layout == "across":
        return whole[: rows * columns].view(columns, rows).t()
    if layout == "every other":
        return whole[: rows * 2 * columns].view(rows, -1)[:, ::2]
    return whole[:columns].expand(shape)


def launches(case):
    gate, up, out, rounded, variant = case
    gate, up, out = tensor(*gate), tensor(*up), tensor(*out)
    before = stub.launches()
    triton_launch.launch("forward", (gate, out), "relu", (), variant=variant)
    triton_launch.launch("gated_forward", (gate, up, out), "relu", (), rounded, variant)
    triton_launch.launch("gated_backward", (gate, up, up, out, out), "relu", (), rounded)
    return [asdict(launch) for launch in stub.since(before)]


cases = []
for _ in range(16):
    shape = draw.choice([(1, 1), (7, 16), (8, 1024), (9, 1030), (100, 80), (64, 2048), (20, 48), (1, 4096)])
    layouts = ["dense", "dense", "dense", "longer rows", "across", "every other", "expanded"]
    gate, up = [(which, shape, draw.choice(layouts), draw.choice([0, 0, 8, 1, 3])) for which in range(2)]
    out = 2, shape, draw.choice(layouts[:5]), draw.choice([0, 8, 1])
    variants = [None, triton_launch.VARIANTS["2048/8"], triton_launch.VARIANTS["1024/4 persistent"]]
    cases.append((gate, up, out, draw.choice([False, True]), draw.choice(variants)))
for up in ((0, (64, 512), "every other", 9), (1, (64, 512), "every other", 9)):  # taking turns with the gate, or not
    cases.append(((0, (64, 512), "every other", 8), up, (2, (64, 512), "dense", 0), False, None))
*rest, rounded, variant = cases[0]
cases.append((*rest, not rounded, variant))

for case in cases:
    launches(case)
kept = len(triton_launch._READY)
draw.shuffle(cases)
found = [launches(case) for case in cases]
assert len(triton_launch._READY) == kept, "looked for again"
expected = []
for case in cases:
    triton_launch._READY.clear()
    expected.append(launches(case))
print(json.dumps([found, expected]))
"""


def compiled(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """A Python process whose Triton compiles."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")} | more
    return processes.run(*arguments, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub and its compiled kernels, for all processes of this file."""
    return tmp_path_factory.mktemp("stub")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Triton takes for the user's folder."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def told(folder: Path, home: Path) -> dict[str, Any]:
    code = RECORDS.format(folder=str(folder))
    done = compiled(["-c", code], TRITON_HOME=str(home))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("call", ["whole", "with a tail", "pointwise backward", "gated", "gated backward", "halves"])
def test_a_call_is_one_launch_on_its_own_tensors(told: dict[str, Any], call: str) -> None:
    [launch] = told[call]["launches"]
    pointers, parameters = set(told[call]["pointers"]), set(launch["parameters"])
    assert pointers <= parameters
    assert max(parameters - pointers) < 2**32  # sizes and strides, and no other tensor
    assert launch["stream"] == 0
    assert launch["block"][0] % 32 == 0
    assert launch["block"][1:] == [1, 1]


def test_the_tail_of_a_tensor_takes_one_program_more(told: dict[str, Any]) -> None:
    whole, tail = (math.prod(told[call]["launches"][0]["grid"]) for call in ("whole", "with a tail"))
    assert 2**20 % whole == 0
    assert tail == whole + 1


def test_rows_are_programs_of_their_own(told: dict[str, Any]) -> None:
    assert math.prod(told["halves"]["launches"][0]["grid"]) % 24 == 0


def test_the_same_call_again_launches_the_same_kernel(told: dict[str, Any]) -> None:
    first, again = (told[call]["launches"][0] for call in ("whole", "whole again"))
    assert first["function"] == again["function"]
    assert first["kernel"] == again["kernel"]
    assert first["grid"] == again["grid"]


def test_what_is_not_looked_for_again_is_launched_as_triton_would(folder: Path) -> None:
    """Tensors of many layouts and alignments: the kernel, the grid and every parameter."""
    done = compiled(["-c", AGAIN.format(folder=str(folder))])
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout)
    assert len({launch["function"] for case in found for launch in case}) > 20
    for own, truth in zip(found, expected, strict=True):
        assert len(own) == len(truth) == 3
        for launch, other in zip(own, truth, strict=True):
            assert launch == other


def test_who_watches_launches_hears_of_each(told: dict[str, Any]) -> None:
    assert told["watched"] == 2


def test_the_latest_launches_are_kept(told: dict[str, Any]) -> None:
    assert told["last"] == told["halves"]["launches"][-1]
    assert told["kept"] == 64
    assert "64 are kept" in told["forgotten"]


def test_neither_the_users_cache_nor_torch_has_to_do_with_it(told: dict[str, Any], folder: Path, home: Path) -> None:
    assert any((folder / "cache").rglob("*.cubin"))
    assert not list(home.iterdir())
    assert not told["cuda"]


def test_it_is_activated_once_and_first(told: dict[str, Any]) -> None:
    assert "before anything is launched" in told["twice"]


def test_a_compiler_that_is_missing_is_said(folder: Path) -> None:
    done = compiled(["-m", "scripts.benchmarking", "launch", "--cache", str(folder)], CC="/nowhere/cc")
    assert done.returncode == 1
    assert "install gcc or clang, or name one in CC" in done.stderr
    assert "Traceback" not in done.stderr


def test_interpreted_kernels_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["benchmarking", "launch", "--rounds", "2", "--repeats", "1", "--cache", str(folder)]
    )
    with pytest.raises(SystemExit, match=r"^--device stub: TRITON_INTERPRET is set"):
        benchmarking.main()


def test_the_command_writes_what_it_prints(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "launch.json"
    options = ["--rounds", "4", "--repeats", "2", "--cache", str(folder), "--output", str(output)]
    done = compiled(["-m", "scripts.benchmarking", "launch", *options])
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["environment"]["driver"] == "stub"
    assert found["environment"]["versions"]["triton"]
    calls = found["launch"]["calls"]
    for name, one in calls.items():
        samples, (low, high) = one["samples_us"], one["quartiles_us"]
        assert len(samples) == found["launch"]["rounds"] == 4
        assert one["median_us"] == pytest.approx(statistics.median(samples))
        assert one["least_us"] == min(samples) <= low <= one["median_us"] <= high <= max(samples)
        assert one["kernels"] == ((2 if "backward" in name else 1) if "ops" in name or "kernels" in name else 0)
        assert f"| {name} | {one['kernels']} | {one['median_us']:.2f} |" in done.stdout
