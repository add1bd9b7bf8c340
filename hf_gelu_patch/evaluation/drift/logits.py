"""How far logits move, example by example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.verification import Scale, relative

__all__ = ["LogitDrift", "TotalDrift", "against_exact", "batch_drift", "total_drift"]

_AT_A_TIME = 2**18  # numbers that are looked at together: they stay in the processor's cache
_SMALL = 0.01  # |Δ| of logits up to which KL is half their variance
_MEASURED = ("max_abs", "sum_abs", "scale", "relative", "kl", "agree")  # at each position; the last two with softmax
_SAMPLE = 2**14  # numbers of a batch by which its scale is told
# What ``batch_drift`` gives, of which the largest counts, and what is added up; what needs softmax comes last.
_LARGEST = ("max_abs", "scale", "relative", "kl_max")
_ADDED = ("positions", "elements", "sum_abs", "kl_sum", "agree")


@dataclass(frozen=True)
class LogitDrift:
    """How far logits moved, over all positions that count.

    Attributes:
        max_abs, mean_abs: of |after − before|, over every logit; inf where one of them alone is not finite.
        scale: max |before|, masks left out.
        kl_mean, kl_max: of KL(before ‖ after) = Σ p·log(p / q) at a position, in nats; p, q the softmax of the logits
            before and after. None where features stand for logits: their softmax means nothing.
        top1_agreement: the share of positions at which the same class is likeliest, or one of those that are; None
            likewise.
        positions: how many there were. All else is NaN without any.
        relative: max |Δ| / s, by which ``patch(verify=)`` judges too: beside how large the logits of a batch usually
            are, whatever the masks among them.
        own: the unpatched model's against a float64 copy of it, on one batch; None where there is none.
        exact: the patched model's against that same copy, likewise.
    """

    max_abs: float
    mean_abs: float
    scale: float
    kl_mean: float | None
    kl_max: float | None
    top1_agreement: float | None
    positions: int
    relative: float = 0.0
    own: LogitDrift | None = None
    exact: LogitDrift | None = None


def batch_drift(
    before: Tensor,
    after: Tensor,
    counts: Tensor | None = None,
    *,
    softmax: bool = True,
    epsilon: float | None = None,
) -> list[dict[str, float]]:
    """What ``total_drift`` adds up, for each example of a batch, in float32 (float64 where the logits are). Logits that
    are bit-identical cost less than their softmax, others about three of them.

    Args:
        before, after: logits, [examples, positions, classes].
        counts: [examples, positions], which positions count; None for all.
        softmax: whether their softmax means something; False for features.
        epsilon: of the arithmetic that they come from; None for their dtype's.

    Returns:
        For each example: max_abs, sum_abs, scale, relative, positions, elements; with ``softmax`` kl_sum, kl_max and
        agree too.

    Raises:
        ValueError: the shapes differ.
    """
    if before.shape != after.shape or before.dim() != 3:
        raise ValueError(
            f"logits are [examples, positions, classes], before and after alike; got {list(before.shape)} and "
            f"{list(after.shape)}."
        )
    before, after = before.detach(), after.detach()
    examples, positions, classes = before.shape
    if counts is None:
        counts = torch.ones(examples, positions, dtype=torch.bool, device=before.device)
    where, which = counts.nonzero(as_tuple=True)
    step = max(1, _AT_A_TIME // max(1, classes))
    measured = _MEASURED if softmax else _MEASURED[:-2]
    scale = Scale.of(_sampled(before, where, which))
    epsilon = torch.finfo(before.dtype).eps if epsilon is None else epsilon
    parts = [_moved(*part, scale, epsilon, softmax=softmax) for part in _parts(before, after, where, which, step)]
    found = torch.cat(parts, dim=1).cpu().numpy() if parts else np.zeros((len(measured), 0))
    rows = where.cpu().numpy()
    columns: dict[str, Any] = {"positions": np.bincount(rows, minlength=examples).astype(np.float64)}
    columns["elements"] = columns["positions"] * classes
    for name, values in zip(measured, found, strict=True):
        if name != "kl" and name not in _LARGEST:
            columns[name] = np.bincount(rows, weights=values, minlength=examples)
            continue
        columns[f"{name}_max" if name == "kl" else name] = largest = np.zeros(examples)
        np.maximum.at(largest, rows, values)
        if name == "kl":
            columns["kl_sum"] = np.bincount(rows, weights=values, minlength=examples)
    return [{name: float(values[example]) for name, values in columns.items()} for example in range(examples)]


def _parts(before: Tensor, after: Tensor, where: Tensor, which: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """[positions, classes] of both, the positions that count in their order, as views where they can be: fetching them
    one by one costs as much as the rest."""
    examples, positions, classes = before.shape
    if len(where) == examples * positions and before.is_contiguous() and after.is_contiguous():
        flat = before.view(-1, classes), after.view(-1, classes)
        for start in range(0, len(where), step):
            yield flat[0][start : start + step], flat[1][start : start + step]
    elif len(where) == examples * positions and step < positions:
        for old, new in zip(before, after, strict=True):
            for start in range(0, positions, step):
                yield old[start : start + step], new[start : start + step]
    else:
        for start in range(0, len(where), step):
            place = where[start : start + step], which[start : start + step]
            yield before[place], after[place]


def _sampled(logits: Tensor, where: Tensor, which: Tensor) -> Tensor:
    """Some of the logits at the positions that count."""
    classes = logits.shape[-1]
    if len(where) * classes <= _SAMPLE:
        return logits[where, which]
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(len(where), (_SAMPLE,), generator=draw).to(where.device)
    return logits[where[rows], which[rows], torch.randint(classes, (_SAMPLE,), generator=draw).to(where.device)]


def _scale(logits: Tensor, mask: float) -> Tensor:
    """max |x| of each position, over what is finite and below a mask."""
    scale = torch.maximum(logits.amax(dim=-1), -logits.amin(dim=-1))
    if not (scale < mask).all():
        size = logits.abs()
        scale = torch.where(size < mask, size, 0.0).amax(dim=-1)
    return scale.double()


def _moved(before: Tensor, after: Tensor, scale: Scale, epsilon: float, *, softmax: bool) -> Tensor:
    """[4 or 6, positions]: max |Δ|, Σ|Δ|, scale and max |Δ| / s of two [positions, classes]; with ``softmax`` KL and
    agreement."""
    dtype = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
    before, after = before.to(dtype), after.to(dtype)
    found = torch.zeros(6 if softmax else 4, len(before), dtype=torch.float64, device=before.device)
    found[2] = _scale(before, scale.mask)
    change = after - before
    size = change.abs()
    largest = size.amax(dim=-1)
    most = float(largest.max()) if len(largest) else 0.0
    if most == 0:
        found[5:] = 1.0
        return found
    if not math.isfinite(most):  # what is not finite counts as equal where both are the same, else as infinitely far
        alike = (before == after) | (before.isnan() & after.isnan())
        change = torch.where(alike, 0.0, change)
        size = change.abs().nan_to_num_(nan=math.inf, posinf=math.inf)
        largest = size.amax(dim=-1)
    found[0] = largest
    found[3] = relative(size, before, scale, epsilon).amax(dim=-1)
    found[1] = size.sum(dim=-1)
    if not softmax:
        return found
    top, top_after = before.amax(dim=-1, keepdim=True), after.amax(dim=-1, keepdim=True)
    found[5] = ((before == top) & (after == top_after)).any(dim=-1)
    p = before.softmax(dim=-1)
    mean = torch.linalg.vecdot(p, change)
    if most <= _SMALL:
        # KL = log E e^Δ − E Δ under p: half the variance of Δ, but for third powers. The logarithms themselves would
        # leave nothing but their rounding.
        found[4] = torch.linalg.vecdot(p, change.sub_(mean[:, None]).square_()) / 2
    else:
        # The largest of p is 1 / Σ e^(x − top), so that the logarithm of Σ e^x is top − log p.
        normaliser = top_after.double() - after.softmax(dim=-1).amax(dim=-1, keepdim=True).double().log()
        normaliser -= top.double() - p.amax(dim=-1, keepdim=True).double().log()
        found[4] = (normaliser[:, 0] - mean).clamp_(min=0.0)
    if not math.isfinite(most):
        found[4].nan_to_num_(nan=math.inf)
    return found


class TotalDrift:
    """The drift over examples, of which ``batch_drift`` gave the rows: they are added up a part at a time."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._largest: dict[str, float] = {}
        self._softmax = True

    def add(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Add some examples. A sum over them is exact; over parts, their sums are added up."""
        if not rows:
            return
        self._softmax = self._softmax and all("kl_sum" in row for row in rows)
        for name in _LARGEST[: None if self._softmax else -1]:
            most = max(row[name] for row in rows)
            self._largest[name] = max(self._largest.get(name, most), most)
        for name in _ADDED[: None if self._softmax else -2]:
            self._sums.setdefault(name, []).append(math.fsum(row[name] for row in rows))

    @property
    def found(self) -> LogitDrift:
        """Of all that was added."""
        sums, largest = {name: math.fsum(parts) for name, parts in self._sums.items()}, self._largest
        if not (positions := sums.get("positions", 0.0)):
            return LogitDrift(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        return LogitDrift(
            max_abs=largest["max_abs"],
            mean_abs=sums["sum_abs"] / sums["elements"],
            scale=largest["scale"],
            kl_mean=sums["kl_sum"] / positions if self._softmax else None,
            kl_max=largest["kl_max"] if self._softmax else None,
            top1_agreement=sums["agree"] / positions if self._softmax else None,
            positions=int(positions),
            relative=largest["relative"],
        )


def total_drift(rows: Iterable[Mapping[str, float]]) -> LogitDrift:
    """The drift over the examples of which ``batch_drift`` gave these rows."""
    total = TotalDrift()
    total.add([*rows])
    return total.found


def against_exact(logits: Tensor, exact: Tensor, counts: Tensor | None = None, *, softmax: bool = True) -> LogitDrift:
    """The drift of a model's logits on a batch against those of a float64 copy of the unpatched model.

    Args:
        logits, exact: [examples, positions, classes].
        counts, softmax: as for ``batch_drift``.
    """
    return total_drift(batch_drift(exact, _masked_alike(logits.double(), exact), counts, softmax=softmax))


def _masked_alike(logits: Tensor, exact: Tensor) -> Tensor:
    """The masks of less precision as float64's: the least number of a dtype is another in each."""
    if logits.shape != exact.shape:
        return logits
    masks = (logits.abs() >= Scale.of(logits).mask) & (exact.abs() >= Scale.of(exact).mask)
    return torch.where(masks & (logits.sign() == exact.sign()), exact, logits)
