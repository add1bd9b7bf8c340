"""``hf-gelu-patch report``: the reports of an evaluation once more, or of several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import declared, made, option
from hf_gelu_patch.evaluation.report.formats import FORMATS

__all__ = ["COMMAND", "written"]


@dataclass(frozen=True)
class Report:
    """What the command takes."""

    results: tuple[Path, ...] = option(
        MISSING, "a folder of results", metavar="RESULTS", read=Path, repeated=True, positional=True
    )
    output_dir: Path | None = option(
        None, "for the reports (default: the folder, where it is one)", metavar="FOLDER", read=Path
    )


def _run(said: Said) -> int:
    from hf_gelu_patch.evaluation.report import files

    options = made(Report, said)
    if options.output_dir is None and len(options.results) > 1:
        raise EvaluationError("several runs make a report of their own: name a folder for it with --output_dir.")
    [first, *_] = options.results
    folder = options.output_dir or (first if first.is_dir() else first.parent)
    print(written(files.rebuild(options.results, folder)))
    return 0


def written(paths: Sequence[Path]) -> str:
    """Which files there are; and what would give pictures too, where there are none."""
    told = f"written to {paths[0].parent}: {', '.join(path.name for path in paths)}"
    if any(path.suffix == ".png" for path in paths):
        return told
    return f"{told} (for plots: pip install 'hf-gelu-patch[evaluation]', which brings matplotlib)"


_EPILOG = """\
examples:
  hf-gelu-patch report results
      the table, the plots and the page once more
  hf-gelu-patch report monday tuesday --output_dir both
      two runs in one report

files:
"""

COMMAND = Command(
    "report",
    "the reports of an evaluation once more, or of several together",
    "Build table, plots and page again from what evaluations wrote, and merge several into one.",
    _run,
    declared(Report),
    _EPILOG + "".join(f"  {one.file:<17} {one.holds}\n" for one in FORMATS),
)
