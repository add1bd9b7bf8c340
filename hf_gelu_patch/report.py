"""What a patch did, or would do, at each site, and how that is shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from hf_gelu_patch.sites import Site
from hf_gelu_patch.verification import Drift

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What a patch did, or would do. ``print`` it for a table; ``sites``, ``changed`` and ``to_dict`` are the data."""

    model: str
    sites: tuple[Site, ...]
    applied: bool
    config: tuple[str, ...] = ()
    seen: str = ""
    drift: tuple[Drift, ...] = ()
    unverified: tuple[str, ...] = ()

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
        return lines + [f"  not verified: {one}" for one in self.unverified]

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.lines()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; an infinite bound becomes None beside ``equivalence``, so that it is valid JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for part in (*data["sites"], *data["drift"]):
            part.update((key, None) for key, value in part.items() if value == float("inf"))
        return data
