"""What a patch did, or would do, at each site, and how that is shown."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_gelu_patch import plans
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.sites import Site
from hf_gelu_patch.verdicts import Ratio, reach
from hf_gelu_patch.verification import Drift

__all__ = ["Report", "Timed", "Tuning"]


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
class Report:
    """What a patch did, or would do. ``print`` it for a table; ``sites``, ``changed`` and ``to_dict`` are the data.
    ``save`` writes it as a plan for ``patch(model, plan=path)``."""

    model: str
    sites: tuple[Site, ...]
    applied: bool
    config: tuple[str, ...] = ()
    seen: str = ""
    drift: tuple[Drift, ...] = ()
    unverified: tuple[str, ...] = ()
    tuning: Tuning | None = None
    origin: plans.Origin | None = field(default=None, repr=False, compare=False)

    @property
    def changed(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.changed)

    @property
    def unchanged(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if not site.changed)

    @property
    def summary(self) -> str:
        """One line: how many sites, how many changed."""
        if not self.sites:
            return f"{self.model}: no call of an activation in {self.seen}"
        done = "patched" if self.applied else "would be patched"
        return f"{self.model}: {len(self.changed)} of {len(self.sites)} activation sites {done}"

    def lines(self) -> list[str]:
        """The table below the summary, a line a group of like sites, changed ones first."""
        groups = Counter(site.group for site in (*self.changed, *self.unchanged))
        rows = [(f"{count} ×", *group) for group, count in groups.items()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        lines = [
            f"  {row[0]:>{widths[0]}} {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:<{widths[3]}}  {row[4]}"
            for row in rows
        ]
        lines += [f"  config: {line}" for line in self.config] + [f"  verified: {one}" for one in self.drift]
        lines += [f"  not verified: {one}" for one in self.unverified]
        return lines if self.tuning is None else [*lines, f"  tuned: {self.tuning}"]

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
        told = {"model": self.model, "tuning": self.to_dict()["tuning"]}
        plans.write(path, told, self.sites, self.origin)
