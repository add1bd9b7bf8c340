"""What was measured on GPUs, a JSON file a card in this folder: what ``auto`` takes at each kind of site.

``python -m scripts.benchmarking choices`` writes the files, from the record of ``python -m scripts.benchmarking gpu``;
the rule by which it chooses stands there. A card without a file is unmeasured: ``auto`` does there what it does on a
CPU.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.errors import PatchError

__all__ = [
    "CANDIDATES",
    "CELLS",
    "FOLDER",
    "SCHEMA",
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
SCHEMA = 2
"""The schema of a file that is written and read."""
CELLS = {
    "large, forward": "in inference on many tokens",
    "large, training step": "in training on many",
    "small, forward": "in inference on few",
    "small, training step": "in training on few",
}
"""What was measured of each kind of site, and that in words."""

_KINDS = ("pointwise", "linear", "gated")
_DTYPES = ("float32", "float16", "bfloat16")
CANDIDATES = ("aten", "triton", "epilogue")
"""The implementations that are measured against the model's own ops."""


@dataclass(frozen=True)
class Times:
    """How many times as fast one is as another: the median over paired rounds, and the interval of it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes for one activation, kind of site and dtype, and the evidence.

    Attributes:
        implementation: what was faster than the model's own ops in some of ``CELLS`` and slower in none; ``"eager"``
            where nothing was: then the site is left alone.
        best: that one; or, of those that were measured, the one that was the fastest in any of ``CELLS``.
        times: how many times as fast as the model's own ops that one was, for each of ``CELLS``.
    """

    implementation: str
    best: str
    times: Mapping[str, Times]

    def __str__(self) -> str:
        told = ", ".join(f"{times} {CELLS[cell]}" for cell, times in self.times.items())
        return f"times as fast as the model's own ops, {self.best}: {told}"


@dataclass(frozen=True)
class Table:
    """What was measured on one card.

    Attributes:
        card: its name, as ``torch.cuda.get_device_name`` gives it.
        file: where the table comes from; None for a card without one, which has no choices.
        source: where the measurements come from: the record, its date and sha256, the versions of torch, triton and
            the driver.
        choices: (activation, kind, dtype, aten ops that it ran as before) → what to take.
    """

    card: str
    file: Path | None
    source: Mapping[str, str]
    choices: Mapping[tuple[str, str, str, int], Choice]

    def choice(self, activation: str, kind: str, dtype: torch.dtype, ops: int | None = None) -> Choice | None:
        """What was measured for a site whose activation runs as so many aten ops; or as fewer, if even then something
        was faster. Without ``ops``, as the most that were measured. None where nothing was measured."""
        alike = (activation, kind, str(dtype).removeprefix("torch."))
        as_many = [key for key in self.choices if key[:3] == alike and (ops is None or key[3] <= ops)]
        if not as_many:
            return None
        found = self.choices[nearest := max(as_many)]
        return found if found.implementation != "eager" or ops in (None, nearest[3]) else None

    def lines(self) -> list[str]:
        """The card and where its table comes from; then, a line each, what is taken there; then what is left alone."""
        if self.file is None:
            return [f"{self.card}: unmeasured"]
        source = ", ".join(self.source[name] for name in ("date", "torch", "triton") if name in self.source)
        told, left = [f"{self.card}: measured ({source})"], []
        for (activation, kind, dtype, ops), choice in self.choices.items():
            if choice.implementation != "eager":
                of = f"{kind} {activation} in {ops} {'op' if ops == 1 else 'ops'}, {dtype}"
                told.append(f"  {of}: {choice.implementation}; {choice}")
            else:
                left.append(f"{kind} {activation}")
        if left:
            told.append(f"  left alone, see {self.file.name}: {', '.join(dict.fromkeys(left))}")
        return told


def measured_on(device: torch.device) -> Table | None:
    """The table of the card that ``device`` is; None where it is no GPU, or none that is here.

    Raises:
        PatchError: as ``table_of``.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return table_of(torch.cuda.get_device_name(device), FOLDER)


@functools.cache
def table_of(card: str, folder: Path) -> Table:
    """The table of a card, one without choices where ``folder`` has no file of it. Each is read once.

    Raises:
        PatchError: as ``read``, or the file is another card's.
    """
    path = folder / file_name(card)
    if not path.is_file():
        return Table(card, None, {}, {})
    table = read(path)
    if file_name(table.card) != path.name:
        raise _unusable(path, f"it is of another card, {table.card}")
    return table


def tables(folder: Path) -> list[Table]:
    """The tables of all the cards that were measured.

    Raises:
        PatchError: as ``read``.
    """
    return [read(path) for path in sorted(folder.glob("*.json"))]


def file_name(card: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3.json``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") + ".json"


def read(path: Path) -> Table:
    """The table that a file holds.

    Raises:
        PatchError: it cannot be used; the message names it and the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, and this version reads {SCHEMA}")
        card, source = data["card"], data["source"]
        if not all(isinstance(text, str) for text in (card, *source.values())):
            raise ValueError("its card and what its source holds have to be texts")
        choices = dict(map(_choice, data["choices"]))
        if len(choices) < len(data["choices"]):
            raise ValueError("it has two choices for one activation, kind, dtype and number of ops")
    except KeyError as error:
        raise _unusable(path, f"it lacks {error}") from error
    except (AttributeError, TypeError) as error:
        raise _unusable(path, f"it is not laid out as a table ({error})") from error
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    return Table(card, path, source, choices)


def _choice(entry: Mapping[str, Any]) -> tuple[tuple[str, str, str, int], Choice]:
    def named(field: str, valid: Any) -> str:
        if entry[field] not in valid:
            raise ValueError(f"{field} {entry[field]!r} is none of {', '.join(valid)}")
        name: str = entry[field]
        return name

    def times(cell: str) -> Times:
        found = Times(**entry["times"][cell])
        if not 0 < found.low <= found.value <= found.high:
            raise ValueError(f"{cell} is no ratio with its interval: {entry['times'][cell]}")
        return found

    if type(ops := entry["ops"]) is not int or ops < 1:
        raise ValueError(f"ops {ops!r} is no number of operations")
    key = named("activation", ACTIVATIONS), named("kind", _KINDS), named("dtype", _DTYPES), ops
    best = named("best", CANDIDATES)
    return key, Choice(named("implementation", (best, "eager")), best, {cell: times(cell) for cell in CELLS})


def _unusable(path: Path, why: str) -> PatchError:
    return PatchError(
        f"the table of measurements {path} cannot be used: {why}. Write it anew with "
        "'python -m scripts.benchmarking choices', or delete it: the card is then unmeasured, "
        "and auto does there what it does on a CPU."
    )
