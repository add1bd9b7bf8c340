"""Every way to compute an activation, against what transformers runs."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS, UnknownNameError
from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.evaluation.speed.ratios import ratio
from hf_gelu_patch.implementations.registry import get_implementation
from hf_gelu_patch.implementations.triton_forms import GATED_FORMS, POINTWISE
from hf_gelu_patch.implementations.triton_ops import gated
from scripts.benchmarking.kernels import liger
from scripts.benchmarking.timing import (
    MOST_ROUNDS,
    compared,
    enough,
    environment,
    figures,
    peak,
    rounds_on,
    say,
    versions_of,
)

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


class CandidateError(Exception):
    """A candidate cannot be timed.

    Attributes:
        name: which one.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class WrongCandidateError(CandidateError):
    """It does not compute what it is timed for."""


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
        if not fused or activation not in liger.FUSED:
            return f"Liger-Kernel has act(gate) · up for {' and '.join(liger.FUSED)} only"
        return liger.missing(device) or liger.fused(activation)
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
        CandidateError: one raises whatever it may.
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
        try:
            result = prepared(function, form, inputs, grad_y.view(shape).to(device))()
        except Exception as error:  # no compiler, no driver: that is the candidate's own
            raise CandidateError(name, f"{name} failed: {' '.join(str(error).split()[:40])}") from error
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
                name,
                f"{name} is wrong: {activation}, {form}, {str(dtype).removeprefix('torch.')}: "
                f"off by {own[row, at]:.3g} ulp at x = {x[at]:.6g}, and {allowed[row, at]:.3g} would be {MUCH:g} times "
                "eager's error or one ulp",
            )
    return found


# Timing


