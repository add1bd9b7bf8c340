"""Claim 7: what the functions cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from hf_gelu_patch.implementations import triton_launch
from hf_gelu_patch.implementations.measured import processors
from hf_gelu_patch.verdicts import judge, median_ratio
from scripts.benchmarking.gpu import goals, record
from scripts.benchmarking.static.compiled import compiled, inspect, operations
from scripts.benchmarking.timing import figures, rounds_on_cpu
from scripts.studying.sizes import Sizes

__all__ = ["instructions", "on_a_gpu", "on_this_cpu"]

_FUNCTIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_new": ACT2FN["gelu_new"],
    "silu": functional.silu,
    "relu": functional.relu,
}
"""torch's own operations; "gelu_new" is the tanh form as transformers writes it, in eight of them."""
_COUNTED = ("gelu", "gelu_tanh", "silu", "relu")
_TARGET = "sm_90"  # of H100 and H200
_CARD = Path(record.__file__).parent / "h200" / "second"


def on_this_cpu(sizes: Sizes) -> dict[str, Any]:
    """Each of torch's own operations on float32 numbers from a normal distribution, one thread, in turns, by the CPU
    time it takes: how many times as fast as exact GELU, and exact GELU against itself."""
    x = torch.randn(sizes.numbers, generator=torch.Generator().manual_seed(0))
    calls = {name: (lambda run=run: run(x)) for name, run in {**_FUNCTIONS, "again": functional.gelu}.items()}
    with torch.inference_mode():
        for call in calls.values():
            call()
        seconds = figures(rounds_on_cpu(calls, sizes.rounds, 0, clock="own"))
    floor = median_ratio(seconds["gelu"], seconds["again"], confidence=0.99)
    ratios = {name: median_ratio(seconds["gelu"], seconds[name], confidence=0.99) for name in _FUNCTIONS}
    return {
        "processor": processors.cpu(),
        "numbers": sizes.numbers,
        "floor": asdict(floor),
        "seconds": seconds,
        "ratios": {
            name: {**asdict(one), "verdict": judge(one, floor)} for name, one in ratios.items() if name != "gelu"
        },
    }


def instructions() -> dict[str, Any]:
    """What the compiler makes of our Triton kernels, forward, bf16: instructions an element of each, those that read
    and write it included. No GPU is needed."""
    form, dtype = "forward", "bf16"
    variant = triton_launch.CHOSEN[form]
    how = triton_launch.VARIANTS[variant]
    each = how.block // (how.warps * 32)
    kernels = {name: compiled(name, form, dtype, _TARGET, "dense", variant) for name in _COUNTED}
    counted = zip(kernels.items(), operations([*kernels.values()], _TARGET), strict=True)
    return {
        "target": _TARGET,
        "dtype": dtype,
        "instructions": {
            name: inspect(kernel, form, dtype, each, own)["instructions"] for (name, kernel), own in counted
        },
    }


def on_a_gpu() -> dict[str, Any]:
    """From the record of the GPU benchmark, forward, bf16, 64 Mi numbers: the share of a copy's bandwidth that each of
    torch's own operations reaches (100 % is memory's limit), how many times as fast as exact GELU it is, and the
    least share that our kernels of the same functions reach."""
    found = record.read([_CARD])
    cells = {
        cell["activation"]: cell
        for cell in found.kernels.values()
        if (cell["dtype"], cell["form"], cell["elements"]) == ("bfloat16", "forward", goals.MAIN)
    }
    own = {name: cells[name]["candidates"]["aten"] for name in ("gelu", "gelu_tanh", "silu")}
    assert found.card is not None
    return {
        "card": found.card["name"],
        "shares": {name: one["share_of_copy"] for name, one in own.items()},
        "fused": min(cells[name]["candidates"]["triton"]["share_of_copy"] for name in own),
        "times": {name: own["gelu"]["median_s"] / one["median_s"] for name, one in own.items() if name != "gelu"},
    }
