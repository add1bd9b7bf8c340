"""Build sdist and wheel out of the commit that is checked out, check them, and try the wheel in empty environments.

    scripts/release                          # all of it: an hour, and the network
    scripts/release --build_only             # built and checked, tried nowhere
    scripts/release --pythons 3.10 3.13      # tried on these

What was found is in matrix.json beside this, and as a table in matrix.md. An environment that was tried with the same
wheel keeps what was found there. Nothing is uploaded. Exit status 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from scripts.releasing import table
from scripts.releasing.building import build
from scripts.releasing.checking import Wheel, archive_faults
from scripts.releasing.environments import pythons, stacks, tried

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("matrix.json")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=ROOT / "dist", help="where sdist and wheel go")
    parser.add_argument("--build_only", action="store_true", help="build and check, try nowhere")
    parser.add_argument("--pythons", nargs="+", metavar="3.X", help="try it on these; others keep what was found")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        work = Path(folder)
        built = build(ROOT, options.output_dir, work)
        faults = [*archive_faults(built)]
        for fault in faults:
            print(fault)
        wheel = Wheel(built.wheel)
        print(f"{built.wheel}: {built.wheel.stat().st_size:,} bytes, {len(faults)} faults")
        if faults or options.build_only:
            return 1 if faults else 0
        found: dict[str, Any] = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": built.commit,
            "sdist": {"name": built.sdist.name, "bytes": built.sdist.stat().st_size},
            "wheel": {
                "name": built.wheel.name,
                "bytes": built.wheel.stat().st_size,
                "digest": wheel.digest,
                "reference": wheel.packed,
            },
            "environments": [],
        }
        for row in _environments(wheel, options.pythons, work):
            found["environments"].append(row)
            RECORD.write_text(table.record(found), encoding="utf-8")  # a run that is cut short goes on from there
    document = table.document(found)
    RECORD.with_suffix(".md").write_text(document, encoding="utf-8")
    print(document)
    return 1 if any(row["problems"] for row in found["environments"]) else 0


def _environments(wheel: Wheel, asked: list[str] | None, work: Path) -> Iterator[dict[str, Any]]:
    """What was found of each environment, in their order. One that passed with the same wheel is not tried again."""
    interpreters = pythons(wheel.metadata.requires_python or SpecifierSet(), os.environ)
    if unknown := {*(asked or ())} - interpreters.keys():
        raise SystemExit(f"no Python {', '.join(sorted(unknown))} here; there are {', '.join(interpreters)}")
    kept = {row["asked"]: row for row in _earlier(wheel.digest) if not row["problems"]}
    cache = work / "cache"
    last = None
    for stack in stacks([*interpreters]):
        if stack.name in kept:
            yield kept[stack.name]
            continue
        if asked and stack.python not in asked:
            continue
        if last is not None and last != (stack.python, stack.torch):  # a gigabyte that no other environment needs
            subprocess.run(
                ["uv", "cache", "clean", "--quiet", "--cache-dir", cache / "uv", "torch", "triton"], check=True
            )
        last = stack.python, stack.torch
        with tempfile.TemporaryDirectory(prefix="environment-", dir=work) as folder:
            row = tried(stack, interpreters[stack.python], wheel, Path(folder), cache)
        print(f"{stack.name}: {table.summary(row)}", *row["problems"], sep="\n    ", flush=True)
        yield row


def _earlier(digest: str) -> list[dict[str, Any]]:
    """What an earlier run found of the same wheel."""
    if not RECORD.exists():
        return []
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = found["environments"] if found["wheel"]["digest"] == digest else []
    return rows


if __name__ == "__main__":
    sys.exit(main())
