"""What ``auto`` takes on a GPU: the table that comes with the package, from a record of what the gpu command found."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.evaluation.speed.verdict import Ratio, ratio
from hf_gelu_patch.implementations import measured
from hf_gelu_patch.implementations.choice import AUTO
from hf_gelu_patch.implementations.registry import get_implementation
from scripts.benchmarking.gpu import record
from scripts.benchmarking.gpu.goals import MAIN
from scripts.benchmarking.gpu.record import RecordError

MARGIN = 1.02
"""So many times as fast at least, the whole interval: below, it is not worth other bits than the model had."""
KINDS = {"pointwise": ("forward", "backward"), "gated": ("gated_forward", "gated_backward")}
"""The kind of a site → the forms that are measured of it."""
_ROOT = Path(__file__).resolve().parents[3]


def choices(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What ``auto`` should take for each activation, kind of site and dtype, from the cells of kernels.

    Triton, where it is faster by more than ``MARGIN`` forward or backward, and slower in neither: a patch serves
    inference and training. Else what ``auto`` takes where nothing was measured, with which Triton is compared: aten,
    or eager where aten does not compute the activation. Faster and slower mean the whole interval of the paired ratio,
    at the main size. What was not measured both forward and backward is left out.
    """
    found = {
        (cell["activation"], cell["dtype"], cell["form"]): cell["candidates"]
        for cell in cells
        if cell["elements"] == MAIN and cell["activation"] in ACTIVATIONS
    }
    table = []
    for activation, dtype in dict.fromkeys(key[:2] for key in found):
        over = next(name for name in AUTO if activation in get_implementation(name).functions)
        for kind, forms in KINDS.items():
            forward, backward = (_times(found.get((activation, dtype, form), {}), over) for form in forms)
            if forward is None or backward is None:
                continue
            wins = max(forward.low, backward.low) > MARGIN and min(forward.high, backward.high) >= 1
            table.append(
                {
                    "activation": activation,
                    "kind": kind,
                    "dtype": dtype,
                    "implementation": "triton" if wins else over,
                    "over": over,
                    "forward": _rounded(forward),
                    "backward": _rounded(backward),
                }
            )
    return table


def _times(candidates: Mapping[str, Any], over: str) -> Ratio | None:
    """How many times as fast as ``over`` Triton is, by the rounds that both ran in; None where one did not."""
    rows = [candidates.get(name) for name in (over, "triton")]
    if any(row is None or row["interpreted"] for row in rows):
        return None
    return ratio(*(row["samples_s"] for row in rows), seed=0)


def _rounded(found: Ratio) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(found).items()}


def table(folders: Sequence[Path]) -> dict[str, Any]:
    """What a file of ``hf_gelu_patch.implementations.measured`` holds, from the records in these folders, put together.

    Raises:
        RecordError: there is no record, or not of a GPU; or it has no kernels at the main size.
    """
    found = record.read(folders)
    paths, about = [(folder / record.NAME).resolve() for folder in folders], found.environment
    named = ", ".join(map(str, paths))
    if about is None or about["gpu"] is None:
        raise RecordError(f"{named} does not name the GPU that it was recorded on")
    chosen = choices(found.kernels.values())
    if not chosen:
        raise RecordError(f"{named} has no kernel that was measured beside aten at {MAIN:,} elements, both ways")
    roots = [_ROOT if path.is_relative_to(_ROOT) else path.parents[1] for path in paths]
    source = {
        "record": ", ".join(path.relative_to(root).as_posix() for path, root in zip(paths, roots, strict=True)),
        "sha256": ", ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths),
        "date": about["date"],
        "torch": about["versions"]["torch"],
        "triton": about["versions"]["triton"],
        "driver": _driver(about["gpu"], about["nvidia_smi"]),
    }
    return {"schema": measured.SCHEMA, "card": about["gpu"], "source": source, "choices": chosen}


def _driver(card: str, nvidia_smi: Iterable[str] | None) -> str:
    """The second column of nvidia-smi's row of that card."""
    rows = (line.split(", ") for line in nvidia_smi or ())
    return next((row[1] for row in rows if row[0] == card), "unknown")


def run(options: argparse.Namespace) -> None:
    try:
        made = table(options.records)
    except RecordError as error:
        sys.exit(str(error))
    path = options.output / measured.file_name(made["card"])
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(path, *measured.read(path).lines(), sep="\n")


def add(commands: Any) -> None:
    command = commands.add_parser("choices", help="what auto takes on a GPU that was measured", allow_abbrev=False)
    command.add_argument("records", nargs="+", type=Path, metavar="FOLDER", help="what the gpu command wrote")
    command.add_argument(
        "--output",
        type=Path,
        default=measured.FOLDER,
        metavar="FOLDER",
        help="for the table, a file named after the card (default: where the package looks for it)",
    )
    command.set_defaults(run=run)
