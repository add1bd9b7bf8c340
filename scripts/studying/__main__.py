"""Check what an article claims of GELU: measure, judge, and write one page.

    python -m scripts.studying results/study           # about an hour on two cores
    python -m scripts.studying results/study --quick   # some minutes: shows that it runs, and says little
    python -m scripts.studying results/study --record  # also writes the record that the guide is held to

What was found is in the folder as soon as it is there. Given once more, the command goes on with what is missing. It
writes ``study.json`` and ``study.html``, which needs nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_gelu_patch.evaluation.environment import environment
from scripts.studying import page
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
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="side by side (default: 2)")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} beside this script too")
    options = parser.parse_args(arguments)
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
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    for place in (options.folder / "study.json", *([RECORD] if options.record else [])):
        place.write_text(text, encoding="utf-8")
    (options.folder / "study.html").write_text(page.page(found), encoding="utf-8")
    for claim in page.judged(found):
        print(f"{claim.number}. {claim.verdict}: {claim.sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
