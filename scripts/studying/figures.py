"""The study's figures, from its record and the formulas: to be read in black and white too, and on a phone."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.evaluation.report.plots import COLOURS, MARKERS
from scripts.benchmarking.ulp import ulp
from scripts.studying.claims import (
    NAMES,
    STAGES,
    Found,
    effects,
    family_blocks,
    first_difference,
    fitted_losses,
    per_block,
    smooth_and_not,
    trained,
    updates,
)
from scripts.studying.functions import DTYPES
from scripts.studying.models import OTHER
from scripts.studying.second_order import SMOOTHNESS
from scripts.studying.training import FUNCTIONS, OWN, RECIPES, SMOOTHED

__all__ = ["FIGURES", "drawn"]

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_WIDTH, _HEIGHT = 4.8, 3.2  # inches: letters are large enough on a phone


def drawn(found: Found) -> dict[str, str]:
    """All figures, as SVG."""
    return {name: _svg(draw(found)) for name, draw in FIGURES.items()}


def _svg(figure: Figure) -> str:
    """The element alone, named by its titles for who hears the page. Its letters are text, in whatever font the page
    has."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    titles = "; ".join(axes.get_title() for axes in figure.axes)
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(titles)}"', 1)


def _panels(count: int, height: float = _HEIGHT) -> tuple[Figure, list[Axes]]:
    """One above the other: a phone is narrow."""
    figure = Figure(figsize=(_WIDTH, height * count), layout="constrained")
    axes = figure.subplots(count, squeeze=False)
    for one in axes[:, 0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:, 0])


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def _functions(found: Found) -> Figure:
    del found
    figure, (values, slopes) = _panels(2)
    x = torch.linspace(-5, 3, 801, dtype=torch.float64)
    for number, name in enumerate(FUNCTIONS):
        with torch.enable_grad():
            at = x.clone().requires_grad_()
            y = ACTIVATIONS[name].reference(at)
            [slope] = torch.autograd.grad(y.sum(), at)
        values.plot(x, y.detach(), label=NAMES[name], **_style(number))
        slopes.plot(x, slope, label=NAMES[name], **_style(number))
    values.set(title="Functions", xlabel="x")
    slopes.set(title="Derivatives", xlabel="x")
    values.set_ylim(-0.4, 2)
    for axes in (values, slopes):
        axes.axhline(0, color="grey", linewidth=0.6)
        axes.legend(frameon=False)
    return figure


def _distances(found: Found) -> Figure:
    del found
    figure, (apart, units) = _panels(2)
    x = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    exact = ACTIVATIONS["gelu"].reference(x)
    for number, name in enumerate(("gelu_tanh", "quick_gelu", "silu")):
        apart.semilogy(x, _drawable(ACTIVATIONS[name].reference(x) - exact), label=NAMES[name], **_style(number))
    moved = (ACTIVATIONS["gelu_tanh"].reference(x) - exact).abs()
    for number, (name, dtype) in enumerate(DTYPES.items()):
        units.semilogy(x, _drawable(moved / ulp(exact, dtype)), label=name, **_style(number))
    units.axhline(0.5, color="grey", linewidth=0.8, label="half a unit: rounding")
    apart.set(title="How far from exact GELU", xlabel="x", ylabel="|difference|", ylim=(1e-9, 1))
    units.set(title="The tanh form's distance in units in the last place", xlabel="x", ylabel="units", ylim=(1e-4, 1e8))
    for axes in (apart, units):
        _legend_below(axes)
    return figure


def _legend_below(axes: Axes) -> None:
    """Where it would hide what is drawn."""
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8.5)


def _drawable(values: torch.Tensor) -> torch.Tensor:
    return values.abs().clamp(min=1e-30)


def _models(found: Found) -> Figure:
    figure, [axes] = _panels(1)
    for place, name in enumerate(OTHER):
        kl = found["parts"][f"moved-{name}"]["found"]["kl"]
        for number, what in enumerate(("other", *found["sizes"]["dtypes"])):
            axes.semilogy(place, float(kl[what]), **_points(number))
    for number, label in enumerate(("the other form", *(f"{dtype} alone" for dtype in found["sizes"]["dtypes"]))):
        axes.plot([], [], label=label, **_points(number))
    axes.set_xticks(range(len(OTHER)), [NAMES[name] for name in OTHER])
    axes.set_xlim(-0.5, len(OTHER) - 0.5)
    axes.set(title="The other form beside rounding", ylabel="mean KL from float64, nats")
    _legend_below(axes)
    return figure


def _loaded(found: Found) -> Figure:
    figure, [axes] = _panels(1, 2.6)
    labels = []
    for place, name in enumerate(OTHER):
        metric, difference, before = first_difference(found, name)
        value, low, high = (100 * float(difference[key]) / before for key in ("value", "low", "high"))
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.6)
        axes.plot(value, place, **_points(0))
        labels.append(f"{NAMES[name]}, {metric.replace('_', ' ')}")
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set_yticks(range(len(OTHER)), labels)
    axes.set(title="The first metric with the other form", xlabel="change, %")
    return figure


