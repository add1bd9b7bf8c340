"""Comparisons of runs as plain data, and as tables of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.report.document import figure, signed
from hf_gelu_patch.evaluation.samples.comparing import Scores, TaskComparison

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["HEADINGS", "conclusion", "plain", "print_comparisons", "rows", "said"]

HEADINGS = ("task", "metric", "documents", "before", "after", "difference", "95 % interval", "right → wrong",
            "wrong → right", "p", "")  # fmt: skip
_LISTED = 5  # documents that could not be paired, and changed answers
_SIGNIFICANT = 0.05


def plain(comparisons: Sequence[TaskComparison], **more: Any) -> dict[str, Any]:
    """Everything as ``json.dumps`` takes it, with what else is to be said."""
    found: dict[str, Any] = as_json(
        {
            **more,
            "tasks": [{**asdict(one), "title": one.title, "conclusions": _conclusions(one)} for one in comparisons],
        }
    )
    return found


def _conclusions(comparison: TaskComparison) -> dict[str, str]:
    return {scores.metric: conclusion(scores) for scores in comparison.scores}


def conclusion(scores: Scores) -> str:
    """What became of a metric, in words: "better" or "worse" beyond chance, "higher" or "lower" where nobody knows
    which is better, "the same", or "no difference shown"."""
    value = scores.difference.value
    if scores.lost == scores.gained == 0 or (
        scores.p is None and value == scores.difference.low == scores.difference.high == 0
    ):
        return "the same"
    shown = scores.p < _SIGNIFICANT if scores.p is not None else scores.difference.low > 0 or scores.difference.high < 0
    if not shown or value == 0:
        return "no difference shown"
    if scores.lower_is_better is None:
        return "higher" if value > 0 else "lower"
    return "worse" if (value > 0) == scores.lower_is_better else "better"


def rows(comparison: TaskComparison) -> list[tuple[str, ...]]:
    """A row for each metric of a task, under ``HEADINGS``."""
    found: list[tuple[str, ...]] = []
    for one in comparison.scores:
        counts = ("", "", "") if one.p is None else (f"{one.lost:,}", f"{one.gained:,}", p_value(one.p))
        found.append(
            (
                comparison.title,
                one.metric,
                f"{one.documents:,}",
                figure(one.before),
                figure(one.after),
                signed(one.difference.value),
                f"{signed(one.difference.low)} to {signed(one.difference.high)}",
                *counts,
                conclusion(one),
            )
        )
    return found


def p_value(p: float) -> str:
    """Two digits."""
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.1e}"


def said(comparison: TaskComparison) -> list[str]:
    """What the table leaves out: answers that changed, documents that could not be paired, metrics without a score."""
    lines = []
    if comparison.answers:
        lines.append(f"{comparison.title}: {comparison.changed:,} of {comparison.answers:,} answers changed")
        for flip in comparison.flipped[:_LISTED]:
            right = f" (right: {flip.target})" if flip.target else ""
            text = comparison.described.get(flip.example, "")
            lines.append(f"  {_short(flip.before)} → {_short(flip.after)}{_short(right)}: {_short(text, 80)}")
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
    table = Table(*HEADINGS)
    for comparison in comparisons:
        for row in rows(comparison):
            table.add_row(*map(Text, row))
    console.print(table)
    for comparison in comparisons:
        for line in said(comparison):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
