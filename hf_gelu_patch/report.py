"""What a patch did, or would do, at each site, and how that is shown."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_gelu_patch import plans
from hf_gelu_patch.beside import Beside
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.sites import Site
from hf_gelu_patch.tiling.choosing import Tiled
from hf_gelu_patch.verdicts import Ratio, reach
from hf_gelu_patch.verification import Drift

__all__ = ["Kept", "Memory", "Report", "Step", "Timed", "Tuning"]


@dataclass(frozen=True)
class Timed:
    """One group of like sites, timed.

    Attributes:
        what: the method that was timed (``GPT2MLP.forward``).
        sites: the paths of the sites that go by it.
        chosen: the implementation taken; None: they are left alone, or a swap keeps to the model's own kind of ops.
        seconds: of each way, by round: ``own``, ``own again`` (the noise), and each implementation; of the rounds that
            the decision goes by, which are others than those that the implementation was picked in.
    """

    what: str
    sites: tuple[str, ...]
    chosen: str | None
    seconds: dict[str, list[float]]


@dataclass(frozen=True)
class Tuning:
    """What ``patch(model, tune=batch)`` measured.

    Attributes:
        seconds: how long it took.
        gradients: whether forward and backward were timed together, rather than the forward.
        timed: each group of sites.
        before, after: seconds of the whole model with its own ops and tuned, the medians; None where nothing was found
            to be faster.
        ratio: how many times as fast the tuned model is; None likewise.
        floor: the model with its own ops against itself, in the same rounds; None likewise.
        verdict: "faster", "slower" (then it was undone), "no difference detected", or "nothing changed".
        saved: seconds that a call of the model saves, the median of the rounds; 0.0 where nothing was changed.
    """

    seconds: float
    gradients: bool
    timed: tuple[Timed, ...]
    before: float | None
    after: float | None
    ratio: Ratio | None
    floor: Ratio | None
    verdict: str
    saved: float

    @property
    def calls(self) -> int | None:
        """How many calls of the model pay the tuning back; None where nothing was changed, or nothing is saved."""
        return math.ceil(self.seconds / self.saved) if self.saved > 0 else None

    def __str__(self) -> str:
        text = f"in {self.seconds:.1f} s"
        if self.ratio is None or self.floor is None or self.before is None:
            return f"{text}; {self.verdict}"
        what = "forward and backward took" if self.gradients else "a forward took"
        found, noise = self.ratio, 100 * math.expm1(reach(self.floor))
        text += (
            f"; {what} {1e3 * self.before:.3g} ms, tuned it is {found.value:.2f}× as fast "
            f"({found.low:.2f} to {found.high:.2f}; noise ±{noise:.1f} %): {self.verdict}"
        )
        if self.verdict == "slower":
            return f"{text}, so it was undone"
        if self.calls is None:
            return text
        sure = "paid" if self.verdict == "faster" else "perhaps paid"
        return f"{text}; {sure} back after about {self.calls:,} calls"


@dataclass(frozen=True)
class Step:
    """What a training step takes, in bytes: see ``memory.measure``.

    Attributes:
        saved: what is kept for backward.
        peak: the most at one time.
    """

    saved: int
    peak: int


@dataclass(frozen=True)
class Kept:
    """What a method that applies activations keeps for backward.

    Attributes:
        what: the method (``GPT2MLP.forward``).
        sites: the paths of the sites in it.
        before, after: the bytes it allocates that are alive when the model's forward is over, before the patch and
            after it; None where it is not called on the batch.
    """

    what: str
    sites: tuple[str, ...]
    before: int | None
    after: int | None

    @property
    def group(self) -> str:
        """What the methods of one line of the report have in common."""
        if self.before is None or self.after is None:
            return f"{self.what}: not called on the batch"
        return f"{self.what} keeps {_changed(self.before, self.after)}"


@dataclass(frozen=True)
class Memory:
    """What ``patch(model, memory=batch)`` measured.

    Attributes:
        kept: by each method that applies activations.
        before, after: of the whole model, before the patch and after it.
    """

    kept: tuple[Kept, ...]
    before: Step
    after: Step

    def lines(self) -> list[str]:
        """A line for all, and one for each group of like methods."""
        saved = _changed(self.before.saved, self.after.saved)
        whole = f"kept for backward {saved}; peak of a step {_changed(self.before.peak, self.after.peak)}"
        return [whole, *(f"{count} × {group}" for group, count in Counter(one.group for one in self.kept).items())]


def _paths(site: Site) -> tuple[str, str]:
    """The modules that a site stands in: the activation, where it is one, and what applies it."""
    return site.path, site.owner_path


def _changed(before: int, after: int) -> str:
    if before == after:
        return f"{_size(before)}, as before"
    return f"{_size(before)} → {_size(after)}" + (f" ({after / before - 1:+.0%})".replace("-", "−") if before else "")


def _size(count: int) -> str:
    """Bytes as people say them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


