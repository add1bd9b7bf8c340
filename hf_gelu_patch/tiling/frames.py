"""One function of a model's code, followed statement by statement."""

from __future__ import annotations

import ast
import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_gelu_patch.forwards.names import MISSING
from hf_gelu_patch.sources import Outer, is_model_code
from hf_gelu_patch.tiling.values import (
    STEADY,
    TENSORS,
    Above,
    Method,
    Module,
    NotTokenWiseError,
    Object,
    Sizes,
    Steady,
    TensorMethod,
    Tokens,
    Weight,
    described,
    tried,
)
from hf_gelu_patch.tiling.verdicts import FUNCTIONS, PLAIN

if TYPE_CHECKING:
    from hf_gelu_patch.tiling.judging import Reader

__all__ = ["MOST_ROUNDS", "Frame"]

_STEADY_ATTRIBUTES = {"dtype", "device", "requires_grad", "is_cuda", "itemsize", "ndim", "layout"}
_OF_CONTAINERS = {"keys", "values", "items", "get", "index", "count"}

BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARED: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_UNARY: Mapping[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.inv}

MOST_ROUNDS = 64  # of a loop, and calls within each other


_ON, _RETURNED, _CONTINUE, _BREAK = "on", "returned", "continue", "break"


class Frame:
    """The names of one function while its source is followed."""

    def __init__(self, reader: Reader, function: FunctionType, names: dict[str, Any]) -> None:
        self.reader = reader
        self.function = function
        self.names = names
        self.first = next(iter(names.values()), None)
        self.returned: list[Any] = []
        code = function.__code__
        self.outer = Outer(function)
        self.locals = {*code.co_varnames, *code.co_cellvars}

    def result(self, body: list[ast.stmt]) -> Any:
        """What the function returns."""
        if self.run(body) == _ON:
            self.returned.append(None)
        if not self.returned:
            raise self.failure("it raises an error")
        return functools.reduce(self.joined, self.returned)

    def failure(self, what: str, node: ast.AST | None = None) -> NotTokenWiseError:
        shown = "" if node is None else f": {ast.unparse(node).partition(chr(10))[0]}"
        error = NotTokenWiseError(f"{what}, in {self.function.__qualname__}{shown}")
        error.placed = True
        return error

    def joined(self, a: Any, b: Any) -> Any:
        """A value that is one of two."""
        if a is b or (type(a) is type(b) and isinstance(a, (*PLAIN, Weight)) and a == b):
            return a
        if isinstance(a, Tokens) and isinstance(b, Tokens):
            return Tokens(a.width if a.width == b.width else max(a.width or 0, b.width or 0) or None)
        if all(isinstance(one, (*PLAIN, Steady)) for one in (a, b)):
            return STEADY
        raise self.failure("it gives sometimes one thing and sometimes another")

    # -- statements

    def run(self, body: list[ast.stmt]) -> str:
        for statement in body:
            outcome = self.step(statement)
            if outcome != _ON:
                return outcome
        return _ON

    def step(self, statement: ast.stmt) -> str:
        if isinstance(statement, ast.Return):
            self.returned.append(None if statement.value is None else self.value(statement.value))
            return _RETURNED
        if isinstance(statement, ast.If):
            return self.branch(statement)
        if isinstance(statement, ast.For):
            return self.loop(statement)
        if isinstance(statement, (ast.Continue, ast.Break)):
            return _CONTINUE if isinstance(statement, ast.Continue) else _BREAK
        if isinstance(statement, ast.Raise):
            return _RETURNED  # whether it does is the same for each tile
        if isinstance(statement, ast.Expr):
            if not isinstance(statement.value, ast.Constant):
                self.value(statement.value)
        elif isinstance(statement, ast.Assign):
            value = self.value(statement.value)
            for target in statement.targets:
                self.assign(target, value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self.assign(statement.target, self.value(statement.value))
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            now, by = self.named(statement.target.id), self.value(statement.value)
            if isinstance(now, TENSORS):
                raise self.failure("it writes over a tensor", statement)
            self.names[statement.target.id] = self.operation(statement.op, now, by, statement)
        elif isinstance(statement, ast.Assert):
            self.known(statement.test)
        elif not isinstance(statement, (ast.Pass, ast.AnnAssign)):
            raise self.failure("this is not followed", statement)
        return _ON

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)) and not any(isinstance(t, ast.Starred) for t in target.elts):
            if not isinstance(value, (tuple, list)) or len(value) != len(target.elts):
                raise self.failure("what is unpacked is not known", target)
            for one, part in zip(target.elts, value, strict=True):
                self.assign(one, part)
        else:
            raise self.failure("it stores something outside of itself", target)

    def branch(self, statement: ast.If) -> str:
        test = self.known(statement.test)
        if test is not None:
            return self.run(statement.body if test else statement.orelse)
        before = self.names
        self.names = {name: _copied(value) for name, value in before.items()}
        first, then = self.run(statement.body), self.names
        self.names = {name: _copied(value) for name, value in before.items()}
        second, otherwise = self.run(statement.orelse), self.names
        if {first, second} & {_CONTINUE, _BREAK}:
            raise self.failure("whether its loop goes on is not known", statement.test)
        if first == _RETURNED or second == _RETURNED:
            self.names = otherwise if first == _RETURNED else then
            return second if first == _RETURNED else _ON
        joined: dict[str, Any] = {}
        for name in then.keys() & otherwise.keys():
            try:
                joined[name] = self.joined(then[name], otherwise[name])
            except NotTokenWiseError:
                continue  # who uses it finds it missing
        self.names = joined
        return _ON

    def loop(self, statement: ast.For) -> str:
        if statement.orelse:
            raise self.failure("this is not followed", statement)
        for item in self.items(statement.iter):
            self.assign(statement.target, item)
            outcome = self.run(statement.body)
            if outcome == _BREAK:
                break
            if outcome == _RETURNED:
                return outcome
        return _ON

    def items(self, node: ast.expr) -> list[Any]:
        over = self.value(node)
        if isinstance(over, Module):
            found: list[Any] = self.reader.children(over)
        elif isinstance(over, (*TENSORS, Sizes, Steady, Object)) or not isinstance(over, Iterable):
            raise self.failure("what it loops over is not known", node)
        else:
            found = list(over)
        if len(found) > MOST_ROUNDS:
            raise self.failure(f"it loops more than {MOST_ROUNDS} times", node)
        return found

    # -- expressions

    def known(self, test: ast.expr) -> bool | None:
        """What a condition is; None where it is not known, and the same for each tile."""
        return self.truth(self.value(test), test)

    def truth(self, value: Any, node: ast.expr) -> bool | None:
        if isinstance(value, (*TENSORS, Sizes)):
            raise self.failure("it decides by what the tokens hold", node)
        if isinstance(value, Steady):
            return None
        if isinstance(value, Module) and not hasattr(type(value.module), "__bool__"):
            return bool(self.reader.children(value)) if hasattr(type(value.module), "__len__") else True
        if isinstance(value, (*PLAIN, *FUNCTIONS, tuple, list, dict, MappingProxyType, frozenset)):
            return bool(value)
        raise self.failure("what it decides by is not known", node)

    def value(self, node: ast.expr) -> Any:
        try:
            return self._value(node)
        except NotTokenWiseError as error:
            if error.placed:
                raise
            raise self.failure(str(error), node) from error

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.named(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.called(node)
        if isinstance(node, ast.BinOp):
            return self.operation(node.op, self.value(node.left), self.value(node.right), node)
        if isinstance(node, ast.UnaryOp):
            return self.unary(node)
        if isinstance(node, ast.Compare):
            return self.compared(node)
        if isinstance(node, ast.BoolOp):
            return self.either(node)
        if isinstance(node, ast.IfExp):
            test = self.known(node.test)
            if test is None:
                return self.joined(self.value(node.body), self.value(node.orelse))
            return self.value(node.body if test else node.orelse)
        if isinstance(node, (ast.Tuple, ast.List)):
            values: list[Any] = []
            for part in node.elts:
                values += self.items(part.value) if isinstance(part, ast.Starred) else [self.value(part)]
            return tuple(values) if isinstance(node, ast.Tuple) else values
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        if isinstance(node, (ast.ListComp, ast.DictComp)) and len(node.generators) == 1:
            return self.comprehension(node)
        raise self.failure("this is not followed", node)

    def named(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name not in self.locals:
            with contextlib.suppress(KeyError):
                return self.outer[name]
        raise self.failure(f"what {name} is cannot be told")

    def attribute(self, base: Any, name: str) -> Any:
        if isinstance(base, Module):
            if name in ("keys", "values", "items") and type(base.module) is nn.ModuleDict:
                children = {one.path[-1]: one for one in self.reader.children(base)}
                return getattr(MappingProxyType(children), name)
            return self.reader.attribute(base, name)
        if isinstance(base, Object):
            return self.reader.of_object(base, name)
        if isinstance(base, TENSORS):
            if name in _STEADY_ATTRIBUTES:
                return STEADY
            if name == "shape":
                return Sizes() if isinstance(base, Tokens) else STEADY
            if isinstance(base, Weight) and name in ("T", "data"):
                return Weight(base.shape[::-1]) if name == "T" else base
            if callable(getattr(Tensor, name, None)):
                return TensorMethod(base, name)
        elif isinstance(base, Steady):
            return STEADY
        elif isinstance(base, ModuleType) and hasattr(base, name):
            return getattr(base, name)
        elif isinstance(base, Above):
            mro = type(base.owner.module).__mro__
            for cls in mro[mro.index(base.cls) + 1 :] if base.cls in mro else ():
                if isinstance(found := vars(cls).get(name), FunctionType) and is_model_code(cls.__module__):
                    return Method(base.owner, found)
        elif isinstance(base, (tuple, dict, MappingProxyType)) and name in {*_OF_CONTAINERS, "pop"}:
            return getattr(base, name, MISSING)  # what a module holds is handed out so that nothing can be popped
        raise self.failure(f"what .{name} of {described(base)} is cannot be told")

    def called(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            cls = self.outer.cells.get("__class__")
            if not isinstance(self.first, Module) or not isinstance(cls, type):
                raise self.failure("what super() is cannot be told")
            return Above(self.first, cls)
        function = self.value(node.func)
        given: list[Any] = []
        for argument in node.args:
            given += self.items(argument.value) if isinstance(argument, ast.Starred) else [self.value(argument)]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is not None:
                named[keyword.arg] = value
            elif isinstance(value, (dict, MappingProxyType)):
                named.update(value)
            else:
                raise self.failure("what it is called with is not known", node)
        return self.reader.applied(function, given, named)

    def operation(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        if isinstance(op, ast.MatMult):
            return self.reader.operations.product(left, right, out_in=False)
        function = BINARY.get(type(op))
        if function is None:
            raise self.failure("this is not followed", node)
        if any(isinstance(one, TENSORS) for one in (left, right)):
            return self.reader.operations.pointwise((left, right))
        if any(isinstance(one, Steady) for one in (left, right)):
            return STEADY
        if not all(isinstance(one, (*PLAIN, tuple, list)) for one in (left, right)):
            raise self.failure("this is not followed", node)
        return tried(function, (left, right), {})

    def unary(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            truth = self.truth(value, node.operand)
            return STEADY if truth is None else not truth
        if isinstance(value, TENSORS):
            return self.reader.operations.pointwise((value,))
        return value if isinstance(value, Steady) else tried(_UNARY[type(node.op)], (value,), {})

    def compared(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            raise self.failure("this is not followed", node)
        (op,), left, right = node.ops, self.value(node.left), self.value(node.comparators[0])
        if isinstance(op, (ast.Is, ast.IsNot)):
            if isinstance(left, Steady) or isinstance(right, Steady):
                return STEADY
            if None not in (left, right) and not all(isinstance(one, (bool, *FUNCTIONS)) for one in (left, right)):
                raise self.failure("whether two things are one is not known", node)
            return (left is right) == isinstance(op, ast.Is)
        if isinstance(op, (ast.In, ast.NotIn)):
            if isinstance(right, Module):
                right = tuple(one.path[-1] for one in self.reader.children(right))
            if isinstance(left, Steady) and isinstance(right, (tuple, list, dict, frozenset)):
                return STEADY
            if not isinstance(left, PLAIN) or isinstance(right, (*TENSORS, Sizes, Steady, Object)):
                raise self.failure("whether something is in it is not known", node)
            found = tried(operator.contains, (right, left), {})
            return found == isinstance(op, ast.In)
        if any(isinstance(one, TENSORS) for one in (left, right)):
            return self.reader.operations.pointwise((left, right))
        if any(isinstance(one, Steady) for one in (left, right)):
            return STEADY
        if not all(isinstance(one, (*PLAIN, tuple, list, *FUNCTIONS)) for one in (left, right)):
            raise self.failure("what it compares is not known", node)
        return tried(COMPARED[type(op)], (left, right), {})

    def either(self, node: ast.BoolOp) -> Any:
        wanted = isinstance(node.op, ast.Or)
        found: list[Any] = []
        for part in node.values:
            value = self.value(part)
            truth = self.truth(value, part) if part is not node.values[-1] or not isinstance(value, TENSORS) else None
            found.append(value)
            if truth is wanted:
                break
            if truth is not None and part is not node.values[-1]:
                found.pop()
        return functools.reduce(self.joined, found)

    def subscript(self, node: ast.Subscript) -> Any:
        base = self.value(node.value)
        if isinstance(base, Tokens):
            return self.sliced(base, node)
        if isinstance(base, Module):
            key = self.value(node.slice)
            children = {one.path[-1]: one for one in self.reader.children(base)}
            if isinstance(key, (str, int)) and str(key) in children:
                return children[str(key)]
            raise self.failure("which module it takes is not known", node)
        if isinstance(base, Sizes):
            if self.value(node.slice) == -1:
                return STEADY
            raise self.failure("it looks at how many tokens there are", node)
        if isinstance(base, Steady):
            return STEADY
        if isinstance(base, (tuple, list, dict, MappingProxyType)) and not isinstance(node.slice, ast.Slice):
            key = self.value(node.slice)
            if isinstance(key, PLAIN):
                return tried(operator.getitem, (base, key), {})
        raise self.failure("this is not followed", node)

    def sliced(self, base: Tokens, node: ast.Subscript) -> Tokens:
        """A part of the last dimension: ``x[..., a:b:c]``."""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
        ends = len(parts) == 2 and isinstance(parts[0], ast.Constant) and parts[0].value is Ellipsis
        if not ends or not isinstance(parts[1], ast.Slice):
            raise self.failure("it takes some of the tokens", node)
        bounds = [None if one is None else self.value(one) for one in (parts[1].lower, parts[1].upper, parts[1].step)]
        if not all(isinstance(one, (int, type(None), Steady)) for one in bounds):
            raise self.failure("what it takes of each token is not known", node)
        if base.width is None or any(isinstance(one, Steady) for one in bounds):
            return Tokens(None)
        return Tokens(len(range(base.width)[slice(*bounds)]))

    def comprehension(self, node: ast.ListComp | ast.DictComp) -> Any:
        (generator,) = node.generators
        kept = dict(self.names)
        found: list[Any] = []
        for item in self.items(generator.iter):
            self.assign(generator.target, item)
            wanted = [self.known(test) for test in generator.ifs]
            if None in wanted:
                raise self.failure("which parts it takes is not known", node)
            if all(wanted):
                one = node.elt if isinstance(node, ast.ListComp) else ast.Tuple([node.key, node.value], ast.Load())
                found.append(self.value(one))
        self.names = kept
        return found if isinstance(node, ast.ListComp) else dict(found)


def _copied(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict) else value
