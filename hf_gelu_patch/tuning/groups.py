"""Sites that are alike: the same place in the source, in modules of the same class with weights of the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_gelu_patch.planning import Alternatives, Plan
from hf_gelu_patch.plans import shapes
from hf_gelu_patch.sites import Edge

__all__ = ["Group", "Subject", "grouped", "subject_of"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is timed by itself: the method that applies an activation, or the activation module where that is all that
    a patch replaces.

    Attributes:
        owner: the module, unpatched.
        method: its name.
        edge: where the module stands, or what takes its place; None where it stays.
    """

    owner: nn.Module
    method: str
    edge: Edge | None

    @property
    def key(self) -> tuple[int, str]:
        return id(self.owner), self.method

    @property
    def name(self) -> str:
        return f"{type(self.owner).__name__}.{self.method}"

    @property
    def now(self) -> Callable[..., Any]:
        """The method as it is at the moment, patched or not."""
        module = self.owner if self.edge is None else self.edge.owner._modules[self.edge.key]
        method: Callable[..., Any] = getattr(module, self.method)
        return method


@dataclass(frozen=True)
class Group:
    """Like sites.

    Attributes:
        numbers: of the sites, in the model's order.
        members: what may be done at each.
        subjects: what is timed of each.
    """

    numbers: tuple[int, ...]
    members: tuple[Alternatives, ...]
    subjects: tuple[Subject, ...]

    @property
    def ways(self) -> tuple[str, ...]:
        """The implementations there are to choose from, by name."""
        return tuple(str(plan.site.implementation) for plan in self.members[0].others)

    def plans(self, way: str | None, subject: Subject | None = None) -> list[Plan]:
        """What one way does at the sites: those of one subject, or all; None: the model's own ops, of a swap too."""
        chosen = [
            one.own if way is None else one.others[self.ways.index(way)]
            for one, own in zip(self.members, self.subjects, strict=True)
            if subject is None or own.key == subject.key
        ]
        return [plan for plan in chosen if plan.fused is not None]


def subject_of(plan: Plan) -> Subject:
    """What is timed of a site."""
    if plan.use is not None and not plan.use.obstacle:
        return Subject(plan.use.owner, plan.use.methods[0], None)
    assert plan.edge is not None
    assert plan.module is not None
    return Subject(plan.module, "forward", plan.edge)


def grouped(found: Sequence[Alternatives]) -> list[Group]:
    """The sites at which there is a choice, like ones together."""
    groups: dict[Hashable, list[int]] = {}
    for number, one in enumerate(found):
        if one.others:
            groups.setdefault(_alike(one), []).append(number)
    return [
        Group(tuple(numbers), tuple(found[n] for n in numbers), tuple(subject_of(found[n].others[0]) for n in numbers))
        for numbers in groups.values()
    ]


def _alike(one: Alternatives) -> Hashable:
    plan, site = one.own, one.own.site
    subject = subject_of(one.others[0])
    use = plan.use
    place = (None if use is None else use.expression.line, site.path.rpartition(".")[2])
    what = (site.kind, site.activation, site.device, site.dtype)
    ways = tuple((p.site.implementation, p.site.fused, p.site.equivalence) for p in one.others)
    around = subject.owner if subject.edge is None else subject.edge.owner
    return type(around), type(subject.owner), subject.method, place, what, ways, shapes(around)
