"""How well a profile foretells what a swap does, and what it costs to make one: a record

``python -m scripts.profiling`` makes it. ``tests/evaluation/test_profile_command.py`` holds the guide to it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr

from hf_gelu_patch.evaluation.report.markdown import table

__all__ = ["foretold", "measured"]

HEADINGS = (
    "model",
    "swaps",
    "correlation with the drift of the site's output",
    "furthest apart",
    "rank correlation with the drift of the model's output",
    "a profiled pass takes",
)


def foretold(record: dict[str, Any]) -> str:
    """The guide's table: for each model, predicted against measured drift of swaps at one site, and the time."""
    rows = []
    for name, found in record["models"].items():
        swaps = found["swaps"]
        predicted, site, whole = ([one[key] for one in swaps] for key in ("predicted", "site", "model"))
        apart = max(abs(one / other - 1) for one, other in zip(predicted, site, strict=True))
        time = found["time"]["ratio"]
        rows.append(
            [
                name,
                f"{len(swaps)}",
                f"{statistics.correlation(_logs(predicted), _logs(site)):.6f}",
                f"{apart:.1e}".replace("e-0", "e−"),
                f"{spearmanr(predicted, whole).statistic:.3f}",
                f"{1 / time['value']:.2f}× ({1 / time['high']:.2f} to {1 / time['low']:.2f})",
            ]
        )
    return table(HEADINGS, rows, right=HEADINGS[1:])


def _logs(values: Sequence[float]) -> list[float]:
    return list(map(math.log, values))


def measured(record: dict[str, Any]) -> str:
    """On what."""
    about = record["environment"]
    versions = about["versions"]
    torch, transformers = versions["torch"].partition("+")[0], versions["transformers"]
    return f"{about['cpu']}, one thread, torch {torch}, transformers {transformers}"
