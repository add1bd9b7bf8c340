"""What ``auto`` takes on a GPU or a CPU: the table that comes with the package, from a record of single layers."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.implementations import measured
from scripts.benchmarking.gpu import record
from scripts.benchmarking.gpu.models import LARGE
from scripts.benchmarking.gpu.record import RecordError
from scripts.benchmarking.gpu.sites import LAYERS_ON, MEDIUM, numbers_of

_ROOT = Path(__file__).resolve().parents[3]


MARGIN = 1.02
"""How many times as slow is slower, whatever the noise; and how many times as fast as aten another has to be."""


def choices(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What ``auto`` should take for each activation, kind of site and dtype, from the cells of single layers.

    A patch serves many tokens and few, inference and training. Slower than the model's own ops is what is slower by its
    whole interval, or by more than ``MARGIN``. Where three sizes were measured, a candidate is taken from the least of
    them on from which it is slower at none, in inference and in training apart. Where two were, which lie far apart, it
    is taken at all or not: what is slower in any cell is not. Nor is what is faster beyond the noise in none that it
    would be taken in. The rest is ranked by the geometric mean over all cells of how fast it is, 1 where it is not
    taken; aten's counts ``MARGIN`` times. The first that runs on a user's machine is taken; what comes behind an aten
    that is always taken, and always runs, is not told. Where nothing is left, the site is left alone, and the entry
    tells of the one that was the fastest in any cell. What was not measured in every cell is left out.
    """
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        key = (cell["activation"], cell["kind_of_site"], cell["dtype"], cell["ops"])
        found.setdefault(key, {})[f"{cell['size']}, {cell['mode']}"] = cell
    every = set().union(*found.values()) | {cell for cell in measured.CELLS if not cell.startswith(MEDIUM)}
    entries = []
    for (activation, kind, dtype, ops), rows in found.items():
        if rows.keys() != every:
            continue
        named = set.intersection(
            *({name for name, own in row["variants"].items() if "ratio" in own} for row in rows.values())
        )
        if not named:
            continue
        cells_of = {
            name: {cell: rows[cell]["variants"][name] for cell in measured.CELLS if cell in every}
            for name in sorted(named)
        }
        numbers = _numbers(kind, rows)
        least = {name: _least(own, numbers) for name, own in cells_of.items()}
        able = {name: _mean(name, own, least[name], numbers) for name, own in cells_of.items() if least[name]}
        most = {name: max(row["ratio"]["value"] for row in own.values()) for name, own in cells_of.items()}
        told = {
            name: {
                "implementation": name,
                "least": least[name] or dict.fromkeys(measured.MODES),
                "times": {cell: _rounded(row["ratio"]) for cell, row in own.items()},
            }
            for name, own in cells_of.items()
        }
        entry = {"activation": activation, "kind": kind, "dtype": dtype, "ops": ops}
        ranked = sorted(able, key=able.__getitem__, reverse=True)
        always = "aten" in ranked and not any(least["aten"].values())
        needed = ranked[: ranked.index("aten") + 1] if always else ranked
        entry["able"] = [told[name] for name in needed]
        if not able:
            entry["fastest"] = told[max(most, key=most.__getitem__)]
        entries.append(entry)
    return entries


def _numbers(kind: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many numbers a site is given in each cell, where three sizes tell from how many on something is taken; else
    none."""
    if not any(cell.startswith(MEDIUM) for cell in rows):
        return dict.fromkeys(rows, 0)
    return {cell: numbers_of(kind, cell.partition(", ")[0], row["rows"]) for cell, row in rows.items()}


def _least(cells: Mapping[str, Mapping[str, Any]], numbers: Mapping[str, int]) -> dict[str, int | None] | None:
    """From how many numbers on a candidate is taken in each mode, None: never; or None where it is in no mode."""
    if not any(cell.startswith(MEDIUM) for cell in cells):
        fit = not any(map(_slower, cells.values())) and any(map(_faster, cells.values()))
        return dict.fromkeys(measured.MODES, 0) if fit else None
    least: dict[str, int | None] = {}
    for mode, measured_as in measured.MODES.items():
        own = sorted((cell for cell in cells if cell.endswith(f", {measured_as}")), key=numbers.__getitem__)
        slower = [place for place, cell in enumerate(own) if _slower(cells[cell])]
        taken = own[slower[-1] + 1 :] if slower else own
        fit = any(_faster(cells[cell]) for cell in taken)
        least[mode] = None if not fit else numbers[taken[0]] if slower else 0
    return None if all(one is None for one in least.values()) else least


def _slower(row: Mapping[str, Any]) -> bool:
    return bool(row["ratio"]["high"] < 1 or row["ratio"]["value"] < 1 / MARGIN)


def _faster(row: Mapping[str, Any]) -> bool:
    return bool(row["verdict"] == "faster")


def _mean(
    name: str,
    cells: Mapping[str, Mapping[str, Any]],
    least: Mapping[str, int | None],
    numbers: Mapping[str, int],
) -> float:
    """The geometric mean of its ratios, 1 where it is not taken; aten's with what another has to be faster by."""
    by_mode = {measured_as: least[mode] for mode, measured_as in measured.MODES.items()}
    ratios = []
    for cell, row in cells.items():
        from_ = by_mode[cell.partition(", ")[2]]
        ratios.append(row["ratio"]["value"] if from_ is not None and numbers[cell] >= from_ else 1.0)
    return statistics.geometric_mean(ratios) * (MARGIN if name == "aten" else 1.0)


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
        raise RecordError(
            f"{named} has no layer that was measured in every cell: for many tokens and few, in both modes"
        )
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
        "weights": math.prod(LAYERS_ON[device][MEDIUM if MEDIUM in LAYERS_ON[device] else LARGE][1:]),
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
