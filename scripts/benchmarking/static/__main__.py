"""What is known of the Triton kernels without a GPU.

    python -m scripts.benchmarking.static fit       # the coefficients of triton_kernels.MILLS, and how far off they are
    python -m scripts.benchmarking.static errors    # every kernel, interpreted, over all values of fp16 and bf16
    python -m scripts.benchmarking.static static    # every kernel, compiled for four GPUs
    python -m scripts.benchmarking.static all       # all of it, written to kernels.md beside this

``--json`` prints the figures instead. Compiling and interpreting need a process each: ``all`` starts them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "errors" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what triton 3.9 warns about; our sums are written as fma

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.implementations import triton_ops

# ------------------------------------------------------------------------------------------------------- coefficients

FITS = {"bfloat16": (6, 3.0, 2e-3), "float16": (7, 2.5, 1e-3), "float32": (10, 2.25, 0.1)}
"""Storage dtype → (coefficients, the first being ½; shift; the floor of the weight)."""
_END = 14.2


def _ratio(t: np.ndarray) -> np.ndarray:
    from scipy.special import erfcx

    return 0.5 * erfcx(t / math.sqrt(2.0))


def fitted(dtype: str, iterations: int = 1500) -> tuple[float, list[float]]:
    """(largest weighted error, coefficients) of R(t) = e^(t²/2)·Φ(−t) as a polynomial in t/(shift + t) on [0, 14.2].

    Minimax by Lawson's iteration: least squares, each point's weight then multiplied by its error. The error that
    counts is relative, the more so the larger e^(−t²/2) is: max(e^(−t²/2), floor)/R(t).
    """
    count, shift, floor = FITS[dtype]
    nodes = np.arange(4000)
    t = _END / 2 * (1 - np.cos(np.pi * (nodes + 0.5) / len(nodes)))
    base = np.maximum(np.exp(-t * t / 2), floor) / _ratio(t)
    basis = np.stack([(t / (shift + t)) ** k for k in range(1, count)], axis=1)
    scale = np.abs(basis).max(axis=0)
    basis, target, weights = basis / scale, _ratio(t) - 0.5, np.ones(len(t))
    best = (math.inf, np.zeros(count - 1))
    for _ in range(iterations):
        rows = np.sqrt(weights) * base
        found, *_ = np.linalg.lstsq(basis * rows[:, None], target * rows, rcond=None)
        error = np.abs(basis @ found - target) * base
        if error.max() < best[0]:
            best = float(error.max()), found / scale
        weights *= error / error.max() + 1e-12
        weights /= weights.mean()
    return best[0], [0.5, *(float(f"{np.float32(value):.9g}") for value in best[1])]


def polynomial(dtype: str, coefficients: list[float], t: np.ndarray) -> np.ndarray:
    """R(t) by these coefficients, in float64."""
    shift = FITS[dtype][1]
    value = np.zeros_like(t)
    for c in reversed([float(np.float32(c)) for c in coefficients]):
        value = value * (t / (shift + t)) + c
    return value


def bounds(dtype: str, coefficients: list[float]) -> dict[str, float]:
    """How far off the polynomial is in exact arithmetic: Φ(−t) absolutely, R(t) relatively."""
    t = np.linspace(0.0, _END, 200_001)
    error = polynomial(dtype, coefficients, t) - _ratio(t)
    return {
        "tail_absolute": float(np.abs(error * np.exp(-t * t / 2)).max()),
        "ratio_relative": float(np.abs(error / _ratio(t)).max()),
    }


def fit() -> dict[str, Any]:
    from hf_gelu_patch.implementations import triton_kernels

    found = {}
    for dtype in FITS:
        error, coefficients = fitted(dtype)
        shift, kept = triton_kernels.MILLS[dtype]
        found[dtype] = {
            "weighted_error": error,
            "shift": shift,
            "coefficients": coefficients,
            "kept": list(kept),
            **bounds(dtype, list(kept)),
        }
    return found


def to_paste(found: dict[str, Any]) -> str:
    """What ``fit`` found, as it stands in triton_kernels.py, and how far off each is."""
    lines = ["MILLS = {"]
    for dtype, row in found.items():
        lines += [
            f"    # weighted error {row['weighted_error']:.2e}; of Φ(−t) at most {row['tail_absolute']:.2e}, "
            f"of R(t) {row['ratio_relative']:.2e} of it",
            f'    "{dtype}": ({row["shift"]}, ({", ".join(f"{c:.9g}" for c in row["coefficients"])})),',
        ]
    same = all(row["coefficients"] == row["kept"] for row in found.values())
    return "\n".join([*lines, "}", f"# {'the same as' if same else 'NOT the same as'} triton_kernels.MILLS", ""])


# ------------------------------------------------------------------------------------------------------------- errors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_PRECISION = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}
SPECIAL = ("0", "−0", "least", "−least", "least normal", "largest", "−largest", "∞", "−∞", "NaN")
"""What ``special_points`` are; ``least`` is the smallest subnormal."""


def values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit dtype; of fp32, two million on [−14, 14] and 200,000 of every magnitude."""
    if dtype == torch.float32:
        near, far = torch.linspace(-14.0, 14.0, 2_000_001), torch.logspace(-37, 38, 100_001)
        return torch.cat([near, far, -far])
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def ulp(y: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of ``dtype`` at y, a float64 tensor."""
    digits, least = _PRECISION[dtype]
    return torch.exp2(torch.floor(torch.log2(y.abs().clamp(min=2.0**least))) - digits + 1)


def in_ulp(y: Tensor, exact: Tensor) -> Tensor:
    """|y − exact| in units in the last place of y's dtype; inf for what is not finite and should be."""
    error = (y.double() - exact).abs() / ulp(exact, y.dtype)
    error[~y.isfinite()] = math.inf
    error[exact.abs() > torch.finfo(y.dtype).max] = 0.0
    return error


def computed(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative by our kernels."""
    leaf = x.clone().requires_grad_()
    y = triton_ops.pointwise(leaf, name)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]


def by_torch(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative as transformers' own module has them."""
    record, leaf = ACTIVATIONS[name], x.clone().requires_grad_()
    y = record.bind(record.eager)(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]


def errors() -> dict[str, Any]:
    """Largest errors in ulp, by activation and dtype: [value for x ≥ −5, value, derivative], ours and torch's."""
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of ∞ in the interpreter: meant, where not discarded
    table: dict[str, Any] = {}
    for name in triton_ops.POINTWISE:
        record = ACTIVATIONS[name]
        for label, dtype in DTYPES.items():
            x = values(dtype)
            exact = record.bind(record.reference)(x.double()), record.bind(record.derivative)(x.double())
            near = x >= -5
            row = {}
            for who, (y, slope) in (("ours", computed(name, x)), ("torch", by_torch(name, x))):
                value = in_ulp(y, exact[0])
                row[who] = [float(e.max()) for e in (value[near], value, in_ulp(slope, exact[1]))]
            table.setdefault(name, {})[label] = row
    return {
        "errors": table,
        "special": special(torch.float32),
        "other_kind": other_kind(),
        "rounding": rounding(),
    }


def special_points(dtype: torch.dtype) -> Tensor:
    """The values that ``SPECIAL`` names."""
    limits = torch.finfo(dtype)
    least = 2.0 ** (_PRECISION[dtype][1] - _PRECISION[dtype][0] + 1)
    return torch.tensor(
        [0.0, -0.0, least, -least, limits.tiny, limits.max, limits.min, math.inf, -math.inf, math.nan], dtype=dtype
    )


def special(dtype: torch.dtype) -> dict[str, list[list[str]]]:
    """Value and derivative at ``special_points``: ours, and torch's, each point by itself."""

    def told(pair: tuple[Tensor, Tensor]) -> str:
        return ", ".join(f"{value.item():.6g}" for value in pair)

    points = special_points(dtype).split(1)
    return {name: [[told(computed(name, x)), told(by_torch(name, x))] for x in points] for name in triton_ops.POINTWISE}


def other_kind() -> list[str]:
    """Where a 16-bit dtype has NaN or ∞ and fp32 has not, or the other way round."""

    def kinds(name: str, dtype: torch.dtype) -> list[list[str]]:
        results = computed(name, special_points(dtype))
        return [[f"{v:.0f}" if not math.isfinite(v) else "" for v in y.tolist()] for y in results]

    return [
        f"{name}, {label}: {what} at {point}"
        for name in triton_ops.POINTWISE
        for label in ("bfloat16", "float16")
        for what, single, half in zip(
            ("value", "derivative"), kinds(name, torch.float32), kinds(name, DTYPES[label]), strict=True
        )
        for point, a, b in zip(SPECIAL, single, half, strict=True)
        if a != b
    ]


def rounding() -> dict[str, Any]:
    """act(gate) · up of N(0, 1) numbers: mean and largest error in ulp; the same as a share of the value, where that is
    not subnormal; and the share of eager's bits."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(2**18, generator=generator) for _ in range(2))
    table: dict[str, Any] = {}
    for name in ("gelu", "gelu_tanh", "silu"):
        record = ACTIVATIONS[name]
        for label in ("bfloat16", "float16"):
            g, u = gate.to(DTYPES[label]), up.to(DTYPES[label])
            exact, eager = record.reference(g.double()) * u.double(), record.eager(g) * u
            ways = {
                "once": triton_ops.gated(g, u, name),
                "as eager": triton_ops.gated(g, u, name, rounded=True),
                "torch": eager,
            }
            normal = exact.abs() >= torch.finfo(g.dtype).tiny
            for way, y in ways.items():
                units, relative = in_ulp(y, exact), ((y.double() - exact) / exact).abs()[normal]
                table.setdefault(name, {}).setdefault(label, {})[way] = {
                    "ulp": [float(units.mean()), float(units.max())],
                    "relative": [float(relative.mean()), float(relative.max())],
                    "bits": float((y.view(torch.int16) == eager.view(torch.int16)).double().mean()),
                }
    return table


def on_hardware() -> dict[str, dict[str, list[float]]]:
    """Exact GELU with the errors a GPU adds: e^… and the quotient off by a factor 1 ± 2⁻²², in all four combinations
    (PTX: ex2.approx and div.approx within 2 ulp), and 0 where e^… is subnormal (.ftz). The worst, over ``values``, of
    value and derivative in ulp for x ≥ −5, in ulp, and absolutely for |x| ≤ 14."""
    from hf_gelu_patch.implementations import triton_kernels

    found = {}
    record = ACTIVATIONS["gelu"]
    for label, dtype in DTYPES.items():
        x = values(dtype)
        exact = record.reference(x.double()), record.derivative(x.double())
        single = x.float()
        t = single.abs().clamp(max=_END)
        shift, coefficients = triton_kernels.MILLS[label]
        near, within = x >= -5, x.abs() <= 14
        worst = [0.0] * 6
        for wrong_e in (-1, 1):
            for wrong_v in (-1, 1):
                v = (t / (t + shift)) * (1 + wrong_v * 2.0**-22)
                ratio = torch.full_like(t, coefficients[-1])
                for c in reversed(coefficients[:-1]):
                    ratio = (ratio.double() * v.double() + float(np.float32(c))).float()
                e = torch.exp2(t * (-0.5 / math.log(2.0)) * t) * (1 + wrong_e * 2.0**-22)
                e[e < 2.0**-126] = 0.0
                tail = e * ratio
                value = (single.clamp(min=0).double() - t.double() * tail.double()).float()
                density = e * (1 / math.sqrt(2 * math.pi))
                slope = (tail.double() - t.double() * density.double()).float()
                slope = torch.where(single < 0, slope, 1 - slope)
                y, dy = value.to(dtype), slope.to(dtype)
                units = in_ulp(y, exact[0]), in_ulp(dy, exact[1])
                absolute = (y.double() - exact[0]).abs(), (dy.double() - exact[1]).abs()
                off = (*(error[near] for error in units), *units, *(error[within] for error in absolute))
                worst = [max(most, float(error.max())) for most, error in zip(worst, off, strict=True)]
        found[label] = worst
    return found


# ------------------------------------------------------------------------------------------------------------- static

FORMS = ("forward", "backward", "gated forward", "gated backward")
BUDGETS = {
    ("gelu", "forward"): 20,
    ("gelu_tanh", "forward"): 13,
    ("silu", "forward"): 11,
    ("gelu", "backward"): 28,
    ("gelu", "gated forward"): 23,
    ("gelu", "gated backward"): 34,
}
"""Instructions an element, bf16 on sm_90, that a kernel may take."""
SLOTS = {"forward": 27.6, "backward": 41.0, "gated forward": 41.0, "gated backward": 69.0}
"""Issue slots an element on an H200 at the bandwidth of its memory (calculated), where an element is two bytes; with
four, twice as many. An element that takes more, and it is no longer memory that limits."""
_MOVED = {"forward": 2, "backward": 3, "gated forward": 3, "gated backward": 5}
"""The tensors a kernel reads or writes."""
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
_CONSTANTS = {"gelu_clipped": (-10.0, 10.0), "laplace": (0.707107, 0.282095), "swiglu_oai": (1.702, 7.0)}
_HALF, _PITCH = 11008, 22016
"""A row of Llama 2's feed-forward layer, and one that holds gate and up."""
LAYOUTS = ("dense", "dense, far", "rows", "rows, far", "across", "interleaved")
"""Dense; halves of longer rows; both with more than 2³¹ elements; the last tensor that is read transposed; gate and up
in turn."""
ROWS_TAKE = 2
"""Instructions an element that rows may take more than dense tensors."""


def geometry(layout: str, form: str, block: int) -> Any:
    """How the kernel's tensors lie, as its launch would find them: ``triton_launch.Layout``."""
    from hf_gelu_patch.implementations import triton_launch

    rows = 2**18 if layout.endswith("far") else 4096
    if layout.startswith("dense"):
        return triton_launch.dense_layout(rows * _HALF, block)
    strides: list[tuple[int, ...] | None] = [None] * 6
    for place in _PLACES[form]:
        strides[place] = (_PITCH, 1) if layout.startswith("rows") else (_HALF, 1)
        if layout == "interleaved" and place in _PAIRED:
            strides[place] = (_PITCH, 2)
    if layout == "across":
        strides[max(place for place in _PLACES[form] if place < 3)] = (1, rows)
    found = triton_launch.strided_layout((rows, _HALF), tuple(strides), 3 if "forward" in form else 4, block)
    assert found is not None
    return found


_PLACES = {
    "forward": (0, 3),
    "backward": (0, 2, 4),
    "gated forward": (0, 1, 3),
    "gated backward": (0, 1, 2, 4, 5),
}
"""Which of the kernel's tensors a form has: gate, up, grad_y, y, grad_gate, grad_up."""
_PAIRED = (0, 1, 4, 5)


class Specialised:
    """What Triton makes of arguments: their types, what is compiled in, what is known to be divisible by 16."""

    def __init__(self) -> None:
        self.constants: dict[Any, Any] = {}
        self.divisible: dict[tuple[int, ...], Any] = {}

    def type_of(self, value: Any, *path: int) -> Any:
        """The type of an argument; a string is the type of a pointer to aligned memory."""
        if isinstance(value, tuple):
            return tuple(self.type_of(one, *path, place) for place, one in enumerate(value))
        if value is None or value == 1:
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, str) or value % 16 == 0:
            self.divisible[path] = [["tt.divisibility", 16]]
        return value if isinstance(value, str) else "i64" if value >= 2**31 else "i32"


def compiled(name: str, form: str, dtype: str, target: str, layout: str = "dense", variant: str | None = None) -> Any:
    """One kernel as Triton compiles it for ``target``, without a driver.

    Args:
        layout: one of ``LAYOUTS``.
        variant: one of ``triton_launch.VARIANTS``; None for the one that is chosen.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_gelu_patch.implementations import triton_kernels, triton_launch

    if triton_kernels.INTERPRETED.value:
        sys.exit("Interpreted kernels cannot be compiled: unset TRITON_INTERPRET.")
    asked = triton_launch.VARIANTS[variant or triton_launch.CHOSEN[form.replace(" ", "_")]]
    lie, turns = geometry(layout, form, asked.block), layout == "interleaved"
    specialised = Specialised()
    tensors = tuple(f"*{dtype}" if place in _PLACES[form] else None for place in range(6))
    arguments = (tensors, lie.strides, lie.columns, lie.sizes)
    types = [specialised.type_of(argument, place) for place, argument in enumerate(arguments)]
    specialised.divisible.pop((2,), None)  # the kernel has columns not specialised so
    constants = {
        "ACT": triton_kernels.FUNCTIONS[name],
        "UP": triton_kernels.UP_FUNCTIONS[name],
        "P": _CONSTANTS.get(name, ()),
        "ROUNDED": False,
        "HOW": triton_launch.how(lie, asked, turns, turns),
    }
    backend, arch = ("hip", target) if target.startswith("gfx") else ("cuda", int(target.removeprefix("sm_")))
    source = ASTSource(
        fn=triton_kernels.fused_kernel,
        signature=dict(zip(("tensors", "strides", "columns", "sizes"), types, strict=True))
        | dict.fromkeys(constants, "constexpr"),
        constexprs=specialised.constants | constants,
        attrs=specialised.divisible,
    )
    options = triton_launch.options_of(asked, lie.tile, hip=backend == "hip")
    return triton.compile(source, target=GPUTarget(backend, arch, 64 if backend == "hip" else 32), options=options)


def offsets_are_64_bits(ttir: str) -> bool:
    """Whether pointers move on by 64-bit numbers only, and none of those was multiplied in 32 bits and widened then."""
    added = set(re.findall(r"tt\.addptr .*[ <x](i\d+)>? loc", ttir))
    narrow = set(re.findall(r"(%\w+) = arith\.(?:muli|shli) .*: i32", ttir))
    widened = set(re.findall(r"arith\.ext[su]i (%\w+) : i32 to i64", ttir))
    return added == {"i64"} and bool(widened) and not narrow & widened


def inspect(kernel: Any, form: str, dtype: str, each: int = 8) -> dict[str, Any]:
    """Registers, spills, accesses and instructions of a compiled kernel, a thread having so many elements of ``each``
    tensor. ``wide``: whether a whole block is read and written 128 bits at a time. Instructions are counted on its way
    through the kernel: the end of a row takes another, which comes behind the first EXIT."""
    found: dict[str, Any] = {"offsets_64": offsets_are_64_bits(kernel.asm["ttir"])}
    wanted = _MOVED[form] * each * _BYTES[dtype] // 16
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        spilled = [int(count) for count in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text)]
        wide = re.findall(r"^\s+(?:global|buffer)_(?:load|store)_(?:dwordx4|b128)", text, re.MULTILINE)
        found |= {
            "registers": int(re.findall(r"\.vgpr_count:\s*(\d+)", text)[0]),
            "spills": sum(spilled) + len(re.findall(r"^\s+scratch_", text, re.MULTILINE)),
            "f64": len(re.findall(r"^\s+v_\w+_f64", text, re.MULTILINE)),
            "wide": len(wide) >= wanted,
        }
        return found
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])

        def run(tool: str, *options: str) -> str:
            program = getattr(triton.knobs.nvidia, tool).path
            done = subprocess.run([program, *options, str(path)], capture_output=True, text=True, check=True)
            return done.stdout + done.stderr

        text, usage = run("nvdisasm", "-c"), run("cuobjdump", "-res-usage")
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    whole = operations[: operations.index("EXIT") + 1]
    accesses = [name for name in whole if re.match(r"(LDG|STG)(STS)?\.", name)]
    registers, stack = (int(re.findall(rf"{word}:(\d+)", usage)[0]) for word in ("REG", "STACK"))
    return found | {
        "registers": registers,
        "spills": stack + sum(name.startswith(("LDL", "STL")) for name in operations),
        "f64": len(re.findall(r"\.f64", kernel.asm["ptx"])),
        "wide": bool(accesses) and all(".128" in name for name in accesses),
        "accesses": dict(Counter(accesses)),
        "instructions": len(whole) / each,
    }


KEYS = ("activation", "form", "dtype", "target", "layout", "variant")


def checked_kernels() -> Iterator[tuple[str, str, str, str, str, str]]:
    """What is held to its budget, by ``KEYS``: what is chosen, for every target and layout, and what is to be timed."""
    from hf_gelu_patch.implementations import triton_launch

    def chosen(form: str) -> str:
        return triton_launch.CHOSEN[form.replace(" ", "_")]

    for target in TARGETS:
        for name, form in BUDGETS:
            yield name, form, "bf16", target, "dense", chosen(form)
        yield "gelu", "gated backward", "bf16", target, "dense, far", chosen("gated backward")
        for form in FORMS:
            yield "gelu", form, "bf16", target, "rows", chosen(form)
        for form in ("gated forward", "gated backward"):
            for layout in ("rows, far", "across", "interleaved"):
                yield "gelu", form, "bf16", target, layout, chosen(form)
    for form in ("forward", "backward"):
        for dtype in ("fp16", "fp32"):
            yield "gelu", form, dtype, "sm_90", "dense", chosen(form)
    for variant, how in triton_launch.VARIANTS.items():
        for form in how.forms:
            yield "gelu", form.replace("_", " "), "bf16", "sm_90", "dense", variant


def static(everything: bool) -> list[dict[str, Any]]:
    from hf_gelu_patch.implementations import triton_kernels, triton_launch

    wanted = list(checked_kernels())
    if everything:
        for name in triton_kernels.FUNCTIONS:
            forms = FORMS if name != "swiglu_oai" else FORMS[2:]
            for form, dtype in itertools.product(forms, ("bf16", "fp16", "fp32")):
                wanted.append((name, form, dtype, "sm_90", "dense", triton_launch.CHOSEN[form.replace(" ", "_")]))
    found = []
    for key in dict.fromkeys(wanted):
        how = triton_launch.VARIANTS[key[-1]]
        each = how.block // (how.warps * 32)
        found.append(dict(zip(KEYS, key, strict=True)) | inspect(compiled(*key), key[1], key[2], each))
    return found


# -------------------------------------------------------------------------------------------------------------- table


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _rounded(way: dict[str, Any]) -> str:
    (mean, most), (share, most_share) = way["ulp"], way["relative"]
    return f"{mean:.3f} / {most:.2f} ({share:.2e} / {most_share:.2e}), {way['bits']:.2%}"


def document(found: dict[str, Any]) -> str:
    from hf_gelu_patch.implementations import triton_launch

    fits, numbers, built = found["fit"], found["errors"], found["static"]
    lines = [
        "# The Triton kernels, without a GPU",
        "",
        "Written by `python -m scripts.benchmarking.static all`. **Nothing here was measured on a GPU**: errors are",
        "those of the kernels interpreted on a CPU, with correctly rounded exponentials and quotients; instructions",
        f"are counted in what the compilers make of them (triton {found['triton']}, torch {found['torch']}); shares",
        "of a GPU's capacity are calculated. Triton 3.7's interpreter rounds an fma twice, where a GPU and triton",
        "3.9's round once.",
        "",
        "## Coefficients",
        "",
        "Φ(−t) = e^(−t²/2)·R(t); R as a polynomial in t/(shift + t). Largest errors of the polynomial in exact",
        "arithmetic; the weighted one, with the weight max(e^(−t²/2), floor)/R(t), is what the fit minimises.",
        "",
        *_table(
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
        ),
        "## Errors",
        "",
        "Largest error in units in the last place against float64, ours / PyTorch's own on this CPU: over all finite",
        "values of fp16 and bf16, and 2.2 million of fp32. Near zeros of a derivative, and where the result is",
        "subnormal in fp32, a unit is tiny: that is what the large figures are. inf: NaN or ∞ where a number should",
        "be.",
        "",
        *_table(
            ["activation", "dtype", "value, x ≥ −5", "value", "derivative"],
            [
                [
                    name,
                    dtype,
                    *(f"{_figure(a)} / {_figure(b)}" for a, b in zip(row["ours"], row["torch"], strict=True)),
                ]
                for name, dtypes in numbers["errors"].items()
                for dtype, row in dtypes.items()
            ],
        ),
        "## Will it hold on a GPU?",
        "",
        "On NVIDIA's, ex2.approx and div.approx may be off by 2 ulp, and take subnormals for 0 (.ftz). Exact GELU",
        "with both off by a factor 1 ± 2⁻²² and subnormal exponentials 0, in the worst of the four combinations, over",
        "the same values (emulated, not measured; absolute errors are those for |x| ≤ 14, rounding included):",
        "",
        *_table(
            [
                "dtype",
                *(f"{what}, {how}" for how in ("x ≥ −5, ulp", "ulp", "absolutely") for what in ("value", "derivative")),
            ],
            [[dtype, *map(_figure, row)] for dtype, row in found["hardware"].items()],
        ),
        "So the values of bf16 and fp16 keep their bounds from −5 on, and in fp16 everywhere; fp32's absolute error",
        "stays what it is, its relative error grows. What does not hold is the bound of fp16's derivative, next to",
        "its zero at −0.75, and in bf16 and fp32 whatever hangs on an exponential below 2⁻¹²⁶: of exact GELU beyond",
        "−13.2, where the value is subnormal and the derivative at most 7e−38.",
        "",
        "The other activations divide by 1 + e^…: where that passes 2¹²⁶, or e^… is below 2⁻¹²⁶, the result on",
        "NVIDIA's GPUs is 0, which takes away at most 1.1e−36 (x·e^x at −87.3). Where they divide x itself",
        "(gelu_tanh, quick_gelu, silu) subnormal inputs and results are 0 too. The tables above and below show",
        "neither. fp16 is not touched: its least number is 6e−8.",
        "",
        "## Special values",
        "",
        "Value, derivative in fp32, interpreted; in brackets PyTorch's own, where it is another. ±∞ give the limits.",
        "The sign of 0 is PyTorch's but for exact GELU, clipped or not, and ReLU, which have 0 where PyTorch has −0,",
        "and for derivatives that are 0. Where a 16-bit dtype has NaN or ∞ and fp32 has not, or the other way round: "
        + ("; ".join(numbers["other_kind"]) or "nowhere")
        + ".",
        "",
        *_table(
            ["activation", *SPECIAL],
            [
                [name, *(ours if ours == torchs else f"{ours} ({torchs})" for ours, torchs in cells)]
                for name, cells in numbers["special"].items()
            ],
        ),
        "## Rounding of gated products",
        "",
        "act(gate)·up of 262,144 pairs from N(0, 1): mean / largest error in ulp; in brackets as a share of the value,",
        "where that is not subnormal; and how many have eager's bits.",
        "The default computes in fp32 and rounds once, at the store: it is the nearest to the truth. `triton_rounded`",
        "(`rounded=True`) rounds act(gate) first, as two ops do: for who wants eager's bits.",
        "",
        *_table(
            ["activation", "dtype", "once (default)", "act(gate) first", "PyTorch's two ops"],
            [
                [name, dtype, *map(_rounded, row.values())]
                for name, dtypes in numbers["rounding"].items()
                for dtype, row in dtypes.items()
            ],
        ),
        "## Instructions",
        "",
        "An element, on a whole block's way through the kernel, sm_90; in brackets the share of the issue slots that",
        "an H200's memory leaves time for (calculated, not measured: 27.6 forward, 41 backward and gated forward, 69",
        "gated backward in bf16 and fp16; twice that in fp32). Beyond 100 % it would not be memory that limits.",
        "",
    ]
    checked = set(checked_kernels())
    usual = [row for row in built if row["variant"] == triton_launch.CHOSEN[row["form"].replace(" ", "_")]]
    dense = {
        (r["activation"], r["form"], r["dtype"]): r for r in usual if r["target"] == "sm_90" and r["layout"] == "dense"
    }
    rows = []
    for name in dict.fromkeys(name for name, *_ in dense):
        for dtype in ("bf16", "fp16", "fp32"):
            cells = []
            for form in FORMS:
                row = dense.get((name, form, dtype))
                cells.append(instructions(row) if row else "")
            rows.append([name, dtype, *cells])
    lines += _table(["activation", "dtype", *FORMS], rows)
    lines += [
        "Compiled for four GPUs: registers; spills; whether all accesses of a whole block are 128 bits wide and",
        "nothing is computed in fp64; on NVIDIA's, instructions an element. Dense: one row. Rows: halves of longer",
        "ones, of which a program has one block; far: with more than 2³¹ elements. Offsets are 64 bits in both and",
        "in what is dense. Across: the last tensor that is read is transposed, and tiles of 32 × 32 are read.",
        "Interleaved: gate and up in turn.",
        "",
        *_table(
            [
                "activation",
                "form",
                "dtype",
                "layout",
                "target",
                "registers",
                "spills",
                "128-bit, no fp64",
                "instructions",
            ],
            [shown(row) for row in usual if tuple(row[key] for key in KEYS) in checked],
        ),
        "## Variants",
        "",
        "What `python -m scripts.benchmarking gpu` times: dense, bf16, exact GELU, compiled for sm_90. A persistent",
        "program's count has its loop in it; one that reads ahead does so through shared memory.",
        "",
        *_table(
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
        ),
    ]
    return "\n".join(lines)


def shown(row: dict[str, Any]) -> list[str]:
    """A row of the table of compiled kernels."""
    return [
        *(row[key] for key in ("activation", "form", "dtype", "layout", "target")),
        *(str(row[key]) for key in ("registers", "spills")),
        "yes" if row["wide"] and not row["f64"] else "no",
        f"{row['instructions']:.1f}" if "instructions" in row else "",
    ]


def instructions(row: dict[str, Any]) -> str:
    """The cell of a kernel in the table of instructions."""
    slots = SLOTS[row["form"]] * _BYTES[row["dtype"]] / 2
    return f"{row['instructions']:.1f} ({row['instructions'] / slots:.0%})"


def _all() -> None:
    import triton

    def run(command: str, *options: str) -> Any:
        print(f"{command} …", file=sys.stderr, flush=True)
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarking.static", command, "--json", *options],
            env=environment,
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)

    found = {name: run(name) for name in ("fit", "errors")}
    found |= {"static": run("static", "--everything"), "hardware": on_hardware()}
    found |= {"triton": triton.__version__, "torch": torch.__version__}
    path = Path(__file__).with_name("kernels.md")
    path.write_text(document(found).rstrip() + "\n", encoding="utf-8")
    print(f"written to {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=("fit", "errors", "static", "all"))
    parser.add_argument("--everything", action="store_true", help="static: every activation, not only what is checked")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if options.command == "all":
        _all()
        return
    commands: dict[str, Callable[[], Any]] = {
        "fit": fit,
        "errors": errors,
        "static": lambda: static(options.everything),
    }
    found = commands[options.command]()
    if options.command == "fit" and not options.json:
        print(to_paste(found), end="")
        return
    print(json.dumps(found, indent=None if options.json else 1, ensure_ascii=False))


if __name__ == "__main__":
    main()
