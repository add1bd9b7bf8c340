"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_gelu_patch.evaluation.report.document import words
from hf_gelu_patch.evaluation.report.plots import COLOURS, MARKERS, png
from hf_gelu_patch.finetuning.results import STAGES

__all__ = ["draw"]

_SMOOTH = 20  # parts of a run that one average spans

Data = Mapping[str, Any]


def draw(history: Mapping[str, Sequence[Any]], stages: Mapping[str, Mapping[str, float]]) -> bytes:
    """The loss and the learning rate step by step, and below them the first metric at each stage, as PNG.

    Args:
        history: the learner's.
        stages: the metrics as the model came, patched, and trained, as far as they are known.
    """
    metric = next(iter(next(iter(stages.values()), {})), None)
    figure = Figure(figsize=(8.4, 5.6 if metric else 3.2), layout="constrained")
    above, *below = figure.subplots(2 if metric else 1, 1, sharex=True, squeeze=False)[:, 0]
    _losses(above, history)
    if metric and below:
        _metric(below[0], metric, history, stages)
        below[0].set_xlabel("steps", fontsize=9)
    else:
        above.set_xlabel("steps", fontsize=9)
    return png(figure)


def _losses(axes: Axes, history: Mapping[str, Sequence[Any]]) -> None:
    losses = np.asarray(history["loss"], dtype=np.float64)
    steps = np.arange(1, len(losses) + 1)
    span = len(losses) // _SMOOTH
    axes.plot(
        steps, losses, color=COLOURS[0], alpha=0.35 if span > 1 else 1.0, linewidth=0.8, label="loss of each step"
    )
    if span > 1:
        mean = np.convolve(losses, np.ones(span) / span, mode="valid")
        axes.plot(steps[span - 1 :], mean, color=COLOURS[0], linewidth=1.8, label=f"mean of the last {span}")
    axes.set_ylabel("training loss", fontsize=9)
    rate = axes.twinx()
    rate.plot(steps, history["learning_rate"], color=COLOURS[5], linewidth=1.0, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", fontsize=9)
    axes.legend(fontsize=8, loc="upper right", frameon=False)


def _metric(
    axes: Axes, metric: str, history: Mapping[str, Sequence[Any]], stages: Mapping[str, Mapping[str, float]]
) -> None:
    """A stage before training stands at step 0."""
    done = len(history["loss"])
    points = {name: (0 if name != "trained" else done, values[metric]) for name, values in stages.items()}
    between = [(one["step"], one["metrics"][metric]) for one in history["validation"]]
    began = next((points[name] for name in ("patched", "before") if name in points), None)
    line = [*filter(None, [began]), *between, *([points["trained"]] if "trained" in points else [])]
    axes.plot(*zip(*line, strict=True), color="#888888", linewidth=1.0)
    for number, (name, (step, value)) in enumerate(points.items()):
        axes.plot([step], [value], color=COLOURS[number], marker=MARKERS[number], linestyle="", label=STAGES[name])
    axes.set_ylabel(words(metric), fontsize=9)
    axes.legend(fontsize=8, loc="best", frameon=False)
