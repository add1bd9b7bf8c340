"""The kernels on a GPU at full size, and the same tests interpreted and small where there is none.

Interpreted is how conftest runs everything that is not told otherwise. Compiled, on a machine with CUDA:
``TRITON_INTERPRET=0 scripts/test -m gpu``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.implementations import triton_kernels, triton_launch
from hf_gelu_patch.implementations.triton_forms import POINTWISE
from hf_gelu_patch.implementations.triton_ops import gated, gated_halves, pointwise

pytestmark = pytest.mark.gpu

COMPILED = torch.cuda.is_available() and not triton_kernels.INTERPRETED.value
MAIN = ("gelu", "gelu_tanh", "silu")
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Machine:
    """Where the tests run; on a CPU, streams and graphs are stood in for by what has the same results.

    Attributes:
        huge: elements, more than 32 bits count on a GPU.
    """

    device: str
    huge: int

    def room(self, size: int) -> None:
        """Skip where the device's free memory is less than ``size`` bytes."""
        if self.device == "cuda" and (free := torch.cuda.mem_get_info()[0]) < size:
            pytest.skip(f"{size / 2**30:.0f} GiB of GPU memory wanted, {free / 2**30:.0f} GiB free")

    def stream(self) -> AbstractContextManager[Any]:
        if self.device == "cpu":
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.Stream())

    def sleep(self) -> None:
        """Keep the current stream busy for a while."""
        if self.device == "cuda":
            torch.cuda._sleep(50_000_000)

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def capture(self, function: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """The outputs of ``function``, captured as a graph, and what replays it into them."""
        if self.device == "cpu":
            outputs = function()

            def replay() -> None:
                for own, new in zip(outputs, function(), strict=True):
                    own.copy_(new)

            return outputs, replay
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return outputs, graph.replay

    def allocated(self, function: Callable[[], Tensor]) -> tuple[Tensor, int]:
        """What ``function`` returns, and the bytes that its call took at most at once."""
        function()
        if self.device == "cpu":
            cpu = [torch.profiler.ProfilerActivity.CPU]
            with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as seen:
                y = function()
            return y, sum(max(0, event.self_cpu_memory_usage) for event in seen.events())
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = function()
        torch.cuda.synchronize()
        return y, torch.cuda.max_memory_allocated() - before


@pytest.fixture
def machine() -> Machine:
    torch.manual_seed(0)
    return Machine("cuda", 2**31) if COMPILED else Machine("cpu", 2 * 2**16)


def every(dtype: torch.dtype) -> Tensor:
    """All finite values."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def in_ulp(y: Tensor, exact: Tensor) -> Tensor:
    """|y − exact| in units in the last place of y's dtype."""
    limits = torch.finfo(y.dtype)
    _, exponent = torch.frexp(exact.abs().clamp(min=limits.tiny))
    return (y.double() - exact).abs() / torch.ldexp(torch.full_like(exact, limits.eps), exponent - 1)


# Past what 32 bits count. One row of all values, again and again: each row of the result is that of the row alone.


def rows(machine: Machine, row: Tensor) -> Tensor:
    return row.expand(machine.huge // len(row) + 1, -1).contiguous()


def test_pointwise_past_2_31_elements(machine: Machine) -> None:
    machine.room(18 * 2**30)
    row = every(torch.bfloat16).to(machine.device)
    x = rows(machine, row)
    assert x.numel() > machine.huge
    assert bool((pointwise(x, "gelu") == pointwise(row, "gelu")).all())


def test_what_lies_behind_a_tensor_past_2_31_elements_is_not_touched(machine: Machine) -> None:
    machine.room(10 * 2**30)
    elements = machine.huge + 5
    x, y = (torch.full((elements + 4096,), -77.0, dtype=torch.bfloat16, device=machine.device) for _ in range(2))
    triton_launch.launch("forward", (x[:elements], y[:elements]), "relu", ())
    assert bool((y[:elements] == 0).all())
    assert bool((y[elements:] == -77).all())


def test_backward_past_2_31_elements(machine: Machine) -> None:
    machine.room(24 * 2**30)
    row = every(torch.bfloat16).to(machine.device)
    grad_y = row.roll(1000).clamp(-4, 4)

    def backward(x: Tensor, grad: Tensor) -> Tensor:
        x.requires_grad_()
        return torch.autograd.grad(pointwise(x, "gelu"), x, grad)[0]

    assert bool((backward(rows(machine, row), rows(machine, grad_y)) == backward(row.clone(), grad_y)).all())


def test_gated_halves_past_2_31_elements(machine: Machine) -> None:
    """Strided, forward and backward."""
    machine.room(28 * 2**30)
    row = every(torch.bfloat16).to(machine.device)[torch.randperm(65280, device=machine.device)]
    row[len(row) // 2 :].clamp_(-4, 4)
    grad_row = row[len(row) // 2 :].roll(1)

    def both(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        y = gated_halves(x, "silu")
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    found = both(rows(machine, row), grad_row.expand(machine.huge // len(row) + 1, -1).contiguous())
    for many, one in zip(found, both(row.clone(), grad_row), strict=True):
        assert bool((many == one).all())


# Streams, graphs, devices


def test_runs_on_the_current_stream(machine: Machine) -> None:
    """Two at once, each input written on its stream only after a while: another stream would read what was before."""
    inputs = [torch.zeros(100_003, device=machine.device) for _ in range(2)]
    machine.synchronise()
    outputs = []
    for value, x in enumerate(inputs, 1):
        with machine.stream():
            machine.sleep()
            x.fill_(float(value))
            outputs.append((pointwise(x, "gelu"), gated(x, x, "silu")))
    machine.synchronise()
    for value, (y, product) in enumerate(outputs, 1):
        x = torch.full_like(y, float(value))
        torch.testing.assert_close(y, torch.nn.functional.gelu(x))
        torch.testing.assert_close(product, torch.nn.functional.silu(x) * x)


def test_graph_replays_with_changed_input(machine: Machine) -> None:
    x, up = (torch.randn(64, 1000, device=machine.device) for _ in range(2))
    outputs, replay = machine.capture(lambda: (pointwise(x, "gelu"), gated(x, up, "gelu_tanh")))
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        up.copy_(torch.randn_like(up))
        replay()
        torch.testing.assert_close(outputs[0], torch.nn.functional.gelu(x))
        torch.testing.assert_close(outputs[1], torch.nn.functional.gelu(x, approximate="tanh") * up)


def test_runs_on_the_tensors_device_not_the_current_one(machine: Machine) -> None:
    if machine.device == "cpu" or torch.cuda.device_count() < 2:
        pytest.skip("there is no second CUDA device")
    x = torch.randn(1000, device="cuda:1", requires_grad=True)
    with torch.cuda.device(0):
        y = pointwise(x, "gelu")
        (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.device == grad.device == x.device
    torch.testing.assert_close(y, torch.nn.functional.gelu(x))


# Values


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.52), (torch.float16, 0.57)])
def test_gelu_of_all_values(machine: Machine, dtype: torch.dtype, bound: float) -> None:
    x = every(dtype)
    x = x[x >= -5]
    y = pointwise(x.to(machine.device), "gelu").cpu()
    assert float(in_ulp(y, ACTIVATIONS["gelu"].reference(x.double())).max()) <= bound


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", POINTWISE)
def test_value_and_slope_of_all_values(machine: Machine, name: str, dtype: torch.dtype) -> None:
    """Within one ulp, or in absolute terms where results are small."""
    record, x = ACTIVATIONS[name], every(dtype)
    leaf = x.to(machine.device).requires_grad_()
    y = pointwise(leaf, name)
    (slope,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    for own, function in ((y, record.reference), (slope, record.derivative)):
        exact = record.bind(function)(x.double())
        held = exact.abs() <= torch.finfo(dtype).max
        off = (own.detach().cpu().double() - exact).abs()[held]
        assert bool(((in_ulp(own.detach().cpu(), exact)[held] <= 0.75) | (off <= 1e-6)).all())


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("name", MAIN)
def test_gated_gradients(machine: Machine, name: str, dtype: torch.dtype) -> None:
    """Against float64 on the CPU."""
    gate, up, grad_y = (torch.randn(37, 1003).to(dtype) for _ in range(3))
    leaves = [x.to(machine.device).requires_grad_() for x in (gate, up)]
    y = gated(*leaves, name)
    record, g, u, dy = ACTIVATIONS[name], gate.double(), up.double(), grad_y.double()
    value, slope = record.bind(record.reference)(g), record.bind(record.derivative)(g)
    found = (y, *torch.autograd.grad(y, leaves, grad_y.to(machine.device)))
    for own, exact in zip(found, (value * u, dy * u * slope, dy * value), strict=True):
        own, bound = own.detach().cpu(), 0.75 if dtype in HALF else 16
        assert bool(((in_ulp(own, exact) <= bound) | ((own.double() - exact).abs() <= 1e-6)).all())


# Memory


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_unaligned_pointers(machine: Machine, dtype: torch.dtype) -> None:
    base = torch.randn(5000, device=machine.device).to(dtype)
    for start in (1, 3, 7):
        x = base[start:]
        assert x.data_ptr() % 16
        assert torch.equal(pointwise(x, "gelu"), pointwise(x.clone(), "gelu"))
        assert torch.equal(gated(x, base[:-start], "silu"), gated(x.clone(), base[:-start].clone(), "silu"))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [256, 2050])
def test_strided_halves(machine: Machine, width: int, interleaved: bool) -> None:
    x = torch.randn(37, width, device=machine.device).bfloat16().requires_grad_()
    gate, up = (x[:, ::2], x[:, 1::2]) if interleaved else x.chunk(2, -1)
    copies = [half.detach().clone().requires_grad_() for half in (gate, up)]
    y, expected = gated_halves(x, "gelu_tanh", interleaved=interleaved), gated(*copies, "gelu_tanh")
    assert torch.equal(y, expected)
    assert torch.equal(gated(gate, up, "gelu_tanh"), expected)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    halves = (grad[:, ::2], grad[:, 1::2]) if interleaved else grad.chunk(2, -1)
    for half, own in zip(halves, torch.autograd.grad(expected, copies, torch.ones_like(y)), strict=True):
        assert torch.equal(half, own)


def test_gated_allocates_its_output_only(machine: Machine) -> None:
    gate, up = (torch.randn(256, 1024, device=machine.device) for _ in range(2))
    y, taken = machine.allocated(lambda: gated(gate, up, "gelu"))
    assert y.nbytes <= taken < 1.01 * y.nbytes


ACCESSES = """
import sys, torch
from hf_gelu_patch.implementations.triton_ops import gated, gated_halves, pointwise
device = sys.argv[1]
for dtype in (torch.float32, torch.bfloat16):
    for shape in ((1,), (255,), (1023,), (1025,), (3, 100), (5, 1026)):
        x, up = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
        results = [pointwise(x, "gelu"), gated(x, up, "silu"), pointwise(x[..., ::2], "gelu")]
        if shape[-1] % 2 == 0:
            results += [gated_halves(x, "gelu", interleaved=alternate) for alternate in (False, True)]
        sum(y.float().sum() for y in results).backward()
        assert x.grad.isfinite().all()
print("done")
"""


def test_accesses_within_bounds(machine: Machine) -> None:
    """Under compute-sanitizer, where there is one."""
    sanitizer = shutil.which("compute-sanitizer") if machine.device == "cuda" else None
    options = ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "99"]  # torch probes the driver
    checked = [sanitizer, *options] if sanitizer else []
    command = [*checked, sys.executable, "-c", ACCESSES, machine.device]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor's end is an allocation's
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done" in done.stdout


@pytest.mark.parametrize("name", MAIN)
def test_compiles_without_a_break(machine: Machine, name: str) -> None:
    backend = "inductor" if machine.device == "cuda" else "aot_eager"
    record = ACTIVATIONS[name]

    def function(x: Tensor, up: Tensor) -> Tensor:
        return gated(pointwise(x, name), up, name)

    x, up = (torch.randn(64, 100, device=machine.device, requires_grad=True) for _ in range(2))
    y = torch.compile(function, fullgraph=True, backend=backend)(x, up)
    expected = record.eager(record.eager(x)) * up
    torch.testing.assert_close(y, expected)
    for own, truth in zip(
        torch.autograd.grad(y.sum(), (x, up)), torch.autograd.grad(expected.sum(), (x, up)), strict=True
    ):
        torch.testing.assert_close(own, truth)