@dataclass(frozen=True)
class Report:
    """What a patch did, or would do. ``print`` it for a table; ``sites``, ``changed`` and ``to_dict`` are the data.
    ``save`` writes it as a plan for ``patch(model, plan=path)``. ``others`` says what other tools compute in the model
    already, ``beside`` what they would change."""

    model: str
    sites: tuple[Site, ...]
    applied: bool
    config: tuple[str, ...] = ()
    seen: str = ""
    drift: tuple[Drift, ...] = ()
    unverified: tuple[str, ...] = ()
    tuning: Tuning | None = None
    memory: Memory | None = None
    tiled: tuple[Tiled, ...] = ()
    origin: plans.Origin | None = field(default=None, repr=False, compare=False)
    recompute: bool = False
    others: tuple[str, ...] = ()
    beside: tuple[Beside, ...] = ()

    @property
    def changed(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.changed)

    @property
    def unchanged(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if not site.changed)

    @property
    def in_tiles(self) -> tuple[Tiled, ...]:
        """The methods that run in tiles."""
        return tuple(one for one in self.tiled if one.tiles is not None)

    @property
    def summary(self) -> str:
        """One line: how many sites, how many changed."""
        if not self.sites:
            return f"{self.model}: no call of an activation in {self.seen}"
        done = "patched" if self.applied else "would be patched"
        tiles = len(self.in_tiles)
        rest = f", {tiles} method{'' if tiles == 1 else 's'} in tiles" if self.tiled else ""
        return f"{self.model}: {len(self.changed)} of {len(self.sites)} activation sites {done}{rest}"

    def lines(self) -> list[str]:
        """The table below the summary, a line a group of like sites, changed ones first. Below each, what each of the
        tools in ``beside`` would change there."""
        groups = Counter((site.group, self._beside(site)) for site in (*self.changed, *self.unchanged))
        rows = [((f"{count} ×", *group), told) for (group, told), count in groups.items()]
        widths = [max((len(row[column]) for row, _ in rows), default=0) for column in range(4)]
        lines = []
        for row, told in rows:
            cells = [f"{cell:<{width}}" for cell, width in zip(row[1:4], widths[1:], strict=True)]
            lines += [f"  {row[0]:>{widths[0]}} {'  '.join(cells)}  {row[4]}"]
            lines += [f"  {'':>{widths[0]}}   {one}" for one in told]
        lines += [f"  {one}" for one in self.others]
        tiled = Counter(one.group for one in self.tiled)
        lines += [f"  tiles: {count} × {name}  {text}" for (name, text), count in tiled.items()]
        lines += [f"  config: {line}" for line in self.config] + [f"  verified: {one}" for one in self.drift]
        lines += [f"  not verified: {one}" for one in self.unverified]
        for one in self.beside:
            lines += [f"  {text}" for text in one.elsewhere({path for site in self.sites for path in _paths(site)})]
        if self.tuning is not None:
            lines.append(f"  tuned: {self.tuning}")
        return lines if self.memory is None else [*lines, *(f"  memory: {line}" for line in self.memory.lines())]

    def _beside(self, site: Site) -> tuple[str, ...]:
        return tuple(f"{one.tool}: {one.at(*_paths(site))}" for one in self.beside if one.changes)

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.lines()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; an infinite bound becomes None beside ``equivalence``, so that it is valid JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, origin=None))))
        del data["origin"]  # which is for ``save``
        for part in (*data["sites"], *data["drift"]):
            part.update((key, None) for key, value in part.items() if value == float("inf"))
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was decided at each site to a JSON file, with what it holds for: the model's class, its sites and
        the shapes of their weights, versions, CPU or GPU, and threads. ``patch(model, plan=path)`` does the same again.

        Args:
            path: the file, which is replaced.

        Raises:
            PatchError: an implementation is not registered, so that no other process could find it; or the file cannot
                be written.
        """
        if self.origin is None:
            raise PatchError("this report does not know which model it is of: save the one that patch returned.")
        told = {"model": self.model, "recompute": self.recompute, "tuning": self.to_dict()["tuning"]}
        plans.write(path, told, self.sites, self.origin)
