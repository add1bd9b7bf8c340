"""Methods of a module that do nothing but apply an activation to what they are given.

``def gelu(self, gate): return F.gelu(gate)`` is one. A call of it, ``up * self.gelu(gate)``, applies that activation,
and what stands around the call can be fused with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType, FunctionType

import torch
from torch import nn

from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.forwards.expressions import Expression, Reading, read
from hf_gelu_patch.forwards.methods import mentions_an_activation
from hf_gelu_patch.forwards.names import MISSING, Names, attribute, dotted
from hf_gelu_patch.forwards.resolving import Resolve, attributes_in, resolve_expression
from hf_gelu_patch.sources import is_model_code, remembered

__all__ = ["applied_by", "handing_on", "own_method", "read_by"]

_ABOUT_A_TENSOR = frozenset({"device", "dtype", "is_cuda", "layout", "ndim", "requires_grad", "shape"})
"""Attributes of a tensor that its numbers do not decide."""


@dataclass(frozen=True, eq=False)
class _Return:
    """One ``return act(x)`` of a method.

    Attributes:
        expression: ``act(x)``.
        cast: whether x is raised to a wider dtype for it, and the result cast back.
    """

    expression: Expression
    cast: bool


def handing_on(cls: type[nn.Module]) -> frozenset[str]:
    """The methods of a class that, by their source, do nothing but apply activations to their one argument. Which these
    are, a module of the class says."""
    return frozenset(
        name
        for base in cls.__mro__
        if is_model_code(base.__module__)
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and _returns(value, value.__code__)
    )


def own_method(expression: Expression, owner: nn.Module) -> FunctionType | None:
    """The method of the module's own class that an expression calls; None where it calls anything else."""
    if expression.callee.how != "self" or len(expression.callee.value) != 1:
        return None
    (name,) = expression.callee.value
    if name in vars(owner):
        return None
    found = attribute(owner, name)
    return found if isinstance(found, FunctionType) and is_model_code(found.__module__ or "") else None


def applied_by(method: FunctionType, owner: nn.Module, activation_of: Resolve) -> Resolved | None:
    """The activation that a method of a module applies to its argument, the same whichever way it takes; None where it
    does anything else."""
    returns = _returns(method, method.__code__)
    reading = read(method, is_method=True)
    found: list[Resolved] = []
    for one in returns:
        resolved = resolve_expression(one.expression, owner, reading, activation_of)
        if resolved is None or resolved[1] is not None:  # a module of the model's is a site of its own
            return None
        current = resolved[0]
        if not isinstance(current, Resolved) or current.in_place:
            return None
        found.append(current)
    if not found or any(one.activation != found[0].activation for one in found):
        return None
    if not any(one.cast for one in returns) and all(one == found[0] for one in found):
        return found[0]
    return replace(found[-1], spelling=f"{found[-1].spelling}, by conditions", formula=None)


def read_by(method: FunctionType) -> tuple[tuple[str, ...], ...]:
    """The ways of attributes by which a method comes to what decides which activation it applies."""
    owner_name = read(method, is_method=True).owner_name
    nodes = (node for one in _returns(method, method.__code__) for node in attributes_in(one.expression, owner_name))
    return tuple(dict.fromkeys(tuple(dotted(node)[1]) for node in nodes))


@remembered
def _returns(function: FunctionType, code: CodeType) -> tuple[_Return, ...]:
    """What each way through a method returns; () where it does more than that."""
    if (
        not mentions_an_activation(function)
        or code.co_argcount != 2
        or code.co_kwonlyargcount
        or code.co_flags & _MORE_ARGUMENTS
    ):
        return ()
    reading = read(function, is_method=True)
    if reading.source is None or reading.unfaithful or not isinstance(reading.source.tree, ast.FunctionDef):
        return ()
    if reading.source.tree.decorator_list:
        return ()
    names = Names(function, reading.source, reading.owner_name)
    return tuple(_Returns(reading, names, code.co_varnames[1]).of(reading.source.tree.body) or ())


