"""What launching a kernel costs Python, on the stub driver or on a GPU."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.implementations import triton_dispatch, triton_ops
from scripts.benchmarking.launch import stub
from scripts.benchmarking.timing import environment, versions_of

YARDSTICK = "F.gelu"
"""One op of aten on 8 elements: what the machine takes for the least there is."""


def calls(device: str, elements: int) -> dict[str, Callable[[], Any]]:
    """The calls that are timed, by what the table says of them. All tensors exist beforehand, but the results."""
    from hf_gelu_patch.implementations import triton_launch

    def normal(*shape: int, learned: bool = False) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=learned)

    few, few_learned, few_grad = normal(8), normal(8, learned=True), normal(8)
    x, up, grad, y = normal(elements), normal(elements), normal(elements), normal(elements)
    learned, up_learned = normal(elements, learned=True), normal(elements, learned=True)
    halves, halves_learned = normal(8, elements // 4), normal(8, elements // 4, learned=True)
    half_grad = normal(8, elements // 8)
    gradients = torch.autograd.grad
    return {
        YARDSTICK: lambda: F.gelu(few),
        "F.gelu, forward and backward": lambda: gradients(F.gelu(few_learned), few_learned, few_grad),
        "kernels.launch": lambda: triton_launch.launch("forward", (x, y), "gelu", ()),
        "ops.pointwise": lambda: triton_ops.pointwise(x, "gelu"),
        "ops.pointwise, to be differentiated": lambda: triton_ops.pointwise(learned, "gelu"),
        "ops.pointwise, forward and backward": lambda: gradients(triton_ops.pointwise(learned, "gelu"), learned, grad),
        "ops.gated": lambda: triton_ops.gated(x, up, "silu"),
        "ops.gated, to be differentiated": lambda: triton_ops.gated(learned, up_learned, "silu"),
        "ops.gated, forward and backward": lambda: gradients(
            triton_ops.gated(learned, up_learned, "silu"), (learned, up_learned), grad
        ),
        "ops.gated_halves": lambda: triton_ops.gated_halves(halves, "silu"),
        "ops.gated_halves, forward and backward": lambda: gradients(
            triton_ops.gated_halves(halves_learned, "silu"), halves_learned, half_grad
        ),
    }


def microseconds(
    timed: Mapping[str, Callable[[], Any]], rounds: int, repeats: int, seed: int, settle: Callable[[], Any]
) -> dict[str, list[float]]:
    """A sample of every call in each round, in an order drawn anew: the mean of ``repeats`` of them. ``settle`` comes
    before each sample, so that none waits for what the one before left to the GPU."""
    generator, order = random.Random(seed), list(timed)
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            call, times = timed[name], range(repeats)
            settle()
            start = time.perf_counter()
            for _ in times:
                call()
            seconds = time.perf_counter() - start
            samples[name].append(float(f"{seconds / repeats * 1e6:.5g}"))
    return samples


def summary(samples: list[float], kernels: int | None) -> dict[str, Any]:
    """``kernels``: how many one call launches."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median_us": median,
        "quartiles_us": [low, high],
        "least_us": min(samples),
        "kernels": kernels,
        "samples_us": samples,
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Medians, and the least: other load on the machine moves the medians, and, samples being short, hardly the least,
    which is compared."""
    yardstick = found[YARDSTICK]["least_us"]
    headings = "call", "kernels", "µs, median", "quartiles", "least", f"least, in units of {YARDSTICK}"
    rows = []
    for name, one in found.items():
        low, high = one["quartiles_us"]
        kernels = "" if one["kernels"] is None else str(one["kernels"])
        times = f"{one['median_us']:.2f}", f"{low:.2f}–{high:.2f}", f"{one['least_us']:.2f}"
        rows.append((name, kernels, *times, f"{one['least_us'] / yardstick:.1f}"))
    return markdown.table(headings, rows)


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    stubbed = options.device == "stub"
    try:
        launches = stub.activate(options.cache) if stubbed else None
    except RuntimeError as error:
        sys.exit(f"--device stub: {error}")
    if not stubbed and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device. Use --device stub, or a build of torch with CUDA.")
    if not stubbed and triton_dispatch.INTERPRETED:
        sys.exit("--device cuda: unset TRITON_INTERPRET, with which Triton's kernels run on the CPU.")
    device = "cpu" if stubbed else options.device
    timed = calls(device, options.elements)
    launched: dict[str, int | None] = dict.fromkeys(timed)
    for name, call in timed.items():
        call()  # compiles
        before = launches.launches() if launches else 0
        call()
        if launches:
            launched[name] = launches.launches() - before
    settle = (lambda: None) if stubbed else torch.cuda.synchronize
    microseconds(timed, 1, options.repeats, options.seed, settle)
    samples = microseconds(timed, options.rounds, options.repeats, options.seed, settle)
    found = {name: summary(own, launched[name]) for name, own in samples.items()}
    about = {**environment(device), "driver": "stub" if stubbed else "cuda"}
    where = "launched on the stub driver" if stubbed else "launched on the GPU"
    print(f"{versions_of(about)}; {where}; {options.rounds} rounds of {options.repeats} calls\n\n{table(found)}")
    if options.output:
        settings = {name: getattr(options, name) for name in ("elements", "rounds", "repeats", "seed")}
        told = {"environment": about, "launch": {**settings, "calls": found}}
        options.output.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _positive(least: int, multiple: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least or value % multiple:
            of = f", a multiple of {multiple}" if multiple > 1 else ""
            raise argparse.ArgumentTypeError(f"{least} or more{of}; got {text}")
        return value

    return parse


def add(commands: Any) -> None:
    command = commands.add_parser("launch", help="what launching a kernel costs Python", allow_abbrev=False)
    command.add_argument(
        "--device",
        choices=("stub", "cuda"),
        default="stub",
        help="launch on the stub driver, which needs a C compiler and no GPU, or on the GPU (default: stub)",
    )
    command.add_argument("--rounds", type=_positive(2), default=300, metavar="N", help="samples of each (default: 300)")
    command.add_argument("--repeats", type=_positive(1), default=20, metavar="N", help="calls a sample (default: 20)")
    command.add_argument(
        "--elements", type=_positive(1024, 1024), default=1024, metavar="N", help="of a tensor, bf16 (default: 1024)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="for the order in each round (default: 0)")
    command.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="keep the stub and compiled kernels there for the next time"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every sample")
    command.set_defaults(run=run)
