"""Which conditions in a method's source a live module decides: ``if self.gate is not None``."""

from __future__ import annotations

import ast
import dis
import functools
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from hf_gelu_patch.forwards.names import MISSING, dotted, reach
from hf_gelu_patch.sources import is_model_code

__all__ = ["Condition", "always", "never"]

Condition = tuple[ast.expr, bool]
"""A test, and what it has to come to for something to run."""


def never(conditions: Iterable[Condition], owner: nn.Module, owner_name: str | None) -> str | None:
    """The first condition that a module does not meet, as its source has it; None where each may be met.

    Attributes count as they are now. Those that the module's own methods assign, and ``training``, may change: they
    decide nothing.

    Args:
        conditions: all that have to hold.
        owner: the module.
        owner_name: what its method calls it; None where it is no method.
    """
    if owner_name is None:
        return None
    decided = _Decided(owner, owner_name)
    for test, wanted in conditions:
        if decided.truth(test) is (not wanted):
            return f"{ast.unparse(test)} {'does not hold' if wanted else 'holds'}"
    return None


def always(test: ast.expr, owner: nn.Module, owner_name: str | None) -> bool:
    """Whether a module meets a condition, whatever it is given; as ``never`` tells it."""
    return owner_name is not None and _Decided(owner, owner_name).truth(test) is True


class _Decided:
    """What expressions come to on one module."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner = owner
        self.name = name

    @functools.cached_property
    def changing(self) -> frozenset[str]:
        """Asked for only where an attribute of the module decides something, which is rare."""
        return _assigned_later(type(self.owner))

    def truth(self, test: ast.expr) -> bool | None:
        """Whether a test holds; None where that is not known."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            ends = isinstance(test.op, ast.Or)  # with the first that is true, or else the first that is false
            found = [self.truth(one) for one in test.values]
            return ends if ends in found else None if None in found else not ends
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return self._compared(test.ops[0], self.value(test.left), self.value(test.comparators[0]))
        value = self.value(test)
        if value is None or isinstance(value, (bool, int, float, str)):
            return bool(value)
        return True if isinstance(value, nn.Module) and not hasattr(value, "__len__") else None

    def value(self, node: ast.expr) -> Any:
        """A constant, or an attribute of the module as it is; ``MISSING`` where that is not known."""
        if isinstance(node, ast.Constant):
            return node.value
        root, names = dotted(node)
        if root != self.name or not names or names[0] in self.changing or "training" in names:
            return MISSING
        found = reach(self.owner, names)
        return MISSING if hasattr(type(found), "__get__") else found  # a property, which gives what it likes

    @staticmethod
    def _compared(operator: ast.cmpop, left: Any, right: Any) -> bool | None:
        if left is MISSING or right is MISSING:
            return None
        if isinstance(operator, (ast.Is, ast.IsNot)):
            if left is not None and right is not None:
                return None
            return (left is right) is isinstance(operator, ast.Is)
        if isinstance(operator, (ast.Eq, ast.NotEq)) and type(left) is type(right) and isinstance(left, (str, int)):
            return (left == right) is isinstance(operator, ast.Eq)
        return None


def _assigned_later(cls: type) -> frozenset[str]:
    """The attributes that methods of a class assign, but for those that make the module."""
    functions = [
        value
        for base in cls.__mro__
        if is_model_code(base.__module__)
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and name != "__init__"
    ]
    return frozenset().union(*(_stored(function.__code__) for function in functions))


@functools.lru_cache(maxsize=8192)
def _stored(code: CodeType) -> frozenset[str]:
    inside = [one for one in code.co_consts if isinstance(one, CodeType)]
    own = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_ATTR"}
    return frozenset(own).union(*map(_stored, inside))
