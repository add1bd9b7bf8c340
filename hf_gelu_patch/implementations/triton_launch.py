"""How the Triton kernel is launched: how tensors lie in memory, how it uses the GPU, and what was compiled before.

Any shape and strides; what has more dimensions than MAX_RANK, or short ones only, goes through dense copies.
Importing this module imports triton.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.implementations.triton_forms import GATED_FORMS
from hf_gelu_patch.implementations.triton_kernels import INTERPRETED, How, fused_kernel, identity

FORMS = {"forward": 1, "backward": 2, "gated_forward": 2, "gated_backward": 3}
"""What is computed, and how many tensors are read for it."""


@dataclass(frozen=True, eq=False)
class Variant:
    """How a kernel uses a GPU; what it computes does not change.

    Attributes:
        block: elements of a block, a power of two.
        warps: of 32 threads each, for a block.
        load, evict, store: how memory is read and written: PTX's cache operator (".cg": past the L1 cache; ".cs":
            streaming) and eviction priority ("evict_first").
        programs: how many a multiprocessor is given, each of which goes through many blocks of a dense tensor; 0: a
            program a block.
        stages: of those blocks, how many a program has under way at once.
        forms: those it is worth timing for.
    """

    block: int = 1024
    warps: int = 4
    load: str = ""
    evict: str = ""
    store: str = ""
    programs: int = 0
    stages: int = 1
    forms: tuple[str, ...] = tuple(FORMS)


VARIANTS = MappingProxyType(
    {
        "1024/4": Variant(),
        "2048/8": Variant(2048, 8),
        "2048/4": Variant(2048, 4, forms=("forward",)),
        "1024/4 .cs": Variant(store=".cs"),
        "2048/8 .cs": Variant(2048, 8, store=".cs"),
        "2048/4 .cs": Variant(2048, 4, store=".cs", forms=("forward",)),
        "1024/4 .cg": Variant(load=".cg"),
        "2048/4 evict_first": Variant(2048, 4, evict="evict_first", forms=("forward",)),
        "1024/4 persistent": Variant(programs=8),
        "2048/8 persistent, ahead": Variant(2048, 8, programs=4, stages=2),
    }
)
"""What can be timed, by block / warps; ``python -m scripts.benchmarking gpu`` does it. Nothing of it has been measured.
None spills registers: what would (32 elements a thread, or 40 registers in the gated backward) is not here."""

CHOSEN = dict.fromkeys(FORMS, "1024/4")
"""The variant that each form runs: by what the compilers make of it, since none was measured."""

MAX_RANK = 4
TILE = 32
"""Rows and columns of a tile where a tensor lies across them."""
_SMALLEST = 256
"""Elements that a program should at least work on: eight for each thread of a warp."""
_MOST_ROWS = 65_535
_NEAR = 2**31 - 2**16
"""Elements that offsets of 32 bits reach, whatever part of a block lies behind the last."""
INTERPRETED_BLOCK, INTERPRETED_TILE = 16_384, 128
"""Interpreted, a program costs a millisecond at any size."""


@dataclass(frozen=True)
class Layout:
    """How tensors of one shape and certain strides lie in memory, as the kernel takes them.

    Attributes:
        columns: of a row.
        sizes: None where every tensor is dense.
        strides: for each tensor, 1 where there is none, which Triton compiles in; None where all are dense.
        tile: (rows, columns) that a program works on at once.
        grid: programs.
        far: whether offsets are 64 bits. (32 save instructions where there are strides to multiply by, else none.)
    """

    columns: int
    sizes: tuple[int, ...] | None
    strides: tuple[tuple[int, ...] | None, ...]
    tile: tuple[int, int]
    grid: tuple[int, int, int]
    far: bool


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def dense_layout(columns: int, block: int) -> Layout:
    """The layout of contiguous tensors, or of any that lie alike without gaps."""
    if INTERPRETED.value:
        block = min(block, _power_of_2(columns))
    return Layout(columns, None, (None,) * 6, (1, block), (-(-columns // block), 1, 1), far=True)


def _coalesced(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...] | None, ...], like: int
) -> tuple[list[int], list[list[int]]]:
    """The sizes, and each tensor's strides, with as few dimensions as describe them all, in the order of the strides of
    the tensor that ``like`` numbers; at least one."""
    order = strides[like]
    assert order is not None
    dims = sorted((dim for dim, size in enumerate(shape) if size != 1), key=order.__getitem__, reverse=True)
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for dim in dims:
        size, new = shape[dim], [0 if own is None else own[dim] for own in strides]
        if sizes and all(own[-1] == size * step for own, step in zip(steps, new, strict=True)):
            sizes[-1] *= size
            for own, step in zip(steps, new, strict=True):
                own[-1] = step
        else:
            sizes.append(size)
            for own, step in zip(steps, new, strict=True):
                own.append(step)
    return (sizes, steps) if sizes else ([1], [[1] for _ in strides])


def _across(steps: Sequence[Sequence[int]]) -> int | None:
    """The dimension, not the last, along which a tensor's neighbours lie; None where no tensor has such a one."""
    for own in steps:
        nearest = min(range(len(own)), key=lambda dim: own[dim] or math.inf)
        if 0 < own[nearest] < own[-1]:
            return nearest
    return None


