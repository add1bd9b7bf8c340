"""Candidates timed side by side: a cell for each activation, dtype, form and size."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.speed.verdict import ratio
from scripts.benchmarking.kernels.candidates import (
    COLUMNS,
    DTYPES,
    INTERPRETED,
    MOVED,
    CandidateError,
    Function,
    WrongCandidateError,
    candidate,
    eager,
    prepared,
)
from scripts.benchmarking.kernels.checking import check, values
from scripts.benchmarking.timing import (
    compared,
    enough,
    figures,
    peak,
    rounds_on,
    say,
)


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


def sized(elements: int) -> str:
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if elements % size == 0:
            return f"{elements // size}{unit}"
    return str(elements)
