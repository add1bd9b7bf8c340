"""Pictures of results: what patches did to quality, to speed, and to each layer."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_gelu_patch.evaluation.report.document import noise
from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.speed.verdict import CONFIDENCE

__all__ = ["COLOURS", "MARKERS", "draw", "png"]

# Okabe & Ito (2008), "Color Universal Design": told apart by all common kinds of colour vision, but for yellow, which
# is hard to see on white. Each goes with a marker of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vP"
_DASHES = ("-", "--", "-.", ":")
_LETTERS = 34  # of a name, before its middle is left out
_TICKS = 12  # layers that are named
_ROW = 0.34  # inches


def draw(data: Data) -> dict[str, bytes]:
    """The pictures "quality", "speed" and "drift" as PNG, as far as there is something to show in them."""
    made = {"quality": _quality, "speed": _speed, "drift": _drift}
    return {name: png(figure) for name, make in made.items() if (figure := make(data)) is not None}


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in a script that the font lacks: an empty box
        figure.savefig(buffer, format="png", dpi=220)  # twice as many as a page shows
    return buffer.getvalue()


def _short(name: str) -> str:
    half = _LETTERS // 2
    text = name if len(name) <= _LETTERS else f"{name[:half]}…{name[-half:]}"
    return text.replace("$", r"\$")  # which would begin a formula


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _interval(data: Data) -> tuple[float, float, float]:
    return float(data["value"]), float(data["low"]), float(data["high"])


def _limits(axes: Axes, values: Sequence[float], *, around: float, least: float) -> None:
    """Show all that is finite, and ``least`` or more on either side of it and of ``around``."""
    finite = [value for value in values if math.isfinite(value)] + [around]
    low, high = min(finite), max(finite)
    room = max(0.12 * (high - low), least)
    axes.set_xlim(low - room, high + room)


def _whisker(axes: Axes, row: float, value: float, low: float, high: float, style: Data) -> None:
    """A value with its interval; an end that is not finite lies beyond the edge, where an arrowhead says so."""
    left, right = axes.get_xlim()
    if not math.isfinite(value):
        said = "undefined" if math.isnan(value) else "infinite"
        axes.text((left + right) / 2, row, said, ha="center", va="center", fontsize=8)
        return
    ends = max(low, left), min(high, right)
    axes.plot(ends, (row, row), color=style["color"], linewidth=1.8)
    for end, edge, head in ((low, left, "<"), (high, right, ">")):
        if not math.isfinite(end):
            axes.plot([edge], [row], marker=head, color=style["color"], markersize=7, clip_on=False)
    axes.plot([value], [row], linestyle="", markersize=6, **style)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# ------------------------------------------------------------------------------------------------------------- quality


def _quality(data: Data) -> Figure | None:
    """A row of panels a model, one a metric: the difference of each variant, with its interval."""
    shown = [(model, _metrics(model)) for model in data["models"]]
    shown = [(model, metrics) for model, metrics in shown if metrics]
    if not shown:
        return None
    columns = max(len(metrics) for _, metrics in shown)
    heights = [len(model["variants"]) * _ROW + 1.1 for model, _ in shown]
    figure = Figure(figsize=(2.4 + 3.1 * columns, sum(heights)))
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    panels = figure.subplots(len(shown), columns, squeeze=False, height_ratios=heights)
    for row, (model, metrics) in zip(panels, shown, strict=True):
        for panel, name in zip(row, metrics, strict=False):
            _differences(panel, data, model, name, named=panel is row[0])
        for panel in row[len(metrics) :]:
            panel.set_axis_off()
    figure.suptitle(
        "How far each metric moved: patched − unpatched, with 95 % intervals; dotted: the margin", fontsize=9
    )
    return figure


def _metrics(model: Data) -> list[str]:
    return list(dict.fromkeys(name for variant in model["variants"] for name in variant["quality"]["differences"]))


def _differences(axes: Axes, data: Data, model: Data, metric: str, *, named: bool) -> None:
    variants = [variant for variant in model["variants"] if metric in variant["quality"]["differences"]]
    intervals = [_interval(variant["quality"]["differences"][metric]) for variant in variants]
    margins = {float(quality["margins"][metric]) for v in variants if metric in (quality := v["quality"])["margins"]}
    edges = [edge for margin in margins for edge in (-margin, margin)]
    scale = max(abs(float(variant["quality"]["before"][metric])) for variant in variants)
    least = 1e-3 * scale if math.isfinite(scale) and scale else 1e-3  # not to make rounding look like a difference
    _limits(axes, [number for interval in intervals for number in interval] + edges, around=0.0, least=least)
    axes.axvline(0, color="black", linewidth=0.9)
    for edge in edges:
        axes.axvline(edge, color="black", linewidth=0.9, linestyle=":")
    for row, interval in enumerate(intervals):
        _whisker(axes, row, *interval, _style(row))
    _rows(axes, [_short(variant["name"]) if named else "" for variant in variants])
    better = "less is better" if metric in data["lower_is_better"] else "more is better"
    start = _short(model["subject"]["name"]) if named else ""
    axes.set_title(f"{start}\n{metric.replace('_', ' ')} ({better})", fontsize=9, loc="left")


# --------------------------------------------------------------------------------------------------------------- speed


def _speed(data: Data) -> Figure | None:
    """One panel for all: ratios with their intervals, the noise floor as a band, Amdahl's bound as a tick."""
    pairs = [
        (model, number, variant)
        for model in data["models"]
        for number, variant in enumerate(model["variants"])
        if variant["speed"]["forward"]["ratio"] is not None
    ]
    if not pairs:
        return None
    figure = Figure(figsize=(8.4, len(pairs) * _ROW + 1.2), layout="constrained")
    axes = figure.subplots()
    ends = [
        end
        for _, _, variant in pairs
        for part in ("ratio", "floor")
        for end in _interval(variant["speed"]["forward"][part])
    ]
    _limits(axes, ends, around=1.0, least=0.01)
    _, right = axes.get_xlim()
    axes.axvline(1, color="black", linewidth=0.9)
    seen = None
    for row, (model, number, variant) in enumerate(pairs):
        speed = variant["speed"]["forward"]
        value, low, high = _interval(speed["ratio"])
        reach = 1 + noise(speed["floor"])
        axes.fill_betweenx([row - 0.5, row + 0.5], 1 / reach, reach, color="#BBBBBB", alpha=0.6, linewidth=0)
        _whisker(axes, row, value, low, high, _style(number))
        bound = float(model["amdahl"])
        if bound <= right:
            axes.plot([bound, bound], [row - 0.35, row + 0.35], color="black", linewidth=2)
        else:
            beside = axes.get_yaxis_transform()
            axes.text(1.01, row, f"▸ {bound:.2f}", transform=beside, fontsize=7, ha="left", va="center")
        if seen not in (None, model["subject"]["name"]):
            axes.axhline(row - 0.5, color="#888888", linewidth=0.6)
        seen = model["subject"]["name"]
    _rows(axes, [f"{_short(model['subject']['name'])}, {_short(variant['name'])}" for model, _, variant in pairs])
    axes.set_xlabel(f"forward: times as fast as unpatched, with {CONFIDENCE:.0%} intervals", fontsize=9)
    handles = [
        Line2D([], [], label="noise floor", color="#BBBBBB", linewidth=8),
        Line2D([], [], label="the most there is to gain", color="black", marker="|", linestyle="", markersize=9),
    ]
    axes.legend(handles=handles, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return figure


# --------------------------------------------------------------------------------------------------------------- drift


def _drift(data: Data) -> Figure | None:
    """A panel a model: the drift of each layer, a line a variant, beside the unpatched model's own error."""
    shown = [model for model in data["models"] if any(variant["layers"] for variant in model["variants"])]
    if not shown:
        return None
    figure = Figure(figsize=(8.4, 3.1 * len(shown)), layout="constrained")
    for axes, model in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _drift_panel(axes, model)
    return figure


def _drift_panel(axes: Axes, model: Data) -> None:
    variants = [(number, variant) for number, variant in enumerate(model["variants"]) if variant["layers"]]
    paths = list(dict.fromkeys(layer["path"] for _, variant in variants for layer in variant["layers"]))
    own = {layer["path"]: layer["own"] for _, variant in variants for layer in variant["layers"]}
    series = [
        (variant["name"], {layer["path"]: float(layer["change"]) for layer in variant["layers"]}, _style(number))
        for number, variant in variants
    ]
    if all(value is not None for value in own.values()):
        plain = {"color": "black", "marker": "x", "linestyle": "--"}
        series.append(("unpatched, own error", {path: float(value) for path, value in own.items()}, plain))
    place = _on_log_scale(axes, [value for _, values, _ in series for value in values.values()])
    for number, (name, values, style) in enumerate(series):
        places = [(paths.index(path), place(value)) for path, value in values.items()]
        look = {"linestyle": _DASHES[number % len(_DASHES)], "markerfacecolor": "none", **style}
        axes.plot(*zip(*places, strict=True), label=_short(name), linewidth=1.3, markersize=5 + number % 3, **look)
    step = math.ceil(len(paths) / _TICKS)
    named = sorted({*range(0, len(paths) - 1 - step // 2, step), len(paths) - 1})
    names = _tails(paths)
    axes.set_xticks(named, [names[number] for number in named], fontsize=8, rotation=30, ha="right")
    axes.set_title(_short(model["subject"]["name"]), fontsize=9, loc="left")
    axes.set_ylabel("relative RMS of Δ", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _on_log_scale(axes: Axes, values: Sequence[float]) -> Callable[[float], float]:
    """A logarithmic scale with a place for 0 below everything else and one for ∞ above; says where a value goes."""
    some = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    bottom = 10.0 ** (math.floor(math.log10(min(some))) - 1)
    top = 10.0 ** (math.ceil(math.log10(max(some))) + 1)
    axes.set_yscale("log")
    powers = range(round(math.log10(bottom)) + 1, round(math.log10(top)))
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in powers[:: math.ceil(len(powers) / 6)]}
    ticks |= {bottom: "0"} if 0 in values else {}
    ticks |= {top: "∞"} if any(not math.isfinite(value) for value in values) else {}
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_ylim(bottom / 2, top * 2)
    return lambda value: bottom if value == 0 else value if math.isfinite(value) else top


def _tails(paths: Sequence[str]) -> list[str]:
    """What tells paths apart: as few of their last parts as do, two or more."""
    parts = [path.split(".") for path in paths]
    tails = [list(paths)]
    for count in range(max(map(len, parts)), 1, -1):
        tails.append([".".join(one[-count:]) for one in parts])
    fewest = [names for names in tails if len(set(names)) == len(set(paths))][-1]
    return [_short(name) for name in fewest]
