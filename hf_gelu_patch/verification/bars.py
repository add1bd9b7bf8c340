"""How far numbers may move: beside the error that they have by themselves against float64, or by half of their digits.

A number y may move by so much relative to s = S + w·|y|. S is how far the numbers of its tensor usually lie from their
median. Neither masks nor a constant added to all numbers change S. The term w·|y| allows for the rounding of y itself.
A mask is a number far larger than the others, such as −1e4. It may move by a few ε of itself, and as far as the others.
Where the numbers of an output lie in two groups far apart, such as times beside logits, the smaller are judged by their
own scale too.

A patch that keeps the functions must leave the model as near to float64 as it was, but for a small factor: of the worst
number, of the worst row (of the last axis), of all numbers together, and of the median row (which may be as far off as
a quarter of the error of all). Without a float64 copy, and where the functions are swapped, |Δ| ≤ √ε·s.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hf_gelu_patch.verification.values import GRADIENT

__all__ = ["Drift", "Scale", "drifts", "half_the_digits", "largest_difference", "relative", "scale_of"]

_GAP = 4  # binades between masks and what they mask, in which nothing lies
_WIDTH = 3  # binades that masks lie in: one may have been added twice
_SURE = 24  # bits: how unlikely numbers are that have no masks and look as if they had
_USUAL = 0.99  # the share of numbers that S is not exceeded by
_SAMPLE = 2**20  # numbers that S is taken from, where there are more
_AT_A_TIME = 2**22  # numbers that are compared together
_MASK_ULPS = 4.0
_NOISE = 32.0  # times the error of larger numbers: smaller ones below that may be nothing but rounding of the larger

_ALIKE = 1 / 16  # of S: the least median of numbers that are alike in size
_FEW = 64  # so few numbers may be right to the last digit by chance
_DOUBTFUL = 8.0  # times its bar: the most by which an error may exceed it by chance
_SOME = 8  # of so many ids from coarse arithmetic one may fall the other way by chance
_USELESS = 0.25  # a float64 copy whose outputs are mostly so far away drew other random numbers


class Grains(NamedTuple):
    """One figure for each way of looking at a tensor: its worst number, the root mean square (RMS) of its worst row, of
    all, and of its median row."""

    number: float = 0.0
    row: float = 0.0
    whole: float = 0.0
    median: float = 0.0


_MANY = 8  # so many outputs tell together what one cannot
_TIMES_OF_MANY = 1.5  # how much larger the error of their median may be after than before
_TIMES = Grains(4.0, 3.0, 2.0, 2.0)  # how much larger the error may be after than before
_FLOORS = Grains(1.0, 1 / 4, 1 / 8, 1 / 8)  # what is added to that, in units of ``_floor``


def half_the_digits(epsilon: float) -> float:
    """√ε: how far rounding may move a number, where there is nothing to compare with."""
    return math.sqrt(epsilon)


def _floor(epsilon: float) -> float:
    """An error that is none, relative to S: 32 ε of float32, about ε of bfloat16."""
    return min(32 * epsilon, half_the_digits(epsilon) / 8)


# --------------------------------------------------------------------------------------------------------------- scale


@dataclass(frozen=True)
class Scale:
    """How large the numbers of a tensor are.

    Attributes:
        largest: max |y|, masks and what is not finite left out.
        usual: S.
        mask: the least |y| of the masks; inf where there are none.
    """

    largest: float
    usual: float
    mask: float

    @classmethod
    def of(cls, tensor: Tensor) -> Scale:
        """The scale of a tensor, from a sample of it where it is large."""
        values = tensor.detach().flatten()
        values = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
        size = values.abs()
        size = size[size.isfinite()]
        if not size.numel():
            return cls(0.0, 0.0, math.inf)
        mask = _least_mask(size)
        largest = float(size[size < mask].max()) if mask < math.inf else float(size.max())
        if len(values) > _SAMPLE:
            generator = torch.Generator().manual_seed(0)
            values = values[torch.randint(len(values), (_SAMPLE,), generator=generator).to(values.device)]
        values = values[values.isfinite() & (values.abs() < mask)].double()
        centre = values.median() if len(values) >= 16 else 0.0
        away = (values - centre).abs()
        away = away[away > 0]
        usual = float(torch.quantile(away, _USUAL, interpolation="higher")) if len(away) else largest
        return cls(largest, usual, mask)


def _least_mask(size: Tensor) -> float:
    """The least of the sizes that are masks: few values, up to what was added to them, alone above all others."""
    lowest, counts = _by_binade(size)
    binades = [binade for binade, count in enumerate(counts) if count]
    least = math.inf
    while binades:
        group = [binade for binade in binades if binade > binades[-1] - _WIDTH]
        rest = binades[: -len(group)]
        below = sum(counts[: group[0]])
        gap = group[0] - rest[-1] - 1 if rest else 0
        start = math.ldexp(0.5, group[0] + lowest)
        if gap < _GAP or below * gap < _SURE or not _are_masks(size[(size >= start) & (size < least)], size, start):
            break
        least, binades = start, rest
    return least


def _by_binade(size: Tensor) -> tuple[int, list[int]]:
    """The exponent of the least size above 0, and how many there are of that exponent and of each above it."""
    exponents = torch.frexp(size[size > 0]).exponent
    if not exponents.numel():
        return 0, []
    lowest = int(exponents.min())
    return lowest, torch.bincount(exponents - lowest).tolist()


def _least_above_a_gap(size: Tensor) -> float:
    """Where those begin that lie far above all others, with nothing between; inf where there are none."""
    lowest, counts = _by_binade(size)
    binades = [binade for binade, count in enumerate(counts) if count]
    for high, low in pairwise(reversed(binades)):
        gap = high - low - 1
        if gap >= _GAP and sum(counts[: low + 1]) * gap >= _SURE:
            return math.ldexp(0.5, high + lowest)
    return math.inf


def _are_masks(group: Tensor, size: Tensor, start: float) -> bool:
    """Whether sizes lie around one value or two, no further than what they mask could have moved them."""
    added = 4 * float(size[size < start].max())
    for _ in range(2):
        if len(group):
            top = float(group.max())
            group = group[group < top - added - top / 64]
    return not len(group)


def scale_of(tensor: Tensor) -> float:
    """max |x| over the elements that are finite and no masks; 0.0 without any."""
    return Scale.of(tensor).largest


def relative(change: Tensor, before: Tensor, scale: Scale, epsilon: float) -> Tensor:
    """|Δ| / s of each number, inf where Δ is; 0 for 0 / 0.

    Args:
        change: |Δ|.
        before: y, in the same precision.
        scale: that of the tensor that y is part of.
        epsilon: of the arithmetic.
    """
    size = before.abs()
    change = _less_masks(change, size, scale, epsilon)
    own = torch.where(size < scale.mask, min(1.0, 128 * half_the_digits(epsilon)) * size, 0.0)
    return torch.where(change == 0, 0.0, change / (scale.usual + own))


def _less_masks(change: Tensor, size: Tensor, scale: Scale, epsilon: float) -> Tensor:
    """|Δ|, of masks less their own rounding."""
    masked = (size >= scale.mask) & size.isfinite()
    return torch.where(masked, (change - _MASK_ULPS * epsilon * size).clamp_(min=0.0), change)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b|; what is not finite counts as equal where both are the same, else as infinitely far."""
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.to(a.device).double()
    return float(_difference(a, b).max())


