"""Which way is taken at like sites: what is faster beyond the noise, twice; else they are left alone."""

from __future__ import annotations

import functools
import math
import random
import statistics
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hf_gelu_patch.applying import apply, prepare
from hf_gelu_patch.errors import first_line
from hf_gelu_patch.tuning.calls import Call, Clock, call_clock
from hf_gelu_patch.tuning.groups import Group
from hf_gelu_patch.tuning.rounds import AGAIN, OWN, Rounds, Samples, fixed, searched
from hf_gelu_patch.tuning.watches import Watch
from hf_gelu_patch.verdicts import Ratio, reach

__all__ = ["Choice", "choose"]

_FEWEST, _MOST = 25, 240  # rounds of a confirmation
_FINER = 3.0  # the gain that was found, by how far the noise may reach when it is confirmed
_LONGER = 4  # times the search's seconds, at most, until it does
_HOPELESS = 5.0  # times as long as the model's own ops: a way that takes so long once is not timed further


@dataclass(frozen=True)
class Choice:
    """What was found for a group.

    Attributes:
        way: the implementation; None: the model's own ops.
        reason: what was measured.
        seconds: of each way, by round, of those the choice goes by.
    """

    way: str | None
    reason: str
    seconds: dict[str, list[float]]


@dataclass(frozen=True)
class _Contest:
    """The ways of one group, at the call that stands for it."""

    group: Group
    call: Call
    clock: Clock

    def entered(self, name: str) -> AbstractContextManager[object]:
        return apply(self.group.plans(None if name in (OWN, AGAIN) else name, self.call.subject), [])

    def sample(self, name: str) -> float:
        return self.clock(functools.partial(self.entered, name))

    def nearest(self, names: list[str]) -> str:
        """The one nearest to the model's own ops."""
        exact = {str(p.site.implementation): p.site.equivalence == "identical" for p in self.group.members[0].others}
        return min(names, key=lambda name: not exact[name])


def choose(
    group: Group,
    call: Call | None,
    watch: Watch,
    *,
    gradients: bool,
    seconds: float,
    generator: random.Random,
) -> Choice:
    """Time the ways of a group, and take one.

    Args:
        group: the sites.
        call: the largest that the batch makes there; None where it makes none.
        watch: takes the time.
        gradients: of forward and backward.
        seconds: for the search, where that is enough. To confirm what is found takes about as long.
        generator: of the orders.
    """
    if call is None:
        return Choice(None, "the batch that it was tuned on does not get there", {})
    own_ops = group.plans(None, call.subject)
    try:
        clock = call_clock(call, watch, lambda: apply(own_ops, []), gradients=gradients)
        return _chosen(_Contest(group, call, clock), seconds, generator)
    except Exception as error:
        return Choice(None, f"it cannot be timed by itself: {first_line(error)}", {})


def _chosen(contest: _Contest, seconds: float, generator: random.Random) -> Choice:
    group, call = contest.group, contest.call
    own = contest.sample(OWN)
    left_out = _tried(contest, own)
    names = [name for name in group.ways if name not in left_out]
    if not names:
        text = f"measured: {call.subject.name} takes {_time(own)}"
        return Choice(None, "; ".join([text, *left_out.values()]), {})
    search = searched(names, contest.sample, seconds, generator)
    rounds = len(search.seconds[OWN])
    faster = [name for name in names if len(search.seconds[name]) == rounds and search.verdict(name) == "faster"]
    if not faster:
        return Choice(None, _left(call, search, names, left_out), search.seconds)
    taken = _taken(contest, search, faster)
    fine = math.log(search.ratio(taken).value) / _FINER
    wanted = Rounds(min(_MOST, max(_FEWEST, 2 * rounds)), _MOST, _LONGER * seconds, fine)
    confirmation = fixed(taken, contest.sample, wanted, generator)
    if confirmation.verdict(taken) != "faster":
        return Choice(None, _left(call, confirmation, [taken], left_out), confirmation.seconds)
    return Choice(taken, _took(call, confirmation, taken, search, left_out), confirmation.seconds)


def _tried(contest: _Contest, own: float) -> dict[str, str]:
    """Ways that raise, or take so long at once that they need no further look, with the reason."""
    left_out = {}
    for name in contest.group.ways:
        try:
            prepare(contest.group.plans(name))
            contest.sample(name)
            taken = contest.sample(name)
        except Exception as error:
            left_out[name] = f"{name} raised {first_line(error)}"
            continue
        if taken > _HOPELESS * own:
            left_out[name] = f"{name} took {_time(taken)}"
    return left_out


def _taken(contest: _Contest, search: Samples, faster: list[str]) -> str:
    """The fastest; of those that are as fast within the noise, the one nearest to the model's own ops."""
    best = max(faster, key=lambda name: search.ratio(name).value)
    noise = reach(search.floor)
    tied = [name for name in faster if name == best or math.log(max(search.ratio(best, name).low, 1e-9)) <= noise]
    return contest.nearest([best, *(name for name in tied if name != best)])


# ---------------------------------------------------------------------------------------------------------------- words


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def _median(samples: Samples, name: str) -> str:
    return _time(statistics.median(samples.own if name == OWN else samples.seconds[name]))


def _noise(samples: Samples) -> str:
    return f"noise ±{100 * math.expm1(reach(samples.floor)):.1f} %"


def _times(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def _took(call: Call, found: Samples, taken: str, search: Samples, left_out: dict[str, str]) -> str:
    text = (
        f"measured: {call.subject.name} takes {_median(found, taken)} instead of {_median(found, OWN)}, "
        f"{_times(found.ratio(taken))}, {_noise(found)}"
    )
    others = [f"{name} {_brief(search, name)}" for name in search.seconds if name not in (OWN, AGAIN, taken)]
    return "; ".join([text, *others, *left_out.values()])


def _left(call: Call, found: Samples, names: list[str], left_out: dict[str, str]) -> str:
    seen = [f"{name} {_brief(found, name)}" for name in names]
    if seen and math.isfinite(reach(found.floor)):  # else all of them lost at once
        seen[-1] += f", {_noise(found)}"
    text = f"measured: nothing is faster beyond the noise; {call.subject.name} takes {_median(found, OWN)}"
    return "; ".join([text, *seen, *left_out.values()])


def _brief(found: Samples, name: str) -> str:
    if len(found.seconds[name]) < len(found.seconds[OWN]):  # it lost the first rounds
        return f"{found.ratio(name).value:.2f}×"
    return _times(found.ratio(name))
