"""What is known of how a method treats tokens, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.forwards.names import MISSING
from hf_gelu_patch.forwards.replacements import hooked

__all__ = ["FUNCTIONS", "PLAIN", "Fact", "Verdict", "registers", "snapshot", "state_of"]

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
FUNCTIONS = (FunctionType, BuiltinFunctionType)


@dataclass(frozen=True)
class Fact:
    """Something that was looked at: the attribute of a module below the judged one, or that module itself.

    Attributes:
        path: from the judged module to the one that was looked at.
        name: of the attribute, dotted where it is one of an object that the module holds; "" for the module itself.
        value: what was there, as ``snapshot`` or ``state_of`` gives it.
    """

    path: tuple[str, ...]
    name: str
    value: object


@dataclass(frozen=True)
class Verdict:
    """What the source of a method says, on one module.

    Attributes:
        reason: why it is not known to treat each token by itself; None where it does.
        facts: what that rests on.
        tensors: how many tensors it takes, each of shape (…, length, width), before the arguments that have a default.
        defaults: of the further positional arguments; ``named``: of those that are given by name alone.
        numbers: of a token's, how many it makes on the way, its result among them.
        widest: the most that one tensor on the way holds of a token; ``ends``: its input or result, the wider one.
        draws: whether it may draw random numbers (dropout).
    """

    reason: str | None
    facts: tuple[Fact, ...]
    tensors: int = 1
    defaults: tuple[object, ...] = ()
    named: tuple[tuple[str, object], ...] = ()
    numbers: int = 0
    widest: int = 0
    ends: int = 0
    draws: bool = False

    @property
    def paths(self) -> frozenset[str]:
        """The modules that it runs, by their names below the judged one; "" for that itself."""
        return frozenset(".".join(fact.path) for fact in self.facts)

    def modules(self, module: nn.Module) -> list[nn.Module]:
        """The modules that it runs, below one on which it holds, and that itself."""
        found: dict[tuple[str, ...], nn.Module] = {(): module}
        for fact in self.facts:
            if fact.path not in found and (child := found[fact.path[:-1]]._modules[fact.path[-1]]) is not None:
                found[fact.path] = child
        return list(found.values())

    def holds(self, module: nn.Module) -> bool:
        """Whether a module is still what the verdict was made of."""
        modules: dict[tuple[str, ...], nn.Module] = {(): module}
        for fact in self.facts:
            found = modules.get(fact.path)
            if found is None:
                child = modules[fact.path[:-1]]._modules.get(fact.path[-1]) if fact.path[:-1] in modules else None
                if child is None:
                    return False
                modules[fact.path] = found = child
            now = attribute_now(found, fact.name) if fact.name else state_of(found, inner=bool(fact.path))
            if now is not fact.value and not (type(now) is type(fact.value) and now == fact.value):
                return False
        return True


def state_of(module: nn.Module, *, inner: bool) -> object:
    """What a verdict takes for granted of a module that it goes through; of the judged one itself its hooks do not
    matter, which run around it."""
    weights = tuple([(type(weight), weight.dim()) for weight in module._parameters.values() if weight is not None])
    around = inner and (hooked(module) or module._compiled_call_impl is not None)
    return type(module), around, weights, tuple(module._modules)


def attribute_now(module: nn.Module, name: str) -> object:
    first, *rest = name.split(".")
    value = vars(module).get(first, MISSING)
    if value is MISSING:
        value = next((held[first] for held in registers(module) if first in held), MISSING)
    for part in rest:
        value = getattr(value, "__dict__", {}).get(part, MISSING)
    return snapshot(value)


def registers(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module._modules


def snapshot(value: object) -> object:
    """What can be compared later: plain values and functions as they are, of containers what is plain in them."""
    if isinstance(value, (*PLAIN, *FUNCTIONS)) or value is MISSING:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(snapshot, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(snapshot, value))
    if isinstance(value, dict):
        return tuple((key, snapshot(held)) for key, held in value.items())
    return (type(value), value.dim()) if isinstance(value, Tensor) else type(value)
