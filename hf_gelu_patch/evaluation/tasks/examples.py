"""Examples that were encoded, kept on disk: a million of them take no more memory than a few.

They are in a temporary file, which has no name: when the process ends, however it ends, nothing is left of it. It is
where the system keeps temporary files, or in the folder that TMPDIR names.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError

__all__ = ["Example", "Examples"]

Example = dict[str, Any]

_AT_A_TIME = 2**20  # bytes that are written or read together
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Examples(Sequence[Example]):
    """Examples in their order, each read when it is asked for, and a copy each time.

    Args:
        examples: taken one after the other; only the one at hand is in memory, if whoever makes them can do with that.
        shape, size: as ``Task`` has them; they are asked once of each example.

    Attributes:
        sizes: of each example.
        shapes: of each example, as a place in the sorted list of all shapes that there are.
        rows: of each example, counted from 0; −1 where it is of no row.
        numbers: of each example among those that were encoded, which has gaps once some were left out.

    Raises:
        EvaluationError: there is no room for them.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        shape: Callable[[Example], tuple[Any, ...]],
        size: Callable[[Example], int],
    ) -> None:
        self._file = _File()
        sizes, rows, shapes = array("q"), array("q"), array("q")
        known: dict[tuple[Any, ...], int] = {}
        for example in examples:
            self._file.add(example)
            sizes.append(size(example))
            rows.append(example.get("row", -1))
            shapes.append(known.setdefault(shape(example), len(known)))
        self._file.flush()
        places = {code: place for place, code in enumerate(code for _, code in sorted(known.items()))}
        ranks = np.array([places[code] for code in range(len(known))], dtype=np.int64)
        self.sizes, self.rows, self.shapes = _numbers(sizes), _numbers(rows), ranks[_numbers(shapes)]
        self.numbers: Numbers = np.arange(len(sizes))
        self._last: tuple[tuple[int, ...], list[Example]] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, which: int) -> Example: ...
    @overload
    def __getitem__(self, which: slice) -> list[Example]: ...
    def __getitem__(self, which: int | slice) -> Example | list[Example]:
        if isinstance(which, slice):
            return self.some(range(len(self))[which])
        found: Example = self._file.get(int(self.numbers[which]))
        return found

    def __iter__(self) -> Iterator[Example]:
        return self._file.each(self.numbers)

    def some(self, which: Iterable[int]) -> list[Example]:
        """Those of these numbers. Those that were asked for last are kept: they make a batch, whose right answers are
        asked for once for each model."""
        asked = tuple(which)
        if self._last is None or self._last[0] != asked:
            self._last = asked, [self._file.get(number) for number in self.numbers[[*asked]].tolist()]
        return [*self._last[1]]

    def lazily(self, which: Sequence[int]) -> Sequence[Example]:
        """The same, each read whenever it is asked for: for those who look at each once, of many that may be large."""
        return _Some(self, which)

    def without(self, rows: Iterable[int]) -> Examples:
        """Those of other rows than these, in the same file."""
        kept = ~np.isin(self.rows, np.fromiter(rows, dtype=np.int64))
        found = object.__new__(Examples)
        found._file, found._last = self._file, None
        for name in ("sizes", "shapes", "rows", "numbers"):
            setattr(found, name, getattr(self, name)[kept])
        return found


class _Some(Sequence[Example]):
    """Some examples, of which none is in memory."""

    def __init__(self, examples: Examples, which: Sequence[int]) -> None:
        self._examples, self._which = examples, which

    def __len__(self) -> int:
        return len(self._which)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        if isinstance(place, slice):
            return _Some(self._examples, self._which[place])
        return self._examples[self._which[place]]


def _numbers(values: array[int]) -> Numbers:
    return np.frombuffer(values, dtype=np.int64) if values else np.zeros(0, dtype=np.int64)


class _File:
    """Values in a temporary file, one behind the other."""

    def __init__(self) -> None:
        try:
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed below, with the last who reads it
        except OSError as error:
            raise _no_room(error) from error
        weakref.finalize(self, file.close)
        self._file = file
        self._ends = array("q", [0])
        self._waiting = io.BytesIO()
        self._pickler = _Pickler(self._waiting, protocol=pickle.HIGHEST_PROTOCOL)
        self._written = 0

    def add(self, value: Any) -> None:
        self._pickler.clear_memo()
        self._pickler.dump(value)
        self._ends.append(self._written + self._waiting.tell())
        if self._waiting.tell() >= _AT_A_TIME:
            self.flush()

    def flush(self) -> None:
        left = self._waiting.getbuffer()
        self._written += len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _no_room(error) from error
        del left  # or the buffer could not be emptied
        self._waiting.seek(0)
        self._waiting.truncate()

    def get(self, number: int) -> Any:
        begin, end = self._ends[number], self._ends[number + 1]
        return pickle.loads(os.pread(self._file.fileno(), end - begin, begin))  # no process shares another's place

    def each(self, numbers: Iterable[int]) -> Iterator[Any]:
        """Values in the order of their numbers, of which those that follow each other are read together."""
        ends = self._ends
        for _, some in itertools.groupby(map(int, numbers), key=lambda number: ends[number] // _AT_A_TIME):
            these = list(some)
            first = ends[min(these)]
            content = memoryview(os.pread(self._file.fileno(), ends[max(these) + 1] - first, first))
            for number in these:
                yield pickle.loads(content[ends[number] - first : ends[number + 1] - first])


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A tensor that is a part of a larger one is written as that part alone."""
        if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
            return value.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        return NotImplemented


def _no_room(error: OSError) -> EvaluationError:
    return EvaluationError(
        f"the encoded examples cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}. Make room, or "
        "name a folder with TMPDIR."
    )
