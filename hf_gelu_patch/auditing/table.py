"""An audit as lines of text."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from hf_gelu_patch.auditing.findings import LEVELS, Audited

if TYPE_CHECKING:
    from hf_gelu_patch.auditing import Audit

__all__ = ["table"]

_WIDTH = 118
_COLUMNS = {"config": ("config",), "checkpoint": ("checkpoint", "gguf"), "published": ("family",)}
_HEAD = ("", "site", "computes", *_COLUMNS)


def table(found: Audit) -> str:
    """A line for each group of like sites, then the findings and the notes."""
    rows = [(f"{count} ×", *row) for row, count in Counter(map(_row, found.sites)).items()]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if lines:
        lines.insert(0, "  ".join(cell.ljust(width) for cell, width in zip(_HEAD, widths, strict=True)).rstrip())
    for one in found.findings:
        lines += ["", *_wrapped(f"{one.level}: {one.sentence}", "", "  ")]
        for evidence in one.evidence:
            lines += _wrapped(evidence, "  - ", "    ")
        lines.append(f"  mend: {one.mend}")
        lines += [f"  or, if that is meant: {one.otherwise}"] if one.otherwise else []
        lines += [f"  what it is worth: {one.evaluate}"] if one.evaluate else []
    lines += (
        ["", *(line for note in found.notes for line in _wrapped(note, "not judged: ", "  "))] if found.notes else []
    )
    return "\n".join([_summary(found), *lines])


def _summary(found: Audit) -> str:
    counts = Counter(one.level for one in found.findings)
    told = ", ".join(f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in LEVELS if counts[level])
    sites = len(found.sites)
    return f"{found.model}: {sites} activation site{'' if sites == 1 else 's'}; {told or 'nothing found'}"


def _row(site: Audited) -> tuple[str, ...]:
    said = (
        ", ".join(dict.fromkeys(one.shown for one in site.claims if one.source in sources)) or "–"
        for sources in _COLUMNS.values()
    )
    mark = " !" if site.level is not None else ""
    return (site.kind, f"{site.place.current.spelling}{mark}", *said)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
