"""Which functions of a class are read: its methods that mention an activation, and the helpers that they call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.recognition import is_function, resolve_function
from hf_gelu_patch.recognition import names as names_of_activations
from hf_gelu_patch.sources import OUT_OF_REACH, all_names, is_empty, is_model_code, layers, remembered, undecorated

__all__ = [
    "BY_DECORATOR",
    "BY_SUPER",
    "Method",
    "formula_of",
    "functions_of",
    "holds_activation",
    "mentions_an_activation",
    "methods_of",
]

Method = tuple[str, "FunctionType | None", FunctionType, "str | None"]
"""(name, the method as the class has it (None for a helper), the function below its decorators, why it cannot be
rewritten)."""

BY_SUPER = "super() reaches it, past anything that is bound on the module"
"""Why a method that another one overrides and calls cannot be rewritten where it stands."""

BY_DECORATOR = "it stands in a decorator"
"""Why what a method is decorated with cannot be rewritten."""

_FURTHER_NAMES = frozenset({"silu_", "ACT2FN", "ACT2CLS", "get_activation"})
"""Names in a function that may apply an activation, beside torch's names of activations."""


def _names() -> frozenset[str]:
    return names_of_activations() | _FURTHER_NAMES


def formula_of(function: FunctionType) -> Resolved | Unresolved | None:
    """The activation that a helper of the model's code computes, where it is a formula of its one argument."""
    return _formula_in(function, function.__code__)


@remembered
def _formula_in(function: FunctionType, code: CodeType) -> Resolved | Unresolved | None:
    needed = (
        code.co_argcount
        + code.co_kwonlyargcount
        - len(function.__defaults__ or ())
        - len(function.__kwdefaults__ or ())
    )
    if needed != 1 or not is_model_code(function.__module__ or ""):
        return None
    named = [function.__globals__.get(name) for name in all_names(code)]
    names = all_names(code).union(*(all_names(one.__code__) for one in named if isinstance(one, FunctionType)))
    return resolve_function(function) if names & _names() else None


def mentions_an_activation(function: FunctionType, attributes: frozenset[str] = frozenset()) -> bool:
    names = all_names(function.__code__)
    if names & _names() or names & attributes or function is nn.Sequential.forward:
        return True
    cells = [cell.cell_contents for cell in function.__closure__ or () if not is_empty(cell)]
    values = [value for name in names if (value := function.__globals__.get(name)) is not None]
    for value in (*values, *cells):
        if _applies_an_activation(value):
            return True
        if isinstance(value, ModuleType) and is_model_code(value.__name__):
            inside = vars(value)
            if any(name in inside and _applies_an_activation(inside[name]) for name in names):
                return True
    return False


def _applies_an_activation(value: object) -> bool:
    if isinstance(value, FunctionType):
        return is_function(value) or formula_of(value) is not None
    return isinstance(value, nn.Module) or (callable(value) and is_function(value))


def holds_activation(value: object) -> bool:
    """Whether an attribute of a module, none of its children, may be an activation: a function, a hidden module."""
    if value is None or not callable(value):
        return False
    if isinstance(value, functools.partial):
        return is_function(value.func)
    return isinstance(value, nn.Module) or _applies_an_activation(value)


def methods_of(cls: type[nn.Module], attributes: frozenset[str]) -> tuple[Method, ...]:
    """The methods of a class that mention an activation, and such of the helper functions that its methods call.

    Args:
        cls: the class.
        attributes: the names under which modules of the whole model hold activations.

    Returns:
        (name, the method as the class has it (None for a helper), the function below its decorators, why it cannot be
        rewritten) of each.
    """
    key: Any = cls
    return _mentioning(key, attributes, _now(cls))


def functions_of(cls: type[nn.Module]) -> tuple[Method, ...]:
    """The methods of a class and the helper functions that they name, and those that these name, as ``methods_of`` has
    them, whether or not they mention an activation."""
    key: Any = cls
    return _functions_of(key, _now(cls))


def _now(cls: type[nn.Module]) -> tuple[object, ...]:
    """What the methods of a class are at the moment, which a reload replaces."""
    return tuple(
        (value, value.__code__) if isinstance(value, FunctionType) else id(value)
        for base in cls.__mro__
        if is_model_code(base.__module__)
        for value in vars(base).values()
    )


