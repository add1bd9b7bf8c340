"""A planned patch made as one act, and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from hf_gelu_patch.activations import get_activation, module_of
from hf_gelu_patch.configs import ConfigChange
from hf_gelu_patch.forwards.class_binding import StandIn, bind, is_patched, stand_in, unbind
from hf_gelu_patch.forwards.replacements import OwnMethod, Substitute, WrittenOut, hooked, substitute, written_out
from hf_gelu_patch.forwards.rewriting import Part, rewritten
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.planning import Plan
from hf_gelu_patch.recomputing import put, taken
from hf_gelu_patch.tiling.choosing import Tiling

__all__ = ["apply", "prepare"]


def prepare(plans: Sequence[Plan]) -> None:
    """Have whatever takes an activation's place made ready to run: compiled, where it never was.

    Raises:
        ImplementationUnavailableError: that fails.
    """
    for fused in {id(p.fused): p.fused for p in plans}.values():
        if fused is not None and fused.prepare is not None:
            fused.prepare()


def apply(plans: Sequence[Plan], config: list[ConfigChange], tilings: Sequence[Tiling] = ()) -> ExitStack:
    """Make every change that the plans ask for, or none.

    Args:
        plans: of the sites to change.
        config: the entries to change with them.
        tilings: of the methods to run in tiles.

    Returns:
        What takes all of it back when it is closed, as long as nobody has changed the model meanwhile.

    Raises:
        PatchError: a forward cannot be rewritten, or a class cannot be derived from. The model is as it was.
    """
    with ExitStack() as undo:  # what was done so far, last first, where something fails
        _put_stand_ins(plans, config, undo)
        owners: dict[int, tuple[nn.Module, list[Plan], list[Tiling]]] = {}
        for p in plans:
            if p.use is not None and not p.use.obstacle and (p.site.fused or p.module is None or _stays(p.module)):
                owners.setdefault(id(p.use.owner), (p.use.owner, [], []))[1].append(p)
        for tiling in tilings:
            owners.setdefault(id(tiling.module), (tiling.module, [], []))[2].append(tiling)
        for owner, of_owner, tiled in owners.values():
            rewritings = rewritten([_part(p) for p in of_owner])
            for tiling in tiled:
                rewritings = tiling.around(rewritings)
            own = type(owner)
            undo.callback(unbind, owner, own)
            bind(owner, rewritings, config)
        for p in plans:
            for module in put(p.around):
                undo.callback(taken, module)
        for change in config:
            setattr(change.owner, change.key, change.new)
            undo.callback(setattr, change.owner, change.key, change.old)
        return undo.pop_all()


def _stays(module: nn.Module) -> bool:
    """Whether an activation is where it was: the code that calls it is rewritten."""
    return not is_patched(module)


def _part(p: Plan) -> Part:
    assert p.use is not None
    assert p.fused is not None
    by: Fused | Substitute | OwnMethod | WrittenOut = p.fused
    if p.module is not None:
        by = substitute(p.fused, p.module)
    elif p.use.by_method is not None:
        by = OwnMethod(p.fused, p.use.by_method, p.swaps, () if p.swaps else p.use.state_of_method())
    elif not p.swaps and (state := p.use.state()):
        by = written_out(p.fused, state)
    return Part(p.use, by, p.site.fused, p.swaps and p.module is None)


def _put_stand_ins(plans: Sequence[Plan], config: list[ConfigChange], undo: ExitStack) -> None:
    """A module in the stead of each activation that is swapped, hooked, or called by code that cannot be rewritten."""
    made: dict[tuple[int, Fused], nn.Module] = {}  # what is shared stays shared
    for p in plans:
        original = p.module
        if original is None or is_patched(original):  # by another use of the same attribute
            continue
        if not p.swaps and p.use is not None and not p.use.obstacle and not hooked(original):
            continue
        assert p.edge is not None
        assert p.fused is not None
        if (id(original), p.fused) not in made:
            label = f"{p.site.target}, implementation={p.site.implementation}, was {type(original).__name__}"
            template = module_of(get_activation(p.fused.activation), original) if p.swaps else original
            made[id(original), p.fused] = stand_in(
                original, template, StandIn(p.fused, label, not (p.swaps and p.over)), config
            )
        p.edge.owner._modules[p.edge.key] = made[id(original), p.fused]
        undo.callback(p.edge.owner._modules.__setitem__, p.edge.key, original)
