"""Rows as columns, and which rows are bad.

A bad row is an error that names it. With ``skip_bad_rows`` it stays in place as an empty one, with the reason beside it
in the column ``PROBLEM``.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import datasets
    import pyarrow  # type: ignore[import-untyped]

PART = 2_000
"""Rows that are in memory together; if there are no more, all are."""
PROBLEM = "__problem__"
"""The column that says why a row could not be read; there only where rows were skipped."""


REMEDY = "Mend the row or remove it, or leave such rows out with --skip_bad_rows."


def as_dataset(table: pyarrow.Table) -> datasets.Dataset:
    import datasets

    # By a number of its own: datasets would make one of all that stands in it.
    return datasets.Dataset(datasets.table.InMemoryTable(_undictionaried(table)), fingerprint=uuid.uuid4().hex)


def _undictionaried(table: pyarrow.Table) -> pyarrow.Table:
    """Plain values for what pandas makes of a category."""
    import pyarrow

    for number, column in enumerate(table.schema):
        if pyarrow.types.is_dictionary(column.type):
            table = table.set_column(number, column.name, table.column(number).cast(column.type.value_type))
    return table


def on_disk(parts: Iterable[pyarrow.Table]) -> pyarrow.Table:
    """A table of parts that have one schema, in a temporary file that the system reads as it is needed. The file has no
    name any more: when the process ends, nothing is left of it.

    Raises:
        EvaluationError: there is no room for it.
    """
    import pyarrow

    parts = iter(parts)
    first = next(parts)
    try:
        handle, name = tempfile.mkstemp(suffix=".arrow")
        try:
            with os.fdopen(handle, "wb") as file, pyarrow.ipc.new_stream(file, first.schema) as writer:
                for part in itertools.chain([first], parts):
                    writer.write_table(part)
            with pyarrow.memory_map(name) as source:
                return pyarrow.ipc.open_stream(source).read_all()
        finally:
            Path(name).unlink()
    except OSError as error:
        raise EvaluationError(
            f"the rows cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}. Make room, or name a "
            "folder with TMPDIR."
        ) from error


def read_parquet(path: Path) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    with pyarrow.parquet.ParquetFile(path) as file:
        if file.metadata.num_rows <= PART:
            return file.read()
        return on_disk(_undictionaried(pyarrow.Table.from_batches([part])) for part in file.iter_batches(PART))


def read_arrow(path: Path) -> pyarrow.Table:
    """Arrow's stream, which datasets writes, or its file."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()


@dataclass
class _Column:
    """What is known of a column's values.

    Attributes:
        needed: whether the column has to be there. Then values of the less frequent kinds are bad.
        kinds: how many values there are of each kind.
        types: what Arrow calls the values, by kind; of a column that need not be there, under "".
        untyped: those of which some have no type in common.
    """

    needed: bool
    kinds: Counter[str] = field(default_factory=Counter)
    types: dict[str, list[pyarrow.DataType]] = field(default_factory=dict)
    untyped: set[str] = field(default_factory=set)

    def see(self, values: Sequence[Any]) -> None:
        """Take in some of them."""
        import pyarrow

        groups: dict[str, list[Any]] = {} if self.needed else {"": list(values)}
        for value in values if self.needed else ():
            if value is not None:
                self.kinds[_kind(value)] += 1
                groups.setdefault(_kind(value), []).append(value if _is_utf8(value) else None)
        for kind, some in groups.items():
            types = self.types.setdefault(kind, [])
            try:
                if (found := pyarrow.array(some).type) not in types:
                    types.append(found)
            except (UnicodeEncodeError, OverflowError, pyarrow.ArrowException):
                self.untyped.add(kind)

    @property
    def usual(self) -> str:
        """The kind that counts."""
        return self.kinds.most_common(1)[0][0] if self.kinds else ""

    @property
    def type(self) -> pyarrow.DataType | None:
        """What Arrow calls all values of the usual kind; None where they have no type in common."""
        import pyarrow

        if self.usual in self.untyped:
            return None
        types = [pyarrow.schema([("", one)]) for one in self.types.get(self.usual, [])]
        try:
            return pyarrow.unify_schemas(types, promote_options="permissive").types[0] if types else pyarrow.null()
        except pyarrow.ArrowException:
            return None

    def array(self, values: Sequence[Any], type_: pyarrow.DataType | None) -> pyarrow.Array:
        """Some of them as Arrow has them; as JSON where there is no type."""
        import pyarrow

        if type_ is None:
            return pyarrow.array([None if one is None else json.dumps(one) for one in values], pyarrow.string())
        try:
            return pyarrow.array(values, type_)
        except (UnicodeEncodeError, OverflowError, pyarrow.ArrowException) as error:
            self.untyped.add(self.usual)
            raise _OtherTypeError from error

    def bad(self, rows: Sequence[dict[str, Any] | str], name: str) -> dict[int, str]:
        """What is wrong with the values of some rows: not of the usual kind, not UTF-8, or not there."""
        found = {}
        for number, row in enumerate(rows if self.needed else ()):
            if isinstance(row, str):
                continue
            value = row.get(name)
            if name not in row:
                found[number] = "has no value there"
            elif value is not None and _kind(value) != self.usual:
                found[number] = f"holds {_kind(value)}, where others hold {self.usual}"
            elif not _is_utf8(value):
                found[number] = "holds bytes that are not UTF-8"
        return found


