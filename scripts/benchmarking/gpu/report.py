"""What the gpu command found, as tables: models, kernels, variants, tests, how the steps went, what ``auto`` should
take, what went wrong, and the goals last."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.implementations import IMPLEMENTATIONS, measured
from scripts.benchmarking.gpu import choices, goals, models, training
from scripts.benchmarking.gpu.goals import share, speedup
from scripts.benchmarking.gpu.processes import DONE, FAILED, OVERRAN
from scripts.benchmarking.gpu.record import Found, Line
from scripts.benchmarking.kernels.cells import sized
from scripts.benchmarking.timing import versions_of

NAME = "gpu.md"
BY = ("eager", "aten", "compile", "triton", "liger")
OUT_OF_TIME = "out of time"
LAYERS = ("product", "aten", "triton", "epilogue", "template")
PATCHED, COMPILED = ("auto", "triton", "liger", "epilogue", models.BOUND), ("compiled", "compiled_triton")


def failures(found: Found) -> list[str]:
    """Whatever went wrong: steps that did not get to their end, tests, candidates that are wrong, outputs that moved
    too far, what raised."""
    told = []
    for name, step in found.steps.items():
        notes = found.notes.get(name, [])
        failed = [f"{name}: {note['what']}" for note in notes if note["kind"] == "failure"]
        tests = {note["test"]: note["outcome"] for note in notes if note["kind"] == "test"}
        failed += [f"test {test}" for test, outcome in tests.items() if outcome in ("failed", "error")]
        failed += [f"test {test}: did not end" for test, outcome in tests.items() if outcome == "begun"]
        told += failed
        if (how := _ending(step)) not in (DONE, OUT_OF_TIME) and not (how == FAILED and failed):
            told.append(f"{name}: {how}")
    return list(dict.fromkeys(told))


def _ending(step: Line) -> str:
    """How it ended. One that was given less than its limit, because the minutes were over, has not failed."""
    how: str = step["ended"]["how"] if "ended" in step else "cut off"
    return OUT_OF_TIME if how == OVERRAN and step["limit"] < step["whole"] else how


# ------------------------------------------------------------------------------------------------------------- tables


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*markdown.table(headings, rows).splitlines(), ""]


def titled(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table under its title, where it has rows."""
    return [title, "", *table(headings, rows)] if rows else []


def _named(cell: Line) -> list[str]:
    return [cell["activation"], cell["form"].replace("_", " "), cell["dtype"], sized(cell["elements"])]


def _about(found: Found) -> list[str]:
    told = versions_of(found.environment) if found.environment else "Where this was measured was not recorded"
    if found.card and found.card["free_gib"] is not None:
        told += f"; {found.card['free_gib']:g} of {found.card['total_gib']:g} GiB free"
    if found.bandwidth:
        told += f"; a copy moves {found.bandwidth['gb_per_s']:,.0f} GB/s"
    return [f"{told}.", ""]


def compared(row: Line | None) -> str:
    """How many times as fast as what it is compared with, and the verdict; nothing where it was not compared."""
    if row is None or "ratio" not in row:
        return ""
    return "{value:.3f}× ({low:.3f}–{high:.3f}) {verdict}".format(**row["ratio"], verdict=row["verdict"])


def _memory(row: Line, over: Line) -> str:
    return f", memory {row['peak_bytes'] / over['peak_bytes']:.3f}×" if row["peak_bytes"] and over["peak_bytes"] else ""


def _models(found: Found) -> list[str]:
    told = []
    for compiled, names in ((False, PATCHED), (True, COMPILED)):
        rows = []
        for cell in found.models.values():
            if cell["compiled"] != compiled:
                continue
            eager = cell["variants"]["eager"]
            peak = "" if eager["peak_bytes"] is None else f"{eager['peak_bytes'] / 2**30:.2f} GiB"
            shape = " × ".join(map(str, cell["shape"]))
            if cell["batch"] < cell["batch_asked"]:
                shape += f" (batch {cell['batch']} of {cell['batch_asked']}: no memory for more)"
            row = [cell["model"], shape, cell["mode"], f"{eager['median_s'] * 1e3:.2f} ms", peak]
            for name in names:
                own = cell["variants"].get(name)
                if text := compared(own):
                    text += _memory(own, cell["variants"][own["base"]])
                row.append(text)
            rows.append(row)
        title = "Compiled: over eager, and patched over not:" if compiled else "Models, each over eager:"
        told += titled(title, ["model", "batch", "mode", "eager", "its memory", *names], rows)
    return told


