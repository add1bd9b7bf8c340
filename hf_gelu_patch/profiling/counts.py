"""What is counted of one site's pre-activations: numbers that add up exactly, however the batches are dealt out.

Cells hold whole numbers. Sums over a batch are float64, and these are added up as fractions, which rounds nothing: two
processes that see half of the batches each find, put together, the very numbers that one finds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.activations import Activation, get_activation
from hf_gelu_patch.profiling.grid import CELLS, Tables, cells, tables

__all__ = ["Counts"]

_ON_A_CPU, _ELSEWHERE = 2**16, 2**24  # numbers that are looked at together: a processor's cache holds so few


class Counts:
    """The running counts of one site.

    Attributes:
        activation: what the site computes; None where nothing is to be said of functions.
        others: the functions that it is held against.
        count: how many finite numbers were seen.
        lost: how many others.
        cells: how many fell into each cell, int64 [CELLS].
        greatest: the greatest of each unit, [units]; None before there are any.
        units_vary: whether the last dimension holds no units: their number varies, or it is one of time or space.
        least: the least of all.
        calls: how often the site was called.
        weighted: how many of the numbers were a gate, with an up beside it.
        epsilon: of the dtype that was seen.
    """

    def __init__(self, activation: Activation | None, others: Sequence[Activation]) -> None:
        self.activation = activation
        self.others = tuple(others)
        self.count = self.lost = self.calls = self.weighted = 0
        self.cells = torch.zeros(CELLS, dtype=torch.int64)
        self.greatest: Tensor | None = None
        self.units_vary = False
        self.least = math.inf
        self.epsilon = 0.0
        self.sum = Fraction()
        self.squares = Fraction()
        self.moved = [0] * (1 + 4 * len(self.others))  # in ``_UNIT``s; beyond the cells alone, but of a gated site
        self._tables: Tables | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Functions of torch, which records hold, cannot be pickled: their names are."""
        own = None if self.activation is None else _named(self.activation)
        return {**vars(self), "_tables": None, "activation": own, "others": tuple(map(_named, self.others))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.activation = None if state["activation"] is None else _record(*state["activation"])
        self.others = tuple(_record(*one) for one in state["others"])

    # ------------------------------------------------------------------------------------------------------- counting

    def add(self, x: Tensor, up: Tensor | None = None) -> None:
        """Count pre-activations.

        Args:
            x: of any shape, the units last.
            up: what act(x) is multiplied by, of the same shape; None where it is not.
        """
        self.calls += 1
        if not x.numel():
            return
        self.epsilon = max(self.epsilon, torch.finfo(x.dtype).eps)
        size, lost = _ON_A_CPU if x.device.type == "cpu" else _ELSEWHERE, self.lost
        parts = torch.split(x.reshape(-1), size)
        if up is None:
            for part in parts:
                self._add_part(_widened(part), None, None)
        else:
            weights = torch.zeros(2, CELLS, dtype=torch.float64, device=x.device)
            for part, of_up in zip(parts, torch.split(up.reshape(-1), size), strict=True):
                self._add_part(_widened(part), of_up.double(), weights)
            self._add_products(weights)
        self._note_greatest(x if self.lost == lost else x.where(x.isfinite(), -math.inf))

    def _note_greatest(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
        greatest = rows.amax(dim=0).to("cpu", torch.float64)
        if self.greatest is not None and len(self.greatest) != len(greatest):
            self.units_vary = True
        self.greatest = greatest if self.greatest is None or self.units_vary else self.greatest.maximum(greatest)

    def _add_part(self, x: Tensor, up: Tensor | None, weights: Tensor | None) -> None:
        wide = x.double()
        total = float(wide.sum())
        if not math.isfinite(total if up is None else total + float(up.sum())):
            finite = x.isfinite() if up is None else x.isfinite() & up.isfinite()
            if not bool(finite.all()):
                self.lost += int((~finite).sum())
                x, up = x[finite], None if up is None else up[finite]
                if x.numel():
                    self._add_part(x, up, weights)
                return
        size = x.numel()
        mean = total / size
        wide.sub_(mean)
        self.count += size
        self.sum += size * Fraction(mean)
        self.squares += Fraction(float(torch.dot(wide, wide))) + size * Fraction(mean) ** 2
        self.least = min(self.least, float(x.amin()))
        where = cells(x)
        counted = torch.bincount(where, minlength=CELLS)
        self.cells += counted.cpu()
        if self.activation is None or not self.others:
            return
        if up is not None and weights is not None:
            self.weighted += size
            weights[0] += torch.bincount(where, weights=up.abs(), minlength=CELLS)
            weights[1] += torch.bincount(where, weights=up.square(), minlength=CELLS)
        if int(counted[0]) or int(counted[-1]):
            beyond = (where == 0) | (where == CELLS - 1)
            self._add_beyond(x[beyond].double(), None if up is None else up[beyond])

    def _add_products(self, weights: Tensor) -> None:
        """Σ over the cells of what their tables have, times |up| or up², which ``weights`` has the sums of."""
        if self.activation is not None and self.others:
            self._add_moved(self._over_cells(*weights[:, 1:-1].cpu()))

    def _over_cells(self, once: Tensor, twice: Tensor) -> list[float]:
        """Σf² and, for each of the others, Σ|f − g|, Σ(f − g)², Σ spread, Σ spread²; each times what a cell holds."""
        assert self.activation is not None
        if self._tables is None:
            self._tables = tables(self.activation, self.others)
        absolute, spread = (self._tables.once @ once).view(2, -1)
        square, *others = torch.split(self._tables.twice @ twice, [1, len(self.others), len(self.others)])
        return [float(square), *torch.stack([absolute, others[0], spread, others[1]], dim=1).flatten().tolist()]

    def _add_beyond(self, x: Tensor, up: Tensor | None) -> None:
        """The same of numbers beyond the cells, each by itself."""
        assert self.activation is not None
        weight = torch.ones_like(x) if up is None else up.abs()
        f = self.activation.bind(self.activation.reference)(x) * weight
        found = [float(f.square().sum())]
        for other in self.others:
            d = f - other.bind(other.reference)(x) * weight
            found += [float(d.abs().sum()), float(d.square().sum()), 0.0, 0.0]
        self._add_moved(found)

    def _add_moved(self, found: Sequence[float]) -> None:
        if all(map(math.isfinite, found)):
            self.moved = [known + _units(one) for known, one in zip(self.moved, found, strict=True)]

    # --------------------------------------------------------------------------------------------------------- merging

    def merge(self, other: Counts) -> None:
        """Add what another process has counted at the same site."""
        self.count += other.count
        self.lost += other.lost
        self.calls += other.calls
        self.weighted += other.weighted
        self.cells = self.cells + other.cells
        self.least = min(self.least, other.least)
        self.epsilon = max(self.epsilon, other.epsilon)
        self.sum += other.sum
        self.squares += other.squares
        self.moved = [one + more for one, more in zip(self.moved, other.moved, strict=True)]
        self.units_vary |= other.units_vary
        if other.greatest is not None:
            if self.greatest is not None and len(self.greatest) != len(other.greatest):
                self.units_vary = True
            one = self.greatest
            self.greatest = other.greatest if one is None or self.units_vary else one.maximum(other.greatest)

    # --------------------------------------------------------------------------------------------------------- figures

    @property
    def mean(self) -> float:
        return float(self.sum / self.count) if self.count else math.nan

    @property
    def std(self) -> float:
        """√(Σ(x − mean)² / n): the sums of each batch put together as Chan, Golub and LeVeque (1979) do, of fractions,
        so that nothing cancels."""
        if not self.count:
            return math.nan
        return math.sqrt(max(0.0, float((self.squares - self.sum**2 / self.count) / self.count)))

    def moved_by(self) -> tuple[float, list[tuple[float, float, float, float]]]:
        """Σf² over all numbers; and for each of the others Σ|f − g|, Σ(f − g)², and what either may be off by because
        only the cell is known: Σ spread, Σ spread². Each times |up| or up² where there is one."""
        assert self.activation is not None
        sums = self.moved
        if not self.weighted:
            inside = self.cells[1:-1].double()
            sums = [one + _units(more) for one, more in zip(sums, self._over_cells(inside, inside), strict=True)]
        square, *rest = (float(Fraction(one, _UNIT)) for one in sums)
        return square, [(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]) for at in range(0, len(rest), 4)]


_UNIT = 2**1127  # of these all finite float64 are whole numbers of parts


def _units(value: float) -> int:
    """How many 1/_UNIT a float64 is, exactly: whole numbers are added up faster than fractions."""
    mantissa, exponent = math.frexp(value)
    return int(mantissa * 2**53) << (exponent + 1074)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _named(activation: Activation) -> tuple[str, dict[str, float]]:
    return activation.name, dict(activation.parameters)


def _record(name: str, parameters: dict[str, float]) -> Activation:
    return get_activation(name).with_parameters(**parameters)
