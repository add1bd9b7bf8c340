"""The cells as a page of tables, and as a plot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.report import markdown
from scripts.benchmarking.kernels.candidates import MOVED
from scripts.benchmarking.kernels.cells import sized
from scripts.benchmarking.timing import (
    versions_of,
)

READING = (
    "Medians over rounds in which every candidate runs once, in an order drawn anew. GB/s: the bytes that one fused "
    "kernel moves, over the time; of a copy: that over the bandwidth of a copy timed in the same rounds. Over eager: "
    "how many times as fast, with the 99 % interval. Floor: eager against itself. Error: the largest over all values "
    "(fp32: a dense grid), in ulp, results below 1/64 counted in the ulp of 1/64. "
)
HEADINGS = (
    *("activation", "dtype", "elements", "by", "median", "GB/s", "of a copy"),
    *("over eager", "floor", "error", "peak", "verdict"),
)
CLOCKS = {
    "cuda": "Times are the GPU's own, by events: what Python takes to launch is not in them. Where a call moves less "
    "than four times what the L2 cache holds, the cache is overwritten before each. Peak: the memory that a call "
    "takes, its results included, in tensors of that size.",
    "cpu": "Wall time. Nothing empties the caches between calls.",
}


def table(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The Markdown."""
    lines = [
        "# Kernels",
        "",
        f"{versions_of(about)}; threads: {about['threads']}; seed {about['seed']}.",
        "",
        READING + CLOCKS[about["device"]],
    ]
    for form in MOVED:
        own = [cell for cell in cells if cell["form"] == form]
        if not own:
            continue
        headings = [heading for heading in HEADINGS if heading != "peak" or about["device"] == "cuda"]
        rows = []
        for cell in own:
            for name, row in cell["candidates"].items():
                fields = {
                    "activation": cell["activation"],
                    "dtype": cell["dtype"],
                    "elements": sized(cell["elements"]),
                    "by": name,
                    "median": f"{row['median_s'] * 1e6:,.1f} µs",
                    "GB/s": f"{row['gb_per_s']:,.1f}",
                    "of a copy": f"{row['share_of_copy']:.0%}",
                    "error": f"{row['error_ulp']['judged']:.3g}",
                    "verdict": row["verdict"] or "",
                }
                if row["ratio"] is not None:
                    fields["over eager"] = "{value:.3f}× [{low:.3f}, {high:.3f}]".format(**row["ratio"])
                if name == "eager":
                    fields["floor"] = "[{low:.3f}, {high:.3f}]".format(**cell["floor"])
                if row["peak_bytes"] is not None:
                    fields["peak"] = f"{row['peak_bytes'] / (cell['copy']['bytes'] / 2):.2f}"
                rows.append([fields.get(heading, "") for heading in headings])
        lines += ["", f"## {form.replace('_', ' ').capitalize()}", "", markdown.table(headings, rows)]
    reasons = sorted({f"{name}: {reason}" for cell in cells for name, reason in cell["absent"].items()})
    lines += ["", "Absent:", "", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


COLOURS = {
    "eager": "#7f7f7f",
    "aten": "#1f77b4",
    "compile": "#2ca02c",
    "triton": "#d62728",
    "triton_rounded": "#ff9896",
    "liger": "#9467bd",
}
LINES = {"bfloat16": "-", "float16": "--", "float32": ":"}


def plot(cells: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: Path) -> None:
    """Share of a copy's bandwidth over the size: a row of panels for each form, a column for each activation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    forms = [form for form in MOVED if any(cell["form"] == form for cell in cells)]
    activations = list(dict.fromkeys(cell["activation"] for cell in cells))
    dtypes = list(dict.fromkeys(cell["dtype"] for cell in cells))
    sizes = sorted({cell["elements"] for cell in cells})
    figure = Figure(figsize=(1.6 + 2.9 * len(activations), 1.6 + 2.1 * len(forms)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(forms), len(activations), sharex=True, sharey=True, squeeze=False)
    names: dict[str, None] = {}
    for (form, row), (activation, column) in itertools.product(
        zip(forms, panels, strict=True), [(a, k) for k, a in enumerate(activations)]
    ):
        axes = row[column]
        axes.axhline(1.0, color="black", linewidth=0.6)
        for dtype, name in itertools.product(dtypes, COLOURS):
            points = [
                (cell["elements"], cell["candidates"][name]["share_of_copy"])
                for cell in cells
                if (cell["form"], cell["activation"], cell["dtype"]) == (form, activation, dtype)
                and name in cell["candidates"]
                and not cell["candidates"][name]["interpreted"]
            ]
            if points:
                names[name] = None
                axes.plot(*zip(*points, strict=True), LINES[dtype], color=COLOURS[name], marker="o", markersize=3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [sized(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.25)
        if form == forms[0]:
            axes.set_title(activation)
        if column == 0:
            axes.set_ylabel(form.replace("_", " "))
        if form == forms[-1]:
            axes.set_xlabel("elements")
    handles = [Line2D([], [], color=COLOURS[name], label=name) for name in COLOURS if name in names]
    handles += [Line2D([], [], color="black", linestyle=LINES[dtype], label=dtype) for dtype in dtypes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"Share of the bandwidth of a copy, {about['gpu'] or about['cpu']}")
    figure.savefig(path, dpi=150)
