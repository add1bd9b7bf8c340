"""The study as one web page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from hf_gelu_patch.evaluation.report.page import templates_in
from scripts.benchmarking.timing import versions_of
from scripts.studying.claims import Found, judged
from scripts.studying.figures import drawn

__all__ = ["page"]


def page(found: Found) -> str:
    """The page as HTML."""
    templates = templates_in(Path(__file__).parent / "templates")
    return templates.get_template("study.html.jinja").render(
        claims=judged(found),
        figures={name: Markup(svg) for name, svg in drawn(found).items()},
        quick=found["sizes"]["name"] == "quick",
        measured=versions_of(found["environment"]),
    )
