"""The record of a run, on a GPU or a CPU: JSON Lines that only grow, so that a kill leaves what was measured.

Each line says by its ``kind`` what it is, and by its ``step`` what measured it. A line is written at once, by the
process that found what it says. One that a kill tore is no JSON, and is passed over.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME, CPU_NAME = "gpu.jsonl", "cpu.jsonl"
"""A record's file: the gpu command's, and that of the commands that measure on a CPU."""

CELLS = ("cell", "training", "variants", "product", "site", "cpu", "merged")
"""The kinds of line that hold what was timed."""

Line = Mapping[str, Any]


class RecordError(Exception):
    """There is no record, or some that are of different cards."""


class Record:
    """Where lines are written, by any number of processes, one after the other."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, kind: str, **fields: Any) -> None:
        """One line, by one call of the system; a new one also where the last was torn."""
        line = json.dumps({"kind": kind, "at": round(time.time(), 3), **fields}) + "\n"
        size = os.fstat(self._file).st_size
        torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        os.write(self._file, ("\n" * torn + line).encode())


def lines(path: Path, start: int = 0) -> Iterator[Line]:
    """The lines that are whole, from that byte on."""
    for text in path.read_bytes()[start:].split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line:
            yield line


@dataclass
class Found:
    """What records hold, put together: of everything, what was found last.

    Attributes:
        card, environment, bandwidth, settings: of the run that was read last; None where no line says it.
        kernels, models, sites, products, variants: cells by what tells them apart.
        training: cells of training with less memory, by model or layer.
        cpu, merged: cells of models and of gated layers on a CPU, likewise.
        checks: kernels' errors over all values, likewise.
        about: what each model is and what the patches did to it; by model.
        profiles: which kernels a forward spends its time in; by model.
        steps: how each step went, by name: what its first line says, the cells it had, after how many seconds the
            "first" of them, "prepared" and "ended".
        notes: the other lines of each step: what failed, what was left out, what tests said.
    """

    card: Line | None = None
    environment: Line | None = None
    bandwidth: Line | None = None
    settings: Line | None = None
    kernels: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    models: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    training: dict[str, Line] = field(default_factory=dict)
    variants: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    sites: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    products: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    cpu: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    merged: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    checks: dict[tuple[Any, ...], Line] = field(default_factory=dict)
    about: dict[str, Line] = field(default_factory=dict)
    profiles: dict[str, Line] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, list[Line]] = field(default_factory=dict)

    def of(self, kind: str) -> list[Line]:
        """The notes of one kind, of all steps."""
        return [line for notes in self.notes.values() for line in notes if line["kind"] == kind]

    def add(self, line: Line) -> None:
        kind, step = line["kind"], line.get("step", "")
        if kind in CELLS and step in self.steps:
            self.steps[step]["had"] += 1
            self.steps[step].setdefault("first", line["at"] - self.steps[step]["at"])
        if kind in ("card", "environment", "bandwidth", "settings"):
            setattr(self, kind, line)
        elif kind == "cell" and "form" in line:
            self.kernels[line["activation"], line["form"], line["dtype"], line["elements"]] = line
        elif kind == "cell":
            self.models[line["model"], line["size"], line["mode"], line["compiled"]] = line
        elif kind == "training":
            self.training[line["model"]] = line
        elif kind == "variants":
            self.variants[line["form"], line["dtype"], line["elements"]] = line
        elif kind == "site":
            key = (line["kind_of_site"], line["spelling"], line["dtype"], line["size"], line["mode"])
            self.sites[key] = line
        elif kind == "product":
            self.products[line["activation"], tuple(line["shape"])] = line
        elif kind == "cpu":
            self.cpu[line["model"], line["dtype"], line["threads"], line["size"]] = line
        elif kind == "merged":
            self.merged[line["dtype"], line["threads"], line["rows"]] = line
        elif kind == "check":
            self.checks[line["activation"], line["form"], line["dtype"]] = line
        elif kind == "about":
            self.about[line["model"]] = line
        elif kind == "profile":
            self.profiles[line["model"]] = line
        elif kind == "begun":  # anew: what it said before counts no more
            self.steps[step], self.notes[step] = {**line, "had": 0}, []
        elif kind in ("prepared", "ended"):
            if step in self.steps:
                self.steps[step][kind] = line
        elif kind != "left_out" or "what" in line or step not in self.steps:
            self.notes.setdefault(step, []).append(line)


def path_in(folder: Path) -> Path:
    """The record in a folder.

    Raises:
        RecordError: there is none, or two.
    """
    there = [folder / name for name in (NAME, CPU_NAME) if (folder / name).is_file()]
    if len(there) == 1:
        return there[0]
    if there:
        raise RecordError(f"{folder} has {NAME} and {CPU_NAME}: move one of them to a folder of its own")
    raise RecordError(
        f"there is no {NAME} in {folder}, nor {CPU_NAME}: name a folder that 'python -m scripts.benchmarking gpu', "
        "'models' or 'sites' wrote to"
    )


def read(folders: Sequence[Path]) -> Found:
    """The records in these folders, in this order, as one.

    Raises:
        RecordError: there is none in one of them, or they are of different cards.
    """
    found = Found()
    for folder in folders:
        for line in lines(path_in(folder)):
            if line["kind"] == "card" and found.card and line["name"] != found.card["name"]:
                raise RecordError(
                    f"{folder} was recorded on {line['name']}, and what is before it on {found.card['name']}: "
                    "report them apart"
                )
            found.add(line)
    return found
