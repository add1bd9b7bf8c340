"""Every way to compute an activation, against what transformers runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_gelu_patch import UnknownNameError
from hf_gelu_patch.implementations.triton_forms import GATED_FORMS, POINTWISE
from scripts.benchmarking.kernels.candidates import DTYPES, IMPLEMENTED, INTERPRETED, MOVED, UNSET, CandidateError
from scripts.benchmarking.kernels.cells import kernels
from scripts.benchmarking.kernels.page import plot, table
from scripts.benchmarking.timing import (
    MOST_ROUNDS,
    environment,
)

DEFAULTS = {
    "cpu": {"dtypes": ["float32", "bfloat16"], "elements": [2**16, 2**20]},
    "cuda": {"dtypes": ["float16", "bfloat16"], "elements": [2**20 * 4**k for k in range(5)]},
}


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


def number(text: str) -> int:
    """16384, 64K or 1M."""
    scale = {"K": 2**10, "M": 2**20}.get(text[-1:].upper(), 1)
    digits = text[:-1] if scale > 1 else text
    if not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of elements; write 16384, 64K or 1M")
    return int(digits) * scale


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