def _training(found: Found) -> list[str]:
    rows = []
    for cell in found.training.values():
        variants = cell["variants"]
        eager = variants["eager"]
        memory = "" if eager["peak_bytes"] is None else f", {eager['peak_bytes'] / 2**30:.2f} GiB"
        shape = " × ".join(map(str, cell["shape"]))
        row = [cell["model"], shape, f"{eager['median_s'] * 1e3:.2f} ms{memory}"]
        for name in training.VARIANTS:
            own = variants.get(name)
            row.append((compared(own) + _memory(own, eager)) if own else "")
        rows.append(row)
    title = "Training with less memory, each over eager:"
    return titled(title, ["model", "batch", "eager", *training.VARIANTS], rows)


def compact(columns: Mapping[str, tuple[Found, str]]) -> str:
    """Models that are not compiled, as a table of ratios over eager alone.

    Args:
        columns: heading → the record that it is from, and the variant there.
    """
    rows = []
    for key, told in next(iter(columns.values()))[0].models.items():
        model, _, mode, compiled = key
        if compiled:
            continue
        ratios = [speedup(found.models[key], name) for found, name in columns.values()]
        texts = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rows.append([model, f"{told['batch']} × {told['length']}", mode, *texts])
    return markdown.table(["model", "batch", "mode", *columns], rows)


def by_in(cells: Iterable[Line]) -> list[str]:
    """The names of what was compared in these cells, in the order of the registry."""
    there = {name for cell in cells for name, row in cell["variants"].items() if "ratio" in row}
    return [name for name in IMPLEMENTATIONS if name in there]


def sites_told(found: Found) -> list[str]:
    rows, names = [], by_in(found.sites.values())
    for cell in found.sites.values():
        own = cell["variants"]
        texts = [compared(own.get(name)) for name in names]
        named = [str(cell[key]) for key in ("kind_of_site", "spelling", "dtype", "size", "mode")]
        rows.append([*named, f"{own['eager']['median_s'] * 1e3:.3f} ms", *texts])
    headings = ["kind", "activation", "dtype", "tokens", "mode", "eager", *names]
    return titled("Single layers, each over eager:", headings, rows)


def _kernels(found: Found) -> list[str]:
    rows = []
    for cell in found.kernels.values():
        shares = [share(cell, name) for name in BY]
        rows.append([*_named(cell), *("" if own is None else f"{own:.0%}" for own in shares)])
    return titled("Share of the bandwidth of a copy:", ["activation", "form", "dtype", "elements", *BY], rows)


def _variants(found: Found) -> list[str]:
    rows = []
    for cell in found.variants.values():
        medians = {name: statistics.median(own) for name, own in cell["samples_s"].items()}
        copy = cell["copied"] / medians.pop("copy")
        for name in cell["variants"]:
            shares = [cell["bytes"] / medians[f"{of}, {name}"] / copy for of in ("gelu", "relu")]
            rows.append([cell["form"].replace("_", " "), name, *(f"{own:.1%}" for own in shares)])
        rows += [[cell["form"].replace("_", " "), name, why, ""] for name, why in cell["absent"].items()]
    title = "Variants of the bf16 kernels, share of a copy; ReLU has next to no arithmetic:"
    return titled(title, ["form", "variant", "gelu", "relu"], rows)


