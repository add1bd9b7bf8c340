"""Functions that a module carries itself: a method bound on it, a function kept as an attribute."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from hf_gelu_patch.forwards.methods import Method, formula_of, mentions_an_activation
from hf_gelu_patch.others import bound
from hf_gelu_patch.sources import is_empty, is_model_code, stands_for

__all__ = ["bound_on", "bound_otherwise", "carried", "is_bound_otherwise", "reaches"]


def bound_on(owner: nn.Module) -> Iterator[Method]:
    """Functions and methods that a module carries as attributes of its own, and what objects do that it calls."""
    for name, value in vars(owner).items():
        if (called := _called_as(value)) is not None and mentions_an_activation(called):
            yield name, None, called, None
        function = value.__func__ if type(value) is MethodType else value
        if type(function) is not FunctionType or not is_model_code(function.__module__ or ""):
            continue
        if function is value:
            if mentions_an_activation(function) and formula_of(function) is None:
                yield name, None, function, None
            continue
        method, holder = function.__name__, value.__self__  # kept under another name, or that of a module it wraps
        if not isinstance(holder, nn.Module) or not stands_for(function, getattr(type(holder), method, None), method):
            yield name, function, function, "it is bound on this module alone"


def _called_as(value: object) -> FunctionType | None:
    """What runs where an object is called that is neither a module nor a function: diffusers' attention processors."""
    if isinstance(value, (nn.Module, type)):
        return None
    function = inspect.getattr_static(type(value), "__call__", None)
    return function if isinstance(function, FunctionType) and is_model_code(function.__module__ or "") else None


def is_bound_otherwise(owner: nn.Module, method: str) -> bool:
    """Whether a module carries another method of its own under a name. accelerate's hook does not count, which keeps
    the class's below it."""
    bound = carried(owner, method)
    own = isinstance(bound, MethodType) and stands_for(bound.__func__, getattr(type(owner), method, None), method)
    return bound is not None and not own


def bound_otherwise(owner: nn.Module, method: str) -> str:
    """That it does, in words, with whose it is."""
    return f"{bound(method, carried(owner, method))} on this {type(owner).__name__}"


def carried(owner: nn.Module, method: str) -> Any:
    """What a module carries under a method's name, beneath accelerate's hook; None where it has the class's."""
    state = vars(owner)
    return state.get("_old_forward" if method == "forward" and "_hf_hook" in state else method)


def reaches(value: object, function: object) -> bool:
    """Whether a callable holds a function, however deep: as a bound method, wrapped, partially applied, in a closure or
    in an object's attributes."""
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < 1000:
        held = pending.pop()
        if held is function:
            return True
        if id(held) in seen or isinstance(held, (nn.Module, ModuleType, type)):
            continue
        seen.add(id(held))
        if isinstance(held, MethodType):
            pending += [held.__func__, held.__self__]
        elif isinstance(held, functools.partial):
            pending += [held.func, *held.args, *held.keywords.values()]
        elif isinstance(held, FunctionType):
            pending += [cell.cell_contents for cell in held.__closure__ or () if not is_empty(cell)]
        if callable(held):
            pending += getattr(held, "__dict__", {}).values()
    return False
