"""What a patch would do at each site, and every reason to leave one alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import Activation, Resolved, Unresolved, get_activation, max_difference
from hf_gelu_patch.beside import check_tools, scan
from hf_gelu_patch.errors import ImplementationUnavailableError, PatchError
from hf_gelu_patch.forwards.carried import bound_otherwise
from hf_gelu_patch.forwards.replacements import hooked, plain
from hf_gelu_patch.forwards.uses import Use
from hf_gelu_patch.implementations.choice import choose
from hf_gelu_patch.implementations.measured import measured_on
from hf_gelu_patch.implementations.registry import (
    ALWAYS,
    IMPLEMENTATIONS,
    Fused,
    Implementation,
    Least,
    get_implementation,
    writing_over,
)
from hf_gelu_patch.others import found_in
from hf_gelu_patch.plans import Decision, Origin, Saved
from hf_gelu_patch.recomputing import kept
from hf_gelu_patch.report import Report
from hf_gelu_patch.selection import Selection, Selector
from hf_gelu_patch.sites import Edge, Place, Site, check_module, describe_modules, device_and_dtype, places
from hf_gelu_patch.tiling.choosing import Tiling, tilings
from hf_gelu_patch.tiling.running import Amount

__all__ = [
    "UNREACHED",
    "Alternatives",
    "Plan",
    "Wanted",
    "alternatives",
    "find_sites",
    "plan",
    "plan_tiles",
    "planned_again",
    "recomputed",
]


UNREACHED = "nothing can take its place: "
"""How the reason begins at a site whose code cannot be rewritten."""


@dataclass(frozen=True)
class Plan:
    """A site with the live objects a patch needs.

    Attributes:
        site: the report's entry.
        edge: the attribute that holds the activation module; None for a call.
        use: where the owner's source applies it; None where it does not say.
        fused: what takes its place; None where it is left alone.
        own: the plan by the site's own ops, of a site that is left alone because nothing else gains anything there.
        around: the modules to see to after each forward, from the model to the site's owner; () where there is no need.
        spared: why the user wants it left alone; None where that is not so.
        over: whether its result is written over its input, as the model's own does.
    """

    site: Site
    edge: Edge | None
    use: Use | None
    fused: Fused | None
    own: Plan | None = None
    around: tuple[nn.Module, ...] = ()
    spared: str | None = None
    over: bool = False

    @property
    def swaps(self) -> bool:
        """Whether another function takes the place of the site's own."""
        return self.site.equivalence in ("approximate", "different")

    @property
    def module(self) -> nn.Module | None:
        """The activation module; None for a call."""
        return None if self.edge is None else self.edge.owner._modules[self.edge.key]


@dataclass(frozen=True)
class Wanted:
    """What a user asks for.

    Attributes:
        implementation: the one to take; None: to be chosen.
        target: the function to compute; None: what each site computes.
        selection: of the sites.
    """

    implementation: Implementation | None
    target: Activation | None
    selection: Selection

    @classmethod
    def of(
        cls, implementation: str | Implementation, activation: str | None, include: Selector, exclude: Selector
    ) -> Wanted:
        """The arguments of ``patch``, which raises what this raises."""
        asked = None if implementation == "auto" else get_implementation(implementation)
        target = None if activation is None else get_activation(activation)
        if target is not None and target.learned:
            raise PatchError(
                f"{activation} has learned parameters, which a swap cannot invent: choose another activation."
            )
        return cls(asked, target, Selection(include, exclude))


def find_sites(
    model: nn.Module,
    *,
    implementation: str | Implementation = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    recompute: bool = False,
    tiles: int | str | bool | None = None,
    beside: str | Iterable[str] = (),
) -> Report:
    """What ``patch`` with the same arguments would do, without doing it: every site, and every reason to leave one
    alone. An empty report says what the model is made of instead.

    Args:
        beside: ``"liger"``, ``"kernels"`` or both: what Liger-Kernel and transformers' ``use_kernels=True``
            would change in this model, beside what a patch would. The packages that are installed are asked, and
            nothing of it is done, neither to the model nor to this process: Liger-Kernel is asked in another one,
            which takes some seconds.

    Raises:
        As ``patch`` does, but for a model without sites; UnknownNameError also: there is no tool of a name.
    """
    check_tools(beside := (beside,) if isinstance(beside, str) else tuple(beside))
    plans = plan(model, implementation, activation, include, exclude)
    if recompute:
        plans = tuple(recomputed(model, one) for one in plans)
    sites = tuple(p.site for p in plans)
    origin = Origin.of(model, sites, activation)
    told = tuple(one.told for one in plan_tiles(model, plans, tiles))
    return Report(
        type(model).__name__,
        sites,
        applied=False,
        seen=describe_modules(model),
        tiled=told,
        origin=origin,
        recompute=recompute,
        others=found_in(model),
        beside=scan(model, beside),
    )


