"""Rows of data out of whatever the user names: a file, a folder, or an id on the hub.

What a name means is told by its form alone, before ``datasets`` is asked (which takes ``data/test.csv`` for an id on
the hub, and retries for half a minute). csv, json and jsonl are read here, row by row and each line within a limit,
so that whatever is wrong is said of its row: a row that cannot be read is an error, or, with ``skip_bad_rows``, stays
in place as an empty one with the reason beside it in the column ``PROBLEM``. Texts are UTF-8 throughout.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import datasets
    import pyarrow  # type: ignore[import-untyped]

__all__ = ["FORMATS", "PROBLEM", "EvaluationError", "ask_hub", "data_file", "first_line", "load_data"]


class EvaluationError(ValueError):
    """Something that was named for evaluation cannot be used; the message names the remedy. No model was changed."""


FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
"""The data files that can be read, by their endings."""

PROBLEM = "__problem__"
"""The column that says why a row could not be read; there only where rows were skipped."""

_LINE_LIMIT = 2**24
"""Bytes in a line of csv or jsonl, 16 MiB: a longer one is no row but a broken file."""
_WHOLE_LIMIT = 2**30
"""Bytes in a json array, which has to be read as a whole; 1 GiB takes about 5 GiB of memory."""

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_USUAL_SPLITS = ("validation", "valid", "val", "dev", "test")
_REMEDY = "Mend the row or remove it, or leave such rows out with --skip_bad_rows."


_ADDRESS = r" ?<[\w.]+ object at 0x[0-9a-f]+>"  # says nothing, and something else in each run


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)  # the key alone says nothing
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (re.sub(_ADDRESS, "", lines[0]) if lines else type(error).__name__)[:300]


def ask_hub() -> None:
    """Whether the hub can be reached at all, within two seconds: its own client goes on trying for half a minute.

    Raises:
        EvaluationError: it cannot.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise EvaluationError(
            "HF_HUB_OFFLINE is set, so that nothing can be fetched: unset it, or leave out --allow_download."
        )
    address = urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.hostname or ""):
        return  # whoever stands between has to be asked by the client
    failure: list[Exception] = [TimeoutError("no answer")]

    def ask() -> None:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        try:
            socket.create_connection((address.hostname or "", port), timeout=1.5).close()
            failure.clear()
        except OSError as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up knows no limit of time
    thread.start()
    thread.join(1.5)
    if failure:
        raise EvaluationError(
            f"the hub cannot be reached at {constants.ENDPOINT} ({first_line(failure[0])}): check the connection (or "
            "HF_ENDPOINT), or leave out --allow_download to use what is in the cache."
        )


# ------------------------------------------------------------------------------------------------ what a name means


def data_file(name: str, *, allow_download: bool = False) -> Path | str:
    """The file or folder of that name, or the id of data on the hub that are in the cache (or may be fetched).

    Raises:
        EvaluationError: it isn't there, or is of no known format.
    """
    path = Path(name).expanduser()
    formats = ", ".join(ending[1:] for ending in FORMATS)
    if path.is_dir():
        _folder_kind(path)
        return path
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise EvaluationError(f"{name}: data come as {formats}; convert it to one of these.")
        return path
    if path.suffix.lower() in FORMATS or not _HUB_DATA.fullmatch(name):
        raise EvaluationError(
            f"there is no data file {name}: name one that is here with --validation_file ({formats}, a folder of "
            "images or of a saved dataset), or an id on the hub, owner/name."
        )
    if not allow_download and not any(folder.is_dir() for folder in _cached(name)):
        raise EvaluationError(
            f"{name!r} is no file or folder here, and as data on the hub they are not in its cache. "
            "To fetch them from the hub, add --allow_download."
        )
    if allow_download:
        ask_hub()
    return name


def _folder_kind(path: Path) -> str:
    if (path / "dataset_dict.json").is_file():
        return "saved splits"
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return "saved"
    if _classes(path) or any(_classes(folder) for folder in _folders(path)):
        return "images"
    inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in FORMATS)
    if inside:
        raise EvaluationError(f"{path} is a folder of files: name one of them, such as {path / inside[0]}.")
    raise EvaluationError(
        f"{path} holds no data: a folder is what save_to_disk wrote, or has a folder of images for each class."
    )


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _IMAGES)


def _classes(path: Path) -> list[Path]:
    """The folders in it that hold images: one for each class."""
    return [folder for folder in _folders(path) if _images(folder)]


def _cached(name: str) -> tuple[Path, Path]:
    """Where data from the hub lie once they were loaded, and once they were only fetched."""
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "snapshots"
    return prepared.expanduser() / name.replace("/", "___"), fetched


# ------------------------------------------------------------------------------------------------------------ loading