def arguments(
    form: str, dtype: torch.dtype, elements: int, options: argparse.Namespace
) -> tuple[tuple[Tensor, ...], Tensor]:
    """What a form takes, x or gate and up, and grad_y."""
    generator = torch.Generator(options.device).manual_seed(options.seed)
    shape = (elements // math.gcd(elements, COLUMNS), math.gcd(elements, COLUMNS))
    gate, up, grad_y = (torch.randn(shape, generator=generator, device=options.device).to(dtype) for _ in range(3))
    return (gate, up) if form.startswith("gated") else (gate,), grad_y


def timed_cell(
    functions: Mapping[str, Function], form: str, dtype: torch.dtype, elements: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One size: raw samples and what follows from them."""
    inputs, grad_y = arguments(form, dtype, elements, options)
    calls = {name: prepared(function, form, inputs, grad_y) for name, function in functions.items()}
    target = torch.empty_like(grad_y)
    calls = {"copy": lambda: target.copy_(grad_y), "again": prepared(functions["eager"], form, inputs, grad_y), **calls}
    moved = MOVED[form] * elements * dtype.itemsize
    flush = None
    if options.device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        if moved < 4 * cache:
            flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")
    rounds = rounds_on(options.device, flush=flush)
    rounds(calls, 3, options.seed)  # compiles
    count = enough(rounds(calls, 3, options.seed), options.rounds, options.seconds, options.most_rounds)
    samples = figures(rounds(calls, count, options.seed))
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
            row |= compared(seconds["eager"], own, floor, options.seed)
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
        failed: those of ``absent`` that are wrong or raise.
        errors: of each of ``functions``, in ulp.
    """

    activation: str
    dtype: str
    form: str
    functions: dict[str, Function]
    absent: dict[str, str]
    failed: list[str]
    errors: dict[str, dict[str, float]]

    def named(self) -> dict[str, str]:
        return {"activation": self.activation, "dtype": self.dtype, "form": self.form}


def subject(activation: str, dtype: str, form: str, options: argparse.Namespace, *, strict: bool) -> Subject:
    """Checked. A candidate that is wrong is an error where ``strict``, and else an absent one, as one that fails."""
    functions, absent, failed = {"eager": eager(activation, form)}, {}, []
    for name in options.implementations:
        made = candidate(name, activation, form, options.device)
        if isinstance(made, str):
            absent[name] = made
        else:
            functions[name] = made
    while True:
        try:
            errors = check(functions, activation, form, DTYPES[dtype], options.device, options.seed)
            return Subject(activation, dtype, form, functions, absent, failed, errors)
        except CandidateError as error:
            wrong = isinstance(error, WrongCandidateError)
            if error.name == "eager" or (strict and (wrong or error.name != "compile")):
                raise
            absent[error.name] = str(error)
            failed.append(error.name)
            del functions[error.name]


def set_up() -> None:
    """Torch, as the timing wants it."""
    import torch._dynamo.config
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # a kept graph runs more than once
    # Candidates share their code, and each is compiled for every size.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    torch.set_num_threads(1)


def subjects(options: argparse.Namespace) -> list[Subject]:
    """Everything there is to time, checked."""
    set_up()
    found = []
    for activation, dtype, form in itertools.product(options.activations, options.dtypes, options.forms):
        if activation == "swiglu_oai" and not form.startswith("gated"):
            continue
        say("checking", activation, dtype, form.replace("_", " "))
        found.append(subject(activation, dtype, form, options, strict=True))
    return found


def check_of(one: Subject) -> dict[str, Any]:
    return {**one.named(), "values": len(values(DTYPES[one.dtype])), "error_ulp": one.errors}


def cell_of(one: Subject, elements: int, options: argparse.Namespace) -> dict[str, Any]:
    """One subject at one size; out of memory is absence."""
    say("timing", one.activation, one.dtype, one.form.replace("_", " "), sized(elements))
    cell = {**one.named(), "elements": elements, "absent": one.absent, "candidates": {}}
    try:
        cell |= timed_cell(one.functions, one.form, DTYPES[one.dtype], elements, options)
    except torch.OutOfMemoryError:
        cell["absent"] = dict.fromkeys(one.functions, f"out of memory from {sized(elements)} on") | one.absent
    for name, row in cell["candidates"].items():
        row["error_ulp"], row["eager_error_ulp"] = one.errors[name], one.errors["eager"]
    return cell


def kernels(options: argparse.Namespace) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The checks and the cells (activation × dtype × form × size), after all checks and again after each cell."""
    found = subjects(options)
    checks, cells = [check_of(one) for one in found], []
    yield checks, cells
    for one, elements in itertools.product(found, options.elements):
        cells.append(cell_of(one, elements, options))
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


READING = (
    "Medians over rounds in which every candidate runs once, in an order drawn anew. GB/s: the bytes that one fused "
    "kernel moves, over the time; of a copy: that over the bandwidth of a copy timed in the same rounds. Over eager: "
    "how many times as fast, with the 99 % interval. Floor: eager against itself. Error: the largest over all values "
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


def table(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The Markdown."""
    lines = [
        "# Kernels",
        "",
        f"{versions_of(about)}; threads: {about['threads']}; seed {about['seed']}.",
        "",
        READING + CLOCKS[about["device"]],
    ]
    for form in MOVED:
        own = [cell for cell in cells if cell["form"] == form]
        if not own:
            continue
        headings = [heading for heading in HEADINGS if heading != "peak" or about["device"] == "cuda"]
        rows = []
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
                rows.append([fields.get(heading, "") for heading in headings])
        lines += ["", f"## {form.replace('_', ' ').capitalize()}", "", markdown.table(headings, rows)]
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
    figure.suptitle(f"Share of the bandwidth of a copy, {about['gpu'] or about['cpu']}")
    figure.savefig(path, dpi=150)


UNSET = "--device cuda: unset TRITON_INTERPRET, with which Triton's kernels run on the CPU."


def refuse_absent(device: str) -> None:
    """End where that device cannot be timed."""
    if device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch sees no CUDA device. Use --device cpu, or a build of torch with CUDA.")
        if INTERPRETED:
            sys.exit(UNSET)


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    asked = {name: getattr(options, name) for name in ("seed", "rounds", "seconds")}
    return {**environment(options.device), "interpreted": INTERPRETED, **asked}


def run(options: argparse.Namespace) -> None:
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    refuse_absent(options.device)
    if options.output and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--output draws a plot, and matplotlib is not installed: pip install 'hf-gelu-patch[evaluation]'")
    options.dtypes = options.dtypes or DEFAULTS[options.device]["dtypes"]
    options.elements = sorted(options.elements or DEFAULTS[options.device]["elements"])
    if "all" in options.activations:
        options.activations = [*POINTWISE, *GATED_FORMS]
    if (output := options.output) and output.suffix != ".json":
        output = output / "kernels.json"
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    checks, cells = [], []
    try:
        with np.errstate(all="ignore"):  # the interpreter computes in numpy, what is discarded too
            for checks, cells in kernels(options):
                about = surroundings(options)  # anew: the clocks just after the load
                if output:
                    found = {"environment": about, "checks": checks, "cells": cells}
                    output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    except CandidateError as error:
        sys.exit(str(error))
    if not checks:
        sys.exit("nothing to measure: swiglu_oai has gated forms only (--forms gated_forward gated_backward)")
    written = table(cells, about)
    print(written, end="")
    if output:
        output.with_suffix(".md").write_text(written, encoding="utf-8")
        plot(cells, about, output.with_suffix(".png"))


def known(what: str, valid: Sequence[str]) -> Callable[[str], str]:
    def read(name: str) -> str:
        if name not in valid:
            raise argparse.ArgumentTypeError(str(UnknownNameError(what, name, valid)))
        return name

    return read


def add(commands: Any) -> None:
    command = commands.add_parser("kernels", help="activations and their gated forms", allow_abbrev=False)

    def names(option: str, what: str, valid: Sequence[str], default: list[str] | None, told: str) -> None:
        command.add_argument(
            option, nargs="+", type=known(what, valid), default=default, metavar="NAME",
            help=f"from {', '.join(valid)} (default: {told})",
        )  # fmt: skip

    everything, main_ones = list(MOVED), ["gelu", "gelu_tanh", "silu"]
    usual = ["aten", "compile", "triton", "liger"]
    command.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    names("--activations", "activation", (*POINTWISE, *GATED_FORMS, "all"), main_ones, " ".join(main_ones))
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
    command.set_defaults(run=run, most_rounds=MOST_ROUNDS)
