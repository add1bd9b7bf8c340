"""A gated layer's gate and up as two matrix products, and as one of both weights side by side."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarking.gpu.models import AGAIN, concluded
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.timing import figures, rounds_on_cpu

WIDTHS, TINY_WIDTHS = (2048, 8192), (8, 32)
"""Columns read, and written by each of the two: as in Llama 3.2 with 1.2 G parameters."""
ROWS, TINY_ROWS = (1024, 16), (16, 4)
DTYPE = "float32"
_LEAST_ROUNDS = 5


def calls_of(rows: int, read: int, written: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    """silu(x·G) · (x·U) of random x, G and U: by two products, and by one whose output is cut in two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, read, generator=generator)
    both = torch.randn(2 * written, read, generator=generator) / read**0.5
    gate, up = both[:written].clone(), both[written:].clone()

    def separate() -> Tensor:
        with torch.no_grad():
            return F.silu(F.linear(x, gate)) * F.linear(x, up)

    def merged() -> Tensor:
        with torch.no_grad():
            y = F.linear(x, both)
            return F.silu(y[:, :written]) * y[:, written:]

    return {"eager": separate, AGAIN["eager"]: separate, "merged": merged}


def measure(work: Work) -> None:
    """Inference on many rows and on few, with each number of threads."""
    options = work.options
    read, written = TINY_WIDTHS if options.tiny else WIDTHS
    for threads, rows in itertools.product(options.threads, TINY_ROWS if options.tiny else ROWS):
        what = f"gate and up, {rows} rows, {threads} threads"
        if work.left <= 0:
            work.leave_out(what)
            continue
        with work.attempt(what):
            torch.set_num_threads(threads)
            calls = calls_of(rows, read, written, options.seed)
            torch.testing.assert_close(calls["merged"](), calls["eager"]())
            about = {"dtype": DTYPE, "threads": threads, "rows": rows, "read": read, "written": written}
            about["clock"] = options.clock
            work.cell(what, "merged", **about, variants=_timed(calls, options))


def _timed(calls: dict[str, Callable[[], Tensor]], options: Any) -> dict[str, dict[str, Any]]:
    trial = rounds_on_cpu(calls, 2, options.seed, clock=options.clock)
    count = int(options.cell_seconds / sum(own[-1] for own in trial.values()))
    least = min(_LEAST_ROUNDS, options.rounds)
    rounds = max(least, min(options.rounds, count))
    samples = figures(rounds_on_cpu(calls, rounds, options.seed, clock=options.clock))
    return concluded(samples, {}, options.seed)
