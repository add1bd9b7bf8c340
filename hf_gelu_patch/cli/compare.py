"""``hf-gelu-patch compare``: two finished runs held against each other, document by document."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import declared, made, option

__all__ = ["COMMAND"]

_JSON_NAME = "comparison.json"


@dataclass(frozen=True)
class Compare:
    """What the command takes."""

    runs: tuple[Path, ...] = option(
        MISSING, "what two runs wrote: a folder or a file", metavar="RUN", read=Path, repeated=True, positional=True
    )
    output_dir: Path | None = option(
        None, f"write {_JSON_NAME} there too, with every figure", metavar="FOLDER", read=Path
    )
    seed: int = option(0, "of the bootstrap (default: 0)", metavar="N", read=int)


def _run(said: Said) -> int:
    options = made(Compare, said)
    if len(options.runs) != 2:
        raise EvaluationError(
            f"{len(options.runs)} run{'s were' if len(options.runs) > 1 else ' was'} named: name two, before and after."
        )
    try:
        import datasets  # noqa: F401  (with pyarrow, and all that reading takes)
        import rich
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"comparing needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    del rich
    if options.output_dir is not None:
        from hf_gelu_patch.evaluation.report.files import writable

        writable(options.output_dir)
    from rich.console import Console

    from hf_gelu_patch.evaluation.samples.comparing import compare_runs
    from hf_gelu_patch.evaluation.samples.finished import read_run
    from hf_gelu_patch.evaluation.samples.tables import plain, print_comparisons

    before, after = map(read_run, options.runs)
    comparisons = compare_runs(before, after, seed=options.seed)
    print_comparisons(comparisons, Console())
    keys = [{(one.task, one.filter) for one in run} for run in (before, after)]
    for place, alone in zip(options.runs, (keys[0] - keys[1], keys[1] - keys[0]), strict=True):
        if alone:
            names = ", ".join(f"{task} ({filter_})" if filter_ else task for task, filter_ in sorted(alone))
            print(f"in {place} alone: {names}")
    if options.output_dir is not None:
        path = options.output_dir / _JSON_NAME
        data = plain(comparisons, before=str(options.runs[0]), after=str(options.runs[1]), seed=options.seed)
        try:
            path.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from error
        print(f"written to {path}")
    return 0


_EXAMPLES = """\
examples:
  hf-gelu-patch compare before after
      two folders that lm_eval --log_samples wrote, or lighteval --save-details
  hf-gelu-patch compare results/records/llama other/records/llama --output_dir compared
      our own records of two runs on the same rows
  hf-gelu-patch compare old/samples_arc_easy_2026-11-01T10-00-00.000000.jsonl new
      one file against a folder

Documents are paired by number and content. What could not be paired is said, with why. The exit status is 0; 1 where
something that was named cannot be used.
"""

COMMAND = Command(
    "compare",
    "two finished runs, document by document: lm_eval's samples, lighteval's details, our records",
    "Compare two finished runs on the same documents: each metric with its interval, McNemar's exact test where an "
    "answer is right or wrong, and which answers changed.",
    _run,
    declared(Compare),
    _EXAMPLES,
)