_MORE_ARGUMENTS = 0x04 | 0x08  # *args, **kwargs


class _Returns:
    """Reads the statements of one method."""

    def __init__(self, reading: Reading, names: Names, parameter: str) -> None:
        self.by_core = {one.core: one for one in _all(reading.expressions)}
        self.names = names
        self.parameter = parameter

    def of(self, body: list[ast.stmt]) -> list[_Return] | None:
        """What a block returns, whichever way it takes; None where it may run past its end, or does anything else."""
        found: list[_Return] = []
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):  # a docstring
                continue
            if isinstance(statement, ast.Return):
                one = self._return(statement.value)
                return None if one is None else [*found, one]
            if not isinstance(statement, ast.If) or not self._is_plain(statement.test):
                return None
            inside = self.of(statement.body)
            if inside is None:
                return None
            found += inside
            if statement.orelse:
                other = self.of(statement.orelse)
                return None if other is None else [*found, *other]
        return None

    def _return(self, node: ast.expr | None) -> _Return | None:
        """``act(x)``, or ``act(x.float()).to(x.dtype)``."""
        if node is None:
            return None
        core = self._cast_back(node)
        expression = self.by_core.get(node if core is None else core)
        if expression is None:
            return None
        argument = expression.argument
        if isinstance(argument, ast.Name) and argument.id == self.parameter:
            return _Return(expression, cast=False)
        wide = core is not None and self._is_raised(argument)
        return _Return(expression, cast=True) if wide else None

    def _cast_back(self, node: ast.expr) -> ast.expr | None:
        """y where the node is ``y.to(x.dtype)``, ``y.to(dtype=x.dtype)`` or ``y.type_as(x)``."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return None
        dtype = _only_argument(node)
        wanted = {"to": (f"{self.parameter}.dtype", self.parameter), "type_as": (self.parameter,)}
        named = None if dtype is None else ast.unparse(dtype)
        return node.func.value if named in wanted.get(node.func.attr, ()) else None

    def _is_raised(self, node: ast.expr) -> bool:
        """Whether a node is the argument in float32 or float64."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != self.parameter:
            return False
        if node.func.attr in ("float", "double"):
            return not node.args and not node.keywords
        dtype = _only_argument(node) if node.func.attr == "to" else None
        static = None if dtype is None else self.names.static(dtype)
        return static is torch.float32 or static is torch.float64

    def _is_plain(self, test: ast.expr) -> bool:
        """Whether evaluating a condition changes nothing, and the numbers of the argument do not decide it."""
        if isinstance(test, ast.Constant):
            return True
        if isinstance(test, ast.Name):
            return test.id != self.parameter
        if isinstance(test, ast.Attribute):
            of_argument = isinstance(test.value, ast.Name) and test.value.id == self.parameter
            return test.attr in _ABOUT_A_TENSOR if of_argument else self._is_plain(test.value)
        if isinstance(test, ast.Call):
            function = self.names.static(test.func)
            arguments = [*test.args, *(keyword.value for keyword in test.keywords)]
            return function is not MISSING and callable(function) and all(map(self._is_plain, arguments))
        if isinstance(test, ast.Compare):
            return all(map(self._is_plain, (test.left, *test.comparators)))
        if isinstance(test, ast.UnaryOp):
            return self._is_plain(test.operand)
        inside = test.values if isinstance(test, ast.BoolOp) else getattr(test, "elts", None)  # a tuple's, a list's
        return inside is not None and all(map(self._is_plain, inside))


def _only_argument(call: ast.Call) -> ast.expr | None:
    """The one thing that a call of ``to`` or ``type_as`` is given, by its place or as ``dtype=``; None of others."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "dtype")]
    return given[0] if len(given) == len(call.args) + len(call.keywords) == 1 else None


def _all(expressions: tuple[Expression, ...]) -> Iterator[Expression]:
    """The expressions, and those inside each that may turn out to be no activation."""
    for one in expressions:
        yield one
        yield from _all(one.fallback)
