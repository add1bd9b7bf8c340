"""Comparisons of runs as plain data, and as tables of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.report.document import TASK_HEADINGS, task_rows
from hf_gelu_patch.evaluation.samples.comparing import TaskComparison

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plain", "print_comparisons", "said"]

_LISTED = 5  # documents that could not be paired, and changed answers


def plain(comparisons: Sequence[TaskComparison], **more: Any) -> dict[str, Any]:
    """Everything as ``json.dumps`` takes it, with what else is to be said."""
    found: dict[str, Any] = as_json({**more, "tasks": [one.plain() for one in comparisons]})
    return found


def said(comparison: TaskComparison) -> list[str]:
    """What the table leaves out: answers that changed, documents that could not be paired, metrics without a score."""
    lines = []
    if comparison.answers:
        lines.append(f"{comparison.title}: {comparison.changed:,} of {comparison.answers:,} answers changed")
        for flip in comparison.flipped[:_LISTED]:
            right = f" (right: {_short(flip.target)})" if flip.target else ""
            text = comparison.described.get(flip.example, "")
            lines.append(f"  {_short(flip.before)} → {_short(flip.after)}{right}: {_short(text, 80)}")
    for metric, why in comparison.left_out.items():
        lines.append(f"{comparison.title}: no score of {metric}: {why}")
    reasons = Counter(one.why for one in comparison.unpaired)
    for why, count in reasons.items():
        numbers = [one.number for one in comparison.unpaired if one.why == why]
        more = ", …" if count > _LISTED else ""
        lines.append(
            f"{comparison.title}: not paired: {count:,} × {why} (document {', '.join(numbers[:_LISTED])}{more})"
        )
    return [*lines, *(f"{comparison.title}: {note}" for note in comparison.notes)]


def _short(text: str, length: int = 40) -> str:
    one = " ".join(text.split()) if text.strip() else text
    return one if len(one) <= length else one[: length - 1] + "…"


def print_comparisons(comparisons: Sequence[TaskComparison], console: Console) -> None:
    """A table of all metrics, and what it leaves out."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = max(console.width, 180)
    table = Table(*TASK_HEADINGS)
    for comparison in comparisons:
        for row in task_rows(as_json(comparison.plain())):
            table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table)
    for comparison in comparisons:
        for line in said(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
