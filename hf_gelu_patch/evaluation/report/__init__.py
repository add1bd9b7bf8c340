"""Reports of results: on the screen, and as files that are written whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.data import EvaluationError
from hf_gelu_patch.evaluation.report.document import (
    NOTES,
    Code,
    Picture,
    Table,
    Text,
    left_out,
    patched,
    sections,
    summary,
)
from hf_gelu_patch.evaluation.report.page import page
from hf_gelu_patch.evaluation.report.results import JSON_NAME, Data, merge, read

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NAMES", "markdown", "model_card", "print_results", "rebuild", "save", "writable"]

_MARKDOWN, _PAGE, _CARD = "evaluation.md", "evaluation.html", "model-card.md"
NAMES = (JSON_NAME, _MARKDOWN, _PAGE, _CARD, "quality.png", "speed.png", "drift.png")
"""Every file that ``save`` may write."""

_STYLES = {"faster": "green", "slower": "red", "answers unchanged": "green", "answers worse": "red"}


def print_results(data: Data, console: Console) -> None:
    """The summary, below it the rows that its figures leave out, and what each patch did. Colours are rich's matter:
    none where there is no terminal, or where NO_COLOR is set."""
    from rich.table import Table as Grid
    from rich.text import Text as Words

    # Piped, there is no width to be had: wide enough for every cell on its own line.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 180
    table = summary(data)
    grid = Grid(*table.headings, show_lines=True)
    for row in table.rows:
        cells = [Words("\n".join(lines)) for lines in row[:-1]]
        told = [
            Words(line, style=_STYLES.get(line, "bold red" if line.startswith("WRONG") else "")) for line in row[-1]
        ]
        grid.add_row(*cells, Words("\n").join(told))
    console.print(grid)
    console.print(NOTES, markup=False, highlight=False)
    console.print()
    for text in [*(block.text for block in left_out(data)), *(block.text for block in patched(data))]:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


# -------------------------------------------------------------------------------------------------------------- texts


def markdown(data: Data, pictures: Sequence[str] = ()) -> str:
    """The summary and all sections.

    Args:
        pictures: the names of the plots that lie beside it.
    """
    lines = ["# Evaluation", "", *_grid(summary(data)), "", _text(NOTES)]
    for section in sections(data, pictures):
        lines += ["", f"## {section.title}"]
        for block in section.blocks:
            lines.append("")
            if isinstance(block, Table):
                lines += _grid(block)
            elif isinstance(block, Text):
                lines.append(_text(block.text))
            elif isinstance(block, Code):
                fence = "`" * 3
                while fence in block.text:
                    fence += "`"
                lines += [f"{fence}{block.language}", block.text, fence]
            elif isinstance(block, Picture):
                lines.append(f"![{_text(block.alt)}]({block.name}.png)")
    return "\n".join([*lines, ""])


def _grid(table: Table) -> list[str]:
    rows = [f"| {' | '.join('<br>'.join(map(_text, cell)) for cell in row)} |" for row in table.rows]
    return [
        f"| {' | '.join(map(_text, table.headings))} |",
        "| " + " | ".join("---" for _ in table.headings) + " |",
        *rows,
    ]


def _text(line: str) -> str:
    """As Markdown shows it: what would be a column, a tag, emphasis or a line of its own is a character."""
    for character in "\\|<>*_`[]":
        line = line.replace(character, "\\" + character)
    return " ".join(line.split())


def model_card(data: Data) -> str:
    """A model card's metadata (https://huggingface.co/docs/hub/model-cards#evaluation-results): every metric of each
    model, unpatched and patched, to go into the README.md of its repository on the hub."""
    import yaml
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    entries = []
    for model in data["models"]:
        subject = model["subject"]
        metrics = {"unpatched": model["unpatched"]}
        metrics |= {variant["name"]: variant["quality"]["after"] for variant in model["variants"]}
        of_data = Path(subject["data"]).name
        left = {"rows_left_out": len(model["skipped"])} if model["skipped"] else {}
        results = [
            EvalResult(
                task_type=Path(subject["task"]).stem,
                dataset_type=of_data,
                dataset_name=of_data,
                dataset_split=subject["split"],
                metric_type=metric,
                metric_name=f"{metric.replace('_', ' ')} ({variant})",
                metric_value=float(value),
                metric_args={"variant": variant} | left,
            )
            for variant, values in metrics.items()
            for metric, value in values.items()
        ]
        entries += eval_results_to_model_index(subject["name"], results) if results else []
    return f"---\n{yaml.safe_dump({'model-index': entries}, sort_keys=False, allow_unicode=True)}---\n"


# -------------------------------------------------------------------------------------------------------------- files


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


_ROOM = 2**22  # bytes: more than the reports take


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
    written = {
        JSON_NAME: (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        _MARKDOWN: markdown(data, tuple(pictures)).encode(),
        _PAGE: page(data, pictures).encode(),
        _CARD: model_card(data).encode(),
        **{f"{name}.png": picture for name, picture in pictures.items()},
    }
    _keep(folder / JSON_NAME, written[JSON_NAME])
    for name, content in written.items():
        _replace(folder / name, content)
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


def _replace(path: Path, content: bytes) -> None:
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
