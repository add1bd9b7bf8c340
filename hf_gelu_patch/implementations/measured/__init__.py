"""What was measured, a JSON file a GPU or CPU in this folder: what ``auto`` takes at each kind of site.

``python -m scripts.benchmarking choices`` writes the files, from the record of its commands ``gpu`` and ``sites``; the
rule by which it chooses stands there. What has no file is unmeasured: ``auto`` takes there what
``hf_gelu_patch.implementations.choice`` says.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.implementations.measured.processors import processor
from hf_gelu_patch.implementations.registry import ALWAYS, IMPLEMENTATIONS, Least

__all__ = [
    "CELLS",
    "DEVICES",
    "DTYPES",
    "FOLDER",
    "MODES",
    "SCHEMA",
    "Candidate",
    "Choice",
    "Table",
    "Times",
    "file_name",
    "measured_on",
    "read",
    "table_of",
    "tables",
]

FOLDER = Path(__file__).parent
"""Where the files are."""
SCHEMA = 5
"""The schema of a file that is written and read."""
CELLS = {
    "large, forward": "in inference on many tokens",
    "large, training step": "in training on many",
    "medium, forward": "in inference on a hundred or so",
    "medium, training step": "in training on as many",
    "small, forward": "in inference on few",
    "small, training step": "in training on few",
}
"""What was measured of each kind of site, on some processors only many tokens and few; and that in words."""
MODES = {"inference": "forward", "training": "training step"}
"""What the thresholds of a candidate are named by → what the cells are."""
DEVICES = ("cpu", "cuda")
"""The types of device that there can be a table of."""

_KINDS = ("pointwise", "linear", "gated")
DTYPES = ("float32", "float16", "bfloat16")
"""Those that there are measurements in."""


@dataclass(frozen=True)
class Times:
    """How many times as fast one is as another: the median over paired rounds, and the interval of it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Candidate:
    """An implementation, and how fast it was.

    Attributes:
        implementation: its name.
        times: how many times as fast as the model's own ops it was, for each of ``CELLS`` that was measured.
        least: from how many numbers on it is taken: from the least measured on where it was never slower.
    """

    implementation: str
    times: Mapping[str, Times]
    least: Least = ALWAYS

    def __str__(self) -> str:
        told = ", ".join(f"{times} {CELLS[cell]}" for cell, times in self.times.items())
        return f"times as fast as the model's own ops, {self.implementation}: {told}"

    @property
    def brief(self) -> str:
        """Its least and its most, and where it is taken."""
        values = [times.value for times in self.times.values()]
        told = f", taken {self.least}" if str(self.least) else ""
        return f"{self.implementation} {min(values):.2f} to {max(values):.2f} times as fast{told}"


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes for one activation, kind of site and dtype, and the evidence.

    Attributes:
        able: what was faster than the model's own ops in some of ``CELLS`` and slower in none of those that it is
            taken in, the best first. The first that runs where the model is, is taken. Where there is none the site is
            left alone.
        fastest: where none is able, the one that was the fastest in any of ``CELLS``; else the first that is.
    """

    able: tuple[Candidate, ...]
    fastest: Candidate

    @property
    def implementation(self) -> str:
        """The best; ``"eager"`` where the site is left alone."""
        return self.able[0].implementation if self.able else "eager"


@dataclass(frozen=True)
class Table:
    """What was measured on one processor: a GPU or a CPU.

    Attributes:
        processor: its name, as ``hf_gelu_patch.implementations.measured.processors`` gives it.
        device: the type of device that it is.
        file: where the table comes from; None for a processor without one, which has no choices.
        source: where the measurements come from: the record, its date and sha256, the versions of torch, triton and
            the driver.
        choices: (activation, kind, dtype, aten ops that it ran as before) → what to take.
        weights: how many the linear layers have in which it was found out from how many numbers on a candidate pays.
            In smaller layers that is not known.
    """

    processor: str
    device: str
    file: Path | None
    source: Mapping[str, str]
    choices: Mapping[tuple[str, str, str, int], Choice]
    weights: int = 0

    @functools.cached_property
    def in_place_pays(self) -> bool:
        """Whether aten was faster anywhere where it only writes in place, with as many ops as the model's own."""
        return any(
            ops <= ACTIVATIONS[name].fewest_ops and any(one.implementation == "aten" for one in choice.able)
            for (name, _, _, ops), choice in self.choices.items()
        )

    def choice(self, activation: str, kind: str, dtype: torch.dtype, ops: int | None = None) -> Choice | None:
        """What was measured for a site whose activation runs as so many aten ops; or as fewer, if even then something
        was faster. Without ``ops``, as the most that were measured. None where nothing was measured."""
        alike = (activation, kind, str(dtype).removeprefix("torch."))
        as_many = [key for key in self.choices if key[:3] == alike and (ops is None or key[3] <= ops)]
        if not as_many:
            return None
        found = self.choices[nearest := max(as_many)]
        return found if found.able or ops in (None, nearest[3]) else None

    def lines(self) -> list[str]:
        """The processor and where its table comes from; then, a line each, what is taken there; then what is left
        alone."""
        if self.file is None:
            return [f"{self.processor}: unmeasured"]
        source = ", ".join(self.source[name] for name in ("date", "torch", "triton", "cpu") if name in self.source)
        told, left = [f"{self.processor}: measured ({source})"], []
        for (activation, kind, dtype, ops), choice in self.choices.items():
            if choice.able:
                of = f"{kind} {activation} in {ops} {'op' if ops == 1 else 'ops'}, {dtype}"
                names = ", else ".join(f"{one.implementation} {one.least}".rstrip() for one in choice.able)
                told.append(f"  {of}: {names}; {choice.fastest}")
            else:
                left.append(f"{kind} {activation}")
        if left:
            told.append(f"  left alone, see {self.file.name}: {', '.join(dict.fromkeys(left))}")
        return told


