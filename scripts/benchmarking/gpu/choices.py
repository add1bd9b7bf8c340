"""What ``auto`` takes on a GPU or a CPU: the table that comes with the package, from a record of single layers."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.implementations import measured
from scripts.benchmarking.gpu import record
from scripts.benchmarking.gpu.record import RecordError

_ROOT = Path(__file__).resolve().parents[3]


MARGIN = 1.02
"""How many times as slow is slower, whatever the noise; and how many times as fast as aten another has to be."""


def choices(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What ``auto`` should take for each activation, kind of site and dtype, from the cells of single layers.

    A patch serves many tokens and few, inference and training. What is slower than the model's own ops in any of these
    cells is not taken, whether by its whole interval or by more than ``MARGIN``; nor what is faster beyond the noise in
    none. The rest is ranked by how fast it is over all cells, the geometric mean; aten's counts ``MARGIN`` times. The
    first that runs on a user's machine is taken; what comes behind aten, which always runs, is not told. Where nothing
    is left, the site is left alone, and the entry tells of the one that was the fastest in any cell. What was not
    measured in every cell is left out.
    """
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        key = (cell["activation"], cell["kind_of_site"], cell["dtype"], cell["ops"])
        found.setdefault(key, {})[f"{cell['size']}, {cell['mode']}"] = cell["variants"]
    entries = []
    for (activation, kind, dtype, ops), rows in found.items():
        if rows.keys() != measured.CELLS.keys():
            continue
        names = set.intersection(*({name for name in row if "ratio" in row[name]} for row in rows.values()))
        if not names:
            continue
        candidates = {name: [row[name] for row in rows.values()] for name in sorted(names)}
        able = {name: _mean(name, own) for name, own in candidates.items() if _never_slower(own)}
        most = {name: max(row["ratio"]["value"] for row in own) for name, own in candidates.items()}
        told = {
            name: {
                "implementation": name,
                "times": {cell: _rounded(rows[cell][name]["ratio"]) for cell in measured.CELLS},
            }
            for name in names
        }
        entry = {"activation": activation, "kind": kind, "dtype": dtype, "ops": ops}
        ranked = sorted(able, key=able.__getitem__, reverse=True)
        needed = ranked[: ranked.index("aten") + 1] if "aten" in ranked else ranked
        entry["able"] = [told[name] for name in needed]
        if not able:
            entry["fastest"] = told[max(most, key=most.__getitem__)]
        entries.append(entry)
    return entries


def _never_slower(rows: Collection[Mapping[str, Any]]) -> bool:
    slower = any(row["ratio"]["high"] < 1 or row["ratio"]["value"] < 1 / MARGIN for row in rows)
    return not slower and any(row["verdict"] == "faster" for row in rows)


def _mean(name: str, rows: Collection[Mapping[str, Any]]) -> float:
    """The geometric mean of its ratios; aten's with what another has to be faster by."""
    return statistics.geometric_mean(row["ratio"]["value"] for row in rows) * (MARGIN if name == "aten" else 1.0)


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.items()}


def table(folders: Sequence[Path]) -> dict[str, Any]:
    """What a file of ``hf_gelu_patch.implementations.measured`` holds, from the records in these folders, put together.

    Raises:
        RecordError: there is no record, or it does not say what it is of; or it has no layer that was measured in
            every cell.
    """
    found = record.read(folders)
    paths, about = [record.path_in(folder).resolve() for folder in folders], found.environment
    named = ", ".join(map(str, paths))
    processor = about and (about["gpu"] or about.get("processor"))
    if about is None or processor is None:
        raise RecordError(f"{named} does not name the GPU or CPU that it was recorded on")
    chosen = choices(found.sites.values())
    if not chosen:
        raise RecordError(f"{named} has no layer that was measured in all of {'; '.join(measured.CELLS)}")
    roots = [_ROOT if path.is_relative_to(_ROOT) else path.parents[1] for path in paths]
    source = {
        "record": ", ".join(path.relative_to(root).as_posix() for path, root in zip(paths, roots, strict=True)),
        "sha256": ", ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths),
        "date": about["date"],
        "torch": about["versions"]["torch"],
    }
    if about["gpu"]:
        source |= {"triton": about["versions"]["triton"], "driver": _driver(about["gpu"], about["nvidia_smi"])}
    else:
        source |= {"cpu": about["cpu"], "threads": str(about["threads"])}
    device = "cuda" if about["gpu"] else "cpu"
    return {
        "schema": measured.SCHEMA,
        "processor": processor,
        "device": device,
        "source": source,
        "choices": chosen,
    }


def _driver(card: str, nvidia_smi: Iterable[str] | None) -> str:
    """The second column of nvidia-smi's row of that card."""
    rows = (line.split(", ") for line in nvidia_smi or ())
    return next((row[1] for row in rows if row[0] == card), "unknown")


def run(options: argparse.Namespace) -> None:
    try:
        made = table(options.records)
    except RecordError as error:
        sys.exit(str(error))
    path = options.output / measured.file_name(made["processor"])
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(path, *measured.read(path).lines(), sep="\n")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "choices", help="what auto takes on a GPU or CPU that was measured", allow_abbrev=False
    )
    command.add_argument("records", nargs="+", type=Path, metavar="FOLDER", help="what gpu or sites wrote")
    command.add_argument(
        "--output",
        type=Path,
        default=measured.FOLDER,
        metavar="FOLDER",
        help="for the table, a file named after the processor (default: where the package looks for it)",
    )
    command.set_defaults(run=run)
