"""The tables of the recorded study in the README and the guide."""

from __future__ import annotations

import re
from pathlib import Path

from hf_gelu_patch.evaluation.report.markdown import table
from scripts.studying.claims import VERDICTS, Found, judged

__all__ = ["GUIDE", "README", "headline", "verdicts", "write"]

_ROOT = Path(__file__).parents[2]
README = _ROOT / "README.md"
GUIDE = _ROOT / "hf_gelu_patch" / "guides" / "studying.md"
_HEADING = "## What is claimed of GELU"  # in both


def verdicts(found: Found) -> str:
    """The README's table: the claims by verdict."""
    claims = judged(found)
    said = {verdict: "<br>".join(one.said for one in claims if one.verdict == verdict) for verdict in VERDICTS}
    return table(["verdict", "claims"], [[verdict, some] for verdict, some in said.items() if some])


def headline(found: Found) -> str:
    """The guide's table: why, too."""
    rows = [[f"{claim.number}", claim.said, claim.verdict, claim.sentence] for claim in judged(found)]
    return table(["", "claim", "verdict", "why"], rows)


def write(found: Found, readme: Path = README, guide: Path = GUIDE) -> None:
    """Put both tables where they belong, in place of those that are there."""
    for path, written in ((readme, verdicts(found)), (guide, headline(found))):
        text = path.read_text(encoding="utf-8")
        if (place := re.search(rf"^{_HEADING}$.*?^(\|.*?)(?:\n\n|\n?\Z)", text, re.MULTILINE | re.DOTALL)) is None:
            raise ValueError(f"{path.name} has no table under '{_HEADING}'.")
        path.write_text(text[: place.start(1)] + written + text[place.end(1) :], encoding="utf-8")