class _OtherTypeError(Exception):
    """A value is not of the type that its column seemed to have: 2**53 + 1 among fractions, which are float64."""


def assembled(
    path: Path, read: Callable[[], Iterable[dict[str, Any] | str]], columns: Sequence[str], *, skip_bad_rows: bool
) -> datasets.Dataset:
    """The rows as columns. Where the values of a column that has to be there are of several kinds, those of the less
    frequent ones are bad; in other columns, they become JSON. Some thousand rows are in memory at a time, and the rest
    is on disk.

    Args:
        read: gives all rows, each time that it is called; of one that cannot be read, what is wrong with it.
        columns: those that have to be there.
    """
    found: dict[str, _Column] = {}
    problems: dict[int, str] = {}
    count = 0
    for rows in _parts(read()):
        problems.update({number: row for number, row in enumerate(rows, start=count) if isinstance(row, str)})
        _refuse(path, problems, skip_bad_rows=skip_bad_rows)
        there = [row for row in rows if not isinstance(row, str)]
        for name in dict.fromkeys(name for row in there for name in row):
            found.setdefault(name, _Column(name in columns))
        for name, column in found.items():
            column.see([row.get(name) for row in there])
        count += len(rows)

    def tables() -> Iterator[pyarrow.Table]:
        types = {name: column.type for name, column in found.items()}
        for number, rows in enumerate(_parts(read())):
            table = _table(rows, number * PART, found, types, problems)
            _refuse(path, problems, skip_bad_rows=skip_bad_rows)
            yield table

    table = None if count else _table([], 0, {}, {}, problems)
    while table is None:
        with suppress(_OtherTypeError):  # the column then becomes JSON
            table = on_disk(tables()) if count > PART else next(tables())
    if problems and len(problems) == count:
        raise EvaluationError(f"{path}: no row can be read; row 1 {problems[0]}.")
    return as_dataset(table if problems else table.drop_columns([PROBLEM]))


def _parts(rows: Iterable[dict[str, Any] | str]) -> Iterator[list[dict[str, Any] | str]]:
    rows = iter(rows)
    while part := list(itertools.islice(rows, PART)):
        yield part


def _refuse(path: Path, problems: Mapping[int, str], *, skip_bad_rows: bool) -> None:
    if problems and not skip_bad_rows:
        number = min(problems)
        raise EvaluationError(f"{path}: row {number + 1} {problems[number]}. {REMEDY}")


def _table(
    rows: Sequence[dict[str, Any] | str],
    start: int,
    columns: Mapping[str, _Column],
    types: Mapping[str, pyarrow.DataType | None],
    problems: dict[int, str],
) -> pyarrow.Table:
    """Some rows as a table, the first of them of this number; what is wrong with them is added to ``problems``."""
    import pyarrow

    arrays = {}
    for name, column in columns.items():
        values = [None if isinstance(row, str) else row.get(name) for row in rows]
        for place, reason in column.bad(rows, name).items():
            problems.setdefault(start + place, f"is bad in the column {name!r}: it {reason}")
            values[place] = None
        arrays[name] = column.array(values, types[name])
    reasons = [problems.get(number) for number in range(start, start + len(rows))]
    return pyarrow.table({**arrays, PROBLEM: pyarrow.array(reasons, pyarrow.string())})


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _is_utf8(value: Any) -> bool:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


def without_undecodable(
    data: datasets.Dataset, name: object, columns: Sequence[str], *, skip_bad_rows: bool
) -> datasets.Dataset:
    """The same rows, those marked whose texts are not UTF-8: Arrow's files may hold any bytes."""
    import pyarrow.compute  # type: ignore[import-untyped]

    if data._indices is not None:  # a selection of rows that was saved as one
        data = data.flatten_indices(keep_in_memory=True)
    problems: dict[int, str] = {}
    for column in columns:
        if "string" not in str(getattr(data.features[column], "dtype", "")):
            continue
        values = data.data.column(column)
        try:
            values.validate(full=True)
        except pyarrow.ArrowInvalid:
            for number, value in enumerate(values.cast("large_binary").to_pylist()):
                try:
                    (value or b"").decode()
                except UnicodeDecodeError:
                    problems[number] = f"is bad in the column {column!r}: it holds bytes that are not UTF-8"
    if not problems:
        return data
    if not skip_bad_rows:
        number = min(problems)
        raise EvaluationError(f"{name}: row {number + 1} {problems[number]}. {REMEDY}")
    kept = data.data.table
    for column in columns:
        texts = pyarrow.array([number not in problems for number in range(len(data))])
        kept = kept.set_column(
            kept.schema.get_field_index(column),
            column,
            pyarrow.compute.if_else(texts, kept.column(column), pyarrow.scalar(None, kept.column(column).type)),
        )
    reasons = pyarrow.array([problems.get(number) for number in range(len(data))], pyarrow.string())
    return as_dataset(kept.append_column(PROBLEM, reasons))
