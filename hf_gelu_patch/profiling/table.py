"""A profile as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hf_gelu_patch.profiling.grid import BAR, EDGE, FLAT

__all__ = ["REGIONS", "SHOWN", "percent", "small", "table"]

SHOWN = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
"""The functions of which the drift is shown; the data have all."""

REGIONS = (
    "Lobe: the share of inputs where f falls towards its flat tail. "
    f"Flat: where |f′| ≤ {FLAT:g}, on the negative side. As x: where f(x) is x up to rounding. "
    "Idle units had all of their inputs in the flat tail."
)
_DRIFT = (
    "The last columns: how far another function would move what the site gives, beside its size (RMS). Nothing was "
    "patched to find out."
)
_WIDTH = 118
_BLOCKS = "▁▂▃▄▅▆▇█"


def table(data: Mapping[str, Any]) -> str:
    """A line a site, of what ``Profile.to_dict`` gives."""
    shown = [name for name in SHOWN if any(name in site.get("drift", ()) for site in data["sites"])]
    head = ["site", "function", f"−{EDGE} to {EDGE}", "mean", "std", "lobe", "flat", "as x", "idle units", *shown]
    rows = [_row(site, shown) for site in data["sites"] if "mean" in site]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    lines += [f"{site['path']}: {_why(site)}" for site in data["sites"] if "mean" not in site]
    lost = sum(site["not_finite"] for site in data["sites"])
    return "\n".join(
        [
            *lines,
            *([f"{lost:,} numbers that are not finite were left out."] if lost else []),
            *textwrap.wrap(f"{REGIONS} {_DRIFT}", _WIDTH),
        ]
    )


def _row(site: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    never = site["never_active"]
    idle = "–" if never is None else f"{len(never):,} of {site['units']:,}"
    shares = (percent(site[name]) for name in ("lobe", "flat", "identity"))
    drift = ("" if name not in site["drift"] else percent(site["drift"][name]["relative"]) for name in shown)
    spread = (small(site["mean"]), small(site["std"]))
    return [
        site["path"],
        site["function"] or site["activation"],
        _sketch(site["histogram"]),
        *spread,
        *shares,
        idle,
        *drift,
    ]


def _why(site: Mapping[str, Any]) -> str:
    return site["reason"] or "not called"


def _sketch(bars: Sequence[int]) -> str:
    """The histogram in a few letters, each of four bars."""
    inner = bars[1:-1]
    group = round(1 / BAR)
    tall = [sum(inner[at : at + group]) for at in range(0, len(inner), group)]
    most = max(tall, default=0) or 1
    return "".join(" " if not one else _BLOCKS[min(len(_BLOCKS) - 1, one * len(_BLOCKS) // (most + 1))] for one in tall)


def small(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share; "<" where it would read as none, "–" where there is none."""
    if value is None:
        return "–"
    if value < 5e-5:
        return "<0.01 %" if value else "0"
    return f"{value:.2%}".replace("%", " %") if value < 0.1 else f"{value:.0%}".replace("%", " %")
