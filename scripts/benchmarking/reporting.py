"""The tables of a record, of a GPU, of a CPU or of memory, also where what measured was cut off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarking.cpu import report as of_cpu
from scripts.benchmarking.gpu import record
from scripts.benchmarking.gpu import report as of_gpu
from scripts.benchmarking.memory import found as memory
from scripts.benchmarking.memory import report as of_memory


def run(options: argparse.Namespace) -> None:
    if (options.folders[-1] / memory.RECORD).is_file():
        if len(options.folders) > 1:
            sys.exit(f"{options.folders[-1]} has {memory.RECORD}: report it apart from others")
        print(of_memory.written(memory.read(options.folders[-1]), options.folders[-1]), end="")
        return
    try:
        found = record.read(options.folders)
        own = of_gpu if record.path_in(options.folders[-1]).name == record.NAME else of_cpu
    except record.RecordError as error:
        sys.exit(str(error))
    print(own.written(found, options.folders[-1]), end="")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="the tables of what was measured, also where it was cut off",
        allow_abbrev=False,
    )
    command.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help=f"what was written to; of several, what is measured again counts. {of_gpu.NAME}, {of_cpu.NAME} or "
        f"{of_memory.NAME} is written to the last",
    )
    command.set_defaults(run=run)
