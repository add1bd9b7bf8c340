"""The axis of pre-activations cut into cells, and what an activation does on it.

From −16 to 16 a cell is 1/128 wide, and there is one more on each side for all that lies beyond. Each bound that a
profile tells is an edge of a cell, so that counting cells tells every share exactly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gelu_patch.activations import Activation

__all__ = ["BAR", "CELLS", "EDGE", "FLAT", "REACH", "WIDTH", "Regions", "Tables", "cells", "regions", "tables"]

REACH = 16
"""How far the cells reach on either side of 0."""
WIDTH = 1 / 128
"""How wide a cell is: a power of two, so that no rounding puts a number into the wrong one."""
_HALF = int(REACH / WIDTH)
CELLS = 2 * _HALF + 2
"""How many cells there are, with the two open ones: the first, and the last."""
EDGE, BAR = 8, 0.25
"""How far the bars of the histogram reach, and how wide one is."""
FLAT = 0.01
"""Where an activation's derivative is no larger on the negative side, it counts as flat."""
_POINTS = 8  # of a cell at which functions are looked at


def cells(x: Tensor) -> Tensor:
    """The cell of each number, from 0 to ``CELLS`` − 1. float32 or float64, finite or infinite."""
    return (x * (1 / WIDTH)).floor_().clamp_(-_HALF - 1, _HALF).long().add_(_HALF + 1)


def _edges() -> Tensor:
    return torch.arange(-_HALF, _HALF + 1, dtype=torch.float64) * WIDTH


@dataclass(frozen=True)
class Regions:
    """Where an activation does what. Each bound is the edge of a cell, the one on the narrower region's side.

    Attributes:
        flat: x below it lies in the flat tail: |f′| ≤ 0.01 there. None where there is no such tail.
        lobe: x from ``flat`` to it lies in the negative lobe: f′ < 0 there. None where f′ is never negative.
        identity: from it on f(x) is x, up to half a unit in the last place of the dtype. None where it never is.
    """

    flat: float | None
    lobe: float | None
    identity: float | None


@functools.lru_cache(maxsize=256)
def regions(activation: Activation, epsilon: float) -> Regions:
    """The regions of an activation.

    Args:
        activation: which.
        epsilon: of the dtype that it is computed in.
    """
    x = torch.arange(-2 * _HALF, 2 * _HALF + 1, dtype=torch.float64) * (WIDTH / 2)  # the edges and the middles
    y, slope = activation.bind(activation.reference)(x), activation.bind(activation.derivative)(x)
    negative = x <= 0
    flat = _last(x, (slope.abs() <= FLAT) & negative)
    falls = (slope < 0) & (x > (-REACH if flat is None else flat)) & negative
    lobe = None
    if bool(falls.any()):
        first = int(falls.nonzero()[0])
        lobe = _last(x[first:], falls[first:])
    close = ((y - x).abs() <= 0.5 * epsilon * x.abs()) & (x >= 0)
    close |= x == 0
    after = _last(-x.flip(0), close.flip(0))
    identity = None if after is None or after == -REACH else -after + 0.0  # no −0
    return Regions(flat, lobe, identity)


def _last(x: Tensor, holds: Tensor) -> float | None:
    """The last edge up to which something holds from the first x on; None where it does not hold at first."""
    breaks = (~holds).nonzero()
    end = len(x) - 1 if not len(breaks) else int(breaks[0]) - 1
    if end < 0:
        return None
    edge = float(torch.floor(x[end] / WIDTH) * WIDTH)
    return edge if edge >= float(x[0]) else None


@dataclass(frozen=True)
class Tables:
    """What an activation f and others g are in each cell but the open ones, if x is spread evenly over it.

    Attributes:
        once: for each of the others the mean of |f − g|, then for each how far apart two values of f − g are at most:
            [2 · others, cells].
        twice: the mean of f², then for each of the others that of (f − g)², then the second half of ``once`` squared:
            [1 + 2 · others, cells].
    """

    once: Tensor
    twice: Tensor


@functools.lru_cache(maxsize=64)
def tables(activation: Activation, others: tuple[Activation, ...]) -> Tables:
    """The tables of an activation beside others."""
    inner = torch.linspace(0, 1, 2 * _POINTS + 1, dtype=torch.float64) * WIDTH  # edges, and between them middles
    x = _edges()[:-1, None] + inner
    f = activation.bind(activation.reference)(x)
    absolute, squared, spread = [], [], []
    for other in others:
        d = f - other.bind(other.reference)(x)
        middle = d[:, 1::2]
        absolute.append(middle.abs().mean(dim=1))
        squared.append(middle.square().mean(dim=1))
        spread.append(d.amax(dim=1) - d.amin(dim=1))
    square = f[:, 1::2].square().mean(dim=1)
    return Tables(torch.stack([*absolute, *spread]), torch.stack([square, *squared, *(one.square() for one in spread)]))
