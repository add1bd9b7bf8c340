"""Rows as columns, and which rows are bad.

A bad row is an error that names it. With ``skip_bad_rows`` it stays in place as an empty one, with the reason beside it
in the column ``PROBLEM``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import datasets
    import pyarrow  # type: ignore[import-untyped]

PROBLEM = "__problem__"
"""The column that says why a row could not be read; there only where rows were skipped."""


REMEDY = "Mend the row or remove it, or leave such rows out with --skip_bad_rows."


def as_dataset(table: pyarrow.Table) -> datasets.Dataset:
    import datasets
    import pyarrow

    for number, column in enumerate(table.schema):
        if pyarrow.types.is_dictionary(column.type):  # what pandas makes of a category
            table = table.set_column(number, column.name, table.column(number).cast(column.type.value_type))
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def read_parquet(path: Path) -> pyarrow.Table:
    import pyarrow.parquet  # type: ignore[import-untyped]

    return pyarrow.parquet.read_table(path, partitioning=None)


def read_arrow(path: Path) -> pyarrow.Table:
    """Arrow's stream, which datasets writes, or its file."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()


def assembled(
    path: Path, rows: Iterable[dict[str, Any] | str], columns: Sequence[str], *, skip_bad_rows: bool
) -> datasets.Dataset:
    """The rows as columns. Where the values of a column that has to be there are of several kinds, those of the less
    frequent ones are bad; in other columns, they become JSON."""
    import pyarrow

    found: list[dict[str, Any]] = []
    problems: dict[int, str] = {}
    for number, row in enumerate(rows):
        if isinstance(row, str):
            problems[number] = row
            if not skip_bad_rows:
                raise EvaluationError(f"{path}: row {number + 1} {row}. {REMEDY}")
        found.append({} if isinstance(row, str) else row)
    names = list(dict.fromkeys(name for row in found for name in row))
    arrays = {}
    for name in names:
        values = [row.get(name) for row in found]
        needed = name in columns
        bad = _bad_values(values) if needed else {}
        if needed:
            bad.update(
                {i: "has no value there" for i, row in enumerate(found) if name not in row and i not in problems}
            )
        for number, reason in bad.items():
            problems.setdefault(number, f"is bad in the column {name!r}: it {reason}")
            values[number] = None
        try:
            arrays[name] = pyarrow.array(values)
        except (UnicodeEncodeError, OverflowError, pyarrow.ArrowException):
            arrays[name] = pyarrow.array([None if value is None else json.dumps(value) for value in values])
    if problems and not skip_bad_rows:
        number = min(problems)
        raise EvaluationError(f"{path}: row {number + 1} {problems[number]}. {REMEDY}")
    if problems and len(problems) == len(found):
        raise EvaluationError(f"{path}: no row can be read; row 1 {problems[0]}.")
    if problems:
        arrays[PROBLEM] = pyarrow.array([problems.get(number) for number in range(len(found))], pyarrow.string())
    return as_dataset(pyarrow.table(arrays))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _bad_values(values: Sequence[Any]) -> dict[int, str]:
    """By row, what is wrong with a value: not of the most frequent kind, or not UTF-8."""
    kinds = Counter(_kind(value) for value in values if value is not None)
    usual = kinds.most_common(1)[0][0] if kinds else ""
    bad = {}
    for number, value in enumerate(values):
        if value is not None and _kind(value) != usual:
            bad[number] = f"holds {_kind(value)}, where others hold {usual}"
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                bad[number] = "holds bytes that are not UTF-8"
    return bad


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