def _difference(a: Tensor, b: Tensor) -> Tensor:
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num_(nan=math.inf, posinf=math.inf)


# --------------------------------------------------------------------------------------------------------------- drift


@dataclass(frozen=True)
class Drift:
    """How far a patch moved one output, or one gradient.

    Attributes:
        output: its name: ``logits``, ``hidden_states.0``, ``gradient of lm_head.weight``.
        largest: max |patched − before| over its elements; inf where one of them alone is not a number or infinite. Of
            integers and booleans, the share that changed.
        scale: max |before|, masks left out; 1 of integers and booleans.
        margin: how large ``largest`` may be, relative to the scale; None where its own error is the bar.
        error_before, error_after: max |y − exact|, masks left out, where the exact output is that of a float64 copy of
            the unpatched model; of integers and booleans, the share that differs. None without such a copy.
        exceeded: whether it moved further than it may.
        discrete: whether it holds integers or booleans.
        doubtful: whether it is so little too far that it may be chance.
        became: what it is now where it has another shape or dtype, in words.
    """

    output: str
    largest: float
    scale: float
    margin: float | None
    error_before: float | None
    error_after: float | None
    exceeded: bool
    discrete: bool = False
    doubtful: bool = False
    became: str = ""

    def __str__(self) -> str:
        if self.became:
            return f"{self.output}: {self.became}"
        text = f"{self.output}: max |Δ| {self.largest:.2g} (of {self.scale:.3g}"
        text += ")" if self.margin is None else f", margin {self.margin:.2g} of that)"
        if self.discrete:
            text = f"{self.output}: {self.largest:.2%} of its elements changed"
            text += "" if self.margin is None else f" (margin {self.margin:.2%})"
        if self.error_before is not None and self.error_after is not None:
            of = ".2%" if self.discrete else ".2g"
            text += f"; error against float64 {self.error_before:{of}} before, {self.error_after:{of}} after"
        return text


