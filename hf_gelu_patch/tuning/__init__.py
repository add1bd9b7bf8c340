"""What pays at each site of a model, measured on a batch of the user's own.

groups (like sites) → calls (what their methods are called with) → rounds (ways timed against each other) → choosing
(which way is taken). At the end the whole model is timed, tuned against its own ops.
"""

from __future__ import annotations

import operator
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from hf_gelu_patch.applying import apply
from hf_gelu_patch.errors import PatchError, first_line
from hf_gelu_patch.planning import Alternatives, Plan, Wanted, alternatives
from hf_gelu_patch.report import Timed, Tuning
from hf_gelu_patch.tuning.calls import Call, batch_clock, largest_calls, mode
from hf_gelu_patch.tuning.choosing import Choice, choose
from hf_gelu_patch.tuning.groups import Group, grouped
from hf_gelu_patch.tuning.rounds import AGAIN, OWN, Rounds, Samples, fixed
from hf_gelu_patch.tuning.watches import Watch, watch
from hf_gelu_patch.verdicts import judge
from hf_gelu_patch.verification.restoring import as_it_was, own_gradients, seeded
from hf_gelu_patch.verification.runs import compiled

__all__ = ["SECONDS", "SECONDS_IN_ALL", "tuned"]

SECONDS = 3.0
"""For a group of like sites to look for a faster way, about as long to confirm it, and for the whole model at the end.
A few rounds are made in any case, so it takes longer where one call takes long. To tell a gain from much noise, four
times as long."""

SECONDS_IN_ALL = 30.0
"""For the searches of all groups together: where there are many, each gets less."""

_FEWEST, _MOST = 12, 61  # rounds of the whole model


def tuned(model: nn.Module, batch: object, wanted: Wanted, *, gradients: bool) -> tuple[tuple[Plan, ...], Tuning]:
    """Time what may be done at each site on a batch, and plan what is faster beyond the noise.

    The model, the batch and all random states are afterwards what they were before, also where something is raised.

    Args:
        model: unpatched.
        batch: a mapping of keyword arguments, a tuple or list of positional ones, or the one argument.
        wanted: as the user has asked for.
        gradients: time forward and backward together.

    Returns:
        A plan for each site, in the order of ``planning.plan``, and what was measured.

    Raises:
        PatchError: the model is compiled, on the meta device, or cannot run on the batch; or see ``patch``.
    """
    start = time.perf_counter()
    found = alternatives(wanted, model, backward=gradients or model.training)
    _check(model, found, gradients)
    groups = grouped(found)
    devices = {torch.device(one.own.site.device) for one in found}
    with as_it_was(model), seeded(), own_gradients(model), mode(gradients=gradients):
        run = _Run(model, batch, gradients, watch(devices), random.Random(0))
        calls = largest_calls(model, batch, groups)
        most = min(SECONDS, SECONDS_IN_ALL / max(1, len(groups)))
        choices = [run.choose(group, call, most) for group, call in zip(groups, calls, strict=True)]
        whole = run.whole(groups, choices) if any(choice.way for choice in choices) else None
    plans = _plans(found, groups, choices, whole)
    timed = tuple(
        Timed(_named(group), tuple(one.own.site.path for one in group.members), choice.way, choice.seconds)
        for group, choice in zip(groups, choices, strict=True)
    )
    return plans, _tuning(time.perf_counter() - start, gradients, timed, whole)


def _named(group: Group) -> str:
    return group.subjects[0].name


def _check(model: nn.Module, found: Sequence[Alternatives], gradients: bool) -> None:
    """Refuse a model that cannot be tuned."""
    name = type(model).__name__
    for path, module in model.named_modules():
        if compiled(module):
            raise PatchError(
                f"{path or name} is compiled: tune the model before torch.compile, or leave out tune=. Inductor fuses "
                "activations by itself, so a patch gains little there."
            )
    for one in found:
        if one.own.site.device == "meta":
            raise PatchError(
                f"tune= runs the model, and {one.own.site.path} is on the meta device, which computes nothing: load "
                "the model's weights first."
            )
    if gradients and any(weight.is_inference() for weight in model.parameters()):
        raise PatchError(
            f"{name} was made under torch.inference_mode(), so it has no gradients to time: make it outside, or leave "
            "out gradients=True."
        )


