"""A dataset out of a file, a folder or the hub, with the columns that are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.data.columns import Wanted
from hf_gelu_patch.evaluation.data.csv_and_json import csv_rows, json_lines, json_rows, otherwise_separated
from hf_gelu_patch.evaluation.data.paths import FORMATS, folder_kind, image_classes, images_in, metadata_in, subfolders
from hf_gelu_patch.evaluation.data.tables import (
    PROBLEM,
    as_dataset,
    assembled,
    read_arrow,
    read_parquet,
    without_undecodable,
)
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.hub import data_caches

if TYPE_CHECKING:
    import datasets

_EVALUATION = ("validation", "valid", "val", "dev", "test")
_FILE_NAME = "file_name"
TRAINING = ("train", "training")
"""What splits to train on are called."""


def load_data(
    data: Path | str,
    columns: Sequence[str] | Wanted,
    *,
    split: str | None = None,
    config_name: str | None = None,
    allow_download: bool = False,
    skip_bad_rows: bool = False,
    usual: Sequence[str] = _EVALUATION,
) -> datasets.Dataset:
    """Data as a dataset; nothing is left in a cache, but for what was fetched from the hub.

    Cells of a csv file are texts, whatever they look like. A text file is one row with the column ``text``. A folder
    of images has the columns ``image`` and ``label``; one with a metadata file has those of the file, and in place of
    ``file_name`` and ``…_file_name`` the images or sounds, ``image`` or ``audio`` and ``…``.

    Args:
        data: from ``data_file``: a csv, tsv, json (an array of objects, or an object a line), jsonl, parquet, arrow or
            txt file; a folder that ``save_to_disk`` wrote; one with a folder of images for each class, or with a
            metadata file as ``ImageFolder`` and ``AudioFolder`` of datasets read it (and maybe a folder for each split
            above these); or an id on the hub.
        columns: those that have to be there; their names, or also what else they may be called.
        split: None for the only one, else the first of the usual ones.
        config_name: which of several datasets under one id on the hub.
        allow_download: whether an id on the hub may be fetched; otherwise it has to be in the cache.
        skip_bad_rows: keep rows that cannot be read as empty ones, with the reason in the column ``PROBLEM``.
        usual: what splits are called that will do: those to evaluate on, or ``TRAINING``.

    Raises:
        EvaluationError: the data cannot be read, have no rows, no such split or lack a column (the message lists
            those there), or a row cannot be read.
    """
    import datasets

    wanted = columns if isinstance(columns, Wanted) else Wanted(tuple(columns))
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if config_name is not None and isinstance(data, Path):
        raise EvaluationError(f"{data} is no id on the hub, which alone has configurations: drop --config_name.")
    if isinstance(data, str):
        found = _hub(data, split, config_name, usual, allow_download=allow_download)
    elif data.is_dir():
        found = _folder(data, split, usual, wanted.spellings, skip_bad_rows=skip_bad_rows)
    elif split is not None:
        raise EvaluationError(f"{data} is one file, without splits: drop --split.")
    else:
        found = _file(data, wanted.spellings, skip_bad_rows=skip_bad_rows)
    written, found = found, wanted.of(found)
    missing = [column for column in wanted.names if column not in found.column_names]
    if len(found) == 0 and not (missing and found.column_names):
        raise EvaluationError(f"{data} has no rows: there is nothing to evaluate on.")
    if missing:
        there = [name for name in written.column_names if name != PROBLEM]
        raise EvaluationError(
            f"{data} has no column {' and no column '.join(map(repr, missing))}; it has: "
            f"{', '.join(_with_fields(written, there))}. {_column_remedy(missing, there)}"
        )
    if isinstance(data, str) or FORMATS.get(data.suffix.lower()) in (None, "parquet", "arrow"):
        found = without_undecodable(found, data, wanted.names, skip_bad_rows=skip_bad_rows)
    return found


def _with_fields(data: datasets.Dataset, names: Sequence[str]) -> list[str]:
    """Names of columns, and behind each of objects those of its fields, as they can be asked for."""
    import datasets

    found = []
    for name in names:
        feature = data.features[name]
        fields = feature.languages if isinstance(feature, datasets.Translation) else feature
        inside = ", ".join(f"{name}.{one}" for one in fields) if isinstance(fields, (dict, list)) else ""
        found.append(f"{name} ({inside})" if inside else name)
    return found


def _column_remedy(missing: Sequence[str], there: Sequence[str]) -> str:
    """What can be done where columns are missing, by the names of those that are there."""
    if any(name != name.strip() and name.strip() in missing for name in there):
        return "Take out the spaces around the names in its header."
    return otherwise_separated(there) or "Name the right ones with --input_column, --second_column and --target_column."


def _choose(splits: Iterable[str], asked: str | None, usual: Sequence[str], name: object) -> str:
    there = list(splits)
    if asked is not None:
        if asked not in there:
            raise EvaluationError(f"{name} has no split {asked!r}; it has: {', '.join(there)}. Name one with --split.")
        return asked
    found = there if len(there) == 1 else [split for split in usual if split in there]
    if not found:
        remedy = f"call one of them {usual[0]}" if usual is TRAINING else "name one with --split"
        raise EvaluationError(f"{name} has several splits ({', '.join(there)}): {remedy}.")
    return found[0]


def _folder(
    path: Path, split: str | None, usual: Sequence[str], columns: Sequence[str], *, skip_bad_rows: bool
) -> datasets.Dataset:
    import datasets

    kind = folder_kind(path)
    if kind == "described":
        path = _split_of(path, metadata_in, "a metadata file", split, usual)
        return _described(path, columns, skip_bad_rows=skip_bad_rows)
    if kind != "images":
        try:
            if kind == "saved splits":
                splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
                path = path / _choose(splits, split, usual, path)
            elif split is not None:
                raise EvaluationError(f"{path} is one dataset, without splits: drop --split.")
            return datasets.load_from_disk(str(path)).with_format(None)
        except EvaluationError:
            raise
        except Exception as error:  # json, pyarrow and datasets each have their own
            raise EvaluationError(
                f"{path} cannot be read as a saved dataset: {first_line(error)}. Save it again with save_to_disk."
            ) from error
    path = _split_of(path, image_classes, "a folder for each class", split, usual)
    classes = image_classes(path)
    names = [folder.name for folder in classes]
    pairs = [(str(file), label) for label, folder in enumerate(classes) for file in images_in(folder)]
    return datasets.Dataset.from_dict(
        {"image": [file for file, _ in pairs], "label": [label for _, label in pairs]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
    )


def _split_of(path: Path, holds: Callable[[Path], object], what: str, split: str | None, usual: Sequence[str]) -> Path:
    """The folder itself, where it holds what is looked for, or the one in it of the split that is asked for."""
    if not holds(path):
        return path / _choose([folder.name for folder in subfolders(path) if holds(folder)], split, usual, path)
    if split is not None:
        raise EvaluationError(f"{path} has {what}, and none for splits: drop --split.")
    return path


def _described(folder: Path, columns: Sequence[str], *, skip_bad_rows: bool) -> datasets.Dataset:
    """A row for each row of a folder's metadata file, the images or sounds that it names in place of their names."""
    import datasets
    from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

    file = metadata_in(folder)
    assert file is not None
    found = _file(file, (*columns, _FILE_NAME), skip_bad_rows=skip_bad_rows)
    naming = [name for name in found.column_names if name == _FILE_NAME or name.endswith(f"_{_FILE_NAME}")]
    if not naming and len(found):
        raise EvaluationError(
            f"{file} has no column {_FILE_NAME!r}, which names the file that a row describes; it has: "
            f"{', '.join(name for name in found.column_names if name != PROBLEM)}."
        )
    for name in naming:
        files = [None if value is None else str(folder / str(value)) for value in found[name][:]]
        sounds = any(one is not None and Path(one).suffix.lower() in AudioFolder.EXTENSIONS for one in files)
        own = name.removesuffix(_FILE_NAME).removesuffix("_") or ("audio" if sounds else "image")
        there = [own] if own in found.column_names else []
        found = found.remove_columns(there).add_column(own, files).remove_columns(name)
        found = found if sounds else found.cast_column(own, datasets.Image())
    return found


def _hub(
    name: str, split: str | None, config_name: str | None, usual: Sequence[str], *, allow_download: bool
) -> datasets.Dataset:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import snapshot_download

    prepared, _ = data_caches(name)
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
    return found[_choose(found, split, usual, name)].with_format(None)


def _file(path: Path, columns: Sequence[str], *, skip_bad_rows: bool) -> datasets.Dataset:
    kind = FORMATS[path.suffix.lower()]
    try:
        if kind in ("parquet", "arrow"):
            return as_dataset(read_parquet(path) if kind == "parquet" else read_arrow(path))
        if kind == "text":
            text = path.read_text(encoding="utf-8-sig")
            return assembled(path, lambda: [{"text": text}] if text else [], columns, skip_bad_rows=skip_bad_rows)
        read = {
            "csv": partial(csv_rows, path),
            "tsv": partial(csv_rows, path, "\t"),
            "json": partial(json_rows, path),
            "jsonl": partial(json_lines, path),
        }[kind]
        return assembled(path, read, columns, skip_bad_rows=skip_bad_rows)
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