def drifts(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    exact: Mapping[str, Tensor] | None,
    margin: float | None,
    *,
    same: bool = True,
    epsilon: float = 0.0,
    draws: Sequence[Mapping[str, Tensor]] = (),
) -> tuple[Drift, ...]:
    """One ``Drift`` for each output. Or for each gradient: gradients alone are parts of one thing. Those that are mere
    rounding beside the others, such as that of a key's bias, are judged by the others' scale. One of so many may be off
    by twice as much.

    Args:
        before, after: the outputs by name, unpatched and patched.
        exact: those of a float64 copy of the unpatched model.
        margin: how far an output may move, relative to its scale; None to judge it as this module says. Of integers and
            booleans: the share that may change; None for twice as many as differ from the float64 copy's, and where the
            arithmetic is coarser than float32 for one of ``_SOME`` or more.
        same: whether the patch keeps the functions.
        epsilon: of the coarsest arithmetic inside the model, where that is coarser than an output's own.
        draws: the unpatched model's outputs where its roundings fell otherwise: of its own errors, the largest counts.
    """
    exact = exact or {}
    parts = bool(before) and all(name.startswith(GRADIENT) for name in before)
    alike = [name for name in before if name in after and not _became(before[name], after[name])]
    scales = {name: Scale.of(before[name]) for name in alike if before[name].is_floating_point()}
    if parts and scales:
        floor = _floor(max(epsilon, *(torch.finfo(before[name].dtype).eps for name in scales)))
        others = statistics.median(scale.usual for scale in scales.values())
        scales = {
            name: scale if scale.usual > floor * others else replace(scale, usual=others)
            for name, scale in scales.items()
        }
    drawn = {name: [one[name] for one in draws if name in one and _alike(before[name], one[name])] for name in scales}
    compared = {
        name: _Compared.of(before[name], after[name], exact.get(name), drawn[name], scale, epsilon)
        for name, scale in scales.items()
    }
    errors = [one.before.whole for one in compared.values() if one.has_error]
    if errors and statistics.median(errors) > _USELESS:
        compared = {name: replace(one, has_error=False) for name, one in compared.items()}
    error = max((one.before.whole for one in compared.values() if one.has_error and one.count >= _FEW), default=0.0)
    worse = _worse(compared) if same and margin is None else frozenset()
    found = []
    for name in dict.fromkeys((*before, *after)):
        if name in compared:
            drift = compared[name].drift(name, margin, same, error, 2.0 if parts else 1.0)
            if not drift.exceeded and not parts and margin is None:
                tensors = [before[name], after[name], exact.get(name), *drawn[name]]
                for smaller in _smaller(tensors, compared[name]):
                    own = smaller.drift(name, margin, same, error, 1.0)
                    drift = own if own.exceeded else drift
            by_little = name in worse and not drift.exceeded
            found.append(replace(drift, exceeded=True, doubtful=True) if by_little else drift)
        elif name in alike:
            found.append(_discrete(name, before[name], after[name], exact.get(name), margin, same, epsilon))
        else:
            scale = scale_of(before[name]) if name in before and before[name].is_floating_point() else 0.0
            became = _became(before.get(name), after.get(name))
            found.append(Drift(name, math.inf, scale, margin, None, None, True, became=became))
    return tuple(found)


def _worse(compared: Mapping[str, _Compared]) -> frozenset[str]:
    """Those that are further from float64 than they were, where most are: that is more than chance."""
    times = {
        name: one.after.whole / one.before.whole
        for name, one in compared.items()
        if one.has_error and one.count >= _FEW and one.before.whole > _FLOORS.whole * _floor(one.epsilon)
    }
    if len(times) < _MANY or statistics.median(times.values()) <= _TIMES_OF_MANY:
        return frozenset()
    return frozenset(name for name, one in times.items() if one > _TIMES_OF_MANY)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _became(before: Tensor | None, after: Tensor | None) -> str:
    """What an output has turned into, in words; "" where shape and dtype are the same."""
    if before is None or after is None:
        return "it is there only unpatched" if after is None else "it is there only patched"
    old, new = ([str(one.dtype).removeprefix("torch."), [*one.shape]] for one in (before, after))
    return "" if old == new else f"{new[0]} {new[1]} instead of {old[0]} {old[1]}"


