"""What a name of data means. Its form alone tells, before ``datasets`` is asked: that takes ``data/test.csv`` for an id
on the hub, and retries for half a minute."""

from __future__ import annotations

import re
from pathlib import Path

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.hub import ask_hub, data_caches

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""The data files that can be read, by their endings."""


_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def data_file(name: str, *, allow_download: bool = False) -> Path | str:
    """The file or folder of that name, or the id of data on the hub that are in the cache (or may be fetched).

    Raises:
        EvaluationError: it isn't there, or is of no known format.
    """
    path = Path(name).expanduser()
    formats = ", ".join(ending[1:] for ending in FORMATS)
    if path.is_dir():
        folder_kind(path)
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
    if not allow_download and not any(folder.is_dir() for folder in data_caches(name)):
        raise EvaluationError(
            f"{name!r} is no file or folder here, and as data on the hub they are not in its cache. "
            "To fetch them from the hub, add --allow_download."
        )
    if allow_download:
        ask_hub()
    return name


def folder_kind(path: Path) -> str:
    if (path / "dataset_dict.json").is_file():
        return "saved splits"
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return "saved"
    if metadata_in(path) or any(metadata_in(folder) for folder in subfolders(path)):
        return "described"
    if image_classes(path) or any(image_classes(folder) for folder in subfolders(path)):
        return "images"
    inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in FORMATS)
    if inside:
        raise EvaluationError(f"{path} is a folder of files: name one of them, such as {path / inside[0]}.")
    raise EvaluationError(
        f"{path} holds no data: a folder is what save_to_disk wrote, or has a folder of images for each class, or a "
        f"file {_METADATA[0]} with a column file_name."
    )


def subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def metadata_in(path: Path) -> Path | None:
    """The file in a folder that describes other files, a row each; None where there is none."""
    return next((path / name for name in _METADATA if (path / name).is_file()), None)


def images_in(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _IMAGES)


def image_classes(path: Path) -> list[Path]:
    """The folders in it that hold images: one for each class."""
    return [folder for folder in subfolders(path) if images_in(folder)]
