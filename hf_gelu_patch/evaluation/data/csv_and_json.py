"""csv, tsv, json and jsonl, row by row, each line within a limit: each row is a dict, or says what is wrong with it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line

_LINE_LIMIT = 2**24
"""Bytes in a line of csv or jsonl, 16 MiB: a longer one is no row but a broken file."""
_WHOLE_LIMIT = 2**30
"""Bytes in a json array, which has to be read as a whole; 1 GiB takes about 5 GiB of memory."""


def _lines(path: Path) -> Iterator[str | None]:
    """Each line; None for one that is too long. Bytes that are not UTF-8 become lone surrogates."""
    with path.open("rb") as file:
        encoding = "utf-8-sig"
        while line := file.readline(_LINE_LIMIT + 1):
            if len(line) > _LINE_LIMIT:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_LINE_LIMIT)
                yield None
            else:
                yield line.decode(encoding, "surrogateescape")
            encoding = "utf-8"


_UNDECODED = re.compile("[\udc80-\udcff]")  # what such a byte becomes
_TOO_LONG = f"is a line of more than {_LINE_LIMIT >> 20} MiB"


def otherwise_separated(header: Sequence[str]) -> str:
    """What separates the cells of a table that seems to have one column, and the remedy; "" where nothing does."""
    marks = {"\t": ("tabs", "call it FILE.tsv"), ",": ("commas", "call it FILE.csv")}
    marks |= {mark: (f"'{mark}'", "separate them by commas") for mark in ";|"}
    found = [said for mark, said in marks.items() if len(header) == 1 and mark in header[0]]
    return f"Its cells are separated by {found[0][0]}: {found[0][1]}." if found else ""


def csv_rows(path: Path, separator: str = ",") -> Iterator[dict[str, Any] | str]:
    """Of tsv too, whose cells may be in quotation marks just the same, as pandas and datasets write and read them."""
    too_long = False

    def lines() -> Iterator[str]:
        nonlocal too_long
        for line in _lines(path):
            too_long = too_long or line is None
            yield "\n" if line is None else line

    usual = csv.field_size_limit(_LINE_LIMIT)
    try:
        reader = csv.reader(lines(), strict=True, delimiter=separator)
        header: list[str] | None = None
        while True:
            too_long, line = False, reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                cells, trouble = [], f"(line {line}) is no {'tsv' if separator == chr(9) else 'csv'}: {error}"
            else:
                trouble = f"(line {line}) {_TOO_LONG}" if too_long else ""
            if cells is None:
                return
            if not cells and not trouble:  # an empty line
                continue
            if header is None:
                if trouble or len(set(cells)) < len(cells):
                    raise EvaluationError(f"{path}: the header {trouble or 'names a column twice'}. Mend the file.")
                if any(map(_UNDECODED.search, cells)):
                    raise EvaluationError(f"{path}: the header is not UTF-8: convert the file with iconv -t UTF-8.")
                header = cells
            elif trouble or len(cells) != len(header):
                if why := otherwise_separated(header):
                    raise EvaluationError(f"{path}: its header names one column, '{header[0]}'. {why}")
                yield trouble or (f"(line {line}) has {len(cells)} cells, where the header names {len(header)} columns")
            else:
                yield dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(usual)


def json_lines(path: Path) -> Iterator[dict[str, Any] | str]:
    for number, line in enumerate(_lines(path), start=1):
        if line is None:
            yield f"(line {number}) {_TOO_LONG}"
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"(line {number}) is not JSON: {first_line(error)}"
            else:
                yield row if isinstance(row, dict) else f"(line {number}) is no JSON object"


def json_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """An array of objects, or an object a line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from json_lines(path)
        return
    if path.stat().st_size > _WHOLE_LIMIT:
        raise EvaluationError(f"{path} is an array of more than 1 GiB: write it as jsonl, an object a line.")
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not JSON: {first_line(error)}. Write it again.") from error
    for row in rows:
        yield row if isinstance(row, dict) else "is no JSON object"