def _smaller(tensors: Sequence[Tensor | None], compared: _Compared) -> Iterator[_Compared]:
    """Those numbers of an output compared alone that lie far below all others, with nothing between; again and again.
    Not where they may be nothing but rounding of the larger ones; nor where they are of all sizes, as probabilities
    are: the errors of a few of them would stand for all.

    Args:
        tensors: before, after, exact, and each draw.
        compared: all of its numbers.
    """
    before, _, exact, *_ = tensors
    assert before is not None
    size = (before if before.dtype == torch.float64 else before.float()).abs()
    top, usual = compared.scale.mask, compared.scale.usual
    while (least := _least_above_a_gap(size[size < top])) < math.inf:
        noise = compared.epsilon * usual
        if exact is not None and exact.shape == before.shape:
            error = (before.double() - exact.to(before.device).double())[(size >= least) & (size < top)]
            noise = float(error.square().mean().sqrt())
        old, new, right, *draws = (_without(one, size >= least) for one in tensors)
        assert old is not None
        assert new is not None
        scale, below = Scale.of(old), size[(size < least) & (size > 0)]
        if not scale.usual > _NOISE * noise:
            return
        if scale.mask == math.inf and len(below) >= _FEW and float(below.median()) > _ALIKE * scale.usual:
            yield _Compared.of(old, new, right, [one for one in draws if one is not None], scale, compared.epsilon)
        top, usual = least, scale.usual


def _without(tensor: Tensor | None, hidden: Tensor) -> Tensor | None:
    """A tensor in which some of the numbers are infinite: those are compared with nothing."""
    if tensor is None or tensor.shape != hidden.shape:
        return None
    return tensor.to(hidden.device).masked_fill(hidden, math.inf)


def _discrete(
    name: str, before: Tensor, after: Tensor, exact: Tensor | None, margin: float | None, same: bool, epsilon: float
) -> Drift:
    def share(a: Tensor, b: Tensor) -> float:
        return float((a != b.to(a.device)).double().mean()) if a.numel() else 0.0

    changed = share(after, before)
    own = its = None
    if exact is not None and exact.shape == before.shape:
        own, its = share(before, exact), share(after, exact)
    if margin is None:
        margin = 2 * own if own is not None and same else 0.0
        if same and own is not None and epsilon > torch.finfo(torch.float32).eps and before.numel() >= _SOME:
            margin = max(margin, 1 / before.numel())
    return Drift(name, changed, 1.0, margin, own, its, changed > margin, discrete=True)


