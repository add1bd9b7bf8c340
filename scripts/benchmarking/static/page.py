"""All of it as one page, ``kernels.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_gelu_patch.evaluation.report.markdown import table
from hf_gelu_patch.implementations import triton_launch
from scripts.benchmarking.static.coefficients import FITS
from scripts.benchmarking.static.compiled import BYTES, FORMS, KEYS, SLOTS, checked_kernels
from scripts.benchmarking.static.errors import SPECIAL

Row = Mapping[str, Any]


def document(found: Row) -> str:
    """The page, from what each command found, and the versions of triton and torch."""
    numbers, built = found["errors"], found["static"]
    usual = [row for row in built if row["variant"] == triton_launch.CHOSEN[row["form"].replace(" ", "_")]]
    blocks = [
        "# The Triton kernels, without a GPU",
        _INTRODUCTION.format(**found),
        _COEFFICIENTS,
        _coefficients(found["fit"]),
        _ERRORS,
        _errors(numbers["errors"]),
        _ON_HARDWARE,
        _on_hardware(found["hardware"]),
        _WHAT_HOLDS,
        _SPECIAL.format(others="; ".join(numbers["other_kind"]) or "nowhere"),
        _special(numbers["special"]),
        _ROUNDING,
        _rounding(numbers["rounding"]),
        _INSTRUCTIONS,
        _instructions(usual),
        _COMPILED,
        _compiled(usual),
        _VARIANTS,
        _variants(built),
    ]
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = """\
Written by `python -m scripts.benchmarking.static all`. **Nothing here was measured on a GPU**: errors are
those of the kernels interpreted on a CPU, with correctly rounded exponentials and quotients; instructions
are counted in what the compilers make of them (triton {triton}, torch {torch}); shares
of a GPU's capacity are calculated. Triton 3.7's interpreter rounds an fma twice, where a GPU and triton
3.9's round once."""

_COEFFICIENTS = """\
## Coefficients

Φ(−t) = e^(−t²/2)·R(t); R as a polynomial in t/(shift + t). Largest errors of the polynomial in exact
arithmetic; the weighted one, with the weight max(e^(−t²/2), floor)/R(t), is what the fit minimises."""


def _coefficients(fits: Mapping[str, Row]) -> str:
    return table(
        ["stored in", "degree", "shift", "floor", "weighted error", "abs. error of Φ(−t)", "rel. error of R"],
        [
            [
                dtype,
                str(len(row["kept"]) - 1),
                f"{row['shift']:g}",
                f"{FITS[dtype][2]:g}",
                f"{row['weighted_error']:.1e}",
                f"{row['tail_absolute']:.1e}",
                f"{row['ratio_relative']:.1e}",
            ]
            for dtype, row in fits.items()
        ],
    )


_ERRORS = """\
## Errors

Largest error in units in the last place against float64, ours / PyTorch's own on this CPU: over all finite
values of fp16 and bf16, and 2.2 million of fp32. Near zeros of a derivative, and where the result is
subnormal in fp32, a unit is tiny: that is what the large figures are. inf: NaN or ∞ where a number should
be."""


def _errors(errors: Mapping[str, Mapping[str, Row]]) -> str:
    return table(
        ["activation", "dtype", "value, x ≥ −5", "value", "derivative"],
        [
            [name, dtype, *(f"{_figure(a)} / {_figure(b)}" for a, b in zip(row["ours"], row["torch"], strict=True))]
            for name, dtypes in errors.items()
            for dtype, row in dtypes.items()
        ],
    )


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


_ON_HARDWARE = """\
## Will it hold on a GPU?

On NVIDIA's, ex2.approx and div.approx may be off by 2 ulp, and take subnormals for 0 (.ftz). Exact GELU
with both off by a factor 1 ± 2⁻²² and subnormal exponentials 0, in the worst of the four combinations, over
the same values (emulated, not measured; absolute errors are those for |x| ≤ 14, rounding included):"""


def _on_hardware(worst: Mapping[str, Sequence[float]]) -> str:
    ways = [f"{what}, {how}" for how in ("x ≥ −5, ulp", "ulp", "absolutely") for what in ("value", "derivative")]
    return table(["dtype", *ways], [[dtype, *map(_figure, row)] for dtype, row in worst.items()])


_WHAT_HOLDS = """\
So the values of bf16 and fp16 keep their bounds from −5 on, and in fp16 everywhere; fp32's absolute error
stays what it is, its relative error grows. What does not hold is the bound of fp16's derivative, next to
its zero at −0.75, and in bf16 and fp32 whatever hangs on an exponential below 2⁻¹²⁶: of exact GELU beyond
−13.2, where the value is subnormal and the derivative at most 7e−38.

The other activations divide by 1 + e^…: where that passes 2¹²⁶, or e^… is below 2⁻¹²⁶, the result on
NVIDIA's GPUs is 0, which takes away at most 1.1e−36 (x·e^x at −87.3). Where they divide x itself
(gelu_tanh, quick_gelu, silu) subnormal inputs and results are 0 too. The tables above and below show
neither. fp16 is not touched: its least number is 6e−8."""

