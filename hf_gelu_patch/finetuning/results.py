"""What a run found out, as plain data, and in tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.quality import Quality, judge
from hf_gelu_patch.evaluation.report.document import figure, signed, words
from hf_gelu_patch.evaluation.report.markdown import escaped, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JSON_NAME", "Data", "markdown", "plain_change", "print_results", "rows"]

JSON_NAME = "finetuning.json"
Data = dict[str, Any]
HEADINGS = ("stage", "metric", "value", "against before", "right → wrong", "wrong → right", "p", "answers")

STAGES = {
    "before": "as it came",
    "patched": "patched, not trained",
    "trained": "trained",
}
"""What each stage is called in tables."""


def plain_change(quality: Quality) -> Data:
    """What changed between two stages, as JSON takes it, with the verdict in words."""
    found: Data = as_json({**asdict(quality), "verdict": judge(quality)})
    return found


def rows(data: Data) -> list[tuple[str, ...]]:
    """A row a stage and metric."""
    found: list[tuple[str, ...]] = []
    for stage, metrics in data["stages"].items():
        change = data["changes"].get(stage)
        for number, (metric, value) in enumerate(metrics.items()):
            found.append(
                (
                    STAGES[stage] if number == 0 else "",
                    words(metric),
                    figure(value),
                    *(_cells(change, metric, first=number == 0) if change else ("",) * 5),
                )
            )
    return found


def _cells(change: Data, metric: str, *, first: bool) -> tuple[str, ...]:
    moved: Mapping[str, Any] | None = change["differences"].get(metric)
    difference = (
        "" if moved is None else f"{signed(moved['value'])} ({signed(moved['low'])} to {signed(moved['high'])})"
    )
    if not first:
        return difference, "", "", "", ""
    p = float(change["p"])
    return (
        difference,
        f"{change['right_to_wrong']:,}",
        f"{change['wrong_to_right']:,}",
        f"{p:.2g}" if p >= 1e-4 else "< 0.0001",
        change["verdict"],
    )


def markdown(data: Data) -> str:
    """The table, what was done, and the curves."""
    run = data["run"]
    told = "\n".join(f"- {escaped(key)}: {escaped(_shown(value))}" for key, value in run.items() if value is not None)
    return (
        f"# Fine-tuning\n\n{table(HEADINGS, [[escaped(cell) for cell in row] for row in rows(data)])}\n\n"
        f"{escaped(NOTE)}\n\n{escaped(data['reloaded'])}.\n\n## The run\n\n{told}\n\n"
        f"{escaped(_training(data))}\n\n![learning curves](curves.png)\n"
    )


NOTE = (
    "A difference is that of a stage and the model as it came, on the same examples, with its 95 % interval from the "
    "paired bootstrap. p is that of the exact McNemar test of right → wrong against wrong → right."
)


def _training(data: Data) -> str:
    took = data["training"]
    return (
        f"{took['steps']:,} steps, {took['trained']:,} of {took['parameters']:,} parameters trained; "
        f"{took['seconds']:.0f} s for the last {took['timed']:,} steps"
    )


def print_results(data: Data, console: Console) -> None:
    """The table on the screen, and what the checkpoint needs."""
    from rich.table import Table

    if not console.is_terminal:
        console.width = 180
    grid = Table(*HEADINGS)
    for row in rows(data):
        grid.add_row(*row)
    console.print(grid)
    for line in (_training(data), data["reloaded"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def content(data: Data) -> bytes:
    """The data as they are written."""
    return (json.dumps(data, indent=1, allow_nan=False, default=str) + "\n").encode()


def _shown(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
