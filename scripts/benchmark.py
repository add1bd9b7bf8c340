"""How long things take.

    python scripts/benchmark.py patching    # patch and unpatch themselves: GPT-2 small, and Llama 405B without weights
    python scripts/benchmark.py kernels     # every way to compute an activation, against what transformers runs

patching: milliseconds of wall time, the median over fresh processes (first) and over rounds in one (again), with every
sample in the JSON that --output names.

kernels: each candidate is checked against float64, then all are timed in rounds, in an order drawn anew for each, with
eager there twice: what is found between the two is the noise floor. A copy is timed in the same rounds; a candidate's
share of its bandwidth is that of the bytes that one fused kernel would move. On a CPU, Triton's kernels run only
interpreted (TRITON_INTERPRET=1): that is checked and timed, and is not a speed.
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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# scripts/evaluate.py must not stand before the library of that name
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS, UnknownNameError
from hf_gelu_patch.evaluation.speed import Timings, judge, measure, ratio
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


def errors(results: Sequence[Tensor], expected: Sequence[Tensor], x: Tensor) -> dict[str, float]:
    """Largest errors in ulp: ``ulp`` on [−5, 32], and ``judged`` on [−32, 32], where results below 1/64 count in its
    ulp."""
    found = {"ulp": 0.0, "judged": 0.0}
    for y, truth in zip(results, expected, strict=True):
        off = torch.where(y.isfinite(), (y.double() - truth).abs(), math.inf)
        inside, near, size = x.abs() <= _FAR, (x >= -5) & (x <= _FAR), truth.abs()
        strict, judged = off / ulp(size, y.dtype), off / ulp(size.clamp(min=_FLOOR), y.dtype)
        found["ulp"] = max(found["ulp"], float(strict[near].max()))
        found["judged"] = max(found["judged"], float(judged[inside].max()))
    return found


def check(
    functions: Mapping[str, Function], activation: str, form: str, dtype: torch.dtype, device: str, seed: int
) -> dict[str, dict[str, float]]:
    """Each candidate's errors over all values of the dtype, against float64; "eager" has to be one of them.

    Raises:
        WrongCandidateError: one is much further off than eager and than one ulp, or not finite where eager is.
    """
    x = values(dtype)
    generator = torch.Generator().manual_seed(seed)
    up, grad_y = ((torch.rand(len(x), generator=generator) * 2 - 1).to(dtype) for _ in range(2))
    expected = exact(activation, form, x, up, grad_y)
    shape = (-1, math.gcd(len(x), COLUMNS))
    inputs = [t.view(shape).to(device) for t in ((x, up) if form.startswith("gated") else (x,))]
    results: dict[str, list[Tensor]] = {}
    for name, function in functions.items():
        result = prepared(function, form, inputs, grad_y.view(shape).to(device))()
        results[name] = [y.cpu().flatten() for y in ((result,) if isinstance(result, Tensor) else result)]
    found = {name: errors(own, expected, x) for name, own in results.items()}
    for name, own in found.items():
        told = f"{name} is wrong: {activation}, {form}, {str(dtype).removeprefix('torch.')}: "
        if own["judged"] > MUCH * max(1.0, found["eager"]["judged"]):
            raise WrongCandidateError(f"{told}off by {own['judged']:.3g} ulp, eager by {found['eager']['judged']:.3g}")
        if any(
            bool((~y.isfinite() & z.isfinite()).any()) for y, z in zip(results[name], results["eager"], strict=True)
        ):
            raise WrongCandidateError(f"{told}not finite where eager is")
    return found


# Timing


def measure_on_cuda(
    variants: Mapping[str, Callable[[int], None]], *, flush: Tensor | None, seed: int, rounds: int, seconds: float
) -> Timings:
    """Rounds as in ``measure``, by an event before and behind each call and one synchronisation at the end."""
    generator = random.Random(seed)

    def timed(name: str) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush is not None:
            flush.zero_()
        before.record()
        variants[name](0)
        behind.record()
        return before, behind

    def run(count: int) -> dict[str, list[float]]:
        events: dict[str, list[Any]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(count):
            generator.shuffle(order)
            for name in order:
                events[name].append(timed(name))
        torch.cuda.synchronize()
        return {name: [a.elapsed_time(b) / 1e3 for a, b in pairs] for name, pairs in events.items()}

    run(3)
    once = {name: statistics.median(own) for name, own in run(3).items()}
    wanted = max(rounds, math.ceil(seconds / min(once.values())))
    affordable = math.ceil(_most_seconds(seconds, len(variants)) / sum(once.values()))
    count = max(3, min(wanted, affordable))
    return Timings(run(count), [1] * count)


def _most_seconds(seconds: float, variants: int) -> float:
    return 1.0 + 4.0 * seconds * variants


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
    calls = {"copy": lambda: target.copy_(gate), "again": calls["eager"], **calls}
    variants = {name: (lambda _, call=call: call()) for name, call in calls.items()}
    moved = MOVED[form] * elements * dtype.itemsize
    flushed = False
    if options.device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        flushed = moved < 4 * cache
        flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda") if flushed else None
        timings = measure_on_cuda(
            variants, flush=flush, seed=options.seed, rounds=options.rounds, seconds=options.seconds
        )
    else:
        timings = measure(
            variants,
            [1],
            warm_up=[0, 0, 0],
            seed=options.seed,
            min_rounds=options.rounds,
            min_seconds=options.seconds,
            max_seconds=_most_seconds(options.seconds, len(variants)),
        )
    return {
        "bytes": moved,
        "flushed": flushed,
        **concluded(timings.seconds, moved, elements * dtype.itemsize * 2, options),
    }


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


def kernels(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell: activation × dtype × form × size."""
    import torch._dynamo.config
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # a kept graph runs more than once
    torch._dynamo.config.recompile_limit = 4 + len(options.elements)
    torch.set_num_threads(1)
    cells = []
    for activation, dtype, form in itertools.product(options.activations, options.dtypes, options.forms):
        if activation == "swiglu_oai" and not form.startswith("gated"):
            continue
        torch.compiler.reset()
        functions, absent = {"eager": eager(activation, form)}, {}
        for name in options.implementations:
            made = candidate(name, activation, form, options.device)
            if isinstance(made, str):
                absent[name] = made
            else:
                functions[name] = made
        arguments = (activation, form, DTYPES[dtype], options.device, options.seed)
        try:
            checked = check(functions, *arguments)
        except torch._dynamo.exc.TorchDynamoException as error:  # no C++ compiler, say
            absent["compile"] = f"torch.compile failed: {' '.join(str(error).split()[:40])}"
            del functions["compile"]
            checked = check(functions, *arguments)
        for elements in options.elements:
            print(f"{activation} {dtype} {form.replace('_', ' ')} {sized(elements)}", file=sys.stderr, flush=True)
            cell = {"activation": activation, "dtype": dtype, "form": form, "elements": elements}
            try:
                cell |= timed_cell(functions, form, DTYPES[dtype], elements, options)
            except torch.OutOfMemoryError:
                cells.append({**cell, "candidates": {}, "absent": dict.fromkeys(functions, "out of memory") | absent})
                continue
            for name, row in cell["candidates"].items():
                row["error_ulp"], row["eager_error_ulp"] = checked[name], checked["eager"]
            cells.append({**cell, "absent": absent})
    return cells


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
    *("over eager", "floor", "error", "verdict"),
)
CACHES = {
    "cuda": "Where a call moves less than four times what the L2 cache holds, the cache is overwritten before each.",
    "cpu": "Nothing empties the caches between calls.",
}


