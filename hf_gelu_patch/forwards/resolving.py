"""Which activation an expression computes on one live module."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.formula_reader import NotAFormulaError, formula_in
from hf_gelu_patch.forwards.callees import Callee
from hf_gelu_patch.forwards.expressions import Expression, Reading
from hf_gelu_patch.forwards.methods import formula_of
from hf_gelu_patch.forwards.names import MISSING, attribute, dotted, outer_name, reach
from hf_gelu_patch.forwards.replacements import runs_in_order
from hf_gelu_patch.recognition import is_function, recognise, resolve_call
from hf_gelu_patch.sources import is_model_code

__all__ = ["Edge", "Resolve", "attributes_in", "own_function", "resolve_chain", "resolve_expression"]

Resolve = Callable[[nn.Module], "Resolved | Unresolved | None"]
"""``recognition.resolve``, or a lookup of what it has said."""

Edge = tuple[nn.Module, str]
"""A module, and the name under which it holds another."""


def resolve_expression(
    expression: Expression,
    owner: nn.Module,
    reading: Reading,
    activation_of: Resolve,
) -> tuple[Resolved | Unresolved, Edge | None] | None:
    """(the activation, the edge that holds its module) for this module, or None if this is no activation on it."""
    callee = expression.callee
    if callee.how == "self":
        return _find_attribute(expression, owner, reading, activation_of)
    if callee.how == "method":
        assert isinstance(callee.node, ast.Attribute)
        value = reach(owner, dotted(callee.node.value)[1])
        return (_called(callee.value, expression, owner, reading), None) if isinstance(value, torch.Tensor) else None
    if callee.how == "function":
        return _called(callee.value, expression, owner, reading), None
    if callee.how == "object":
        return _of_module(callee.value, activation_of)
    if callee.how in ("formula", "in place"):
        written = _written_out(expression, owner, reading)
        if written is None:
            return None
        return replace(written, in_place=callee.how == "in place"), None
    module = _built(callee, owner, reading)
    if module is MISSING:
        return Unresolved("which activation it looks up is known only when it is called"), None
    return None if module is None else _of_module(module, activation_of)


def _find_attribute(
    expression: Expression, owner: nn.Module, reading: Reading, activation_of: Resolve
) -> tuple[Resolved | Unresolved, Edge | None] | None:
    *way, key = expression.callee.value
    holder = reach(owner, way)
    value = attribute(holder, key)
    if isinstance(value, nn.Module):
        if isinstance(holder, nn.Module) and key in holder._modules:
            current = activation_of(value)
            return None if current is None else (current, (holder, key))
        return _of_module(value, activation_of)  # no child of anything: in a plain object, or hidden
    if isinstance(value, functools.partial) and not value.args and is_function(value.func):
        return resolve_call(value.func, (), value.keywords), None
    if value is not None and is_function(value):
        return _called(value, expression, owner, reading), None
    if isinstance(value, FunctionType) and (resolved := formula_of(value)) is not None:
        return resolved, None
    return None


def resolve_chain(
    expression: Expression, owner: nn.Module, activation_of: Resolve
) -> Iterator[tuple[Edge, Resolved | Unresolved]]:
    """(edge, activation) for each activation in the chain that a loop runs through."""
    container = reach(owner, expression.callee.value)
    if not isinstance(container, (nn.Sequential, nn.ModuleList)) or not runs_in_order(container):
        return
    for key, module in container._modules.items():
        if module is not None and (current := activation_of(module)) is not None:
            yield (container, key), current


def attributes_in(expression: Expression, owner_name: str | None) -> tuple[ast.expr, ...]:
    """The attributes of the module that decide which activation an expression applies: ``self.slope`` in
    ``F.leaky_relu(x, self.slope)``. Those that are what it is applied to are none."""
    if expression.callee.is_method:
        return ()
    found: list[ast.expr] = []
    pending: list[ast.AST] = [expression.core]
    while pending:
        node = pending.pop(0)
        if node is expression.argument:
            continue
        root, names = dotted(node)
        if isinstance(node, ast.expr) and names and root == owner_name is not None:
            found.append(node)
        else:
            pending[:0] = ast.iter_child_nodes(node)
    return tuple({ast.dump(node): node for node in found}.values())


def own_function(expression: Expression) -> ast.expr | None:
    """What an expression calls, as it is written, where that is a function of the model's own code: another may be put
    under its name."""
    callee, value = expression.callee, expression.callee.value
    own = callee.how == "function" and isinstance(value, FunctionType) and is_model_code(value.__module__ or "")
    return callee.node if own else None


def _of_module(module: nn.Module, activation_of: Resolve) -> tuple[Resolved | Unresolved, None] | None:
    """What an activation module that is no part of the model computes."""
    current = activation_of(module)
    return None if current is None else (current, None)


def _called(
    callee: Callable[..., Any], expression: Expression, owner: nn.Module, reading: Reading
) -> Resolved | Unresolved:
    values = [(name, _constant(node, owner, reading)) for name, node in expression.arguments]
    if any(value is MISSING for _, value in values):
        return Unresolved("it is called with arguments that are not known before the call")
    positional = tuple(value for name, value in values if name is None)
    return resolve_call(callee, positional, {name: value for name, value in values if name is not None})


def _constant(node: ast.expr, owner: nn.Module, reading: Reading) -> Any:
    """A number or string that the source or the module's own attributes give, or MISSING."""
    root, names = dotted(node)
    if root is not None:
        value = reach(owner if names and root == reading.owner_name else outer_name(root, reading.function), names)
        return value if isinstance(value, (int, float, str)) else MISSING
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return MISSING


def _built(callee: Callee, owner: nn.Module, reading: Reading) -> Any:
    """The module that ``ACT2FN[...]`` or ``nn.GELU()`` in the source would give; MISSING where that depends on the
    call, None where it is none."""
    if callee.how == "lookup":
        assert isinstance(callee.node, ast.Subscript)
        key = _constant(callee.node.slice, owner, reading)
        if key is MISSING:
            return MISSING if {"gelu", "silu"} <= callee.value.keys() else None
        try:
            value = callee.value[key]
        except Exception:  # a table of the model's own code, and a key that may not be there
            return None
        return value if isinstance(value, nn.Module) else None
    assert isinstance(callee.node, ast.Call)
    given = [_constant(node, owner, reading) for node in callee.node.args]
    named = {str(k.arg): _constant(k.value, owner, reading) for k in callee.node.keywords}
    if not callee.value.__module__.startswith("torch.nn.modules.activation") or MISSING in (*given, *named.values()):
        return None
    try:
        module: nn.Module = callee.value(*given, **named)
    except Exception:  # torch's own constructor on arguments of the model's code
        return None
    return module


def _written_out(expression: Expression, owner: nn.Module, reading: Reading) -> Resolved | None:
    """The activation that a formula is, the module's numbers filled in; None if it is none."""
    variable = expression.argument
    assert isinstance(variable, ast.Name)
    module = None if reading.owner_name is None else (reading.owner_name, owner)
    try:
        found = recognise(formula_in(expression.callee.node, reading.function, variable.id, module))
    except NotAFormulaError:
        return None
    return found if isinstance(found, Resolved) else None
