"""Check what an article claims of GELU: measure, judge, and write one page.

    python -m scripts.studying results/study                # about an hour on two cores
    python -m scripts.studying results/quick --quick        # a minute: shows that it runs, and says little
    python -m scripts.studying results/recorded --recorded  # the page of the recorded study, without measuring
    python -m scripts.studying results/study --record       # makes what is found the recorded study

What was found is in the folder as soon as it is there. Given once more, the command goes on with what is missing. It
writes ``study.json`` and ``study.html``, which needs nothing else. The recorded study is ``study.json`` beside this
script; the README and the guide have its tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_gelu_patch.evaluation.environment import environment
from scripts.studying import documents
from scripts.studying.claims import Found, judged
from scripts.studying.page import page
from scripts.studying.parts import FolderError, begin, holds_a_study, missing, parts, put_together, run
from scripts.studying.sizes import FULL, QUICK, Sizes

RECORD = Path(__file__).parent / "study.json"


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.studying",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="for what is found")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="side by side (default: 2)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="little of everything")
    how.add_argument("--record", action="store_true", help=f"write {RECORD.name}, and the tables in README and guide")
    how.add_argument("--recorded", action="store_true", help=f"measure nothing: show {RECORD.name}")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: there has to be one.")
    try:
        if options.recorded:
            _show_the_recorded(options.folder)
        else:
            _measure(options.folder, QUICK if options.quick else FULL, options.processes, record=options.record)
    except FolderError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"\nStopped. {options.folder} keeps what was found: the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _show_the_recorded(folder: Path) -> None:
    if holds_a_study(folder):
        raise FolderError(f"{folder} holds a study of its own: name another folder for the recorded one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _show(json.loads(RECORD.read_text(encoding="utf-8")), folder)
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error.strerror}.") from error


def _measure(folder: Path, sizes: Sizes, processes: int, *, record: bool) -> None:
    begin(folder, sizes)
    print(f"{len(missing(folder, sizes))} of {len(parts(sizes))} parts to find out", flush=True)
    for told in run(folder, sizes, processes):
        print(told, flush=True)
    about = environment(processes=1, device="cpu", command=["python", "-m", "scripts.studying"])
    del about["git"]
    found = put_together(folder, sizes, about)
    if record:
        _write(found, RECORD)
        documents.write(found)
    _show(found, folder)


def _show(found: Found, folder: Path) -> None:
    """The record and the page in a folder, and the verdicts on the screen."""
    _write(found, folder / "study.json")
    written = folder / "study.html"
    written.write_text(page(found), encoding="utf-8")
    for claim in judged(found):
        print(f"{claim.number}. {claim.said}\n   {claim.verdict}: {claim.sentence}")
    if found["sizes"]["name"] == QUICK.name:
        print("This was the quick study: it shows that everything runs, and its verdicts say little.")
    print(f"The page is {written}.")


def _write(found: Found, path: Path) -> None:
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
