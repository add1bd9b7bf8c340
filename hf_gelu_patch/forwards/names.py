"""What a dotted name in a method leads to: by its source alone, and on a live module."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from hf_gelu_patch.sources import Outer, Source, is_empty, local_names

__all__ = ["MISSING", "Names", "attribute", "dotted", "outer_name", "reach"]

MISSING = object()
"""What stands for a value that is not known before the call, or is not there."""


def dotted(node: ast.AST) -> tuple[str | None, list[str]]:
    """The first name of ``a.b.c``, None if it starts with no name, and the attributes behind it."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else None), names


class Names:
    """The names of one function.

    Attributes:
        owner: the parameter that is the module, ``self`` mostly; None where there is none.
        locals: every name that the function itself gives a value.
        shared: those declared ``global`` or ``nonlocal``, which others may assign.
        many: those that something beside an assignment gives a value: parameters, imports, definitions.
        of_loops: those that a ``for`` statement assigns.
    """

    def __init__(self, function: FunctionType, source: Source, owner: str | None) -> None:
        nodes = [node for statement in source.tree.body for node in ast.walk(statement)]
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        parts = (source.tree.args, *nodes)
        parameters = {node.arg for part in parts for node in ast.walk(part) if isinstance(node, ast.arg)}
        imported = dict(_imports(nodes))
        defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        caught = {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
        self.owner = owner
        self.locals = stored | parameters | imported.keys() | defined
        self.shared = {name for node in nodes if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
        self.many = parameters | imported.keys() | defined | self.shared | caught
        self.of_loops = {
            node.id
            for loop in nodes
            if isinstance(loop, ast.For)
            for node in ast.walk(loop.target)
            if isinstance(node, ast.Name)
        }
        once = imported.keys() - (stored | parameters | defined)
        self._imported = {name: imported[name] for name in once}
        self._outer = Outer(function)

    def is_of_owner(self, node: ast.AST) -> bool:
        """Whether it is ``self.a.b``: an attribute of the module, however deep."""
        root, names = dotted(node)
        return bool(names) and root is not None and root == self.owner

    def static(self, node: ast.AST) -> Any:
        """What a dotted name means whatever the call: a global, a closure's cell, and attributes of modules of them."""
        if isinstance(node, ast.Name):
            if (found := self._imported.get(node.id, MISSING)) is not MISSING:
                return found
            if node.id in self.locals or node.id == self.owner:
                return MISSING
            with contextlib.suppress(KeyError):
                return self._outer[node.id]
        elif isinstance(node, ast.Attribute):
            base = self.static(node.value)
            if isinstance(base, ModuleType):
                return getattr(base, node.attr, MISSING)
        return MISSING


def _imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each import inside a function, the value as far as its module is loaded."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], MISSING
        elif isinstance(node, ast.ImportFrom):
            module = None if node.level else sys.modules.get(node.module or "")
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name, MISSING)


def outer_name(name: str, function: FunctionType) -> Any:
    """The value of a name that is no local one of a function or of what is nested in it: a closure's cell, a global."""
    code = function.__code__
    if name in code.co_freevars:
        cell = (function.__closure__ or ())[code.co_freevars.index(name)]
        return MISSING if is_empty(cell) else cell.cell_contents
    if name in local_names(code):
        return MISSING
    return function.__globals__.get(name, MISSING)


def reach(value: Any, names: Iterable[str]) -> Any:
    """What a way of attributes leads to, or ``MISSING``."""
    return functools.reduce(attribute, names, value)


def attribute(value: Any, name: str) -> Any:
    """An attribute as it stands, or ``MISSING``: no property of a module is run for it."""
    if isinstance(value, nn.Module):
        for scope in (vars(value), value._modules, value._parameters, value._buffers):
            if name in scope:
                return scope[name]
        found = inspect.getattr_static(type(value), name, MISSING)
        return found.__func__ if isinstance(found, staticmethod) else found
    try:
        return getattr(value, name, MISSING)
    except Exception:  # a property of the model's code: whatever it raises, it gives no value here
        return MISSING
