"""What ``benchmark.py gpu`` found, in short: the goals, the kernels, the models, and what ``auto`` should take."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.timing import line, versions_of

MAIN = 2**26
"""Elements, at which the kernels have their goals."""

Found = Mapping[str, Any]


def cells(found: Found) -> list[Mapping[str, Any]]:
    """The cells of kernels."""
    return [cell for part in found["parts"].values() for cell in part.get("cells", ()) if "form" in cell]


def model_cells(found: Found) -> list[Mapping[str, Any]]:
    return [cell for part in found["parts"].values() for cell in part.get("cells", ()) if "mode" in cell]


def failures(found: Found) -> list[str]:
    """Whatever went wrong: tests, candidates that are wrong, outputs that moved too far, what raised or died."""
    told = []
    for name, part in found["parts"].items():
        told += [f"{name}: {part['note']}"] if part.get("note") else []
        told += [f"test {wrong}" for wrong in part.get("wrong", ())]
        told += [f"{failure['what']} failed" for failure in part.get("failures", ())]
        for other, drift in part.get("about", {}).get("drift", {}).items():
            told += [f"{name}: {other} moves the outputs by {drift['largest']:.2g}"] if drift["exceeded"] else []
        for cell in part.get("cells", ()):
            absent = cell.get("absent", {}).items()
            if "mode" in cell:
                own = [f"{other}: {why}" for other, why in absent if not why.startswith("ImplementationUnavailable")]
            else:
                own = [why for _, why in absent if " is wrong: " in why or " failed: " in why]
            told += [f"{name}: {why}" for why in own]
    return list(dict.fromkeys(told))


def share(cell: Mapping[str, Any], name: str) -> float | None:
    row = cell["candidates"].get(name)
    return row and row["share_of_copy"]


def times(cell: Mapping[str, Any], name: str, over: str) -> float | None:
    """How many times as fast ``name`` is as ``over``, from the medians."""
    rows = cell["candidates"]
    return rows[over]["median_s"] / rows[name]["median_s"] if name in rows and over in rows else None


def speedup(cell: Mapping[str, Any], name: str) -> float | None:
    row = cell["variants"].get(name, {})
    return row["ratio"]["value"] if "ratio" in row else None


def goals(found: Found) -> list[tuple[str, float, float | None]]:
    """Each goal, what it asks for at least, and what was measured; None where nothing was. They are for a GPU and the
    published sizes: what was tried out on a CPU, or tiny, meets and misses none."""
    counts = found["environment"]["gpu"] is not None and not found["settings"]["tiny"]
    own = [cell for cell in cells(found) if cell["elements"] == MAIN and cell["dtype"] == "bfloat16" and counts]
    listed: list[tuple[str, float, float | None]] = []

    def least(name: str, wanted: float, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        listed.append((name, wanted, min(known) if known else None))

    def of(form: str, activation: str | None = None) -> list[Mapping[str, Any]]:
        return [cell for cell in own if cell["form"] == form and activation in (None, cell["activation"])]

    for form in ("forward", "backward", "gated_forward", "gated_backward"):
        told = f"kernels, {form.replace('_', ' ')}: share of a copy's bandwidth, the least"
        least(told, 0.92, [share(cell, "triton") for cell in of(form)])
    for form in ("forward", "backward"):
        least(f"exact GELU over F.gelu, {form}", 1.2, [times(cell, "triton", "aten") for cell in of(form, "gelu")])
    least("gelu_new over eager", 6.0, [times(cell, "triton", "eager") for cell in of("forward", "gelu_tanh")])
    for form in ("gated_forward", "gated_backward"):
        least(f"{form.replace('_', ' ')} over eager", 1.5, [times(cell, "triton", "eager") for cell in of(form)])
    models = model_cells(found) if counts else []

    def best(name: str, wanted: float, model: str, mode: str) -> None:
        known = [
            value
            for cell in models
            if (cell["model"], cell["size"], cell["mode"]) == (model, "large", mode)
            for variant in ("auto", "triton", "epilogue")
            if (value := speedup(cell, variant)) is not None
        ]
        listed.append((name, wanted, max(known) if known else None))

    best("GPT-2, 32 × 512, forward", 1.30, "gpt2", "forward")
    best("GPT-2, 32 × 512, training step", 1.25, "gpt2", "training step")
    best("T5 v1.1, 32 × 512, forward", 1.20, "t5", "forward")
    best("BERT, 32 × 512, forward", 1.05, "bert", "forward")
    best("ViT, 32 × 512, forward", 1.05, "vit", "forward")
    best("Llama, 32 × 512, training step", 1.03, "llama", "training step")
    small = [cell for cell in models if cell["size"] == "small"]
    patched = [speedup(cell, variant) for cell in small for variant in ("auto", "triton")]
    least("1 × 128, patched, the least of all", 0.98, patched)
    least("compiled, patched over not, the least of all", 0.99, [speedup(cell, "compiled_triton") for cell in models])
    return listed


def fastest(found: Found) -> list[tuple[str, str, str, str]]:
    """What ``auto`` should take on this GPU: activation, form, dtype, and the implementation that was measured faster
    than aten at the main size, eager being the one it is compared with; "aten" where none was."""
    told = []
    for cell in cells(found):
        rows = cell["candidates"]
        if cell["elements"] != MAIN or "triton" not in rows or rows["triton"]["interpreted"]:
            continue
        faster = (
            rows["triton"]["verdict"] == "faster"
            and "aten" in rows
            and rows["triton"]["ratio"]["low"] > rows["aten"]["ratio"]["high"]
        )
        told.append((cell["activation"], cell["form"], cell["dtype"], "triton" if faster else "aten"))
    return told


def limits(found: Found) -> list[list[str]]:
    """Rows: activation, form, share of the copy with and without arithmetic, the best block and its share."""
    rows = []
    for part in found["parts"].values():
        for limit in part.get("limits", ()):
            medians = {name: statistics.median(own) for name, own in limit["samples_s"].items()}
            copy = limit["copied"] / medians.pop("copy")
            shares = {name: limit["bytes"] / median / copy for name, median in medians.items()}
            blocks = [name for name in shares if not name.endswith("without arithmetic")]
            best = max(blocks, key=lambda name: shares[name])
            usual = blocks[0]
            rows.append(
                [
                    *(limit["activation"], limit["form"].replace("_", " ")),
                    *(f"{shares[usual]:.0%}", f"{shares[f'{usual}, without arithmetic']:.0%}"),
                    f"{best}: {shares[best]:.0%}",
                ]
            )
    return rows


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [line(headings), "|---" * len(headings) + "|", *(line(row) for row in rows), ""]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def summary(found: Found) -> str:
    """The Markdown, the goals last."""
    about = found["environment"]
    lines = [f"{versions_of(about)}; a copy moves {found['bandwidth']['gb_per_s']:,.0f} GB/s.", ""]
    tests = found["parts"].get("tests", {})
    if "passed" in tests:
        lines += [
            f"Tests: {tests['passed']} passed, {tests['failed'] + tests['error']} failed, {tests['skipped']} skipped.",
            "",
        ]
    names = ("eager", "aten", "compile", "triton", "liger")
    rows = []
    for cell in cells(found):
        shares = [share(cell, name) for name in names]
        size = f"{cell['elements'] / 2**20:g}M"
        named = [cell["activation"], cell["form"].replace("_", " "), cell["dtype"], size]
        rows.append([*named, *("" if own is None else f"{own:.0%}" for own in shares)])
    if rows:
        lines += [
            "Share of the bandwidth of a copy:",
            "",
            *table(["activation", "form", "dtype", "elements", *names], rows),
        ]
    if rows := limits(found):
        headings = ["activation", "form", "as it is", "without arithmetic", "best block, elements a thread"]
        lines += ["What limits the bf16 kernels (share of a copy):", "", *table(headings, rows)]
    rows = []
    names = ("auto", "triton", "epilogue", "compiled", "compiled_triton")
    for cell in model_cells(found):
        eager = cell["variants"]["eager"]
        peak = "" if eager["peak_bytes"] is None else f"{eager['peak_bytes'] / 2**30:.2f} GiB"
        row = [
            cell["model"],
            " × ".join(map(str, cell["shape"])),
            cell["mode"],
            f"{eager['median_s'] * 1e3:.2f} ms",
            peak,
        ]
        for name in names:
            own = cell["variants"].get(name)
            text = ""
            if own and "ratio" in own:
                text = "{value:.3f}× ({low:.3f}–{high:.3f}) {verdict}".format(**own["ratio"], verdict=own["verdict"])
                if own["peak_bytes"] is not None and eager["peak_bytes"]:
                    text += f", memory {own['peak_bytes'] / eager['peak_bytes']:.2f}×"
            row.append(text)
        rows.append(row)
    if rows:
        told = "Models, each over eager, compiled_triton over compiled:"
        lines += [told, "", *table(["model", "batch", "mode", "eager", "its memory", *names], rows)]
    if left_out := sum(len(part.get("left_out", ())) for part in found["parts"].values()):
        lines += [f"There was no time for {left_out} more cells: they are named in the JSON.", ""]
    if found_fastest := fastest(found):
        lines += ["What auto should take:", ""]
        lines += [*table(["activation", "form", "dtype", "implementation"], [list(row) for row in found_fastest])]
    if wrong := failures(found):
        lines += ["Went wrong:", "", *(f"- {one}" for one in wrong), ""]
    rows = [
        [name, f"{wanted:g}", _number(measured), "" if measured is None else "met" if measured >= wanted else "missed"]
        for name, wanted, measured in goals(found)
    ]
    lines += table(["goal", "at least", "measured", ""], rows)
    return "\n".join(lines).rstrip() + "\n"


def read(path: Path) -> Found:
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found
