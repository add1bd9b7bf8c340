"""What each model said of each example, written down batch by batch: a run that dies loses no more than one batch.

Each process writes a file of its own, ``<digest>.rank<r>.jsonl``. Its first line is the run's fingerprint: all that the
answers depend on. A line for each example and variant follows. A run that goes on reads all files of its fingerprint,
whichever process wrote them. A last line that does not end is not read.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.digests import text_digest
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.outcomes import Outcome

if TYPE_CHECKING:
    pass

__all__ = [
    "Fingerprint",
    "RestartedWarning",
    "Row",
    "Writer",
    "contradiction",
    "damaged",
    "files",
    "folder_name",
    "prepare",
    "read",
]

Fingerprint = dict[str, Any]
"""All that the answers depend on, as plain data."""

Key = tuple[int, str]
"""An example, and which model was asked: a variant's name, or "before"."""

_ASKED = frozenset({"rows", "data", "order", "examples"})
"""What a fingerprint says of the data: where nothing else differs, someone changed them."""

_SYNC_SECONDS = 5.0
_BLOCK = 2**16  # bytes of a file's end that are looked at together


_DUMPS = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class RestartedWarning(UserWarning):
    """Records that a run was to go on with are of data that were changed since: it starts anew."""


@dataclass(frozen=True)
class Row:
    """What one model said of one example.

    Attributes:
        example: as numbered in the task.
        variant: which model: a variant's name, or "before".
        outcome: its answers.
        drift: how far it is from the unpatched model, as ``batch_drift`` gives it; None for that model itself.
    """

    example: int
    variant: str
    outcome: Outcome
    drift: Mapping[str, float] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "example": self.example,
            "variant": self.variant,
            "outcome": self.outcome.to_json(),
            "drift": as_json(self.drift),
        }

    @property
    def line(self) -> str:
        """``to_json`` as a line of a file. Numbers that are not finite are rare, and looked for only where JSON finds
        one: it takes several times as long."""
        outcome = {name: value for name, value in vars(self.outcome).items() if name != "details" or value}
        data = {"example": self.example, "variant": self.variant, "outcome": outcome, "drift": self.drift}
        try:
            return f"{_DUMPS(data)}\n"
        except (TypeError, ValueError):
            return f"{_DUMPS(self.to_json())}\n"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """The row that ``to_json`` made ``data`` of.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        drift = data["drift"]
        return cls(
            int(data["example"]),
            str(data["variant"]),
            Outcome.from_json(data["outcome"]),
            None if drift is None else {name: float(value) for name, value in drift.items()},
        )


def folder_name(subject: str) -> str:
    """The folder for a subject's records: its name without what a file's name cannot have."""
    return subject.replace("/", "--").lstrip(".") or "model"


# ------------------------------------------------------------------------------------------------------------- reading


def prepare(folder: Path, fingerprint: Fingerprint, *, resume: bool) -> None:
    """Make way for a run, before any process of it reads or writes. Only one process may call it.

    Args:
        folder: for the records of one model.
        fingerprint: the run's.
        resume: go on with the records that are there. Otherwise, and with a ``RestartedWarning`` where the data were
            changed since, they are moved to a numbered folder beside them.

    Raises:
        EvaluationError: the records there are of another run; or the folder cannot be written to.
    """
    with _kept(folder):
        folder.mkdir(parents=True, exist_ok=True)
    present = sorted(folder.glob("*.jsonl"))
    if not resume:
        _set_aside(folder, present)
        return
    own = _plain_copy(fingerprint)
    differing = [there for path in present if (there := _header(path)) is not None and there != own]
    for there in differing:
        changed = {key for key in {*there, *own} if there.get(key) != own.get(key)}
        if not changed <= _ASKED:
            said = [f"{key} {_shown(there.get(key))} there, {_shown(own.get(key))} now" for key in sorted(changed)]
            raise EvaluationError(
                f"the records in {folder} are of another run: {'; '.join(said)}. Evaluate as that run did to go on "
                "with it; leave out --resume to start anew (they are kept aside); or name another --output_dir."
            )
    if differing:
        aside = _set_aside(folder, present)
        warnings.warn(
            f"the data were changed since the records in {folder} were written: they are kept in {aside}, and "
            "everything is evaluated anew.",
            RestartedWarning,
            stacklevel=2,
        )


def _set_aside(folder: Path, present: Sequence[Path]) -> Path | None:
    """Move files to a new numbered folder beside them; None where there are none."""
    if not present:
        return None
    with _kept(folder):
        aside = next(one for one in (folder / str(n) for n in itertools.count(1)) if not one.exists())
        aside.mkdir()
        for path in present:
            path.rename(aside / path.name)
    return aside


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"records cannot be kept in {folder}: {error.strerror or error}.") from error


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_shown(item.get('name', item) if isinstance(item, dict) else item) for item in value)}]"
    return "none" if value is None else str(value)


def _plain_copy(value: Any) -> Any:
    """As it is once it was written and read."""
    return json.loads(json.dumps(value))


def files(folder: Path) -> list[Path]:
    """The files of a folder whose first line is whole: all of one run, once ``prepare`` was there."""
    return [path for path in sorted(folder.glob("*.jsonl")) if _header(path) is not None]


def read(folder: Path) -> tuple[Fingerprint | None, dict[Key, Row]]:
    """Everything in the files of a folder; (None, {}) where there is nothing.

    Raises:
        EvaluationError: they are of several runs, disagree with each other, or are damaged.
    """
    fingerprint: Fingerprint | None = None
    found: dict[Key, tuple[dict[str, Any], Row]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        there = _header(path)
        if there is None:
            continue
        if fingerprint not in (None, there):
            raise EvaluationError(f"the records in {folder} are of several runs: keep the files of one of them there.")
        fingerprint = there
        for number, data in _lines(path):
            if number == 1:
                continue
            try:
                row = Row.from_json(data)
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, number) from error
            known = found.setdefault((row.example, row.variant), (data, row))
            if known[0] != data:
                raise contradiction(path, number, row.example, row.variant)
    return fingerprint, {key: row for key, (_, row) in found.items()}


def _header(path: Path) -> Fingerprint | None:
    """The fingerprint of the run that wrote a file; None where it died before it could."""
    for number, data in _lines(path):
        if not isinstance(data, dict) or not isinstance(data.get("fingerprint"), dict):
            raise damaged(path, number)
        fingerprint: Fingerprint = data["fingerprint"]
        return fingerprint
    return None


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The whole lines of a file, counted from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise damaged(path, number) from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}.") from error


def damaged(path: Path, number: int) -> EvaluationError:
    """A line, counted from 1, is none that was written."""
    return EvaluationError(
        f"{path}: line {number} is damaged. Remove that line, whose batch will be run again, or leave out --resume to "
        "start anew."
    )


def contradiction(path: Path, number: int, example: int, variant: str) -> EvaluationError:
    """A line, counted from 1, does not go with another one."""
    return EvaluationError(
        f"{path}: line {number} says of example {example} ({variant}) what another line does not. "
        "Leave out --resume to start anew; the records are kept aside."
    )


# ------------------------------------------------------------------------------------------------------------- writing


class Writer:
    """One process's file, made when there is something to write. A context manager.

    Args:
        folder: for the file; None for a temporary one, which is gone when the process ends.
        fingerprint: the run's.
        rank: the process's.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path | None, fingerprint: Fingerprint, rank: int) -> None:
        self.path = Path(tempfile.gettempdir() if folder is None else folder) / (
            f"{text_digest(fingerprint)}.rank{rank}.jsonl"
        )
        self._temporary = folder is None
        self._fingerprint = fingerprint
        self._file: io.FileIO | None = None
        self._synced = 0.0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._file is not None and not self._temporary:
            with _told(self.path):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    @property
    def descriptor(self) -> int | None:
        """Of the temporary file, if there is one."""
        return self._file.fileno() if self._temporary and self._file is not None else None

    def append(self, rows: Iterable[Row]) -> None:
        """Write some rows, and see them off to the system; to the disk every five seconds.

        Raises:
            EvaluationError: the disk is full, or fails. What was written before is kept.
        """
        self.append_lines("".join(row.line for row in rows).encode())

    def append_lines(self, lines: bytes) -> None:
        """Write rows that are lines already, and end as such; errors as for ``append``."""
        with _told(self.path, temporary=self._temporary):
            if self._file is None:
                self._file = self._open()
            self._write(lines)
            if not self._temporary and time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _open(self) -> io.FileIO:
        file: Any
        if self._temporary:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with the writer
            weakref.finalize(self, file.close)
            kept = 0
        else:
            file = self.path.open("a+b", buffering=0)
            kept = _end_of_last_line(file)
            file.truncate(kept)
        self._file = file
        if not kept:
            self._write(f"{json.dumps({'fingerprint': self._fingerprint}, sort_keys=True)}\n".encode())
        found: io.FileIO = file
        return found

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        left = memoryview(content)
        while left:  # the system may take a part of it, as it does before it says that the disk is full
            left = left[self._file.write(left) :]


def _end_of_last_line(file: io.FileIO) -> int:
    """Up to where the lines of a file are whole."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        content = file.read(end - begin)
        if (found := content.rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


@contextmanager
def _told(path: Path, *, temporary: bool = False) -> Iterator[None]:
    """Say of an error of the system which file it was about, and what to do."""
    try:
        yield
    except OSError as error:
        if temporary:
            raise EvaluationError(
                f"what the models say cannot be kept in {path.parent}: {error.strerror or error}. Make room, or name a "
                "folder with TMPDIR."
            ) from error
        raise EvaluationError(
            f"{path} cannot be written: {error.strerror or error}. What was found out so far is kept there: make room, "
            "and run the same with --resume."
        ) from error