@dataclass(frozen=True)
class _Run:
    """What is timed, and how."""

    model: nn.Module
    batch: object
    gradients: bool
    watch: Watch
    generator: random.Random

    def choose(self, group: Group, call: Call | None, seconds: float) -> Choice:
        return choose(group, call, self.watch, gradients=self.gradients, seconds=seconds, generator=self.generator)

    def whole(self, groups: Sequence[Group], choices: Sequence[Choice]) -> Samples | str:
        """The whole model, as it was chosen to be against its own ops; or what it raises so.

        Raises:
            PatchError: it cannot run with its own ops.
        """
        ways = {name: [plan for group in groups for plan in group.plans(None)] for name in (OWN, AGAIN)}
        ways[_TUNED] = [p for group, choice in zip(groups, choices, strict=True) for p in group.plans(choice.way)]
        clock = batch_clock(self.model, self.batch, self.watch, gradients=self.gradients)

        def sample(name: str) -> float:
            return clock(lambda: apply(ways[name], []))

        try:
            sample(OWN)
        except Exception as error:
            does = "run forward and backward" if self.gradients else "run"
            raise PatchError(
                f"{type(self.model).__name__} cannot {does} on the batch given as tune= ({first_line(error)})."
            ) from error
        try:
            sample(_TUNED)
        except Exception as error:
            return first_line(error)
        return fixed(_TUNED, sample, Rounds(_FEWEST, _MOST, SECONDS), self.generator)


_TUNED = "tuned"


def _undone(whole: Samples | str | None) -> str | None:
    """Why what was chosen is undone after all, or None."""
    if isinstance(whole, str):
        return f"the whole model raised {whole} with"
    slower = whole is not None and _verdict(whole) == "slower"
    return "the whole model was slower with" if slower else None


def _verdict(whole: Samples) -> str:
    return judge(whole.ratio(_TUNED), whole.floor)


def _plans(
    found: Sequence[Alternatives], groups: Sequence[Group], choices: Sequence[Choice], whole: Samples | str | None
) -> tuple[Plan, ...]:
    plans = [_left_alone(one) for one in found]
    for group, choice in zip(groups, choices, strict=True):
        way, reason = choice.way, choice.reason
        if way is not None and (why := _undone(whole)) is not None:
            way, reason = None, f"{why} {way}, though by itself: {reason}"
        for number, one in zip(group.numbers, group.members, strict=True):
            plan = one.own if way is None else one.others[group.ways.index(way)]
            plans[number] = replace(plan, site=replace(plan.site, reason=reason))
    return tuple(plans)


def _left_alone(one: Alternatives) -> Plan:
    """The plan of a site at which there is nothing to choose."""
    if one.own.fused is not None or not one.refused:
        return one.own
    return replace(one.own, site=replace(one.own.site, reason="; ".join(one.refused)))


def _tuning(seconds: float, gradients: bool, timed: tuple[Timed, ...], whole: Samples | str | None) -> Tuning:
    if whole is None or isinstance(whole, str):
        return Tuning(seconds, gradients, timed, None, None, None, None, "nothing changed", 0.0)
    before, after = whole.own, whole.seconds[_TUNED]
    return Tuning(
        seconds=seconds,
        gradients=gradients,
        timed=timed,
        before=statistics.median(before),
        after=statistics.median(after),
        ratio=whole.ratio(_TUNED),
        floor=whole.floor,
        verdict=_verdict(whole),
        saved=0.0 if _undone(whole) else statistics.median(map(operator.sub, before, after)),
    )