def plan_tiles(model: nn.Module, plans: Sequence[Plan], tiles: int | str | bool | None) -> tuple[Tiling, ...]:
    """What runs in tiles, and why the modules around the other activations do not; nothing where ``tiles`` is None.

    Raises:
        PatchError: ``tiles`` is no amount, or too small a one.
    """
    if tiles is None:
        return ()
    amount = Amount.of(tiles)
    owners: dict[str, str | None] = {}
    for p in plans:
        owners[p.site.owner_path] = owners.get(p.site.owner_path) or p.spared
    return tilings(model, owners, amount)


def plan(
    model: nn.Module, implementation: str | Implementation, activation: str | None, include: Selector, exclude: Selector
) -> tuple[Plan, ...]:
    """One ``Plan`` for each place below ``model`` that applies an activation, in the order of its modules.

    Raises:
        PatchError: see ``patch``.
    """
    wanted = Wanted.of(implementation, activation, include, exclude)
    plans = tuple(_plan_place(place, wanted, where) for place, where in _places(model))
    wanted.selection.check_used(p.site.path for p in plans)
    return plans


@dataclass(frozen=True)
class Alternatives:
    """What may be done at a site.

    Attributes:
        own: it is left alone; of a swap, the other function by the model's own kind of ops.
        others: each other way to compute the same.
        refused: why further implementations that compute the function cannot take its place there.
    """

    own: Plan
    others: tuple[Plan, ...] = ()
    refused: tuple[str, ...] = ()


def alternatives(wanted: Wanted, model: nn.Module, *, backward: bool) -> tuple[Alternatives, ...]:
    """All that may be done at each site, in the order of ``plan``.

    Args:
        wanted: as the user has asked for. Without a name, every implementation that is registered and runs there.
        model: the model.
        backward: leave out what has no backward.

    Raises:
        PatchError: see ``patch``.
    """
    found = tuple(_alternatives_at(place, wanted, where, backward) for place, where in _places(model))
    wanted.selection.check_used(one.own.site.path for one in found)
    return found


def _alternatives_at(
    place: Place, wanted: Wanted, where: tuple[torch.device, torch.dtype], backward: bool
) -> Alternatives:
    found = _may_change(place, wanted, where)
    if isinstance(found, Plan):
        return Alternatives(found)
    named, target, eager = wanted.implementation, found[2], IMPLEMENTATIONS["eager"]
    others: list[Plan] = []
    refused: list[str] = []
    for one in IMPLEMENTATIONS.values() if named is None else (named,):
        if one is eager or not one.computes(target.name, where[0]) or (named is None and one.obstacle(*where)):
            continue
        made = _plan_by(one, *found)
        if backward and not one.backward:
            refused.append(f"{one.name} has no backward")
        elif made.fused is None:
            refused.append(made.site.reason)
        else:
            others.append(made)
    return Alternatives(_plan_by(eager, *found), tuple(others), tuple(dict.fromkeys(refused)))


def planned_again(saved: Saved, model: nn.Module) -> tuple[Plan, ...]:
    """The plans of a decision that was saved.

    Raises:
        PatchError: it holds for another model, other versions or another machine; or what it says cannot be done.
    """
    found = list(_places(model))
    saved.check(model, [_as_found(place, _module(place), *where) for place, where in found])
    wanted = Wanted.of("auto", saved.origin.activation, "*", None)
    decided = zip(found, saved.decisions, strict=True)
    return tuple(_plan_again(model, place, where, decision, wanted, saved) for (place, where), decision in decided)


def _plan_again(
    model: nn.Module,
    place: Place,
    where: tuple[torch.device, torch.dtype],
    decision: Decision,
    wanted: Wanted,
    saved: Saved,
) -> Plan:
    if decision.implementation is None:
        site = _as_found(place, _module(place), *where)
        return Plan(replace(site, reason=decision.reason), place.edge, place.use, None)
    found = _may_change(place, wanted, where)
    if isinstance(found, Plan):
        made = found
    else:
        made = _plan_by(get_implementation(decision.implementation), *found, decision.least)
    if saved.recompute:
        made = recomputed(model, made)
    now = made.site
    if made.fused is None:
        raise PatchError(
            f"the plan in {saved.path} has {decision.implementation} at {now.path}, which cannot be: {now.reason}. "
            "Tune again with patch(model, tune=batch), and save that report."
        )
    for name, before, after in (
        ("target", decision.target, now.target),
        ("fused", decision.fused, now.fused),
        ("equivalence", decision.equivalence, now.equivalence),
    ):
        if before != after:
            raise PatchError(
                f"the plan in {saved.path} says {name}: {before} at {now.path}, and {decision.implementation} gives "
                f"{after} there now ({now.reason}). Tune again with patch(model, tune=batch), and save that report."
            )
    return replace(made, site=replace(now, reason=decision.reason))


