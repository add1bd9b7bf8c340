"""Rows of records where they stand in their files: each is read when it is asked for.

Of each row only its place is in memory, 14 bytes.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.records import Row, contradiction, damaged

__all__ = ["Known", "Stored"]

Known = np.ndarray[Any, np.dtype[np.bool_]]
"""[model, example]: of which examples there is what which model said."""

_BEGINNING = re.compile(rb'\{"example":(\d+),"variant":("(?:[^"\\]|\\.)*"),"outcome":\{')
_AT_A_TIME = 2**18  # bytes


class Stored:
    """Rows in files, by model and example.

    Args:
        names: the models'; a row's place is by its model's place among these.
        examples: how many there are.
    """

    def __init__(self, names: Sequence[str], examples: int) -> None:
        self.names = tuple(names)
        self._codes = {json.dumps(name).encode(): code for code, name in enumerate(names)}
        self._begins = np.full((len(names), examples), -1, dtype=np.int64)
        self._sizes = np.zeros((len(names), examples), dtype=np.int32)
        self._of = np.zeros((len(names), examples), dtype=np.int16)
        self._files: list[tuple[Path, int]] = []
        self._read: dict[Path, tuple[int, int]] = {}

    @property
    def known(self) -> Known:
        """Which rows there are."""
        found: Known = self._begins >= 0
        return found

    def add(self, path: Path, descriptor: int | None = None) -> None:
        """Take in the rows of a file: those that were not there when it was last asked about.

        Args:
            path: of the file, whose first line is a fingerprint.
            descriptor: of the file, where its path has none any more.

        Raises:
            EvaluationError: a line is none of a row, or contradicts another.
        """
        if path not in self._read:
            own = os.open(path, os.O_RDONLY) if descriptor is None else os.dup(descriptor)
            weakref.finalize(self, os.close, own)
            self._files.append((path, own))
            self._read[path] = (0, 0)
        number = next(place for place, (one, _) in enumerate(self._files) if one == path)
        position, count = self._read[path]
        for content in _whole_lines(self._files[number][1], position):
            lines = content.split(b"\n")[:-1]
            self._take(number, position, count, lines)
            position, count = position + len(content), count + len(lines)
        self._read[path] = (position, count)

    def _take(self, file: int, position: int, count: int, lines: Sequence[bytes]) -> None:
        codes, examples, begins, sizes = [], [], [], []
        path, _ = self._files[file]
        for number, line in enumerate(lines, start=count + 1):
            size = len(line) + 1
            if number > 1:
                found = _BEGINNING.match(line)
                code = self._codes.get(found[2], -1) if found else -1
                if not found or code < 0 or int(found[1]) >= self._begins.shape[1] or not line.endswith(b"}"):
                    code = self._slowly(path, number, line)
                    example = int(json.loads(line)["example"])
                else:
                    example = int(found[1])
                codes.append(code)
                examples.append(example)
                begins.append(position)
                sizes.append(size)
            position += size
        places = np.array(codes, dtype=np.int64), np.array(examples, dtype=np.int64)
        keys = places[0] * self._begins.shape[1] + places[1]
        if (self._begins[places] >= 0).any() or len(np.unique(keys)) < len(keys):
            first = max(count, 1) + 1
            for turn, where in enumerate(zip(codes, examples, strict=True)):
                self._same_as_known(where, path, first + turn, lines[len(lines) - len(codes) + turn])
                self._begins[where], self._sizes[where], self._of[where] = begins[turn], sizes[turn], file
            return
        self._begins[places], self._sizes[places], self._of[places] = begins, sizes, file

    def _slowly(self, path: Path, number: int, line: bytes) -> int:
        """The model of a row that is written otherwise than we write it."""
        try:
            row = Row.from_json(json.loads(line))
            if not 0 <= row.example < self._begins.shape[1]:
                raise ValueError(row.example)
            return self.names.index(row.variant)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, number) from error

    def _same_as_known(self, where: tuple[int, int], path: Path, number: int, line: bytes) -> None:
        if self._begins[where] < 0:
            return
        known = self._line(*where)
        if known != line and json.loads(known) != json.loads(line):
            raise contradiction(path, number, where[1], self.names[where[0]])

    def _line(self, code: int, example: int) -> bytes:
        _, descriptor = self._files[self._of[code, example]]
        return os.pread(descriptor, int(self._sizes[code, example]) - 1, int(self._begins[code, example]))

    def lines(self, which: Known) -> Iterator[bytes]:
        """The lines of some rows, as they stand in the files."""
        for code, example in zip(*np.nonzero(which), strict=True):
            yield self._line(int(code), int(example)) + b"\n"

    def rows(self, name: str, examples: Sequence[int]) -> Iterator[Row]:
        """What a model says of some examples.

        Raises:
            EvaluationError: a row is damaged.
        """
        code, ids = self.names.index(name), np.asarray(examples, dtype=np.int64)
        places = (of[code, ids].tolist() for of in (self._of, self._begins, self._sizes))
        for file, begin, size in zip(*places, strict=True):
            path, descriptor = self._files[file]
            try:
                yield Row.from_json(json.loads(os.pread(descriptor, size - 1, begin)))
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, os.pread(descriptor, begin, 0).count(b"\n") + 1) from error


def _whole_lines(descriptor: int, position: int) -> Iterator[bytes]:
    """What stands in a file from a position on, some lines at a time. A last line without an end is left out: its
    process died, or is still writing it. No one else's place in the file is moved."""
    size = _AT_A_TIME
    while content := os.pread(descriptor, size, position):
        end = content.rfind(b"\n") + 1
        if end:
            yield content[:end]
            position += end
        elif len(content) < size:
            return
        else:
            size *= 2
