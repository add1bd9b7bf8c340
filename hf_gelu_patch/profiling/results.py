"""What a profile tells: of each site its pre-activations, and what another function would do there."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.profiling.counts import Counts
from hf_gelu_patch.profiling.grid import BAR, CELLS, EDGE, REACH, WIDTH, Regions, regions
from hf_gelu_patch.sites import Site

__all__ = ["Moved", "Profile", "SiteProfile"]


@dataclass(frozen=True)
class Moved:
    """How far another function g would move what a site gives, f(x) or f(x)·up, on the inputs that were seen.

    Attributes:
        mean: the mean of |f(x) − g(x)|·|up|.
        rms: √ of the mean of (f(x) − g(x))²·up².
        relative: ``rms`` beside that of f(x)·up.
        mean_off, rms_off: how far the two may be off, as of most x only the cell is known.
    """

    mean: float
    rms: float
    relative: float
    mean_off: float
    rms_off: float


@dataclass(frozen=True)
class SiteProfile:
    """What was seen at one site.

    Attributes:
        site: where it is. ``site.reason`` says why it could not be seen; "" where it could.
        counts: what was counted there.
    """

    site: Site
    counts: Counts

    @property
    def count(self) -> int:
        """How many finite pre-activations there were."""
        return self.counts.count

    @property
    def regions(self) -> Regions | None:
        """The regions of its function; None where nothing was seen, or the function is not known."""
        activation = self.counts.activation
        return None if activation is None or not self.count else regions(activation, self.counts.epsilon)

    @property
    def histogram(self) -> list[int]:
        """Bars of 1/4 from −8 to 8, before them all below, after them all above."""
        return _bars(self.counts.cells.tolist())

    def share(self, low: float, high: float) -> float:
        """The share of pre-activations x with low ≤ x < high, which are edges of cells, or infinite."""
        if not self.count:
            return math.nan
        first, last = (_cell(edge) for edge in (low, high))
        return int(self.counts.cells[first:last].sum()) / self.count

    @property
    def flat(self) -> float | None:
        """The share in the flat tail; None where the function has none."""
        found = self.regions
        return None if found is None or found.flat is None else self.share(-math.inf, found.flat)

    @property
    def lobe(self) -> float | None:
        """The share in the negative lobe, likewise."""
        found = self.regions
        if found is None or found.lobe is None:
            return None
        return self.share(-math.inf if found.flat is None else found.flat, found.lobe)

    @property
    def identity(self) -> float | None:
        """The share where the function gives x back, likewise."""
        found = self.regions
        return None if found is None or found.identity is None else self.share(found.identity, math.inf)

    @property
    def never_active(self) -> list[int] | None:
        """The units whose pre-activations all lay in the flat tail; None where there is no such tail, or the last
        dimension holds no units: behind a convolution, or where its size varies from call to call."""
        found, greatest = self.regions, self.counts.greatest
        if found is None or found.flat is None or greatest is None or self.counts.units_vary:
            return None
        return [int(unit) for unit in (greatest < found.flat).nonzero()[:, 0]]

    @functools.cached_property
    def moved(self) -> dict[str, Moved]:
        """By the name of each other function, what it would do here."""
        counts = self.counts
        if counts.activation is None or not counts.others or not self.count:
            return {}
        square, sums = counts.moved_by()
        size, scale = self.count, math.sqrt(square / self.count)
        found = {}
        for other, (absolute, squared, off, off_squared) in zip(counts.others, sums, strict=True):
            rms = math.sqrt(squared / size)
            relative = rms / scale if scale else (math.inf if rms else 0.0)
            found[other.label] = Moved(absolute / size, rms, relative, off / size, math.sqrt(off_squared / size))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data; a number that is not there is None."""
        site, counts, found = self.site, self.counts, self.regions
        plain: dict[str, Any] = {
            "path": site.path,
            "line": site.line,
            "owner": site.owner,
            "kind": site.kind,
            "activation": site.activation,
            "function": None if counts.activation is None else counts.activation.label,
            "reason": site.reason,
            "calls": counts.calls,
            "count": counts.count,
            "not_finite": counts.lost,
        }
        if not self.count:
            return plain
        never = self.never_active
        return plain | {
            "mean": counts.mean,
            "std": counts.std,
            "least": counts.least,
            "greatest": None if counts.greatest is None or counts.units_vary else float(counts.greatest.max()),
            "histogram": self.histogram,
            "negative": self.share(-math.inf, 0.0),
            "bounds": None if found is None else vars(found),
            "lobe": self.lobe,
            "flat": self.flat,
            "identity": self.identity,
            "units": None if counts.greatest is None or counts.units_vary else len(counts.greatest),
            "never_active": never,
            "times_up": bool(counts.weighted),
            "drift": {name: vars(one) for name, one in self.moved.items()},
        }


@dataclass(frozen=True)
class Profile:
    """What was seen at the sites of a model.

    Attributes:
        model: its class name.
        sites: in the order of the model's modules.
    """

    model: str
    sites: tuple[SiteProfile, ...]

    @classmethod
    def together(cls, parts: Iterable[Profile]) -> Profile:
        """The profiles of one model on several batches as one: the very figures of a single run over all of them.

        Raises:
            PatchError: there are none, or they are of different sites.
        """
        found = list(parts)
        if not found:
            raise PatchError("there are no profiles to put together.")
        first = found[0]
        for other in found[1:]:
            if _asked(other) != _asked(first):
                raise PatchError("these profiles are of different sites, or hold them against different functions.")
        sites = []
        for same in zip(*(one.sites for one in found), strict=True):
            counts = Counts(same[0].counts.activation, same[0].counts.others)
            for one in same:
                counts.merge(one.counts)
            sites.append(SiteProfile(same[0].site, counts))
        return cls(first.model, tuple(sites))

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        bars = {"from": -EDGE, "to": EDGE, "width": BAR}
        return {"model": self.model, "bars": bars, "sites": [one.to_dict() for one in self.sites]}

    def __str__(self) -> str:
        from hf_gelu_patch.profiling.table import table

        return table(self.to_dict())


def _asked(profile: Profile) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(one.site.path, one.site.line, tuple(o.label for o in one.counts.others)) for one in profile.sites]


def _cell(edge: float) -> int:
    """The cell that begins at an edge."""
    if math.isinf(edge):
        return 0 if edge < 0 else CELLS
    return round((edge + REACH) / WIDTH) + 1


def _bars(cells: Sequence[int]) -> list[int]:
    edges = [0, *(_cell(-EDGE + BAR * bar) for bar in range(int(2 * EDGE / BAR) + 1)), CELLS]
    return [sum(cells[first:last]) for first, last in itertools.pairwise(edges)]
