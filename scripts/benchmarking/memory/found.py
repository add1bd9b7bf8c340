"""What a record of memory holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarking.gpu.record import Line, RecordError, lines

RECORD = "memory.jsonl"


@dataclass
class Found:
    """Of everything, what was found last.

    Attributes:
        bytes: by subject and variant; "absent" where there is no such variant, and why.
        steps: times, by subject.
        environment: of the run that was read last.
        failures: what went wrong in it.
    """

    bytes: dict[str, dict[str, Line]] = field(default_factory=dict)
    steps: dict[str, Line] = field(default_factory=dict)
    environment: Line | None = None
    failures: list[str] = field(default_factory=list)


def read(folder: Path) -> Found:
    """The record in a folder.

    Raises:
        RecordError: there is none.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RecordError(f"there is no {RECORD} in {folder}")
    found = Found()
    for line in lines(path):
        if line["kind"] == "memory":
            found.bytes.setdefault(line["model"], {})[line["variant"]] = line
        elif line["kind"] == "steps":
            found.steps[line["model"]] = line
        elif line["kind"] == "environment":
            found.environment, found.failures = line, []
        elif line["kind"] == "failure":
            found.failures.append(f"{line['what']}: {line['why'].strip().splitlines()[-1]}")
    return found
