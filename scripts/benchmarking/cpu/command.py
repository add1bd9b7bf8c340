"""The commands ``models``, ``sites`` and ``merged``, which measure on the CPU and add to one record.

What is in the record, of the same code, is not measured again: a command that was killed goes on where it is given
once more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.implementations.measured import processors
from scripts.benchmarking.cpu import merged, models, report
from scripts.benchmarking.cpu.earlier import EarlierError
from scripts.benchmarking.gpu import record, sites
from scripts.benchmarking.gpu.record import Found, Record
from scripts.benchmarking.gpu.report import failures
from scripts.benchmarking.gpu.schedule import Step, Work
from scripts.benchmarking.timing import CLOCKS, OWN, WALL, environment, say

_SPARE = 3.0
"""Seconds for writing the tables."""


def measure_models(work: Work, known: Found) -> None:
    models.measure(work, known)


def measure_sites(work: Work, known: Found) -> None:
    """Single layers: every kind of site, activation and dtype that is not in the record."""
    options = work.options
    for dtype, kind, spelling in itertools.product(options.dtypes, options.kinds, options.activations):
        lacking = [size for size in options.sizes if not _known(known, (kind, spelling, dtype, size), options.sources)]
        if lacking:
            sites.measure_one(kind, spelling, dtype, work, lacking)


def _known(found: Found, key: tuple[str, ...], sources: str) -> bool:
    """Whether a record has a layer in every mode, of the same code."""
    cells = [found.sites.get((*key, mode)) for mode in sites.MODES]
    return all(cell is not None and cell["sources"] == sources for cell in cells)


def measure_merged(work: Work, known: Found) -> None:
    del known  # it takes a minute
    merged.measure(work)


def run(options: argparse.Namespace) -> None:
    if options.clock == OWN and options.threads != [1]:
        sys.exit(f"--clock {OWN} adds up the time of all threads: give it with --threads 1")
    until = options.began + 60 * options.minutes - _SPARE
    options.device, name = "cpu", options.step
    torch.set_num_threads(options.threads[0])
    about = environment("cpu")
    options.sources = about["sources"]
    own = Record(options.output, record.CPU_NAME)
    known = record.read([options.output])
    processor = processors.cpu()
    if known.card and known.card["name"] != processor:
        sys.exit(f"the record there is of {known.card['name']}, and this is {processor}: another --output")
    limit = max(0.0, until - time.monotonic())
    kept = ("minutes", "tiny", "seed", "threads", "rounds", "cell_seconds", "clock")
    own.write("settings", steps=[name], device="cpu", **{setting: getattr(options, setting) for setting in kept})
    own.write("card", name=processor, free_gib=None)
    words = [Path(word).name if os.sep in word else word for word in about["command"]]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    own.write("environment", **{**about, "command": words, "processor": processor, "date": date})
    measure: Callable[[Work, Found], None] = options.measure
    work = Work(Step(name, name, lambda _: None, 0.0, limit), limit, own, options)
    own.write("begun", step=name, limit=round(limit, 1), whole=round(limit, 1), guess=0.0, cells=0)
    began, how = time.monotonic(), "done"
    try:
        measure(work, known)
    except EarlierError as error:
        sys.exit(str(error))
    own.write("ended", step=name, how=how, seconds=round(time.monotonic() - began, 2))
    found = record.read([options.output])
    print(report.written(found, options.output), end="")
    if wrong := failures(found):
        sys.exit(f"{len(wrong)} failed, see {own.path}: {'; '.join(wrong[:8])}")
    left = [line["what"] for line in found.of("left_out") if line["step"] == name]
    if left:
        say(f"{len(left)} left out, no time: the same command goes on with them")


def _command(commands: Any, name: str, what: str, measure: Callable[[Work, Found], None]) -> Any:
    command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    command.add_argument(
        "--threads", nargs="+", type=int, default=[1] if name == "sites" else list(models.THREADS), metavar="N",
        help="of torch (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--minutes", type=float, default=60.0, metavar="N", help="for all of it (default: 60)")
    seconds = {"models": 90.0, "sites": 6.0, "merged": 20.0}[name]
    command.add_argument(
        "--cell_seconds", type=float, default=seconds, metavar="S",
        help="for the rounds of a cell, all variants together, but at least five rounds (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--rounds", type=int, default=60, metavar="N", help="of a cell, at most (default: %(default)s)"
    )
    command.add_argument(
        "--clock", choices=tuple(CLOCKS), default=WALL,
        help="wall, or what the process itself computes, for one thread on a machine that others use "
        "(default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--tiny", action="store_true", help="small models and tensors, to try the command out")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of data and orders (default: 0)")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("results/cpu"),
        metavar="FOLDER",
        help=f"for {record.CPU_NAME}, to which is added, {report.NAME} and {report.PICTURE} (default: results/cpu)",
    )
    command.set_defaults(run=run, step=name, measure=measure)
    return command


def _choice(command: Any, name: str, choices: Any, default: Any = None) -> None:
    names = list(choices)
    command.add_argument(
        f"--{name}", nargs="+", choices=names, default=list(default or names), metavar="NAME",
        help=f"from {', '.join(names)} (default: {', '.join(default) if default else 'all'})",
    )  # fmt: skip


def add(commands: Any) -> None:
    command = _command(commands, "models", "whole models on a CPU: eager, patched, compiled, bound", measure_models)
    _choice(command, "models", models.ARCHITECTURES)
    _choice(command, "dtypes", models.DTYPES)
    _choice(command, "sizes", models.SHAPES)
    _choice(command, "variants", models.VARIANTS)
    command.add_argument(
        "--earlier", type=Path, metavar="FOLDER", help="another checkout, whose patch is one of the variants"
    )
    command.add_argument("--backend", default="inductor", metavar="NAME", help="of torch.compile (default: inductor)")
    command = _command(commands, "sites", "single layers on a CPU, for the table of what auto takes", measure_sites)
    _choice(command, "dtypes", sites.DTYPES, ("float32", "bfloat16"))
    _choice(command, "kinds", sites.LAYERS)
    _choice(command, "activations", sites.SPELLINGS)
    _choice(command, "sizes", sites.LAYERS_ON["cpu"])
    _command(commands, "merged", "gate and up of a gated layer in one product, on a CPU", measure_merged)
