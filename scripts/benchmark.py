"""How long things take.

    python scripts/benchmark.py patching    # patch and unpatch themselves: GPT-2 small, and Llama 405B without weights
    python scripts/benchmark.py kernels     # every way to compute an activation, against what transformers runs

patching: milliseconds of wall time, the median over fresh processes (first) and over rounds in one (again), with every
sample in the JSON that --output names.

kernels: first every candidate is checked against float64, over all values of a 16-bit dtype; then they are timed in
rounds, in an order drawn anew for each, with eager there twice: what is found between the two is the noise floor. A
copy is timed in the same rounds; a candidate's share of its bandwidth is that of the bytes that one fused kernel would
move. A backward is torch.autograd.grad alone, on a graph that is kept. On a CPU, Triton's kernels run only interpreted
(TRITON_INTERPRET=1): that is checked and timed, and is not a speed. With --output, what there is so far is in the JSON
after every cell.

noise: how far the verdicts on speed can be trusted here. Whole evaluations of a reference model, each of the model
against itself and against itself with a planted delay; and how many of them found what there is to find.
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# scripts/evaluate.py must not stand before the library of that name
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS, UnknownNameError
from hf_gelu_patch.evaluation.speed import judge, measure, ratio
from hf_gelu_patch.implementations import get_implementation
from hf_gelu_patch.ops import GATED, gated

# ----------------------------------------------------------------------------------------------------------- patching

LLAMA_405B = {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def patching_once(model: str, rounds: int) -> dict[str, list[float]]:
    """Times of the first patch in this process, of later ones, and of each undo."""
    import transformers

    from hf_gelu_patch import patch, unpatch

    torch.set_num_threads(1)
    if model == "gpt2":
        built = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    else:
        with torch.device("meta"):
            built = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_405B))
    times = [(milliseconds(lambda: patch(built)), milliseconds(lambda: unpatch(built))) for _ in range(1 + rounds)]
    return {
        "first": [times[0][0]],
        "again": [patched for patched, _ in times[1:]],
        "undo": [undone for _, undone in times],
    }


def patching(options: argparse.Namespace) -> dict[str, object]:
    results: dict[str, object] = {}
    for model in ("gpt2", "llama-405b"):
        samples: dict[str, list[float]] = {"first": [], "again": [], "undo": []}
        for _ in range(options.processes):
            command = [sys.executable, __file__, "patching", "--once", model, "--rounds", str(options.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for name, values in json.loads(done.stdout).items():
                samples[name] += values
        medians = {name: statistics.median(values) for name, values in samples.items()}
        results[model] = {"median_ms": medians, "samples_ms": samples}
        told = ", ".join(f"{name} {medians[name]:.1f} ms (up to {max(values):.1f})" for name, values in samples.items())
        print(f"{model}: {told}")
    return results


def environment() -> dict[str, str]:
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }


# ------------------------------------------------------------------------------------------------------------ kernels

MOVED = {"forward": 2, "backward": 3, "gated_forward": 3, "gated_backward": 5}
"""Form → the tensors that one fused kernel reads or writes."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IMPLEMENTED = ("aten", "compile", "triton", "triton_rounded", "liger")
DEFAULTS = {
    "cpu": {"dtypes": ["float32", "bfloat16"], "elements": [2**16, 2**20]},
    "cuda": {"dtypes": ["float16", "bfloat16"], "elements": [2**20 * 4**k for k in range(5)]},
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COLUMNS = 4096

Function = Callable[..., Tensor]


class WrongCandidateError(Exception):
    """A candidate does not compute what it is timed for."""


def swiglu_oai(gate: Tensor, up: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """As GptOssExperts writes it."""
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


def eager(activation: str, form: str) -> Function:
    """What transformers runs; for gelu_tanh, the eight ops of "gelu_new"."""
    if activation == "swiglu_oai":
        return swiglu_oai
    from transformers.activations import ACT2FN

    act = ACT2FN["gelu_new" if activation == "gelu_tanh" else ACTIVATIONS[activation].config_name]
    return (lambda gate, up: act(gate) * up) if form.startswith("gated") else act


def candidate(name: str, activation: str, form: str, device: str) -> Function | str:
    """What computes ``activation`` under this name, or why nothing does."""
    fused = form.startswith("gated")
    if name == "compile":
        return torch.compile(eager(activation, form), fullgraph=True, dynamic=False)
    if name == "liger":
        return liger(activation, fused, device)
    implementation = get_implementation(name)
    if name.startswith("triton"):
        if device == "cpu" and not INTERPRETED:
            return "Triton's kernels run on CUDA; on a CPU only interpreted, with TRITON_INTERPRET=1"
        if lack := implementation.missing():
            return lack
    if activation == "swiglu_oai":
        if name == "aten":
            return "aten does not compute swiglu_oai"
        return functools.partial(gated, activation=activation, rounded=name == "triton_rounded")
    functions = implementation.gated if fused else implementation.functions
    if activation not in functions:
        return f"{name} does not compute {activation}"
    return ACTIVATIONS[activation].bind(functions[activation])


def liger(activation: str, fused: bool, device: str) -> Function | str:
    """Liger-Kernel's function, where it has one."""
    if not fused or activation not in ("gelu_tanh", "silu"):
        return "Liger-Kernel has act(gate) · up for gelu_tanh and silu only"
    if importlib.util.find_spec("liger_kernel") is None:
        return "Liger-Kernel is not installed (pip install liger-kernel)"
    if device == "cpu":
        return "Liger-Kernel runs on CUDA"
    if activation == "silu":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Fused
    else:
        from liger_kernel.ops.geglu import LigerGELUMulFunction as Fused
    return Fused.apply


def prepared(function: Function, form: str, inputs: Sequence[Tensor], grad_y: Tensor) -> Callable[[], Any]:
    """What is timed. A backward has leaves of its own: Liger-Kernel writes the gradients over them."""
    if "backward" not in form:
        return lambda: function(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    return lambda: torch.autograd.grad(y, leaves, grad_y, retain_graph=True)


# Before anything is timed: is it right?

MUCH = 4.0
"""A candidate this many times further off than eager, and than one ulp, is wrong."""
_FLOOR = 1 / 64
"""Results below it are held to the ulp it has: eager loses the small ones, and at a zero all do."""
_FAR = 32.0
"""Beyond, where eager loses values (bf16's far end is ∞), each value is compared with eager's own."""


def values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype; of fp32, a dense grid and every magnitude."""
    if dtype == torch.float32:
        far = torch.logspace(-37, 38, 2**15)
        return torch.cat([torch.linspace(-_FAR, _FAR, 2**20), far, -far])
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def ulp(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of ``dtype`` at y, a positive float64 tensor."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(y.clamp(min=limits.tiny))
    return torch.ldexp(torch.full_like(y, limits.eps), exponent - 1)


def exact(activation: str, form: str, gate: Tensor, up: Tensor, grad_y: Tensor) -> tuple[Tensor, ...]:
    """The results in float64."""
    g, u, dy = gate.double(), up.double(), grad_y.double()
    if activation == "swiglu_oai":
        g, u = g.requires_grad_(), u.requires_grad_()
        y = swiglu_oai(g, u)
        return torch.autograd.grad(y, (g, u), dy) if "backward" in form else (y.detach(),)
    record = ACTIVATIONS[activation]
    value, slope = record.bind(record.reference)(g), record.bind(record.derivative)(g)
    return {
        "forward": (value,),
        "backward": (dy * slope,),
        "gated_forward": (value * u,),
        "gated_backward": (dy * u * slope, dy * value),
    }[form]


def errors(results: Sequence[Tensor], expected: Sequence[Tensor], floor: float = 0.0) -> Tensor:
    """A row for each result: how far off each value is, in ulp, those below ``floor`` in its ulp; ∞ if not finite."""
    rows = []
    for y, truth in zip(results, expected, strict=True):
        off = torch.where(y.isfinite(), (y.double() - truth).abs(), math.inf)
        rows.append(off / ulp(truth.abs().clamp(min=floor), y.dtype))
    return torch.stack(rows)


def check(
    functions: Mapping[str, Function], activation: str, form: str, dtype: torch.dtype, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Each candidate's largest errors over all values of the dtype, against float64; "eager" has to be one of them.

    Returns:
        By candidate, in ulp: "ulp" on [−5, 32], and "judged" on [−32, 32], where results below 1/64 count in its ulp.

    Raises:
        WrongCandidateError: one is much further off than eager and than one ulp.
    """
    x = values(dtype)
    generator = torch.Generator().manual_seed(seed)
    up, grad_y = ((torch.rand(len(x), generator=generator) * 2 - 1).to(dtype) for _ in range(2))
    expected = exact(activation, form, x, up, grad_y)
    shape = (-1, math.gcd(len(x), COLUMNS))
    inputs = [t.view(shape).to(device) for t in ((x, up) if form.startswith("gated") else (x,))]
    inside, near = x.abs() <= _FAR, (x >= -5) & (x <= _FAR)
    judged: dict[str, Tensor] = {}
    found: dict[str, dict[str, float]] = {}
    for name, function in functions.items():
        result = prepared(function, form, inputs, grad_y.view(shape).to(device))()
        results = [y.cpu().flatten() for y in ((result,) if isinstance(result, Tensor) else result)]
        judged[name] = errors(results, expected, _FLOOR)
        strict = errors(results, expected)[:, near]
        found[name] = {"ulp": float(strict.max()), "judged": float(judged[name][:, inside].max())}
    allowed = torch.where(inside, found["eager"]["judged"], judged["eager"]).clamp(min=1.0) * MUCH
    for name, own in judged.items():
        beyond = (own / allowed).nan_to_num(nan=0.0, posinf=math.inf)  # ∞/∞: eager is no better
        if float(beyond.max()) > 1:
            row, at = divmod(int(beyond.argmax()), len(x))
            raise WrongCandidateError(
                f"{name} is wrong: {activation}, {form}, {str(dtype).removeprefix('torch.')}: "
                f"off by {own[row, at]:.3g} ulp at x = {x[at]:.6g}, and {allowed[row, at]:.3g} would be {MUCH:g} times "
                "eager's error or one ulp"
            )
    return found


# Timing

MOST_ROUNDS = 1000
"""Medians need no more, unless --rounds asks for more."""
_HEAD_START = 0.01
"""Seconds that the GPU waits at most: queuing a round takes longer than that only where something is compiled."""
_CYCLES = 3e9
"""In a second of waiting; at a lower clock it waits longer, which costs time alone."""

Calls = Mapping[str, Callable[[], Any]]
Samples = dict[str, list[float]]


def rounds_on_cpu(calls: Calls, count: int, seed: int) -> Samples:
    """``count`` rounds of every call, in seconds by call."""
    variants = {name: (lambda _, call=call: call()) for name, call in calls.items()}
    limits = {"min_rounds": count, "min_seconds": 0.0, "max_seconds": math.inf}
    return measure(variants, [1], warm_up=[], seed=seed, **limits).seconds


def rounds_on_cuda(calls: Calls, count: int, seed: int, *, flush: Tensor | None = None) -> Samples:
    """The same on the GPU's clock, from an event before each call to one behind it.

    The GPU waits while Python queues a round, as long as that took for the round before: small calls would else be
    timed by how fast Python launches them.
    """
    generator, order, queuing = random.Random(seed), list(calls), 0.0
    samples: Samples = {name: [] for name in calls}
    for _ in range(count):
        generator.shuffle(order)
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in order}
        start = time.perf_counter()
        torch.cuda._sleep(int(min(queuing, _HEAD_START) * _CYCLES))
        for name in order:
            if flush is not None:
                flush.zero_()
            events[name][0].record()
            calls[name]()
            events[name][1].record()
        queuing = time.perf_counter() - start
        torch.cuda.synchronize()
        for name, (before, behind) in events.items():
            samples[name].append(before.elapsed_time(behind) / 1e3)
    return samples


def enough(trial: Mapping[str, Sequence[float]], rounds: int, seconds: float) -> int:
    """How many rounds give every call ``seconds``, within what is worth it and, for the slow ones, endurable."""
    once = [statistics.median(own) for own in trial.values()]
    wanted = max(rounds, min(MOST_ROUNDS, math.ceil(seconds / min(once))))
    endured = (1.0 + 4.0 * seconds * len(once)) / sum(once)
    return max(3, min(wanted, math.ceil(endured)))


def peak(call: Callable[[], Any]) -> int:
    """The GPU memory that a call takes at most beyond what was there before it, in bytes; its results count."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def timed_cell(
    functions: Mapping[str, Function], form: str, dtype: torch.dtype, elements: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One size: raw samples and what follows from them."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    shape = (elements // math.gcd(elements, COLUMNS), math.gcd(elements, COLUMNS))
    gate, up, grad_y = (torch.randn(shape, generator=generator, device=options.device).to(dtype) for _ in range(3))
    inputs = (gate, up) if form.startswith("gated") else (gate,)
    calls = {name: prepared(function, form, inputs, grad_y) for name, function in functions.items()}
    target = torch.empty_like(gate)
    calls = {"copy": lambda: target.copy_(gate), "again": prepared(functions["eager"], form, inputs, grad_y), **calls}
    moved = MOVED[form] * elements * dtype.itemsize
    flush, rounds = None, rounds_on_cpu
    if options.device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        if moved < 4 * cache:
            flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")
        rounds = functools.partial(rounds_on_cuda, flush=flush)
    rounds(calls, 3, options.seed)  # compiles
    count = enough(rounds(calls, 3, options.seed), options.rounds, options.seconds)
    samples = {name: [round(s, 10) for s in own] for name, own in rounds(calls, count, options.seed).items()}
    cell = {
        "bytes": moved,
        "flushed": flush is not None,
        **concluded(samples, moved, elements * dtype.itemsize * 2, options),
    }
    for name, row in cell["candidates"].items():
        row["peak_bytes"] = peak(calls[name]) if options.device == "cuda" else None
    return cell


def concluded(
    seconds: Mapping[str, list[float]], moved: int, copied: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Bandwidths, ratios and verdicts from the samples of "copy", "eager", "again" and the other candidates."""
    copy = statistics.median(seconds["copy"])
    floor = ratio(seconds["eager"], seconds["again"], seed=options.seed)
    rows = {}
    for name, own in seconds.items():
        if name in ("copy", "again"):
            continue
        median = statistics.median(own)
        row: dict[str, Any] = {
            "median_s": median,
            "gb_per_s": moved / median / 1e9,
            "share_of_copy": (moved / median) / (copied / copy),
            "ratio": None,
            "verdict": None,
            "interpreted": name.startswith("triton") and INTERPRETED,
            "samples_s": own,
        }
        if row["interpreted"]:
            row["verdict"] = "interpreted: not a speed"
        elif name != "eager":
            found = ratio(seconds["eager"], own, seed=options.seed)
            row |= {"ratio": asdict(found), "verdict": judge(found, floor)}
        rows[name] = row
    return {
        "copy": {"bytes": copied, "median_s": copy, "gb_per_s": copied / copy / 1e9, "samples_s": seconds["copy"]},
        "floor": {**asdict(floor), "samples_s": seconds["again"]},
        "candidates": rows,
    }


@dataclass(frozen=True)
class Subject:
    """What is measured at every size: the candidates for one activation, dtype and form, checked.

    Attributes:
        functions: "eager" and the other candidates there are.
        absent: for each that there is not, why.
        errors: of each of ``functions``, in ulp.
    """

    activation: str
    dtype: str
    form: str
    functions: dict[str, Function]
    absent: dict[str, str]
    errors: dict[str, dict[str, float]]

    def named(self) -> dict[str, str]:
        return {"activation": self.activation, "dtype": self.dtype, "form": self.form}


def say(*words: str) -> None:
    print(*words, file=sys.stderr, flush=True)


def subject(activation: str, dtype: str, form: str, options: argparse.Namespace) -> Subject:
    import torch._dynamo.exc

    functions, absent = {"eager": eager(activation, form)}, {}
    for name in options.implementations:
        made = candidate(name, activation, form, options.device)
        if isinstance(made, str):
            absent[name] = made
        else:
            functions[name] = made
    arguments = (activation, form, DTYPES[dtype], options.device, options.seed)
    try:
        errors = check(functions, *arguments)
    except torch._dynamo.exc.TorchDynamoException as error:  # no C++ compiler, say
        absent["compile"] = f"torch.compile failed: {' '.join(str(error).split()[:40])}"
        del functions["compile"]
        errors = check(functions, *arguments)
    return Subject(activation, dtype, form, functions, absent, errors)


def kernels(options: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The checks and the cells (activation × dtype × form × size), after all checks and again after each cell."""
    import torch._dynamo.config
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # a kept graph runs more than once
    torch._dynamo.config.recompile_limit = 4 + len(options.elements)
    torch.set_num_threads(1)
    subjects = []
    for activation, dtype, form in itertools.product(options.activations, options.dtypes, options.forms):
        if activation == "swiglu_oai" and not form.startswith("gated"):
            continue
        say("checking", activation, dtype, form.replace("_", " "))
        torch.compiler.reset()
        subjects.append(subject(activation, dtype, form, options))
    checks = [{**one.named(), "values": len(values(DTYPES[one.dtype])), "error_ulp": one.errors} for one in subjects]
    cells: list[dict[str, Any]] = []
    yield checks, cells
    for one in subjects:
        torch.compiler.reset()
        for elements in options.elements:
            say("timing", one.activation, one.dtype, one.form.replace("_", " "), sized(elements))
            cell = {**one.named(), "elements": elements, "absent": one.absent, "candidates": {}}
            try:
                cell |= timed_cell(one.functions, one.form, DTYPES[one.dtype], elements, options)
            except torch.OutOfMemoryError:
                cell["absent"] = dict.fromkeys(one.functions, f"out of memory from {sized(elements)} on") | one.absent
            for name, row in cell["candidates"].items():
                row["error_ulp"], row["eager_error_ulp"] = one.errors[name], one.errors["eager"]
            cells.append(cell)
            yield checks, cells


# Writing it down


def sized(elements: int) -> str:
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if elements % size == 0:
            return f"{elements // size}{unit}"
    return str(elements)


def number(text: str) -> int:
    """16384, 64K or 1M."""
    scale = {"K": 2**10, "M": 2**20}.get(text[-1:].upper(), 1)
    digits = text[:-1] if scale > 1 else text
    if not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of elements; write 16384, 64K or 1M")
    return int(digits) * scale


def git_revision() -> str:
    def told(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return told("rev-parse", "HEAD") + (" with changes" if told("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def nvidia_smi() -> list[str] | None:
    """Each GPU's name, driver, clocks and limit of power, where there is something to ask."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.limit"
    done = subprocess.run([program, f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()


def kernels_environment(options: argparse.Namespace) -> dict[str, Any]:
    return {
        **environment(),
        "triton": version("triton"),
        "liger_kernel": version("liger-kernel"),
        "cuda": torch.version.cuda,
        "device": options.device,
        "device_name": device_name(options.device),
        "threads": torch.get_num_threads(),
        "interpreted": INTERPRETED,
        "nvidia_smi": nvidia_smi(),
        "revision": git_revision(),
        "seed": options.seed,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


READING = (
    "Medians over rounds in which every candidate runs once, in an order drawn anew. GB/s: the bytes that one fused "
    "kernel moves, over the time; of a copy: that over the bandwidth of a copy timed in the same rounds. Over eager: "
    "how many times as fast, with the 95 % interval. Floor: eager against itself. Error: the largest over all values "
    "(fp32: a dense grid), in ulp, results below 1/64 counted in the ulp of 1/64. "
)
HEADINGS = (
    *("activation", "dtype", "elements", "by", "median", "GB/s", "of a copy"),
    *("over eager", "floor", "error", "peak", "verdict"),
)
CLOCKS = {
    "cuda": "Times are the GPU's own, by events: what Python takes to launch is not in them. Where a call moves less "
    "than four times what the L2 cache holds, the cache is overwritten before each. Peak: the memory that a call "
    "takes, its results included, in tensors of that size.",
    "cpu": "Wall time. Nothing empties the caches between calls.",
}


def line(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"


def table(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The Markdown."""
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "triton", "transformers") if about[key])
    lines = [
        f"# Kernels on {about['device_name']}",
        "",
        f"{versions}; threads: {about['threads']}; revision {about['revision']}; seed {about['seed']}.",
        "",
        READING + CLOCKS[about["device"]],
    ]
    for form in MOVED:
        own = [cell for cell in cells if cell["form"] == form]
        if not own:
            continue
        headings = [heading for heading in HEADINGS if heading != "peak" or about["device"] == "cuda"]
        lines += ["", f"## {form.replace('_', ' ').capitalize()}", "", line(headings), "|---" * len(headings) + "|"]
        for cell in own:
            for name, row in cell["candidates"].items():
                fields = {
                    "activation": cell["activation"],
                    "dtype": cell["dtype"],
                    "elements": sized(cell["elements"]),
                    "by": name,
                    "median": f"{row['median_s'] * 1e6:,.1f} µs",
                    "GB/s": f"{row['gb_per_s']:,.1f}",
                    "of a copy": f"{row['share_of_copy']:.0%}",
                    "error": f"{row['error_ulp']['judged']:.3g}",
                    "verdict": row["verdict"] or "",
                }
                if row["ratio"] is not None:
                    fields["over eager"] = "{value:.3f}× [{low:.3f}, {high:.3f}]".format(**row["ratio"])
                if name == "eager":
                    fields["floor"] = "[{low:.3f}, {high:.3f}]".format(**cell["floor"])
                if row["peak_bytes"] is not None:
                    fields["peak"] = f"{row['peak_bytes'] / (cell['copy']['bytes'] / 2):.2f}"
                lines.append(line([fields.get(heading, "") for heading in headings]))
    reasons = sorted({f"{name}: {reason}" for cell in cells for name, reason in cell["absent"].items()})
    lines += ["", "Absent:", "", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


COLOURS = {
    "eager": "#7f7f7f",
    "aten": "#1f77b4",
    "compile": "#2ca02c",
    "triton": "#d62728",
    "triton_rounded": "#ff9896",
    "liger": "#9467bd",
}
LINES = {"bfloat16": "-", "float16": "--", "float32": ":"}


def plot(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: Path) -> None:
    """Share of a copy's bandwidth over the size: a row of panels for each form, a column for each activation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    forms = [form for form in MOVED if any(cell["form"] == form for cell in cells)]
    activations = list(dict.fromkeys(cell["activation"] for cell in cells))
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    sizes = sorted({cell["elements"] for cell in cells})
    figure = Figure(figsize=(1.6 + 2.9 * len(activations), 1.6 + 2.1 * len(forms)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(forms), len(activations), sharex=True, sharey=True, squeeze=False)
    names: dict[str, None] = {}
    for (form, row), (activation, column) in itertools.product(
        zip(forms, panels, strict=True), [(a, k) for k, a in enumerate(activations)]
    ):
        axes = row[column]
        axes.axhline(1.0, color="black", linewidth=0.6)
        for dtype, name in itertools.product(dtypes, COLOURS):
            points = [
                (cell["elements"], cell["candidates"][name]["share_of_copy"])
                for cell in cells
                if (cell["form"], cell["activation"], cell["dtype"]) == (form, activation, dtype)
                and name in cell["candidates"]
                and not cell["candidates"][name]["interpreted"]
            ]
            if points:
                names[name] = None
                axes.plot(*zip(*points, strict=True), LINES[dtype], color=COLOURS[name], marker="o", markersize=3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [sized(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25)
        if form == forms[0]:
            axes.set_title(activation)
        if column == 0:
            axes.set_ylabel(form.replace("_", " "))
        if form == forms[-1]:
            axes.set_xlabel("elements")
    handles = [Line2D([], [], color=COLOURS[name], label=name) for name in COLOURS if name in names]
    handles += [Line2D([], [], color="black", linestyle=LINES[dtype], label=dtype) for dtype in dtypes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"Share of the bandwidth of a copy, {about['device_name']}")
    figure.savefig(path, dpi=150)


def run_kernels(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch sees no CUDA device. Use --device cpu, or a build of torch with CUDA.")
        if INTERPRETED:
            sys.exit("--device cuda: unset TRITON_INTERPRET, with which Triton's kernels run on the CPU.")
    if options.output and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--output draws a plot, and matplotlib is not installed: pip install 'hf-gelu-patch[evaluation]'")
    options.dtypes = options.dtypes or DEFAULTS[options.device]["dtypes"]
    options.elements = sorted(options.elements or DEFAULTS[options.device]["elements"])
    if "all" in options.activations:
        options.activations = list(GATED)
    if (output := options.output) and output.suffix != ".json":
        output = output / "kernels.json"
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    checks, cells = [], []
    try:
        with np.errstate(all="ignore"):  # the interpreter computes in numpy, what is discarded too
            for checks, cells in kernels(options):
                about = kernels_environment(options)  # anew: the clocks just after the load
                if output:
                    found = {"environment": about, "checks": checks, "cells": cells}
                    output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    except WrongCandidateError as error:
        sys.exit(str(error))
    if not checks:
        sys.exit("nothing to measure: swiglu_oai has gated forms only (--forms gated_forward gated_backward)")
    written = table(cells, about)
    print(written, end="")
    if output:
        output.with_suffix(".md").write_text(written, encoding="utf-8")
        plot(cells, about, output.with_suffix(".png"))


# -------------------------------------------------------------------------------------------------------------- noise

SAME, SLOWED = "eager", "slowed"


@contextmanager
def planted_delay(seconds: float) -> Iterator[None]:
    """An implementation that computes what the model does, and then waits, busily, at each activation."""
    from hf_gelu_patch import Implementation, register_implementation
    from hf_gelu_patch.implementations import IMPLEMENTATIONS

    def late(function: Function) -> Function:
        def run(*tensors: Tensor, **parameters: Any) -> Tensor:
            y = function(*tensors, **parameters)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
            return y

        return run

    functions = {name: late(record.eager) for name, record in ACTIVATIONS.items() if not record.learned}
    register_implementation(Implementation(SLOWED, functions))
    try:
        yield
    finally:
        del IMPLEMENTATIONS[SLOWED]


def noise(options: argparse.Namespace) -> dict[str, Any]:
    """What each run found: the verdict on each variant, with its interval and that of the noise floor."""
    from accelerate import Accelerator

    from hf_gelu_patch import find_sites
    from hf_gelu_patch.evaluation.loading import load_model, subject
    from hf_gelu_patch.evaluation.run import Settings, Variant, evaluate_subject

    torch.set_num_threads(1)
    one = subject(options.model)
    settings = Settings(
        variants=(Variant.parse(SAME),),
        limit=options.examples,
        batch_size=options.examples,
        min_seconds=options.seconds,
        max_seconds=8 * options.seconds,
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    [alone] = evaluate_subject(one, settings, accelerator).variants
    forward = alone.speed.percentiles["before"]["p50"]
    sites = len(find_sites(load_model(one.model, one.task), implementation="eager").sites)
    runs = []
    with planted_delay(options.delay * forward / sites):
        variants = (Variant.parse(SAME), Variant.parse(SLOWED))
        for number in range(options.runs):
            found = evaluate_subject(one, replace(settings, variants=variants, seed=number), accelerator)
            told = {
                variant.variant.name: {
                    "verdict": variant.speed.verdict,
                    "ratio": asdict(variant.speed.ratio),
                    "floor": asdict(variant.speed.floor),
                    "rounds": len(variant.speed.timings.units),
                }
                for variant in found.variants
            }
            runs.append(told)
            say(f"{number + 1}/{options.runs}", *(f"{name}: {one['verdict']}" for name, one in told.items()))
    counted = {name: Counter(run[name]["verdict"] for run in runs) for name in (SAME, SLOWED)}
    covered = sum(run[SAME]["ratio"]["low"] <= 1 <= run[SAME]["ratio"]["high"] for run in runs)
    print(f"{one.name}, {forward * 1e3:.2f} ms a batch, {options.runs} runs of {options.seconds:g} s or more a variant")
    for name, of in ((SAME, "itself"), (SLOWED, f"itself with {options.delay:.0%} of delay")):
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in counted[name].most_common())
        print(f"against {of}: {verdicts}")
    print(f"intervals against itself that cover 1: {covered} of {options.runs}")
    return {
        "model": one.name,
        "seconds_a_batch": forward,
        "delay": options.delay,
        "seconds": options.seconds,
        "load": os.getloadavg(),
        "cover_one": covered,
        "runs": runs,
    }


def add_noise(commands: Any) -> None:
    command = commands.add_parser(
        "noise", help="how far the verdicts on speed can be trusted on this machine", allow_abbrev=False
    )
    command.add_argument("--model", default="vit", metavar="NAME", help="a reference model (default: vit)")
    command.add_argument("--runs", type=int, default=20, metavar="N", help="evaluations (default: 20)")
    command.add_argument("--examples", type=int, default=64, metavar="N", help="in the batch timed (default: 64)")
    command.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each variant (default: 10)")
    command.add_argument(
        "--delay", type=float, default=0.03, metavar="SHARE", help="planted, of a forward (default: 0.03)"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every verdict")


# ------------------------------------------------------------------------------------------------------- command line


def known(what: str, valid: Sequence[str]) -> Callable[[str], str]:
    def read(name: str) -> str:
        if name not in valid:
            raise argparse.ArgumentTypeError(str(UnknownNameError(what, name, valid)))
        return name

    return read


def add_kernels(commands: Any) -> None:
    command = commands.add_parser("kernels", help="activations and their gated forms", allow_abbrev=False)

    def names(option: str, what: str, valid: Sequence[str], default: list[str] | None, told: str) -> None:
        command.add_argument(
            option, nargs="+", type=known(what, valid), default=default, metavar="NAME",
            help=f"from {', '.join(valid)} (default: {told})",
        )  # fmt: skip

    everything, main_ones = list(MOVED), ["gelu", "gelu_tanh", "silu"]
    usual = ["aten", "compile", "triton", "liger"]
    command.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    names("--activations", "activation", (*GATED, "all"), main_ones, " ".join(main_ones))
    names("--forms", "form", everything, everything, "all")
    names("--dtypes", "dtype", list(DTYPES), None, "float32 bfloat16 on a CPU, float16 bfloat16 on CUDA")
    names("--implementations", "implementation", IMPLEMENTED, usual, f"{' '.join(usual)}; eager is always there")
    command.add_argument(
        "--elements", nargs="+", type=number, metavar="N", help="sizes (default: 64K 1M on a CPU, 1M to 256M on CUDA)"
    )
    command.add_argument("--rounds", type=int, default=50, metavar="N", help="at least (default: 50)")
    command.add_argument(
        "--seconds", type=float, default=0.2, metavar="S", help="of every candidate, at least (default: 0.2)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of data and orders (default: 0)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for kernels.json, .md and .png; or FILE.json, for it and those beside it",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser("patching", help="patch and unpatch themselves", allow_abbrev=False)
    command.add_argument("--processes", type=int, default=5, metavar="N", help="fresh processes a model (default: 5)")
    command.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds in each (default: 10)")
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every sample")
    command.add_argument("--once", choices=("gpt2", "llama-405b"), help=argparse.SUPPRESS)
    add_kernels(commands)
    add_noise(commands)
    options = parser.parse_args()
    if options.command == "kernels":
        run_kernels(options)
        return
    if options.command == "patching" and options.once:
        print(json.dumps(patching_once(options.once, options.rounds)))
        return
    results = noise(options) if options.command == "noise" else patching(options)
    if options.output:
        found = {"environment": environment(), options.command: results}
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
