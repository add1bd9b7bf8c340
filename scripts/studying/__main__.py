"""Check what an article claims of GELU: measure, judge, and write one page.

    python -m scripts.studying results/study             # about an hour on two cores
    python -m scripts.studying results/study --quick     # a minute: shows that it runs, and says little
    python -m scripts.studying results/study --recorded  # the page of the recorded study, without measuring
    python -m scripts.studying results/study --record    # makes what is found the recorded study

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
from scripts.studying.parts import missing, parts, put_together, run
from scripts.studying.sizes import FULL, QUICK

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
    if options.recorded:
        _show(json.loads(RECORD.read_text(encoding="utf-8")), options.folder)
        return 0
    sizes = QUICK if options.quick else FULL
    kept = options.folder / "sizes.json"
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != sizes.name:
        parser.error(f"{options.folder} holds a study of another size: name another folder.")
    options.folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(sizes.name), encoding="utf-8")
    print(f"{len(missing(options.folder, sizes))} of {len(parts(sizes))} parts to find out", flush=True)
    for told in run(options.folder, sizes, options.processes):
        print(told, flush=True)
    about = environment(processes=1, device="cpu", command=["python", "-m", "scripts.studying"])
    del about["git"]
    found = put_together(options.folder, sizes, about)
    if options.record:
        _write(found, RECORD)
        documents.write(found)
    _show(found, options.folder)
    return 0


def _show(found: Found, folder: Path) -> None:
    """The record and the page in a folder, and the verdicts on the screen."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(found, folder / "study.json")
    (folder / "study.html").write_text(page(found), encoding="utf-8")
    for claim in judged(found):
        print(f"{claim.number}. {claim.verdict}: {claim.sentence}")


def _write(found: Found, path: Path) -> None:
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
