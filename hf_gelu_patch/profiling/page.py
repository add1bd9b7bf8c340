"""A profile as one web page that needs nothing else: no network, no scripts, a small histogram for each site."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_gelu_patch.profiling.table import REGIONS, SHOWN, percent, small

__all__ = ["page"]

_BAR, _HEIGHT, _LINE = 4.0, 72.0, 6.0  # of a picture, in its own units: a bar's width, the tallest bar, a line's room
_DASHES = {"flat": "1 3", "lobe": "6 3", "identity": "none"}  # told apart without colours


def page(data: Mapping[str, Any]) -> str:
    """The page as HTML; whatever is not the template's own text is escaped.

    Args:
        data: of ``Profile.to_dict``. What the profile is of is shown too, where that is there: ``subject``, ….
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"breakable": _breakable, "percent": percent, "small": small, "picture": _picture}
    subject = data.get("subject")
    return templates.get_template("profile.html.jinja").render(
        title=f"Profile: {subject['name'] if subject else data['model']}",
        data=data,
        sites=[site for site in data["sites"] if "mean" in site],
        others=[site for site in data["sites"] if "mean" not in site],
        shown=SHOWN,
        regions=REGIONS,
    )


def _picture(site: Mapping[str, Any], bars: Mapping[str, Any]) -> Markup:
    """The histogram of a site as SVG, in the colour of the text, with its function's regions as lines below it."""
    counts, width = site["histogram"], _BAR * len(site["histogram"])
    most = max(counts) or 1
    low, high = float(bars["from"]), float(bars["to"])

    def at(x: float) -> float:
        """Where x lies across the picture, whose first and last bars have all that is beyond."""
        if math.isinf(x):
            return 0.0 if x < 0 else width
        return min(max(_BAR * (1 + (x - low) / float(bars["width"])), 0.0), width)

    parts = [
        f'<rect x="{_BAR * number:g}" y="{_HEIGHT - tall:.1f}" width="{_BAR - 0.5:g}" height="{tall:.1f}"/>'
        for number, count in enumerate(counts)
        if (tall := max(0.7, _HEIGHT * count / most) if count else 0.0)
    ]
    parts.append(f'<path d="M0 {_HEIGHT}H{width:g}M{at(0):g} {_HEIGHT}v4" stroke="currentColor" fill="none"/>')
    found = site["bounds"] or {}
    ends = {
        "flat": (-math.inf, found.get("flat")),
        "lobe": (-math.inf if found.get("flat") is None else found["flat"], found.get("lobe")),
        "identity": (found.get("identity"), math.inf),
    }
    y = _HEIGHT + _LINE
    for name, (start, end) in ends.items():
        if start is not None and end is not None:
            parts.append(
                f'<path d="M{at(start):.1f} {y:g}H{at(end):.1f}" stroke="currentColor" stroke-width="2.5" '
                f'stroke-dasharray="{_DASHES[name]}"/>'
            )
    y += 12
    for x, anchor in ((low, "start"), (0.0, "middle"), (high, "end")):
        text = f"{x:g}".replace("-", "−")
        parts.append(f'<text x="{at(x):g}" y="{y:g}" text-anchor="{anchor}" font-size="11">{text}</text>')
    label = Markup.escape(
        f"Histogram of {site['path']}: mean {small(site['mean'])}, standard deviation {small(site['std'])}, "
        f"{percent(site['negative'])} below 0"
    )
    return Markup(
        f'<svg viewBox="0 0 {width:g} {y + 3:g}" role="img" aria-label="{label}" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


def _breakable(path: str) -> Markup:
    """A path that may go on in another line where one of its parts ends."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", path))
