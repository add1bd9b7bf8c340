"""What was measured, as tables."""

from __future__ import annotations

from pathlib import Path

from hf_gelu_patch.evaluation.report import markdown
from scripts.benchmarking.cpu.models import EAGER
from scripts.benchmarking.gpu.record import Line
from scripts.benchmarking.gpu.report import compared
from scripts.benchmarking.memory.found import Found
from scripts.benchmarking.memory.measuring import VARIANTS
from scripts.benchmarking.memory.subjects import SUBJECTS
from scripts.benchmarking.timing import versions_of

NAME = "memory.md"
READING = (
    "One training step: a forward in training mode, and the gradients of its outputs. fp32, random weights, four "
    "layers of base width without a head, no dropout, one thread. Kept is what is alive in between, without the "
    "weights and the batch; the peak is the most alive at one time. Bytes are exact. A variant is so many times "
    "as fast as eager, in the same rounds, with the 99 % interval; what eager shows against itself is the noise. "
    '`tiles` is `tiles=4` on short texts and `tiles="auto"` on long ones. `checkpoint` is transformers\' own gradient '
    "checkpointing. Liger-Kernel's Triton kernels do not run on a CPU: here "
    "its modules and autograd functions do, and torch computes what the kernels would, so that they have no times."
)
GUIDE = {
    EAGER: "as it is",
    "auto": "`patch(model)`",
    "recompute": "`recompute=True`",
    "tiles": "`tiles=`",
    "checkpoint": "checkpointing",
    "liger": "Liger-Kernel",
    "liger_tiled": "Liger-Kernel, tiled",
}
"""Variants → how the guide calls them."""


def mib(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:,.1f}" if count < 2**30 else f"{count / 2**20:,.0f}"


def _there(found: Found, name: str) -> dict[str, Line]:
    """The variants of a subject that were measured."""
    own = found.bytes.get(name, {})
    return {variant: own[variant] for variant in VARIANTS if "saved" in own.get(variant, {})}


def _shape(own: dict[str, Line]) -> str:
    return " × ".join(map(str, next(iter(own.values()))["shape"]))


def _rows(found: Found) -> list[list[str]]:
    rows = []
    for name in SUBJECTS:
        own, timed = _there(found, name), found.steps.get(name)
        for variant, row in own.items():
            eager = own.get(EAGER, row)
            shares = [f"{row[key] / eager[key]:.2f}" for key in ("saved", "peak")]
            time = "" if timed is None else compared(timed["variants"].get(variant))
            if timed is not None and variant == EAGER:
                time = f"{timed['variants'][EAGER]['median_s']:.2f} s, noise {timed['noise']:.1%}"
            sizes = [mib(row["saved"]), shares[0], mib(row["peak"]), shares[1]]
            rows.append([name, _shape(own), variant, *sizes, time])
    return rows


def compact(found: Found, key: str) -> str:
    """The guide's table of what is kept ("saved") or of the peaks ("peak"), in MiB."""
    subjects = {name: own for name in SUBJECTS if (own := _there(found, name))}
    names = [one for one in GUIDE if any(one in own for own in subjects.values())]
    rows = [
        [name, _shape(own), *(mib(own[one][key]) if one in own else "" for one in names)]
        for name, own in subjects.items()
    ]
    return markdown.table(["model", "batch", *(GUIDE[one] for one in names)], rows)


def compact_times(found: Found) -> str:
    """The guide's table of times: how many times as fast as eager, in bold what lies beyond the noise."""
    subjects = {name: found.steps[name] for name in SUBJECTS if name in found.steps}
    names = [one for one in GUIDE if one != EAGER and any(one in line["variants"] for line in subjects.values())]
    rows = []
    for name, line in subjects.items():
        texts = []
        for one in names:
            row = line["variants"].get(one, {})
            value = f"{row['ratio']['value']:.2f}" if "ratio" in row else ""
            texts.append(value if row.get("verdict", "no ").startswith("no ") else f"**{value}**")
        rows.append([name, f"{line['noise']:.1%}".replace("%", " %"), *texts])
    return markdown.table(["model", "noise", *(GUIDE[one] for one in names)], rows)


def summary(found: Found) -> str:
    """The Markdown."""
    told = versions_of(found.environment) if found.environment else "Where this was measured was not recorded"
    headings = ["model", "batch", "variant", "kept, MiB", "of eager's", "peak, MiB", "of eager's", "times as fast"]
    parts = [f"{told}.", READING, markdown.table(headings, _rows(found))]
    absent = [
        f"- {name}, {variant}: {line['absent']}"
        for name, own in found.bytes.items()
        for variant, line in own.items()
        if "absent" in line
    ]
    if absent:
        parts.append("\n".join(["Not measured, and why:", "", *absent]))
    if found.failures:
        parts.append("\n".join(["Went wrong:", "", *(f"- {one}" for one in found.failures)]))
    return "\n\n".join(parts) + "\n"


def written(found: Found, folder: Path) -> str:
    """The tables, which are in a file beside the record then."""
    told = summary(found)
    (folder / NAME).write_text(told, encoding="utf-8")
    return told
