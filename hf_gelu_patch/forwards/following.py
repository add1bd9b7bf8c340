"""Calls that a patch follows into the function that they call: a plain one, a static method, a method above by super().

What is called there is exchanged where it is called, for a rewritten copy: the function itself is left as it is for
whoever else calls it.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from hf_gelu_patch.forwards.expressions import Reading, read
from hf_gelu_patch.forwards.methods import BY_DECORATOR, BY_SUPER, Method, functions_of
from hf_gelu_patch.forwards.names import Names
from hf_gelu_patch.sources import all_names, is_empty, is_model_code, undecorated

__all__ = ["Call", "calls_of"]

_DEPTH = 3
"""How many calls are followed, one inside another."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a function that is followed.

    Attributes:
        method: the name of the method that makes it; None where another function that is followed does.
        reading: of what makes it.
        node: what is called, as it is written there.
        whole: the function that this is, its decorators included.
        function: the function below them.
    """

    method: str | None
    reading: Reading
    node: ast.expr
    whole: FunctionType
    function: FunctionType


@dataclass(eq=False)
class _Mentions:
    """Where the functions of a class mention one.

    Attributes:
        calls: where it is called, and what calls it there.
        otherwise: whether anything else is done with it, or may be.
    """

    calls: list[tuple[Method, Call]] = field(default_factory=list)
    otherwise: bool = False


def calls_of(cls: Any, function: FunctionType) -> tuple[Call, ...]:
    """The calls by which the methods of a class come to run a function that is none of them, those on the way among
    them; none where it may be reached in any other way, or is too deep.

    Args:
        cls: the class.
        function: one of ``functions_of`` it.
    """
    return tuple(dict.fromkeys(_calls(cls, functions_of(cls), function, _DEPTH) or ()))


def _calls(cls: Any, functions: tuple[Method, ...], function: FunctionType, depth: int) -> list[Call] | None:
    found = _mentions(cls, functions, function) if depth else None
    if found is None or found.otherwise or not found.calls:
        return None
    calls: list[Call] = []
    for (_, method, inner, obstacle), call in found.calls:
        calls.append(call)
        if call.method is not None:
            continue
        helper_or_above = obstacle == (None if method is None else BY_SUPER)
        above = _calls(cls, functions, inner, depth - 1) if helper_or_above else None
        if above is None:
            return None
        calls += above
    return calls


@functools.lru_cache(maxsize=1024)
def _mentions(cls: Any, functions: tuple[Method, ...], function: FunctionType) -> _Mentions:
    found = _Mentions()
    for one in functions:
        name, method, inner, obstacle = one
        if not _may_mention(inner, function):
            continue
        if obstacle is BY_DECORATOR and function is undecorated(inner, name)[0]:
            continue  # what it decorates, which keeps it
        reading = read(inner, is_method=method is not None)
        if reading.source is None or reading.unfaithful:
            found.otherwise = True
            continue
        root = name if method is not None and obstacle is None else None
        for whole, node in _Mentioned(cls, inner, reading):
            if inspect.unwrap(whole) is not function:
                continue
            if node is None or undecorated(whole, whole.__name__) != (function, None):
                found.otherwise = True
            else:
                found.calls.append((one, Call(root, reading, node, whole, function)))
    return found


def _may_mention(one: FunctionType, other: FunctionType) -> bool:
    """Whether a function names another, as an attribute or in its module, perhaps under another name; its source is
    read only then."""
    names = all_names(one.__code__)
    if other.__name__ in names:
        return True
    values = (one.__globals__.get(name) for name in names)
    cells = (cell.cell_contents for cell in one.__closure__ or () if not is_empty(cell))
    return any(isinstance(value, FunctionType) and inspect.unwrap(value) is other for value in (*values, *cells))


class _Mentioned:
    """Each mention of a function in another one's source: (it, what is called; None where it is not called)."""

    def __init__(self, cls: type[nn.Module], function: FunctionType, reading: Reading) -> None:
        assert reading.source is not None
        self.cls = cls
        self.owner_name = reading.owner_name
        self.tree = reading.source.tree
        self.names = Names(function, reading.source, reading.owner_name)

    def __iter__(self) -> Iterator[tuple[FunctionType, ast.expr | None]]:
        nodes = [node for part in (self.tree.args, *self.tree.body) for node in ast.walk(part)]
        called = {node.func: node for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, (ast.Name, ast.Attribute)) and (value := self._meant(node)) is not None:
                yield value, node if node in called and self._gives_itself(called[node], value) else None

    def _meant(self, node: ast.Name | ast.Attribute) -> FunctionType | None:
        """The function that a name stands for."""
        value: object = None
        if isinstance(node, ast.Attribute):
            bases = self._looked_through(node.value)
            value = next((vars(base)[node.attr] for base in bases if node.attr in vars(base)), None)
            value = value.__func__ if isinstance(value, staticmethod) else value
        value = self.names.static(node) if value is None else value
        return value if isinstance(value, FunctionType) and is_model_code(value.__module__ or "") else None

    def _looked_through(self, node: ast.expr) -> tuple[type, ...]:
        """The classes in which an attribute of ``self``, of a class, or of ``super()`` is looked up."""
        if isinstance(node, ast.Name) and node.id == self.owner_name is not None:
            return self.cls.__mro__
        if not isinstance(node, ast.Call):
            value = self.names.static(node)
            return value.__mro__ if isinstance(value, type) else ()
        if not (isinstance(node.func, ast.Name) and self.names.static(node.func) is super):
            return ()
        below = self.names.static(node.args[0] if node.args else ast.Name("__class__", ast.Load()))
        return self.cls.__mro__[self.cls.__mro__.index(below) + 1 :] if below in self.cls.__mro__ else ()

    def _gives_itself(self, call: ast.Call, function: FunctionType) -> bool:
        """Whether a function that takes a module as ``self`` is given the one that calls it."""
        parameters = inspect.unwrap(function).__code__.co_varnames
        if parameters[:1] != ("self",):
            return True
        by_super = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call)
        first = call.args[0] if call.args else None
        return by_super or (isinstance(first, ast.Name) and first.id == self.owner_name)
