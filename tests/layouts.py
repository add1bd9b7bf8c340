"""Tensors of every layout, and what is compared of them to the bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def bits(y: Tensor) -> Tensor:
    return y.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[y.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def memory(*tensors: Tensor) -> list[Tensor]:
    """A copy of all the memory the tensors lie in, beyond what they show of it."""
    return [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone() for tensor in tensors]


@st.composite
def layouts(draw: st.DrawFn, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of that shape, somewhere in a larger one, in any order of dimensions."""
    rank = len(shape)
    order = draw(st.permutations(range(rank)))
    slices, sizes = [], []
    for dim in order:
        start, step, behind = draw(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 1)))
        expanded = draw(st.integers(0, 5)) == 0
        size = 1 if expanded else shape[dim]
        sizes.append(start + size * step + behind)
        slices.append(slice(start, start + size * step, step))
    offset = draw(st.integers(0, 3))
    numbers = torch.randn(offset + math.prod(sizes), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    base = (numbers * 3).to(dtype)[offset:].view(sizes)
    inverse = [order.index(dim) for dim in range(rank)]
    return base[tuple(slices)].permute(inverse).expand(tuple(shape))
