"""The command ``memory``, which measures on the CPU and adds to one record.

What is in the record, of the same code, is not measured again: a command that was killed goes on where it is given
once more.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.implementations.measured import processors
from scripts.benchmarking.gpu.record import Record
from scripts.benchmarking.gpu.schedule import Step, Work
from scripts.benchmarking.memory import measuring, report, subjects
from scripts.benchmarking.memory.found import RECORD, read
from scripts.benchmarking.timing import environment

_NAME = "memory"


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    about = environment("cpu")
    options.sources = about["sources"]
    own = Record(options.output, RECORD)
    known = read(options.output)
    words = [Path(word).name if os.sep in word else word for word in about["command"]]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    own.write("environment", **{**about, "command": words, "processor": processors.cpu(), "date": date})
    limit = max(0.0, options.began + 60 * options.minutes - time.monotonic())
    work = Work(Step(_NAME, _NAME, lambda _: None, 0.0, limit), limit, own, options)
    for name in options.subjects:
        measuring.measure_bytes(name, work, known)
    for name in options.subjects if options.rounds else ():
        if name not in subjects.UNTIMED:
            measuring.measure_steps(name, work, known)
    found = read(options.output)
    print(report.written(found, options.output), end="")
    if found.failures:
        sys.exit(f"{len(found.failures)} failed, see {own.path}: {'; '.join(found.failures)}")


def add(commands: Any) -> None:
    what = "what a training step keeps for backward, and its peak, patched and not"
    command = commands.add_parser(_NAME, help=what, description=what, allow_abbrev=False)
    for name, choices in (("subjects", list(subjects.SUBJECTS)), ("variants", list(measuring.VARIANTS))):
        command.add_argument(
            f"--{name}", nargs="+", choices=choices, default=choices, metavar="NAME",
            help=f"from {', '.join(choices)} (default: all)",
        )  # fmt: skip
    command.add_argument("--minutes", type=float, default=120.0, metavar="N", help="for all of it (default: 120)")
    command.add_argument(
        "--cell_seconds", type=float, default=90.0, metavar="S",
        help="for the rounds of a subject, all variants together, but at least three rounds (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--rounds",
        type=int,
        default=15,
        metavar="N",
        help="of a subject, at most; 0 for bytes alone (default: %(default)s)",
    )
    command.add_argument("--tiny", action="store_true", help="small models, to try the command out")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the orders (default: 0)")
    command.add_argument(
        "--output", type=Path, default=Path("results/memory"), metavar="FOLDER",
        help=f"for {RECORD}, to which is added, and {report.NAME} (default: results/memory)",
    )  # fmt: skip
    command.set_defaults(run=run)