@functools.lru_cache(maxsize=4096)
def _mentioning(cls: Any, attributes: frozenset[str], now: tuple[object, ...]) -> tuple[Method, ...]:
    own = {name for base in cls.__mro__ if is_model_code(base.__module__) for name in vars(base)}
    attributes |= {name for name in own if is_function(getattr(cls, name, None))}
    return tuple(one for one in _functions_of(cls, now) if mentions_an_activation(one[2], attributes))


@functools.lru_cache(maxsize=4096)
def _functions_of(cls: Any, _: tuple[object, ...]) -> tuple[Method, ...]:
    found: dict[FunctionType, Method] = {}
    pending: list[tuple[str, object, FunctionType | None, str | None]] = [*_of_class(cls)]
    while pending:
        name, value, method, obstacle = pending.pop(0)
        if not isinstance(value, FunctionType) or not is_model_code(value.__module__ or ""):
            continue
        if value in found:
            if method is not None and found[value][0] != name:
                found[value] = (*found[value][:3], f"the class has it under two names, {found[value][0]} and {name}")
            continue
        if method is None and formula_of(value) is not None:
            continue  # its call is an expression itself
        found[value] = (name, method, value, obstacle)
        for mentioned, helper in _named_by(value):
            if isinstance(helper, FunctionType):
                pending.append((mentioned, inspect.unwrap(helper), None, None))
            elif isinstance(helper, type) and not issubclass(helper, nn.Module) and is_model_code(helper.__module__):
                pending += [(mentioned, part, None, None) for part in vars(helper).values()]  # of an object it makes
    return tuple(found.values())


def _named_by(function: FunctionType) -> Iterator[tuple[str, object]]:
    """(name, value) of what a function names in its module, and of functions in other modules of the same package."""
    names = all_names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        yield name, value
        if isinstance(value, ModuleType) and _package(value.__name__) == _package(function.__module__ or ""):
            inside = vars(value)
            yield from ((other, inside[other]) for other in names if isinstance(inside.get(other), FunctionType))


def _package(module: str) -> str:
    return module.partition(".")[0]


def _of_class(cls: type[nn.Module]) -> Iterator[tuple[str, object, FunctionType | None, str | None]]:
    """Each function of a class, its bases' included: (name, function, the method to be replaced by a rewritten one or
    None, why that cannot be)."""
    overridden: dict[str, list[FunctionType]] = {}
    below: list[FunctionType] = []  # all that stand in classes before
    for base in cls.__mro__:
        if not is_model_code(base.__module__):
            continue
        here: list[FunctionType] = []
        for name, value in vars(base).items():
            if name in _NOT_FORWARD:
                continue
            above = overridden.setdefault(name, [])
            functions = list(_of_attribute(name, value))
            for function, method, obstacle in functions:
                if not above or base is cls or method is None:
                    yield name, function, method, obstacle
                elif any(_reaches_above(one, base) for one in above) or any(
                    _reaches_above(one, base) and name in all_names(one.__code__) for one in below
                ):
                    yield name, function, method, BY_SUPER
            above.extend(function for function, _, _ in functions)
            here.extend(function for function, _, _ in functions)
        below.extend(here)


def _reaches_above(function: FunctionType, base: type) -> bool:
    """Whether a method names ``super``, or a base by its name."""
    return not {"super", base.__name__}.isdisjoint(all_names(function.__code__))


def _of_attribute(name: str, value: object) -> Iterator[tuple[FunctionType, FunctionType | None, str | None]]:
    if isinstance(value, property):
        value = value.fget
        if isinstance(value, FunctionType):
            yield value, value, "it is a property"
    elif isinstance(value, (staticmethod, classmethod)):
        if isinstance(value.__func__, FunctionType):
            yield value.__func__, None, None
    elif isinstance(value, FunctionType):
        for layer in layers(value, name):
            yield layer, layer, BY_DECORATOR
        inner, obstacle = undecorated(value, name)
        if name.startswith("__") and name.endswith("__"):
            obstacle = "it is looked up on the class, not on the module"
        yield inner, value, obstacle
    elif not isinstance(value, type) and hasattr(value, "__dict__"):  # a decorator that is an object
        for held in (*vars(value).values(), getattr(value, "__wrapped__", None), getattr(value, "func", None)):
            if isinstance(held, FunctionType) and (held.__name__ == name or held.__code__.co_varnames[:1] == ("self",)):
                yield held, held, OUT_OF_REACH


_NOT_FORWARD = {"__init__", "_init_weights", "reset_parameters", "init_weights"}