@dataclass(frozen=True)
class _Compared:
    """Floating-point numbers before and after, beside the exact ones.

    Attributes:
        scale: of the numbers before.
        epsilon: of the arithmetic.
        count: how many numbers there are, without masks and what is not finite.
        largest: max |Δ|.
        beyond: the same, of masks less their own rounding.
        moved: |Δ| / s.
        before, after: |error| / s, where ``has_error``; of masks and what is not finite nothing. Before, each
            figure is the largest of all draws.
        errors: max |error| before and after.
        unsure: the worst of |Δ| / s where there is no error to hold it against.
    """

    scale: Scale
    epsilon: float
    count: int
    largest: float
    beyond: float
    moved: Grains
    before: Grains
    after: Grains
    has_error: bool
    errors: tuple[float, float]
    unsure: float

    @classmethod
    def of(
        cls, old: Tensor, new: Tensor, exact: Tensor | None, draws: Sequence[Tensor], scale: Scale, epsilon: float
    ) -> _Compared:
        epsilon = max(epsilon, torch.finfo(old.dtype).eps)
        if exact is not None and (exact.shape != old.shape or epsilon <= torch.finfo(torch.float64).eps):
            exact = None  # a float64 copy is no more exact than a float64 model
        rows: list[list[Tensor]] = []
        largest = beyond = unsure = 0.0
        errors = [0.0, 0.0]
        for b, a, e, *again in _chunks(old, new, exact, *draws):
            difference = _difference(a, b)
            largest = max(largest, float(difference.max()))
            a, b = _saturated(a, b, old.dtype), _saturated(b, a, old.dtype)
            difference = _difference(a, b)
            beyond = max(beyond, float(_less_masks(difference, b.abs(), scale, epsilon).max()))
            usual = b.isfinite() & (b.abs() < scale.mask)
            sure = usual & e.isfinite()
            moved = relative(difference, b, scale, epsilon)
            its, own, *drawn = ((x - e).abs() for x in (a, b, *again))
            unsure = max(unsure, float(torch.where(sure, 0.0, moved).max()))
            errors = [max(x, float(torch.where(sure, y, 0.0).max())) for x, y in zip(errors, (own, its), strict=True)]
            parts = [(moved, usual), *((relative(x, b, scale, epsilon), sure) for x in (its, own, *drawn))]
            rows.append([sums for part in parts for sums in _by_row(*part)])
        columns = [torch.cat(column) for column in zip(*rows, strict=True)] or [torch.zeros(0)] * 9
        moves, after, *before = (_grains(*columns[start : start + 3]) for start in range(0, len(columns), 3))
        return cls(
            scale=scale,
            epsilon=epsilon,
            count=int(columns[2].sum()),
            largest=largest,
            beyond=beyond,
            moved=moves._replace(number=max(moves.number, unsure)),
            before=Grains(*map(max, *before)) if len(before) > 1 else before[0],
            after=after,
            has_error=bool(columns[5].sum() > 0),
            errors=(errors[0], errors[1]),
            unsure=unsure,
        )

    def drift(self, name: str, margin: float | None, same: bool, error: float, slack: float) -> Drift:
        """What it says.

        Args:
            error: RMS of the model's relative error in its other outputs: what few numbers may be off by.
            slack: by what the bars are multiplied.
        """
        own, its = self.errors if self.has_error else (None, None)
        digits = half_the_digits(self.epsilon)
        doubtful = False
        if margin is not None:
            exceeded = not (self.beyond if margin > 0 else self.largest) <= margin * self.scale.largest
        elif same and self.has_error:
            floors = [part * _floor(self.epsilon) for part in _FLOORS]
            if self.count < _FEW:
                floors = [digits / 8 + _TIMES.number * error] * len(floors)
            usual = self.before._replace(median=max(self.before.median, self.before.whole / 4))
            bars = [slack * times * e + floor for times, e, floor in zip(_TIMES, usual, floors, strict=True)]
            exceeded = not self._within(bars) or self.unsure > digits
            doubtful = exceeded and self._within([_DOUBTFUL * bar for bar in bars]) and self.unsure <= digits
        else:
            margin = digits
            exceeded = self.moved.number > digits or (same and self.moved.whole > digits / 4)
        return Drift(name, self.largest, self.scale.largest, margin, own, its, exceeded, doubtful=doubtful)

    def _within(self, bars: Sequence[float]) -> bool:
        return all(e <= bar for e, bar in zip(self.after, bars, strict=True))


def _chunks(old: Tensor, *others: Tensor | None) -> Iterator[list[Tensor]]:
    """[rows, numbers] of each in float64, so many rows at a time; NaN where one of the others is not there."""
    width = old.shape[-1] if old.dim() else 1
    if not old.numel():
        return
    step = max(1, _AT_A_TIME // width)
    first, *rest = (None if x is None else x.reshape(-1, width) for x in (old, *others))
    assert first is not None
    for start in range(0, len(first), step):
        b = first[start : start + step].double()
        yield [b, *(torch.full_like(b, math.nan) if x is None else x[start : start + step].to(b) for x in rest)]


def _saturated(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Infinities as the largest numbers where the other is a number: just below them rounding makes the difference."""
    largest = torch.finfo(dtype).max
    return torch.where(one.isinf() & other.isfinite(), one.clamp(-largest, largest), one)


def _by_row(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row, of what counts: the largest, the sum of squares, how many."""
    values = torch.where(counts, values, 0.0)
    return values.amax(-1), values.square().sum(-1), counts.sum(-1)


def _grains(largest: Tensor, squares: Tensor, counts: Tensor) -> Grains:
    some = counts > 0
    if not some.any():
        return Grains()
    rows = (squares[some] / counts[some]).sqrt()
    whole = math.sqrt(float(squares.sum() / counts.sum()))
    return Grains(float(largest.max()), float(rows.max()), whole, float(rows.median()))
