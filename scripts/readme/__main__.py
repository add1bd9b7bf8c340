"""Put what a demo found into the README.

scripts/demo
python -m scripts.readme results    # the folder that the demo wrote
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from scripts.readme import place, table

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.readme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the folder that scripts/demo wrote")
    folder = parser.parse_args().results
    found = (folder / "evaluation.json").read_text(encoding="utf-8")
    (ROOT / ".github" / "demo.json").write_text(
        found.replace(f"{ROOT}/", "").replace(str(Path.home()), "~"), encoding="utf-8"
    )
    shutil.copy(folder / "speed.png", ROOT / ".github" / "demo.png")
    data = json.loads(found)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    section = re.compile(r"(^## Results of the demo$.*?^\| --- .*?\n)\|.*?\n\n.*?\n\n", re.MULTILINE | re.DOTALL)
    path.write_text(section.sub(lambda found: f"{found[1]}{table(data)}\n\n{place(data)}\n\n", text), encoding="utf-8")


if __name__ == "__main__":
    main()