def measured_on(device: torch.device) -> Table | None:
    """The table of the GPU or CPU that ``device`` is; None where it is neither.

    Raises:
        PatchError: as ``table_of``.
    """
    name = processor(device)
    return None if name is None else table_of(name, device.type, FOLDER)


@functools.cache
def table_of(processor: str, device: str, folder: Path) -> Table:
    """The table of a processor, one without choices where ``folder`` has no file of it. Each is read once.

    Raises:
        PatchError: as ``read``, or the file is another's.
    """
    path = folder / file_name(processor)
    if not path.is_file():
        return Table(processor, device, None, {}, {})
    table = read(path)
    if (file_name(table.processor), table.device) != (path.name, device):
        raise _unusable(path, f"it is of another processor, {table.processor} ({table.device})")
    return table


def tables(folder: Path) -> list[Table]:
    """The tables of all the processors that were measured.

    Raises:
        PatchError: as ``read``.
    """
    return [read(path) for path in sorted(folder.glob("*.json"))]


def file_name(processor: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-") + ".json"


def read(path: Path) -> Table:
    """The table that a file holds.

    Raises:
        PatchError: it cannot be used; the message names it and the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, and this version reads {SCHEMA}")
        name, device, source = data["processor"], data["device"], data["source"]
        if not all(isinstance(text, str) for text in (name, *source.values())):
            raise ValueError("its processor and what its source holds have to be texts")
        if device not in DEVICES:
            raise ValueError(f"device {device!r} is none of {', '.join(DEVICES)}")
        if (weights := _number(data["weights"], "weights")) is None:
            raise ValueError("weights has to be a number")
        choices = dict(map(_choice, data["choices"]))
        if len(choices) < len(data["choices"]):
            raise ValueError("it has two choices for one activation, kind, dtype and number of ops")
    except KeyError as error:
        raise _unusable(path, f"it lacks {error}") from error
    except (AttributeError, TypeError) as error:
        raise _unusable(path, f"it is not laid out as a table ({error})") from error
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    return Table(name, device, path, source, choices, weights)


def _choice(entry: Mapping[str, Any]) -> tuple[tuple[str, str, str, int], Choice]:
    if type(ops := entry["ops"]) is not int or ops < 1:
        raise ValueError(f"ops {ops!r} is no number of operations")
    key = _named(entry, "activation", ACTIVATIONS), _named(entry, "kind", _KINDS), _named(entry, "dtype", DTYPES), ops
    able = tuple(map(_candidate, entry["able"]))
    return key, Choice(able, able[0] if able else _candidate(entry["fastest"]))


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    def times(cell: str) -> Times:
        found = Times(**entry["times"][cell])
        if not 0 < found.low <= found.value <= found.high:
            raise ValueError(f"{cell} is no ratio with its interval: {entry['times'][cell]}")
        return found

    able = [name for name in IMPLEMENTATIONS if name != "eager"]
    name = _named(entry, "implementation", able)
    cells = [cell for cell in CELLS if cell in entry["times"] or not cell.startswith("medium")]
    least = {mode: _number(entry["least"][mode]) for mode in MODES}
    return Candidate(name, {cell: times(cell) for cell in cells}, Least(**least))


def _number(value: object, field: str = "least") -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"{field} {value!r} is no number of elements")
    return value


def _named(entry: Mapping[str, Any], field: str, valid: Collection[str]) -> str:
    if entry[field] not in valid:
        raise ValueError(f"{field} {entry[field]!r} is none of {', '.join(valid)}")
    name: str = entry[field]
    return name


def _unusable(path: Path, why: str) -> PatchError:
    return PatchError(
        f"the table of measurements {path} cannot be used: {why}. Write it anew with "
        "'python -m scripts.benchmarking choices', or delete it: what it is of is then unmeasured, "
        "and auto does there what it does anywhere else."
    )
