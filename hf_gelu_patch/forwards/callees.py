"""What applies an activation in a function, as far as its source alone tells: calls, lookups, formulas and loops."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

from torch import nn

from hf_gelu_patch.formula_reader import is_elementwise, is_elementwise_method, is_of_numbers
from hf_gelu_patch.forwards.flow import Flow, assigned_name
from hf_gelu_patch.forwards.methods import formula_of
from hf_gelu_patch.forwards.names import MISSING, Names, dotted
from hf_gelu_patch.recognition import is_function, methods, written_with

__all__ = ["Callee", "Callees"]


@dataclass(frozen=True, eq=False)
class Callee:
    """What is called to apply an activation, as far as the source alone tells.

    ``how``: ``self`` (an attribute of the module), ``function`` (one of torch's), ``object`` (an activation module
    that the source names), ``lookup`` (``ACT2FN[...]``), ``class`` (built at call time), ``formula`` (written out),
    ``in place`` (a formula written as ``x *= torch.sigmoid(x)``), ``method`` (one of an attribute's that may be a
    tensor: ``self.gate.tanh()``), ``chain`` (a loop that calls each module of a container on what the one before gave).
    """

    how: str
    node: ast.expr
    value: Any = None
    movable: bool = True

    @property
    def is_method(self) -> bool:
        """Whether it is written as a tensor's method: ``x.sigmoid()``."""
        return isinstance(self.node, ast.Attribute) and methods().get(self.node.attr) is self.value is not None


class Callees:
    """Tells of the nodes of one function which of them apply an activation."""

    def __init__(self, names: Names, flow: Flow) -> None:
        self.names = names
        self.flow = flow

    def applied(self, call: ast.Call) -> tuple[Callee, ast.expr, tuple[tuple[str | None, ast.expr], ...]] | None:
        """(what applies an activation, x, further arguments) if this call applies one, as far as its source tells."""
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            return None
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if method in methods() and not call.args and not call.keywords:
            assert isinstance(call.func, ast.Attribute)
            if self.names.static(call.func.value) is MISSING:
                how = "method" if self.names.is_of_owner(call.func.value) else "function"
                return Callee(how, call.func, methods()[method]), call.func.value, ()
        keywords = [(k.arg, k.value) for k in call.keywords]
        arguments = [(None, a) for a in call.args]
        if not arguments:
            named = [given for given in keywords if given[0] in ("input", "x", "hidden_states")]
            arguments = [(None, value) for _, value in named[:1]]
            keywords = [given for given in keywords if given not in named[:1]]
        if not arguments:
            return None
        callee = self.callee(call.func)
        if callee is None or (callee.how != "function" and (len(arguments) > 1 or keywords)):
            return None
        return callee, arguments[0][1], (*arguments[1:], *keywords)

    def callee(self, node: ast.expr) -> Callee | None:
        """What a called node is, if it may apply an activation."""
        if self.names.is_of_owner(node):
            return Callee("self", node, tuple(dotted(node)[1]))
        value = self.names.static(node)
        if is_function(value) or (isinstance(value, FunctionType) and formula_of(value) is not None):
            return Callee("function", node, value)
        if isinstance(value, nn.Module):
            return Callee("object", node, value)
        if isinstance(node, ast.Subscript) and isinstance(table := self.names.static(node.value), Mapping):
            return Callee("lookup", node, table)
        if isinstance(node, ast.Call):
            made = self.names.static(node.func)
            return Callee("class", node, made) if isinstance(made, type) and issubclass(made, nn.Module) else None
        return self._assigned(node.id) if isinstance(node, ast.Name) and node.id in self.names.locals else None

    def _assigned(self, name: str) -> Callee | None:
        """What a local name is that is assigned once."""
        value = self.flow.only_value(name)
        followed = None if value is None or isinstance(value, ast.Name) else self.callee(value)
        return None if followed is None else replace(followed, movable=False)

    def chained(self, loop: ast.For) -> ast.Call | None:
        """``layer(x)`` in a loop that does nothing but ``for layer in self.layers: x = layer(x)``."""
        container = self.names.is_of_owner(loop.iter) or (
            isinstance(loop.iter, ast.Name) and loop.iter.id == self.names.owner is not None
        )
        if not container or loop.orelse or len(loop.body) != 1 or not isinstance(loop.target, ast.Name):
            return None
        (step,) = loop.body
        name = assigned_name(step)
        call = step.value if isinstance(step, ast.Assign) else None
        if name is None or not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
            return None
        function, argument = call.func, call.args[0]
        layer = loop.target.id
        if not isinstance(function, ast.Name) or function.id != layer or layer == name or layer in self.names.shared:
            return None
        if sum(isinstance(node, ast.Name) and node.id == layer for node in self.flow.nodes) > 2:  # its target, its call
            return None
        return call if isinstance(argument, ast.Name) and argument.id == name else None

    def in_place(self, node: ast.AugAssign) -> tuple[Callee, ast.Name] | None:
        """(what it is, x) of a formula written as ``x *= torch.sigmoid(x)``."""
        if not isinstance(node.op, ast.Mult) or not isinstance(node.target, ast.Name):
            return None
        name = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
        product = ast.copy_location(ast.BinOp(name, ast.Mult(), node.value), node)
        return None if self.formula_variable(product) is None else (Callee("in place", product), name)

    def formula_variable(self, node: ast.BinOp) -> ast.Name | None:
        """The one name that a formula of numbers, torch's and math's functions is a function of; None if it is none."""
        formula = _Formula(self.names)
        if not formula.fits(node) or not formula.makes_one or len({name.id for name in formula.variables}) != 1:
            return None
        return formula.variables[0]


class _Formula:
    """What an arithmetic expression is made of.

    Attributes:
        variables: the local names in it.
        makes_one: whether a function in it makes an activation of it: arithmetic alone is none.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.variables: list[ast.Name] = []
        self.makes_one = False

    def fits(self, part: ast.expr) -> bool:
        """Whether it holds nothing but numbers, names, attributes of the module, and functions of numbers."""
        if isinstance(part, ast.Constant):
            return isinstance(part.value, (int, float))
        if isinstance(part, ast.BinOp):
            return self.fits(part.left) and self.fits(part.right)
        if isinstance(part, ast.UnaryOp):
            return isinstance(part.op, (ast.USub, ast.UAdd)) and self.fits(part.operand)
        if isinstance(part, ast.Name) and part.id in self.names.locals:
            self.variables.append(part)
            return True
        if self.names.is_of_owner(part):
            return True
        if isinstance(part, (ast.Name, ast.Attribute)):
            return isinstance(self.names.static(part), (int, float))
        return isinstance(part, ast.Call) and self._call_fits(part)

    def _call_fits(self, call: ast.Call) -> bool:
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        value = self.names.static(call.func)
        if value is not MISSING:
            if not is_elementwise(value):
                return is_of_numbers(value) and all(map(self.fits, given))
            self.makes_one |= is_function(value) or value is nn.functional.softplus or _name(value) in written_with()
            return all(map(self.fits, given))
        if isinstance(call.func, ast.Attribute) and is_elementwise_method(call.func.attr):
            self.makes_one |= call.func.attr in _METHODS_THAT_MAKE_ONE | written_with()
            return self.fits(call.func.value) and all(map(self.fits, given))
        return False


_METHODS_THAT_MAKE_ONE = {"sigmoid", "tanh", "relu"}


def _name(function: object) -> str:
    return getattr(function, "__name__", "").removeprefix("special_")