def _places(model: nn.Module) -> Iterator[tuple[Place, tuple[torch.device, torch.dtype]]]:
    """Every place, with the device and dtype it runs in."""
    check_module(model)
    return ((place, device_and_dtype(model, place.path)) for place in places(model))


def _plan_place(place: Place, wanted: Wanted, where: tuple[torch.device, torch.dtype]) -> Plan:
    found = _may_change(place, wanted, where)
    return found if isinstance(found, Plan) else _plan_by(wanted.implementation, *found)


_Changeable = tuple[Place, Resolved, Activation, Site]  # with what it computes now, what it shall, and as it is now


def _may_change(place: Place, wanted: Wanted, where: tuple[torch.device, torch.dtype]) -> Plan | _Changeable:
    """The plan of a place that is left alone whatever computes it; else what planning it takes."""
    module = _module(place)
    site = _as_found(place, module, *where)
    current = place.current
    unselected = wanted.selection.why_not(site, module, place.owner, current)
    if isinstance(current, Unresolved):
        return Plan(replace(site, reason=current.reason), place.edge, place.use, None, spared=unselected)
    if left := unselected or _why_left(place, current, wanted):
        return Plan(replace(site, reason=left), place.edge, place.use, None, spared=unselected)
    return place, current, wanted.target or current.activation, site


def _module(place: Place) -> nn.Module | None:
    return None if place.edge is None else place.edge.owner._modules[place.edge.key]


def _plan_by(
    asked: Implementation | None,
    place: Place,
    current: Resolved,
    target: Activation,
    site: Site,
    decided: Least = ALWAYS,
) -> Plan:
    """The plan of a place that may be patched: by the implementation asked for, from as many numbers on as was decided;
    or by the one that ``auto`` takes."""
    edge, use, module = place.edge, place.use, _module(place)
    device, dtype = torch.device(site.device), getattr(torch, site.dtype)
    if asked is not None:
        _check_runs(asked, site, device, dtype)
    unfused = "it works in place" if current.in_place else _why_not_fused(site.kind, module, use)
    kind = "pointwise" if unfused else site.kind
    table = measured_on(device) if asked is None else None
    layer = use.linear if use is not None and kind == "linear" else None
    taken, reason, least = choose(asked or "auto", kind, current, target, (device, dtype), table, layer)
    least = decided if asked is not None else least
    if unfused:
        reason += f"; not fused: {unfused}" if taken is not None else f", and cannot be fused: {unfused}"
    elif taken is not None and layer is not None and (why := taken.declines(layer, device)):
        reason += f"; {why}"
    if edge is None and use is not None and use.obstacle:
        return Plan(replace(site, reason=f"{UNREACHED}{use.obstacle}"), edge, use, None)
    if taken is None:
        own = _by_own_ops(replace(site, reason=reason), current, edge, use) if target == current.activation else None
        return Plan(replace(site, reason=reason), edge, use, None, own)
    identical = target.name in taken.identical and current.as_eager
    equivalence, bound = _equivalence(current.activation, target, identical=identical)
    site = replace(
        site,
        target=target.label,
        implementation=taken.name,
        fused=not unfused and taken.fuses(site.kind, target),
        equivalence=equivalence,
        bound=bound,
        reason=reason,
        least=least,
    )
    eager = current.formula if target == current.activation else None
    fused = taken.build(target, eager, least)
    if current.in_place and fused is not None:
        return Plan(site, edge, use, writing_over(fused), over=True)
    return Plan(site, edge, use, fused)


def _by_own_ops(site: Site, current: Resolved, edge: Edge | None, use: Use | None) -> Plan:
    """The plan of a site that its own ops compute."""
    equivalence = "identical" if current.as_eager or current.formula is not None else "rounding"
    site = replace(site, target=current.activation.label, implementation="eager", equivalence=equivalence, bound=0.0)
    return Plan(site, edge, use, _own_ops(current.activation, current.formula))


@functools.lru_cache(maxsize=1024)
def _own_ops(activation: Activation, formula: Callable[[Tensor], Tensor] | None) -> Fused:
    fused = IMPLEMENTATIONS["eager"].build(activation, formula)
    assert fused is not None
    return fused if formula is None else replace(fused, pointwise=formula)