def load_data(
    data: Path | str,
    columns: Sequence[str],
    *,
    split: str | None = None,
    config_name: str | None = None,
    allow_download: bool = False,
    skip_bad_rows: bool = False,
) -> datasets.Dataset:
    """Data as a dataset; nothing is left in a cache, but for what was fetched from the hub.

    Cells of a csv file are texts, whatever they look like. A text file is one row with the column ``text``. A folder
    of images has the columns ``image`` and ``label``.

    Args:
        data: from ``data_file``: a csv, json (an array of objects, or an object a line), jsonl, parquet, arrow or txt
            file; a folder that ``save_to_disk`` wrote, or one with a folder of images for each class (and maybe one
            for each split above these); or an id on the hub.
        columns: those that have to be there.
        split: None for the only one, else validation, else test.
        config_name: which of several datasets under one id on the hub.
        allow_download: whether an id on the hub may be fetched; otherwise it has to be in the cache.
        skip_bad_rows: keep rows that cannot be read as empty ones, with the reason in the column ``PROBLEM``.

    Raises:
        EvaluationError: the data cannot be read, have no rows, no such split or lack a column (the message lists
            those there), or a row cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if config_name is not None and isinstance(data, Path):
        raise EvaluationError(f"{data} is no id on the hub, which alone has configurations: drop --config_name.")
    if isinstance(data, str):
        found = _hub(data, split, config_name, allow_download=allow_download)
    elif data.is_dir():
        found = _folder(data, split)
    elif split is not None:
        raise EvaluationError(f"{data} is one file, without splits: drop --split.")
    else:
        found = _file(data, columns, skip_bad_rows=skip_bad_rows)
    missing = [column for column in columns if column not in found.column_names]
    if len(found) == 0 and not (missing and found.column_names):
        raise EvaluationError(f"{data} has no rows: there is nothing to evaluate on.")
    if missing:
        there = [name for name in found.column_names if name != PROBLEM]
        raise EvaluationError(
            f"{data} has no column {' and no column '.join(map(repr, missing))}; it has: {', '.join(there)}. "
            f"{_column_remedy(missing, there)}"
        )
    if isinstance(data, str) or FORMATS.get(data.suffix.lower()) in (None, "parquet", "arrow"):
        found = _undecodable(found, data, columns, skip_bad_rows=skip_bad_rows)
    return found


def _column_remedy(missing: Sequence[str], there: Sequence[str]) -> str:
    """What can be done where columns are missing, by the names of those that are there."""
    if any(name != name.strip() and name.strip() in missing for name in there):
        return "Take out the spaces around the names in its header."
    marks = {";": "';'", "\t": "tabs", "|": "'|'"}
    found = [said for mark, said in marks.items() if len(there) == 1 and mark in there[0]]
    if found:
        return f"Its cells are separated by {found[0]}: separate them by commas."
    return "Name the right ones with --input_column, --second_column and --target_column."


def _choose(splits: Iterable[str], asked: str | None, name: object) -> str:
    there = list(splits)
    if asked is not None:
        if asked not in there:
            raise EvaluationError(f"{name} has no split {asked!r}; it has: {', '.join(there)}. Name one with --split.")
        return asked
    usual = there if len(there) == 1 else [split for split in _USUAL_SPLITS if split in there]
    if not usual:
        raise EvaluationError(f"{name} has several splits ({', '.join(there)}): name one with --split.")
    return usual[0]


def _folder(path: Path, split: str | None) -> datasets.Dataset:
    import datasets

    kind = _folder_kind(path)
    if kind != "images":
        try:
            if kind == "saved splits":
                splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
                path = path / _choose(splits, split, path)
            elif split is not None:
                raise EvaluationError(f"{path} is one dataset, without splits: drop --split.")
            return datasets.load_from_disk(str(path)).with_format(None)
        except EvaluationError:
            raise
        except Exception as error:  # json, pyarrow and datasets each have their own
            raise EvaluationError(
                f"{path} cannot be read as a saved dataset: {first_line(error)}. Save it again with save_to_disk."
            ) from error
    if not _classes(path):
        splits = [folder.name for folder in _folders(path) if _classes(folder)]
        path = path / _choose(splits, split, path)
    elif split is not None:
        raise EvaluationError(f"{path} has a folder for each class, and none for splits: drop --split.")
    classes = _classes(path)
    names = [folder.name for folder in classes]
    pairs = [(str(file), label) for label, folder in enumerate(classes) for file in _images(folder)]
    return datasets.Dataset.from_dict(
        {"image": [file for file, _ in pairs], "label": [label for _, label in pairs]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )


def _hub(name: str, split: str | None, config_name: str | None, *, allow_download: bool) -> datasets.Dataset:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import snapshot_download

    prepared, _ = _cached(name)
    try:
        if allow_download:
            found = datasets.load_dataset(name, config_name)
        elif prepared.is_dir():
            cache = Cache(
                repo_id=name, dataset_name=name.split("/")[1], config_name=config_name, version="auto", hash="auto"
            )
            found = cache.as_dataset()
        else:
            fetched = snapshot_download(name, repo_type="dataset", local_files_only=True)
            found = datasets.load_dataset(fetched, config_name)
    except Exception as error:  # the hub's, the network's, the readers': each has its own kinds
        remedy = (
            "Check the name, --config_name and the connection."
            if allow_download
            else "Check --config_name, or fetch them again with --allow_download."
        )
        raise EvaluationError(f"the data {name} cannot be had from the hub: {first_line(error)} {remedy}") from error
    return found[_choose(found, split, name)].with_format(None)


def _file(path: Path, columns: Sequence[str], *, skip_bad_rows: bool) -> datasets.Dataset:
    kind = FORMATS[path.suffix.lower()]
    try:
        if kind in ("parquet", "arrow"):
            return _dataset(_parquet(path) if kind == "parquet" else _arrow(path))
        if kind == "text":
            text = path.read_text(encoding="utf-8-sig")
            return _assembled(path, [{"text": text}] if text else [], columns, skip_bad_rows=skip_bad_rows)
        read = {"csv": _csv_rows, "json": _json_rows, "jsonl": _json_lines}[kind]
        return _assembled(path, read(path), columns, skip_bad_rows=skip_bad_rows)
    except EvaluationError:
        raise
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise EvaluationError(
            f"{path}: line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}): convert the file with "
            "iconv -t UTF-8."
        ) from error
    except Exception as error:  # pyarrow's own kinds, the system's
        raise EvaluationError(f"{path} cannot be read as {kind}: {first_line(error)}") from error


def _dataset(table: pyarrow.Table) -> datasets.Dataset:
    import datasets
    import pyarrow

    for number, column in enumerate(table.schema):
        if pyarrow.types.is_dictionary(column.type):  # what pandas makes of a category
            table = table.set_column(number, column.name, table.column(number).cast(column.type.value_type))
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def _parquet(path: Path) -> pyarrow.Table:
    import pyarrow.parquet  # type: ignore[import-untyped]

    return pyarrow.parquet.read_table(path, partitioning=None)


def _arrow(path: Path) -> pyarrow.Table:
    """Arrow's stream, which datasets writes, or its file."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()


