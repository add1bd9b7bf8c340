"""Every kernel, compiled for four GPUs: instructions, registers, accesses."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
_INSTRUCTION = 16
"""Bytes, on each of NVIDIA's targets."""
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
    act, up = triton_launch.device_functions(name)
    specialised = Specialised()
    tensors = tuple(f"*{dtype}" if place in _PLACES[form] else None for place in range(6))
    arguments = (tensors, lie.strides, lie.columns, lie.sizes)
    types = [specialised.type_of(argument, place) for place, argument in enumerate(arguments)]
    specialised.divisible.pop((2,), None)  # the kernel has columns not specialised so
    constants = {
        "ACT": act,
        "UP": up,
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


def machine_code(cubin: bytes) -> bytes:
    """The code of a cubin's only kernel: the section ``.text`` of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * number) for number in range(count)]
    start = sections[names][4]
    (code,) = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", start + name)
    ]
    return code


def operations(kernels: Sequence[Any], target: str) -> list[list[str]]:
    """The operations of each of these kernels, in order. They are disassembled as one: nvdisasm takes about a second to
    start, whatever it is given."""
    import triton
    from triton.backends.nvidia.compiler import sm_arch_from_capability

    codes = [machine_code(kernel.asm["cubin"]) for kernel in kernels]
    arch = sm_arch_from_capability(int(target.removeprefix("sm_"))).replace("sm_", "SM")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code"
        path.write_bytes(b"".join(codes))
        command = [triton.knobs.nvidia.nvdisasm.path, "--no-dataflow", "--binary", arch, str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    assert len(found) == sum(len(code) for code in codes) // _INSTRUCTION
    rest = iter(found)
    return [list(itertools.islice(rest, len(code) // _INSTRUCTION)) for code in codes]


def inspect(kernel: Any, form: str, dtype: str, each: int, operations: Sequence[str]) -> dict[str, Any]:
    """Registers, spills, accesses and instructions of a compiled kernel, a thread having so many elements of ``each``
    tensor. ``wide``: whether a whole block is read and written 128 bits at a time. Instructions are counted on its way
    through the kernel: the end of a row takes another, which comes behind the first EXIT.

    Args:
        operations: the kernel's, from ``operations``; not needed for one of AMD's.
    """
    found: dict[str, Any] = {"offsets_64": offsets_are_64_bits(kernel.asm["ttir"])}
    wanted = _MOVED[form] * each * BYTES[dtype] // 16
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
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    usage = done.stdout + done.stderr
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
    from hf_gelu_patch.implementations import triton_forms, triton_launch

    wanted = list(checked_kernels())
    if everything:
        for name in (*triton_forms.POINTWISE, *triton_forms.GATED_FORMS):
            forms = FORMS if name != "swiglu_oai" else FORMS[2:]
            for form, dtype in itertools.product(forms, ("bf16", "fp16", "fp32")):
                wanted.append((name, form, dtype, "sm_90", "dense", triton_launch.CHOSEN[form.replace(" ", "_")]))
    kernels = {key: compiled(*key) for key in dict.fromkeys(wanted)}
    disassembled: dict[Any, Sequence[str]] = {}
    for target in TARGETS:
        if target.startswith("sm_"):
            own = [key for key in kernels if key[3] == target]
            disassembled |= zip(own, operations([kernels[key] for key in own], target), strict=True)
    found = []
    for key, kernel in kernels.items():
        how = triton_launch.VARIANTS[key[-1]]
        each = how.block // (how.warps * 32)
        found.append(
            dict(zip(KEYS, key, strict=True)) | inspect(kernel, key[1], key[2], each, disassembled.get(key, ()))
        )
    return found
