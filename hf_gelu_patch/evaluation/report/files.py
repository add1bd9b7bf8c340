"""Reports as files, which are written whole or not at all."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.report import formats
from hf_gelu_patch.evaluation.report.results import JSON_NAME, Data, merge, read

__all__ = ["rebuild", "save", "writable", "write"]

_ROOM = 2**22  # bytes: more than the reports take


def writable(folder: Path) -> None:
    """Make the folder for results, and see that files can be written to it, and that there is room for some.

    Raises:
        EvaluationError: they cannot, or there is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EvaluationError(
            f"results cannot be written to {folder}: {error.strerror or error}. Make room, or name another folder with "
            "--output_dir."
        ) from error


def save(data: Data, folder: Path) -> list[Path]:
    """Write all reports, each at once: whoever reads sees the old file or the whole new one. The results of another run
    that are there already are kept in the folder ``earlier``, from which ``rebuild`` takes them too.

    Returns:
        What was written. Without matplotlib there are no plots.

    Raises:
        EvaluationError: they cannot be written.
    """
    writable(folder)
    try:
        from hf_gelu_patch.evaluation.report.plots import draw

        pictures = draw(data)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        pictures = {}
    written = {one.file: one.write(data, pictures).encode() for one in formats.FORMATS}
    written |= {f"{name}.png": picture for name, picture in pictures.items()}
    _keep(folder / JSON_NAME, written[JSON_NAME])
    for name, content in written.items():
        write(folder / name, content)
    return [folder / name for name in written]


def _keep(path: Path, content: bytes) -> None:
    """Move other results than these aside."""
    if not path.is_file() or path.read_bytes() == content:
        return
    aside = path.parent / "earlier"
    try:
        aside.mkdir(exist_ok=True)
        path.replace(next(one for n in itertools.count(1) if not (one := aside / f"{n}.json").exists()))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be moved to {aside}: {error.strerror or error}.") from error


def write(path: Path, content: bytes) -> None:
    """Write a file at once: whoever reads sees the old one or the whole new one.

    Raises:
        EvaluationError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def rebuild(places: Sequence[Path], folder: Path) -> list[Path]:
    """All reports once more, of one run or of several together, without the models.

    Args:
        places: folders that runs wrote to.
        folder: for the reports.

    Raises:
        EvaluationError: there is nothing in a folder, or the reports cannot be written.
    """
    return save(merge([(_run(place), read(place)) for place in places]), folder)


def _run(place: Path) -> str:
    folder = place if place.is_dir() else place.parent
    return folder.resolve().name