# ---------------------------------------------------------------------------------- rows: a dict, or what is wrong


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


def _csv_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    too_long = False

    def lines() -> Iterator[str]:
        nonlocal too_long
        for line in _lines(path):
            too_long = too_long or line is None
            yield "\n" if line is None else line

    usual = csv.field_size_limit(_LINE_LIMIT)
    try:
        reader = csv.reader(lines(), strict=True)
        header: list[str] | None = None
        while True:
            too_long, line = False, reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                cells, trouble = [], f"(line {line}) is no csv: {error}"
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
            elif trouble:
                yield trouble
            elif len(cells) != len(header):
                yield f"(line {line}) has {len(cells)} cells, where the header names {len(header)} columns"
            else:
                yield dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(usual)


def _json_lines(path: Path) -> Iterator[dict[str, Any] | str]:
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


def _json_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """An array of objects, or an object a line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _json_lines(path)
        return
    if path.stat().st_size > _WHOLE_LIMIT:
        raise EvaluationError(f"{path} is an array of more than 1 GiB: write it as jsonl, an object a line.")
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not JSON: {first_line(error)}. Write it again.") from error
    for row in rows:
        yield row if isinstance(row, dict) else "is no JSON object"


def _assembled(
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
                raise EvaluationError(f"{path}: row {number + 1} {row}. {_REMEDY}")
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
        raise EvaluationError(f"{path}: row {number + 1} {problems[number]}. {_REMEDY}")
    if problems and len(problems) == len(found):
        raise EvaluationError(f"{path}: no row can be read; row 1 {problems[0]}.")
    if problems:
        arrays[PROBLEM] = pyarrow.array([problems.get(number) for number in range(len(found))], pyarrow.string())
    return _dataset(pyarrow.table(arrays))


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


def _undecodable(
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
        raise EvaluationError(f"{name}: row {number + 1} {problems[number]}. {_REMEDY}")
    kept = data.data.table
    for column in columns:
        texts = pyarrow.array([number not in problems for number in range(len(data))])
        kept = kept.set_column(
            kept.schema.get_field_index(column),
            column,
            pyarrow.compute.if_else(texts, kept.column(column), pyarrow.scalar(None, kept.column(column).type)),
        )
    reasons = pyarrow.array([problems.get(number) for number in range(len(data))], pyarrow.string())
    return _dataset(kept.append_column(PROBLEM, reasons))