def _points(number: int) -> dict[str, Any]:
    return {
        "marker": MARKERS[number],
        "color": COLOURS[number],
        "linestyle": "",
        "fillstyle": "full" if not number else "none",
    }


def _blocks(found: Found) -> Figure:
    families, every = found["sizes"]["families"], found["sizes"]["all_types"]
    figure, panels = _panels(1 + every)
    counts = {
        f"{family}: {block}": max(map(int, kept["per block"]))
        for family in families
        for block, kept in family_blocks(found, family).items()
    }
    _bars(panels[0], counts)
    panels[0].set(title="Nonlinearities in a block")
    if every:
        _bars(panels[1], per_block(found))
        panels[1].set(title="All of transformers: model types")
    return figure


def _bars(axes: Axes, counts: Mapping[str, int]) -> None:
    axes.barh([*counts], [*counts.values()], color=COLOURS[0], height=0.6)
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    for place, count in enumerate(counts.values()):
        axes.text(count, place, f" {count}", va="center", fontsize=8)


def _interchange(found: Found) -> Figure:
    figure, panels = _panels(len(RECIPES), 3.8)
    for axes, recipe in zip(panels, RECIPES, strict=True):
        others = [function for function in FUNCTIONS if function != OWN[recipe]]
        for number, (stage, label) in enumerate(STAGES.items()):
            found_effects = effects(found, recipe, stage)
            for place, function in enumerate(others):
                one = found_effects[function]
                y = place + 0.2 * (1 - number)
                axes.plot([one.low, one.high], [y, y], color=COLOURS[number], linewidth=1.6)
                axes.plot(one.mean, y, **_points(number))
            axes.plot([], [], label=label, **_points(number))
        axes.axvline(0, color="grey", linewidth=0.6)
        axes.set_yticks(range(len(others)), [NAMES[function] for function in others])
        axes.set(title=f"{NAMES[recipe]}: held-out loss beside {NAMES[OWN[recipe]]}", xlabel="nats; right is worse")
        axes.set_xscale("symlog", linthresh=0.01)
        _legend_below(axes)
    return figure


def _signs(found: Found) -> Figure:
    figure, panels = _panels(len(RECIPES))
    for axes, recipe in zip(panels, RECIPES, strict=True):
        for number, function in enumerate((OWN[recipe], "silu", "relu")):
            runs = trained(found, recipe, function)
            layers = range(len(runs[0]["activations"]))
            means = [statistics.fmean(float(run["activations"][layer]["mean"]) for run in runs) for layer in layers]
            style = {**_points(number), **_style(number)}
            axes.plot([layer + 1 for layer in layers], means, label=NAMES[function], **style)
        axes.axhline(0, color="grey", linewidth=0.6)
        axes.set_xticks([layer + 1 for layer in layers])
        axes.set(title=f"{NAMES[recipe]}: mean of what activations give", xlabel="layer")
        axes.legend(frameon=False)
    return figure


def _costs(found: Found) -> Figure:
    figure, [axes] = _panels(1)
    ratios = found["parts"]["cost-on-this-cpu"]["found"]["ratios"]
    for place, one in enumerate(ratios.values()):
        low, value, high = (float(one[key]) for key in ("low", "value", "high"))
        axes.barh(place, value, color=COLOURS[0], height=0.5)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.text(max(value, high) + 0.05, place, f"{value:.2f}×", va="center", fontsize=8)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), [NAMES[name] for name in ratios])
    axes.set(title="Speed on this CPU; exact GELU is 1")
    return figure


def _learning(found: Found) -> Figure:
    figure, panels = _panels(len(RECIPES) + 1)
    for axes, recipe in zip(panels, RECIPES, strict=False):
        for number, function in enumerate(smooth_and_not(recipe)):
            _curve(axes, number, function, [run["losses"] for run in trained(found, recipe, function)], SMOOTHED)
        axes.set(title=f"{NAMES[recipe]}, AdamW", xlabel="step", ylabel="loss, nats")
        axes.legend(frameon=False)
    last = panels[-1]
    for number, function in enumerate(SMOOTHNESS):
        _curve(last, number, function, fitted_losses(found, function), 1)
    last.set_yscale("log")
    last.set(title="ViT, L-BFGS", xlabel="step", ylabel="loss, nats")
    last.legend(frameon=False)
    return figure


def _curve(axes: Axes, number: int, function: str, runs: Sequence[Sequence[float]], every: int) -> None:
    """The mean over seeds."""
    length = min(map(len, runs))
    means = [statistics.fmean(float(run[place]) for run in runs) for place in range(length)]
    axes.plot([updates(place, every) for place in range(1, length + 1)], means, label=NAMES[function], **_style(number))


FIGURES: Mapping[str, Callable[[Found], Figure]] = {
    "functions": _functions,
    "distances": _distances,
    "models": _models,
    "loaded": _loaded,
    "blocks": _blocks,
    "interchange": _interchange,
    "signs": _signs,
    "costs": _costs,
    "learning": _learning,
}