def strided_layout(
    shape: tuple[int, ...], strides: tuple[tuple[int, ...] | None, ...], like: int, block: int
) -> Layout | None:
    """The layout of strided tensors; None where it takes more than ``MAX_RANK`` dimensions, or where the two innermost
    are so short that programs would have next to nothing to do.

    A tensor that lies across the others' rows (a transposed gate, the gradient behind a transposition) is read in
    tiles, whose rows are the dimension along which its neighbours lie.

    Args:
        strides: of each of the kernel's tensors; None for those there are not.
        like: which of them gives the order of dimensions.
        block: elements that a program is to work on.
    """
    sizes, steps = _coalesced(shape, strides, like)
    if len(sizes) == 1:
        if all(own is None or step == [1] for own, step in zip(strides, steps, strict=True)):
            return dense_layout(sizes[0], block)
        sizes, steps = [1, *sizes], [[0, *own] for own in steps]
    if len(sizes) > MAX_RANK:
        return None
    if (across := _across(steps)) is not None:
        for numbers in (sizes, *steps):
            numbers.insert(-1, numbers.pop(across))
        tile = INTERPRETED_TILE if INTERPRETED.value else TILE
        rows, block = min(tile, _power_of_2(sizes[-2])), min(tile, _power_of_2(sizes[-1]))
    else:
        most, block = block, min(block, _power_of_2(sizes[-1]))
        rows = min(most // block, _power_of_2(sizes[-2]))
    *outer, columns = sizes
    outer.reverse()
    inwards = tuple(
        (1,) * len(sizes) if own is None else (*reversed(step[:-1]), step[-1])
        for own, step in zip(strides, steps, strict=True)
    )
    count = -(-outer[0] // rows) * math.prod(outer[1:])
    layers = -(-count // _MOST_ROWS)
    grid = (-(-columns // block), -(-count // layers), layers)
    if math.prod(grid) > 1 and rows * block < _SMALLEST:
        return None
    far = any(sum((size - 1) * step for size, step in zip(sizes, own, strict=True)) > _NEAR for own in steps)
    return Layout(columns, tuple(outer), inwards, (rows, block), grid, far)


def _take_turns(gate: Tensor | None, up: Tensor | None) -> bool:
    """Whether ``up`` begins one element behind ``gate``."""
    return gate is not None and up is not None and up.data_ptr() - gate.data_ptr() == gate.element_size()


def _alternate(tensors: Sequence[Tensor | None], layout: Layout, first: int) -> bool:
    """Whether this tensor and the next take turns in memory."""
    own, other = layout.strides[first : first + 2]
    along = layout.sizes is not None and layout.tile[0] == 1 and own == other and own is not None and own[-1] == 2
    return along and _take_turns(*tensors[first : first + 2])


def device_functions(activation: str) -> tuple[Any, Any]:
    """What the kernel applies to gate (or x) and to up."""
    form = GATED_FORMS.get(activation)
    if form is None:
        return _named(ACTIVATIONS[activation].kernel), identity
    return _named(form.act.kernel), _named(form.up_kernel)


@functools.cache
def _named(kernel: str | None) -> Any:
    """The device function ``"package.module:function"``."""
    assert kernel is not None, "the ops refuse what has no kernel"
    module, _, function = kernel.partition(":")
    return getattr(importlib.import_module(module), function)


# What a form reads, then what it writes, becomes the kernel's tensors: gate, up, grad_y, y, grad_gate, grad_up. The
# number behind the last is None.
_PLACES = {
    ("forward", 2): operator.itemgetter(0, 2, 2, 1, 2, 2),
    ("backward", 3): operator.itemgetter(0, 3, 1, 3, 2, 3),
    ("gated_forward", 3): operator.itemgetter(0, 1, 3, 2, 3, 3),
    ("gated_backward", 5): operator.itemgetter(0, 1, 2, 5, 3, 4),
    ("gated_backward", 6): operator.itemgetter(0, 1, 2, 3, 4, 5),
}

_READY: dict[tuple[Any, ...], tuple[Any, ...]] = {}
"""How a compiled kernel is launched, by all that this depends on."""
_MOST_READY = 4096
_COMPILED_IN = (None,) * 5
"""What stands for the kernel's constants where a compiled kernel takes its arguments."""
_current_device = getattr(torch._C, "_cuda_getDevice", None)
_runtime, _driver = triton.knobs.runtime, triton.runtime.driver
_ENTER, _LEAVE = _runtime.launch_enter_hook, _runtime.launch_exit_hook
"""Whom Triton tells of each launch: nobody, as long as these are what stands there, and empty."""


def launch(
    form: str,
    given: tuple[Tensor, ...],
    activation: str,
    parameters: Sequence[float],
    rounded: bool = False,
    variant: Variant | None = None,
) -> None:
    """Run ``fused_kernel`` on what one of ``FORMS`` reads and then writes. Nothing is checked: the tensors have to be
    of one shape, on one device, and what is written must not overlap what is read.

    - forward: x; y ← act(x)
    - backward: x, grad_y; grad_x ← grad_y · act′(x)
    - gated_forward: gate, up; y ← act(gate) · up, act(gate) rounded to y's dtype before the product where ``rounded``
    - gated_backward: gate, up, grad_y; perhaps y, as in gated_forward; grad_gate ← grad_y · up · act′(gate),
      grad_up ← grad_y · act(gate)

    To find the compiled kernel takes Triton ten times as long, at each launch, as to launch it. So what was found for
    tensors of these sizes, strides, dtypes and alignments is kept, and launched without being looked for again.
    """
    out = given[-1]
    device = out.get_device()
    if device >= 0 and _current_device is not None and _current_device() != device:
        with torch.cuda.device(device):
            launch(form, given, activation, parameters, rounded, variant)
        return
    addresses, dtypes, unaligned, dense = [], [], 0, True
    for x in given:
        addresses.append(address := x.data_ptr())
        dtypes.append(x.dtype)
        unaligned |= address
        dense = dense and x.is_contiguous()
    constants = tuple(parameters)
    key: tuple[Any, ...] = (form, activation, constants, rounded, variant, device, out.numel(), *dtypes)
    if not dense:
        places = _PLACES[form, len(given)]((*given, None))
        key = (*key, out.shape, *map(Tensor.stride, given), _take_turns(*places[:2]), _take_turns(*places[4:]))
    if unaligned & 15:
        key = (*key, *[address & 15 == 0 for address in addresses])
    ready = _READY.get(key)
    enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    if ready is None or enter is not _ENTER or leave is not _LEAVE or enter.calls or leave.calls:  # a profiler listens
        _prepare(key, form, given, activation, constants, rounded, variant)
        return
    run, function, grid, metadata, places, geometry = ready
    stream = _driver.active.get_current_stream(device)
    run(*grid, stream, function, metadata, None, None, None, places((*addresses, None)), *geometry)


def _prepare(
    key: tuple[Any, ...],
    form: str,
    given: tuple[Tensor, ...],
    activation: str,
    constants: tuple[float, ...],
    rounded: bool,
    variant: Variant | None,
) -> None:
    """Launch by Triton's own means, which compile where that is needed, and keep what they found."""
    out = given[-1]
    if not out.numel():
        return
    places = _PLACES[form, len(given)]
    tensors: tuple[Tensor | None, ...] = places((*given, None))
    chosen, variant = variant, variant or VARIANTS[CHOSEN[form]]
    block = INTERPRETED_BLOCK if INTERPRETED.value else variant.block
    if all(x.is_contiguous() for x in given):
        layout: Layout | None = dense_layout(out.numel(), block)
    else:
        like = 3 if form.endswith("forward") else 4
        layout = strided_layout(out.shape, tuple(None if x is None else x.stride() for x in tensors), like, block)
    if layout is None:
        _through_dense_copies(form, given, activation, constants, rounded, chosen)
        return
    compiled_for = how(layout, variant, *(_alternate(tensors, layout, first) for first in (0, 4)))
    grid = layout.grid
    if compiled_for.STAGES:
        properties = _driver.active.utils.get_device_properties(max(0, out.get_device()))
        grid = (min(grid[0], variant.programs * properties["multiprocessor_count"]), 1, 1)
    options = {} if INTERPRETED.value else options_of(variant, layout.tile, hip=torch.version.hip is not None)
    geometry = (layout.strides, layout.columns, layout.sizes)
    act, up = device_functions(activation)
    compiled = fused_kernel[grid](
        tensors,
        *geometry,
        ACT=act,
        UP=up,
        P=constants,
        ROUNDED=rounded,
        HOW=compiled_for,
        **options,
    )
    # ROCm's kernels depend on more than the key says: on the size of what a tensor is a view of.
    if compiled is not None and torch.version.hip is None:
        if len(_READY) >= _MOST_READY:
            _READY.clear()
        metadata = compiled.packed_metadata
        _READY[key] = (compiled.run, compiled.function, grid, metadata, places, (*geometry, *_COMPILED_IN))


def how(layout: Layout, variant: Variant, pairs: bool, grad_pairs: bool) -> How:
    """What the kernel is compiled for. Programs go through many blocks only of dense tensors, and not interpreted."""
    persistent = variant.programs > 0 and layout.sizes is None and not INTERPRETED.value
    return How(
        BLOCK=layout.tile[1],
        ROWS=layout.tile[0],
        RANK=1 if layout.sizes is None else len(layout.sizes) + 1,
        LAYERS=layout.grid[2] > 1,
        ALIGNED=layout.sizes is not None and layout.columns % 16 == 0,
        OFFSET=tl.int64 if layout.far else tl.int32,
        PAIRS=pairs,
        GRAD_PAIRS=grad_pairs,
        LOAD=variant.load,
        EVICT=variant.evict,
        STORE=variant.store,
        STAGES=variant.stages if persistent else 0,
    )


def options_of(variant: Variant, tile: tuple[int, int], *, hip: bool) -> dict[str, int]:
    """What Triton's compiler is told, for programs that work on such tiles."""
    warps = variant.warps if tile == (1, variant.block) else max(1, math.prod(tile) // 256)
    return {"num_warps": max(1, warps // 2) if hip else warps}  # ROCm's are of 64 threads


def _through_dense_copies(form: str, given: tuple[Tensor, ...], *options: Any) -> None:
    """``launch`` on contiguous copies, and the results back to where they belong."""
    copies = tuple(x.contiguous() for x in given)
    launch(form, copies, *options)
    for x, copy in zip(given[FORMS[form] :], copies[FORMS[form] :], strict=True):
        if copy is not x:
            x.copy_(copy)