def _products(found: Found) -> list[str]:
    rows = []
    for cell in found.products.values():
        own = cell["candidates"]
        texts = [compared(own.get(name)) for name in LAYERS]
        shape = " × ".join(map(str, cell["shape"]))
        rows.append([cell["activation"], shape, f"{own['eager']['median_s'] * 1e3:.3f} ms", *texts])
    title = "Linear layers in bf16 with their activation, over eager; product: without one, the bound:"
    return titled(title, ["activation", "rows × columns read × written", "eager", *LAYERS], rows)


def _tests(found: Found) -> list[str]:
    counted = Counter(note["outcome"] for note in found.of("test"))
    if not counted:
        return []
    failed = counted["failed"] + counted["error"]
    return [f"Tests: {counted['passed']} passed, {failed} failed, {counted['skipped']} skipped.", ""]


def choices_told(found: Found) -> list[str]:
    rows, cells = [], list(measured.CELLS)
    for own in choices.choices(found.sites.values()):
        best = own["able"][0] if own["able"] else own["fastest"]
        taken = best["implementation"] if own["able"] else "eager"
        times = ["{value:.2f}× ({low:.2f}–{high:.2f})".format(**own) for own in best["times"].values()]
        named = [str(own[name]) for name in ("kind", "activation", "ops", "dtype")]
        cells = list(best["times"])
        rows.append([*named, taken, best["implementation"], *times])
    headings = ["kind", "activation", "in ops", "dtype", "auto takes", "best", *cells]
    return titled("What auto should take, and the best over the model's own ops:", headings, rows)


def _steps(found: Found) -> list[str]:
    """How long each took, for the next one to guess better; and what is missing."""
    rows = []
    for name, step in found.steps.items():
        seconds = f"{step['ended']['seconds']:g}" if "ended" in step else ""
        first = f"{step['first']:.1f}" if "first" in step else ""
        cells = f"{step['had']} of {step['cells']}" if step["cells"] else ""
        rows.append([name, _ending(step), seconds, f"{step['limit']:g}", f"{step['guess']:g}", first, cells])
    headings = ["step", "ended", "seconds", "of", "preparing, guessed", "first cell after", "cells"]
    told = titled("Steps:", headings, rows)
    for kind, title in (("left_out", "Left out"), ("absent", "Absent")):
        own = [
            f"- {note['step']}: {': '.join(filter(None, [note.get('what'), note['why']]))}" for note in found.of(kind)
        ]
        told += [f"{title}:", "", *own, ""] if own else []
    return told


def _absent(found: Found) -> list[str]:
    """Why a variant or a candidate was not there, each reason once."""
    cells = [*found.models.values(), *found.training.values(), *found.kernels.values()]
    reasons = sorted({f"{name}: {why}" for cell in cells for name, why in cell["absent"].items()})
    return ["Not measured, and why:", "", *(f"- {reason}" for reason in reasons), ""] if reasons else []


def _goals(found: Found) -> list[str]:
    def least(goal: dict[str, Any], card: str) -> str:
        return f"{goal['least'][card]:g}" if card in goal["least"] else "–"

    rows = [
        [
            goal["goal"],
            *(least(goal, card) for card in goals.CARDS),
            "" if goal["measured"] is None else f"{goal['measured']:.3f}",
            goal["outcome"],
        ]
        for goal in goals.outcomes(found)
    ]
    return table(["goal", *(f"at least, {card}" for card in goals.CARDS), "measured", "outcome"], rows)


def summary(found: Found) -> str:
    """The Markdown, the goals last."""
    wrong = failures(found)
    parts = (_models, _training, _kernels, _products, _variants, sites_told, choices_told, _absent, _steps, _tests)
    lines = [*_about(found), *(text for part in parts for text in part(found))]
    lines += ["Went wrong:", "", *(f"- {one}" for one in wrong), ""] if wrong else []
    return "\n".join([*lines, *_goals(found)]).rstrip() + "\n"


def written(found: Found, folder: Path) -> str:
    """The tables, which are in a file beside the record then."""
    told = summary(found)
    (folder / NAME).write_text(told, encoding="utf-8")
    return told
