"""Pictures of results: how far metrics moved, how fast variants are, how far layers drift."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from hf_gelu_patch.evaluation.document import noise, words
from hf_gelu_patch.evaluation.results import Data
from hf_gelu_patch.evaluation.speed import CONFIDENCE

__all__ = ["draw"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by the colour-blind too."""
_MARKERS = "osD^vPX*"
_GREY = "#777777"
_ROW = 0.3  # inches
_SAME = 1e-9  # where a drift of 0 is drawn, on a scale of powers of ten


def draw(data: Data) -> dict[str, bytes]:
    """The pictures by name, as PNG; a picture with nothing to show is left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    drawn = {"quality": _quality, "speed": _speed, "drift": _drift}
    return {name: picture for name, make in drawn.items() if (picture := make(data)) is not None}


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=144, metadata={"Software": None})
    return written.getvalue()


def _pairs(data: Data) -> list[tuple[Data, Data]]:
    return [(model, variant) for model in data["models"] for variant in model["variants"]]


def _name(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _panels(
    groups: Sequence[tuple[str, list[Any]]], draw_group: Callable[[Any, list[Any]], None], title: str, axis: str
) -> bytes:
    """A panel a group, one above the other, each as high as it has rows."""
    from matplotlib.figure import Figure

    heights = [len(rows) + 1.2 for _, rows in groups]
    figure = Figure(figsize=(8, 0.9 + _ROW * sum(heights) + 0.35 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (name, rows) in zip(axes, groups, strict=True):
        panel.set_title(name, loc="left", fontsize=9, fontweight="bold")
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        draw_group(panel, rows)
    axes[-1].set_xlabel(axis, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def _interval(panel: Any, row: int, value: float, low: float, high: float, colour: str, marker: str) -> None:
    """A point with its interval; an end that is not finite is not drawn."""
    below, above = (abs(value - end) if math.isfinite(end) else 0.0 for end in (low, high))
    panel.errorbar(
        value, row, xerr=[[below], [above]], fmt=marker, color=colour, markersize=5, capsize=3, linewidth=1.4
    )


def _quality(data: Data) -> bytes | None:
    groups = []
    for model in data["models"]:
        rows = [
            (variant["name"], metric, difference, _margin(variant, metric))
            for variant in model["variants"]
            for metric, difference in variant["quality"]["differences"].items()
            if math.isfinite(float(difference["value"]))
        ]
        metrics = list(dict.fromkeys(metric for _, metric, _, _ in rows))
        groups += [
            (f"{model['subject']['name']}: {words(metric)}", [row for row in rows if row[1] == metric])
            for metric in metrics
        ]
    if not groups:
        return None

    def panel_of(panel: Any, rows: list[Any]) -> None:
        panel.axvline(0, color=_GREY, linewidth=1)
        for row, (_, _, difference, margin) in enumerate(rows):
            value, low, high = (float(difference[key]) for key in ("value", "low", "high"))
            colour = _COLOURS[row % len(_COLOURS)]
            _interval(panel, row, value, low, high, colour, _MARKERS[row % len(_MARKERS)])
            if margin is not None:
                panel.plot([-margin, margin], [row, row], linestyle="none", marker="|", markersize=12, color=_GREY)
        panel.set_yticks(range(len(rows)), [_name(row[0]) for row in rows])
        ends = [abs(end) for end in panel.get_xlim()]
        panel.set_xlim(-max(ends), max(ends))

    margins = " Grey ticks: the margin." if any(row[3] is not None for _, rows in groups for row in rows) else ""
    return _panels(groups, panel_of, "How far each metric moved", f"after − before, with its 95 % interval.{margins}")


def _margin(variant: Data, metric: str) -> float | None:
    found = variant["quality"]
    if found["margin"] is None:
        return None
    share = abs(float(found["before"][metric])) if metric == "perplexity" else 1.0
    return float(found["margin"]) * share


def _speed(data: Data) -> bytes | None:
    groups = []
    for model in data["models"]:
        rows = [
            (f"{variant['name']}{'' if part == 'forward' else f' ({words(part)})'}", found)
            for variant in model["variants"]
            for part, found in variant["speed"].items()
            if found["ratio"] is not None
        ]
        if rows:
            most = float(model["amdahl"])
            groups.append((f"{model['subject']['name']}: activations allow {most:.2f}× at most", rows))
    if not groups:
        return None

    def panel_of(panel: Any, rows: list[Any]) -> None:
        panel.axvline(1, color=_GREY, linewidth=1)
        for row, (_, found) in enumerate(rows):
            reach = noise(found["floor"])
            if math.isfinite(reach):
                panel.fill_betweenx([row - 0.4, row + 0.4], 1 / (1 + reach), 1 + reach, color="#cccccc", linewidth=0)
            colour = _COLOURS[{"faster": 2, "slower": 1}.get(found["verdict"], 0)]
            marker = {"faster": ">", "slower": "<"}.get(found["verdict"], "o")
            value, low, high = (float(found["ratio"][key]) for key in ("value", "low", "high"))
            _interval(panel, row, value, low, high, colour, marker)
        panel.set_yticks(range(len(rows)), [_name(row[0]) for row in rows])

    return _panels(
        groups,
        panel_of,
        "How many times as fast",
        f"patched / unpatched, with its {CONFIDENCE:.0%} interval: ▷ faster, ◁ slower, ○ neither. Grey: the noise.",
    )


def _drift(data: Data) -> bytes | None:
    from matplotlib.figure import Figure

    models = [model for model in data["models"] if any(variant["layers"] for variant in model["variants"])]
    if not models:
        return None
    columns = min(2, len(models))
    rows = math.ceil(len(models) / columns)
    figure = Figure(figsize=(5 * columns + 1, 3.6 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, model in zip(axes, models, strict=False):
        _layers(panel, model)
    for empty in axes[len(models) :]:
        empty.set_visible(False)
    figure.suptitle("How far each layer's output moved, relative to its size", fontsize=11)
    return _png(figure)


def _layers(panel: Any, model: Data) -> None:
    """A line a variant; dashed, the unpatched model against float64. What did not move at all stands on the floor."""
    lines = []
    for variant in model["variants"]:
        lines.append((_name(variant["name"], 28), [float(layer["change"]) for layer in variant["layers"]]))
    own = [layer["own"] for layer in model["variants"][0]["layers"]]
    positive = [value for _, values in lines for value in values if 0 < value < math.inf]
    positive += [float(value) for value in own if value is not None and 0 < float(value) < math.inf]
    floor = min(positive, default=_SAME) / 4
    for number, (name, values) in enumerate(lines):
        shown = [max(value, floor) if math.isfinite(value) else math.nan for value in values]
        label = f"{name} (not at all)" if not any(values) else name
        under = min(3, len(lines) - 1 - number)  # wider, so that what lies below the same line shows
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        panel.plot(shown, **style, markersize=4 + 1.3 * under, linewidth=1.3 + 0.7 * under, label=label)
    if all(value is not None for value in own):
        panel.plot([float(value) for value in own], color=_GREY, linestyle="--", linewidth=1.2, label="own error")
    panel.set_yscale("log")
    panel.set_title(model["subject"]["name"], loc="left", fontsize=9, fontweight="bold")
    names = [str(number) for number in range(len(own) - 1)] + ["logits"]
    step = max(1, len(names) // 8)
    ticks = sorted({*range(0, len(names) - 1, step), len(names) - 1} - ({len(names) - 2} if step > 1 else set()))
    panel.set_xticks(ticks, [names[tick] for tick in ticks])
    panel.set_xlabel("layer", fontsize=8)
    panel.set_ylabel("RMS of the difference / RMS", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