def recomputed(model: nn.Module, plan: Plan) -> Plan:
    """A plan under which backward keeps no more at the site than it has to, where that gains anything. Also of a site
    that would be left alone because nothing is faster there."""
    base = plan if plan.fused is not None else plan.own
    if base is None or base.fused is None or base.over:
        return plan
    fused, site = kept(base.fused), base.site
    product = site.kind == "gated" and not _why_not_fused(site.kind, base.module, base.use)
    if not product:
        if fused.of_activation == "result":
            told = "gains nothing, backward takes the result itself, which the next layer keeps anyhow"
            return replace(plan, site=replace(plan.site, recompute=told))
        if plan.fused is None and not get_activation(fused.fused.activation).hidden:
            return replace(plan, site=replace(plan.site, recompute="it is usually no hidden-layer activation"))
    told = "gate and up are kept, the product is computed again" if product else "the input is kept, not the result"
    return replace(
        base,
        site=replace(site, fused=site.fused or product, recompute=told),
        fused=fused.fused,
        around=tuple(_down_to(model, site.owner_path)),
    )


def _down_to(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules on the way from a model to one below it."""
    yield model
    names = path.split(".") if path else []
    for depth in range(len(names)):
        yield model.get_submodule(".".join(names[: depth + 1]))


def _as_found(place: Place, module: nn.Module | None, device: torch.device, dtype: torch.dtype) -> Site:
    """The report's entry for a place that nothing is done at."""
    use = place.use
    return Site(
        path=place.name,
        owner_path=place.path,
        owner=type(place.owner).__name__,
        module=use.text if module is None and use is not None else type(module).__name__,
        written=module is None,
        file="" if use is None else use.file,
        line=0 if use is None else use.expression.line,
        end_line=0 if use is None else use.expression.end_line,
        kind="pointwise" if use is None else use.kind,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        activation=place.current.spelling,
        target=None,
        implementation=None,
        fused=False,
        equivalence=None,
        bound=None,
        reason="",
    )


def _why_left(place: Place, current: Resolved, wanted: Wanted) -> str | None:
    """Why nothing may take an activation's place there, whatever computes it, or None."""
    source = current.activation
    if source.learned:
        return f"{source.name} has learned parameters"
    if isinstance(place.owner, nn.TransformerEncoderLayer):
        return "torch's TransformerEncoderLayer goes around its activation module in inference"
    swapped = wanted.target is not None and wanted.target != source
    if swapped and not source.hidden and wanted.selection.include is None:
        return f"{source.name} is usually no hidden-layer activation: it is swapped only where include= names it"
    if current.in_place and not swapped:
        return "it works in place, and what stands behind it may count on that"
    if place.use is not None and (unmet := place.use.never) is not None:
        return f"it does not run here, where {unmet}"
    if place.use is not None and place.use.overruled:
        return bound_otherwise(place.owner, place.use.method)
    module = None if place.edge is None else place.edge.owner._modules[place.edge.key]
    if module is not None and "ds_id" in vars(module) and hooked(module):
        return "DeepSpeed's ZeRO-3 keeps count on it: patch before deepspeed.initialize, or accelerate's prepare"
    return None


def _check_runs(asked: Implementation, site: Site, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ImplementationUnavailableError where the implementation asked for cannot run at a site."""
    if obstacle := asked.obstacle(device, dtype):
        able = [name for name, other in IMPLEMENTATIONS.items() if other.obstacle(device, dtype) is None]
        raise ImplementationUnavailableError(
            f"implementation {asked.name!r} cannot run at {site.path}: {obstacle}. "
            f"What can, on {device.type} in {site.dtype}: {', '.join(able)}."
        )


def _why_not_fused(kind: str, module: nn.Module | None, use: Use | None) -> str | None:
    """Why what surrounds an activation stays apart from it, or None where it can be fused."""
    if use is None or (kind == "pointwise" and use.edge is not None):
        return None
    if use.obstacle:
        return use.obstacle
    if kind == "gated" and use.exposed:
        return "what stands between it and its product may write over its input"
    if module is not None and hooked(module):
        return "its hooks must run"
    if kind == "linear" and (linear := use.linear) is not None and not plain(linear):
        return "its linear layer is hooked, wrapped or holds no plain weights"
    return None


def _equivalence(source: Activation, target: Activation, *, identical: bool) -> tuple[str, float]:
    if source == target:
        return ("identical" if identical else "rounding"), 0.0
    kin = {source.name, source.approximates} & {target.name, target.approximates} - {None}
    return ("approximate" if kin else "different"), max_difference(source, target)