_SPECIAL = """\
## Special values

Value, derivative in fp32, interpreted; in brackets PyTorch's own, where it is another. ±∞ give the limits.
The sign of 0 is PyTorch's but for exact GELU, clipped or not, and ReLU, which have 0 where PyTorch has −0,
and for derivatives that are 0. Where a 16-bit dtype has NaN or ∞ and fp32 has not, or the other way round: {others}."""


def _special(special: Mapping[str, Sequence[Sequence[str]]]) -> str:
    return table(
        ["activation", *SPECIAL],
        [
            [name, *(ours if ours == torchs else f"{ours} ({torchs})" for ours, torchs in cells)]
            for name, cells in special.items()
        ],
    )


_ROUNDING = """\
## Rounding of gated products

act(gate)·up of 262,144 pairs from N(0, 1): mean / largest error in ulp; in brackets as a share of the value,
where that is not subnormal; and how many have eager's bits.
The default computes in fp32 and rounds once, at the store: it is the nearest to the truth. `triton_rounded`
(`rounded=True`) rounds act(gate) first, as two ops do: for who wants eager's bits."""


def _rounding(rounding: Mapping[str, Mapping[str, Row]]) -> str:
    return table(
        ["activation", "dtype", "once (default)", "act(gate) first", "PyTorch's two ops"],
        [
            [name, dtype, *map(_rounded, row.values())]
            for name, dtypes in rounding.items()
            for dtype, row in dtypes.items()
        ],
    )


def _rounded(way: Row) -> str:
    (mean, most), (share, most_share) = way["ulp"], way["relative"]
    return f"{mean:.3f} / {most:.2f} ({share:.2e} / {most_share:.2e}), {way['bits']:.2%}"


_INSTRUCTIONS = """\
## Instructions

An element, on a whole block's way through the kernel, sm_90; in brackets the share of the issue slots that
an H200's memory leaves time for (calculated, not measured: 27.6 forward, 41 backward and gated forward, 69
gated backward in bf16 and fp16; twice that in fp32). Beyond 100 % it would not be memory that limits."""


def _instructions(usual: Sequence[Row]) -> str:
    dense = {
        (r["activation"], r["form"], r["dtype"]): r for r in usual if r["target"] == "sm_90" and r["layout"] == "dense"
    }
    rows = []
    for name in dict.fromkeys(name for name, *_ in dense):
        for dtype in ("bf16", "fp16", "fp32"):
            own = [dense.get((name, form, dtype)) for form in FORMS]
            rows.append([name, dtype, *("" if row is None else instructions(row) for row in own)])
    return table(["activation", "dtype", *FORMS], rows)


def instructions(row: Row) -> str:
    """The cell of a kernel in the table of instructions."""
    slots = SLOTS[row["form"]] * BYTES[row["dtype"]] / 2
    return f"{row['instructions']:.1f} ({row['instructions'] / slots:.0%})"


_COMPILED = """\
Compiled for four GPUs: registers; spills; whether all accesses of a whole block are 128 bits wide and
nothing is computed in fp64; on NVIDIA's, instructions an element. Dense: one row. Rows: halves of longer
ones, of which a program has one block; far: with more than 2³¹ elements. Offsets are 64 bits in both and
in what is dense. Across: the last tensor that is read is transposed, and tiles of 32 × 32 are read.
Interleaved: gate and up in turn."""


def _compiled(usual: Sequence[Row]) -> str:
    checked = set(checked_kernels())
    wide = "128-bit, no fp64"
    headings = ["activation", "form", "dtype", "layout", "target", "registers", "spills", wide, "instructions"]
    return table(headings, [_shown(row) for row in usual if tuple(row[key] for key in KEYS) in checked])


def _shown(row: Row) -> list[str]:
    """A row of the table of compiled kernels."""
    return [
        *(row[key] for key in ("activation", "form", "dtype", "layout", "target")),
        *(str(row[key]) for key in ("registers", "spills")),
        "yes" if row["wide"] and not row["f64"] else "no",
        f"{row['instructions']:.1f}" if "instructions" in row else "",
    ]


_VARIANTS = """\
## Variants

What `python -m scripts.benchmarking gpu` times: dense, bf16, exact GELU, compiled for sm_90. A persistent
program's count has its loop in it; one that reads ahead does so through shared memory."""


def _variants(built: Sequence[Row]) -> str:
    return table(
        ["variant", "form", "registers", "spills", "instructions", "accesses of a whole block"],
        [
            [
                *(row["variant"], row["form"], str(row["registers"]), str(row["spills"])),
                f"{row['instructions']:.1f}",
                ", ".join(f"{count} {name}" for name, count in row["accesses"].items()),
            ]
            for row in built
            if (row["activation"], row["dtype"], row["target"], row["layout"]) == ("gelu", "bf16", "sm_90", "dense")
        ],
    )