def table(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The Markdown."""
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "triton", "transformers") if about[key])
    lines = [
        f"# Kernels on {about['device_name']}",
        "",
        f"{versions}; threads: {about['threads']}; revision {about['revision']}; seed {about['seed']}.",
        "",
        READING + CACHES[about["device"]],
    ]
    for form in MOVED:
        own = [cell for cell in cells if cell["form"] == form]
        if not own:
            continue
        lines += [
            "",
            f"## {form.replace('_', ' ').capitalize()}",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---" * len(HEADINGS) + "|",
        ]
        for cell in own:
            where = f"| {cell['activation']} | {cell['dtype']} | {sized(cell['elements'])} |"
            for name, row in cell["candidates"].items():
                against = "" if row["ratio"] is None else "{value:.3f}× [{low:.3f}, {high:.3f}]".format(**row["ratio"])
                floor = "[{low:.3f}, {high:.3f}]".format(**cell["floor"]) if name == "eager" else ""
                lines.append(
                    f"{where} {name} | {row['median_s'] * 1e6:,.1f} µs | {row['gb_per_s']:,.1f} | "
                    f"{row['share_of_copy']:.0%} | {against} | {floor} | {row['error_ulp']['judged']:.3g} | "
                    f"{row['verdict'] or ''} |"
                )
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
    try:
        with np.errstate(all="ignore"):  # the interpreter computes in numpy, what is discarded too
            cells = kernels(options)
    except WrongCandidateError as error:
        sys.exit(str(error))
    if not cells:
        sys.exit("nothing to measure: swiglu_oai has gated forms only (--forms gated_forward gated_backward)")
    about = kernels_environment(options)
    written = table(cells, about)
    print(written, end="")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        found = {"environment": about, "cells": cells}
        (options.output / "kernels.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (options.output / "kernels.md").write_text(written, encoding="utf-8")
        plot(cells, about, options.output / "kernels.png")


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
    command.add_argument("--output", type=Path, metavar="FOLDER", help="for kernels.json, kernels.md and kernels.png")


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
    options = parser.parse_args()
    if options.command == "kernels":
        run_kernels(options)
        return
    if options.once:
        print(json.dumps(patching_once(options.once, options.rounds)))
        return
    results = patching(options)
    if options.output:
        options.output.write_text(json.dumps({"environment": environment(), "patching": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
