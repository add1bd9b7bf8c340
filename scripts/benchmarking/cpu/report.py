"""What was measured on a CPU, as tables and as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.verdicts import Ratio
from scripts.benchmarking.architectures import BOUND
from scripts.benchmarking.cpu import models
from scripts.benchmarking.cpu.models import AUTO, BOTH, COMPILED, EAGER, EARLIER, TUNED, VARIANTS, over
from scripts.benchmarking.gpu import report
from scripts.benchmarking.gpu.record import Found, Line
from scripts.benchmarking.timing import OWN, versions_of

NAME, PICTURE = "cpu.md", "cpu.png"
READING = (
    "Forwards without gradients, four layers of base width, random weights. Each number says how many times as fast "
    "the first is as the second: the median over rounds in which every variant runs once, in an order drawn anew, with "
    "its 99 % interval. Faster or slower is what lies beyond the noise, the interval of the model against itself."
)
OWN_CLOCK = (
    " On one thread the time is what the process itself computed: the machine did other work too, whose time is not in "
    "it."
)
GUIDE = {AUTO: "`auto`", "cpp": "`cpp`", TUNED: "`tune=`", COMPILED: "`torch.compile`", BOUND: "no activation"}
"""The variants that the guide shows → how it calls them."""


def _there(cells: Sequence[Line]) -> list[str]:
    """The variants that were timed, but eager."""
    return [name for name in VARIANTS if name != EAGER and any(name in cell["variants"] for cell in cells)]


def _place(cell: Line) -> list[str]:
    return [cell["model"], " × ".join(map(str, cell["shape"])), cell["dtype"], str(cell["threads"])]


_PLACE = ["model", "batch", "dtype", "threads"]


def _text(found: tuple[Ratio, str] | None) -> str:
    if found is None:
        return ""
    ratio, verdict = found
    return f"{ratio.value:.3f}× ({ratio.low:.3f}–{ratio.high:.3f}) {verdict}"


def _models(found: Found) -> list[str]:
    cells = list(found.cpu.values())
    names = _there(cells)
    rows = []
    for cell in cells:
        eager = cell["variants"][EAGER]
        texts = [report.compared(cell["variants"].get(name)) for name in names]
        rounds = len(eager["samples_s"])
        rows.append([*_place(cell), f"{eager['median_s'] * 1e3:.2f} ms", f"{cell['noise']:.1%}", str(rounds), *texts])
    return report.titled("Models, each over eager:", [*_PLACE, "eager", "noise", "rounds", *names], rows)


def share_of(row: Line | None) -> str:
    """How much of what the model gains without activations a variant gains."""
    if row is None or not {"share_of_gain", "within_bound"} & row.keys():
        return ""
    if "share_of_gain" in row:
        return f"{row['share_of_gain']:.0%}"
    return "within the noise of the bound" if row["within_bound"] else "slower than the bound"


def _shares(found: Found) -> list[str]:
    cells = [cell for cell in found.cpu.values() if BOUND in cell["variants"]]
    names = [name for name in _there(cells) if name not in (BOUND, COMPILED, BOTH)]
    rows = [[*_place(cell), *(share_of(cell["variants"].get(name)) for name in names)] for cell in cells]
    title = (
        "Share of the gain of the model without activations; where that is less than "
        f"{models.DISCERNIBLE} times the noise, whether it is as fast:"
    )
    return report.titled(title, [*_PLACE, *names], rows)


def _others(found: Found) -> list[str]:
    """Against a compiled model and an earlier checkout, and what is paid beforehand."""
    pairs = [(COMPILED, AUTO), (COMPILED, TUNED), (EARLIER, AUTO), (EARLIER, TUNED), (COMPILED, BOTH)]
    rows = []
    for cell in found.cpu.values():
        texts = [_text(over(cell, base, name)) for base, name in pairs]
        paid = [f"{cell['made_s'][name]:.1f} s" if name in cell["made_s"] else "" for name in (COMPILED, TUNED)]
        if any(texts) or any(paid):
            rows.append([*_place(cell), *texts, *paid])
    headings = [f"{name} over {base}" for base, name in pairs]
    return report.titled(
        "Over torch.compile and over the earlier checkout, and what is paid first:",
        [*_PLACE, *headings, "compiling", "tuning"],
        rows,
    )


def _taken(found: Found) -> list[str]:
    rows = []
    for cell in found.cpu.values():
        for name, counts in cell["taken"].items():
            if name in (AUTO, TUNED, EARLIER):
                told = ", ".join(f"{by} {count}" for by, count in sorted(counts.items()))
                rows.append([*_place(cell), name, told])
    return report.titled("What each patch took, and at how many sites:", [*_PLACE, "variant", "took"], rows)


def merged(found: Found) -> list[str]:
    rows = []
    for cell in found.merged.values():
        own = cell["variants"]
        shape = f"{cell['rows']} × {cell['read']} → 2 × {cell['written']}"
        told = [f"{own[EAGER]['median_s'] * 1e3:.2f} ms", report.compared(own["merged"])]
        rows.append([shape, cell["dtype"], str(cell["threads"]), *told])
    title = "gate and up of a gated layer in one product, over two:"
    return report.titled(title, ["rows × columns", "dtype", "threads", "two products", "one"], rows)


def _absent(found: Found) -> list[str]:
    reasons = sorted({f"{name}: {why}" for cell in found.cpu.values() for name, why in cell["absent"].items()})
    return ["Not measured, and why:", "", *(f"- {reason}" for reason in reasons), ""] if reasons else []


def compact(found: Found) -> str:
    """The table in the guide: ratios over eager alone, in bold those beyond the noise."""
    rows, names = [], [name for name in _there(list(found.cpu.values())) if name in GUIDE]
    for cell in found.cpu.values():
        own = cell["variants"]
        texts = []
        for name in names:
            if "ratio" not in own.get(name, {}):
                texts.append("")
                continue
            value = f"{own[name]['ratio']['value']:.2f}"
            texts.append(value if own[name]["verdict"].startswith("no ") else f"**{value}**")
        rows.append([*_place(cell), f"{cell['noise']:.1%}".replace("%", " %"), *texts])
    return markdown.table([*_PLACE, "noise", *(GUIDE[name] for name in names)], rows)


def summary(found: Found) -> str:
    """The Markdown."""
    about = found.environment
    lines = [f"{versions_of(about) if about else 'Where this was measured was not recorded'}.", ""]
    cells = (*found.cpu.values(), *found.sites.values(), *found.merged.values())
    own = any(cell["clock"] == OWN for cell in cells)
    lines += [READING + OWN_CLOCK * own, ""] if found.cpu else []
    parts = (_models, _shares, _others, _taken, merged, report.sites_told, report.choices_told, _absent)
    lines += [text for part in parts for text in part(found)]
    wrong = report.failures(found)
    lines += ["Went wrong:", "", *(f"- {one}" for one in wrong), ""] if wrong else []
    return "\n".join(lines).rstrip() + "\n"


def written(found: Found, folder: Path) -> str:
    """The tables, which are in a file beside the record then, as is the picture where there are models."""
    told = summary(found)
    (folder / NAME).write_text(told, encoding="utf-8")
    if found.cpu:
        plot(found, folder / PICTURE)
    return told


_COLOURS = {
    AUTO: "#0072B2", TUNED: "#009E73", COMPILED: "#D55E00", BOTH: "#CC79A7", EARLIER: "#56B4E9", BOUND: "#000000"
}  # fmt: skip
"""Okabe & Ito (2008); implementations by name are not drawn."""


def plot(found: Found, path: Path) -> None:
    """How many times as fast each variant is, with its interval and the noise: a panel for each dtype, number of
    threads and size, a row in it for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cells = list(found.cpu.values())
    shown = [name for name in _there(cells) if name in _COLOURS]
    panels = list(dict.fromkeys((cell["dtype"], cell["threads"], cell["size"]) for cell in cells))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    most = max(sum(_panel(cell) == key for cell in cells) for key in panels)
    figure = Figure(figsize=(1 + 5 * columns, 1 + rows * (0.7 + 0.75 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, key in itertools.zip_longest(grid.flat, panels):
        if key is None:
            axes.set_axis_off()
            continue
        own = [cell for cell in cells if _panel(cell) == key]
        for row, cell in enumerate(own):
            _row(axes, row, cell, shown)
        dtype, threads, size = key
        axes.set_title(f"{dtype}, {threads} {'thread' if threads == 1 else 'threads'}, {size}", fontsize=9)
        axes.set_yticks(range(len(own)), [cell["model"] for cell in own])
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.axvline(1.0, color="black", linewidth=0.6)
        axes.grid(axis="x", alpha=0.25)
    handles = [Line2D([], [], color=_COLOURS[name], marker="o", label=name) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    where = found.environment and found.environment["processor"]
    figure.suptitle(f"Times as fast as eager, 99 % intervals; grey: the noise. {where or ''}", fontsize=10)
    figure.savefig(path, dpi=150)


def _panel(cell: Line) -> tuple[str, int, str]:
    return cell["dtype"], cell["threads"], cell["size"]


def _row(axes: Any, row: int, cell: Line, shown: Sequence[str]) -> None:
    axes.fill_betweenx([row - 0.45, row + 0.45], 1 - cell["noise"], 1 + cell["noise"], color="#DDDDDD", linewidth=0)
    for number, name in enumerate(shown):
        if "ratio" not in cell["variants"].get(name, {}):
            continue
        ratio = cell["variants"][name]["ratio"]
        height = row + 0.8 * ((number + 0.5) / len(shown) - 0.5)
        axes.plot([ratio["low"], ratio["high"]], [height, height], color=_COLOURS[name], linewidth=1.4)
        axes.plot([ratio["value"]], [height], "o", color=_COLOURS[name], markersize=3.5)
