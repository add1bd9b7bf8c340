"""What a patch reaches, and what it moves, in a tiny random model of every type that transformers knows, and in small
models of other libraries.

    python -m scripts.covering --output coverage.jsonl --table scripts/covering/coverage.md
    python -m scripts.covering gpt2 llama timm/test_vit --output three.jsonl --no-resume
    python -m scripts.covering --library timm diffusers --output others.jsonl --record scripts/covering/libraries.json

One line of JSON a type, written as soon as it is known: a run that was cut short goes on where it stopped. A type
that crashes, hangs or wants too much memory costs its own row only. Exit status 1 if anything that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from scripts.covering.coverage import Coverage
from scripts.covering.libraries import LIBRARIES, installed, library_of, names_of
from scripts.covering.processes import cover_all
from scripts.covering.record import keep
from scripts.covering.table import table, totals


def read(path: Path) -> dict[str, Coverage]:
    """The rows of an earlier run; a line cut short is left out."""
    rows: dict[str, Coverage] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Coverage.from_dict(json.loads(line))
        except json.JSONDecodeError:
            continue
        rows[row.model_type] = row
    return rows


def _asked(parser: argparse.ArgumentParser, types: list[str], libraries: list[str]) -> list[str]:
    """The models that are named, or all of the libraries that are; an error where a name cannot be one."""
    wanted = {library_of(one) for one in types} or {*libraries}
    if unknown := sorted(wanted - {*LIBRARIES}):
        parser.error(f"no library {', '.join(unknown)}; there are {', '.join(LIBRARIES)}")
    if absent := sorted(library for library in wanted if not installed(library)):
        parser.error(f"not installed: pip install {' '.join(LIBRARIES[library] for library in absent)}")
    if not types:
        return [name for library in libraries for name in names_of(library)]
    known = names_of("transformers") if "transformers" in wanted else ()
    if unknown := sorted({one for one in types if library_of(one) == "transformers"} - {*known}):
        parser.error(f"no model type {', '.join(unknown)}; there are {len(known)}, such as {', '.join(known[:3])}")
    return types


def _covered(types: list[str], options: argparse.Namespace) -> Iterator[Coverage]:
    return cover_all(types, processes=options.processes, timeout=options.timeout, memory=options.memory)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.covering",
        description=(__doc__ or "").partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "types",
        nargs="*",
        metavar="TYPE",
        help="model types such as bert, or timm/test_vit; none means all of a library",
    )
    parser.add_argument(
        "--library",
        nargs="+",
        choices=[*LIBRARIES],
        default=["transformers"],
        metavar="LIBRARY",
        help=f"whose models are tried where no types are named: {', '.join(LIBRARIES)}",
    )
    parser.add_argument("--output", type=Path, default=Path("coverage.jsonl"), help="the rows, one line each")
    parser.add_argument("--table", type=Path, help="Markdown file for the totals and the table")
    parser.add_argument("--record", type=Path, help="JSON file whose rows of these libraries are replaced")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for each process")
    parser.add_argument("--processes", type=int, default=1, help="how many run side by side")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one type")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip the types that the output has; --no-resume writes it anew",
    )
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # of the processes, which import the libraries anew
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.processes < 1:
        parser.error("--processes takes 1 or more")
    types = _asked(parser, options.types, options.library)
    rows = read(options.output) if options.resume else {}
    todo = [one for one in dict.fromkeys(types) if one not in rows]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with (
        options.output.open("a" if options.resume else "w", encoding="utf-8") as file,
        Progress(console=console, disable=not console.is_terminal) as bars,
    ):
        bar = bars.add_task("types", total=len(todo))
        if rows and not options.output.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")  # after a line that was cut short
        for done, row in enumerate(_covered(todo, options), start=1):
            rows[row.model_type] = row
            file.write(json.dumps(row.to_dict(), allow_nan=False) + "\n")
            file.flush()
            bars.advance(bar)
            for problem in row.problems:
                console.print(f"{row.model_type}: {problem}", markup=False, highlight=False, soft_wrap=True)
            if not console.is_terminal and (done % 50 == 0 or done == len(todo)):
                print(f"{done} of {len(todo)}", file=sys.stderr, flush=True)
    asked = sorted((rows[one] for one in types), key=lambda row: row.model_type)
    summary = totals(asked)
    print(summary)
    if options.table is not None:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(f"{summary}\n\n{table(asked)}", encoding="utf-8")
    if options.record is not None:
        keep(asked, options.record)
    return 1 if any(row.problems for row in asked) else 0


if __name__ == "__main__":
    sys.exit(main())
