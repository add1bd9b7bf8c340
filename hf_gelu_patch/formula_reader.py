"""What a function of the model's code computes of one tensor, where that is a straight line of elementwise operations.

The source is followed without running any of it: names, numbers, arithmetic, helper functions, and branches on what is
known before the call. What comes of it is a list of operations of torch alone, so that trying it out on numbers has no
side effect. A draw of random numbers, a look at the training mode, a cast to another dtype, a parameter or another
module in it: then it is no formula.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch.activations import Activation, of_records
from hf_gelu_patch.sources import Outer, faithful_source_of, is_empty, is_model_code

__all__ = [
    "INPUT",
    "Formula",
    "NotAFormulaError",
    "Value",
    "formula_in",
    "formula_of",
    "formula_of_module",
    "held",
    "is_elementwise",
    "is_elementwise_method",
    "is_of_numbers",
]


class NotAFormulaError(Exception):
    """A function is no formula of one tensor; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Value:
    """A tensor in a formula: number 0 is its input, number k what its k-th step gives."""

    number: int


INPUT = Value(0)


@dataclass(frozen=True)
class Step:
    """One operation: a function of torch or of ``operator``, and what it is given."""

    function: Callable[..., Any]
    arguments: tuple[object, ...]
    keywords: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Formula:
    """Operations of torch, one after the other, on one tensor: elementwise, and the same at every call.

    Attributes:
        steps: they.
        result: which of their values it gives.
        reads: the ways to the attributes of the module that it was read off, and what was there.
    """

    steps: tuple[Step, ...]
    result: Value
    reads: tuple[tuple[tuple[str, ...], object], ...] = field(default=(), compare=False)

    def __call__(self, x: Tensor) -> Tensor:
        values: list[Any] = [x]
        for step in self.steps:
            given = [values[a.number] if isinstance(a, Value) else a for a in step.arguments]
            named = {name: values[a.number] if isinstance(a, Value) else a for name, a in step.keywords}
            values.append(step.function(*given, **named))
        result: Tensor = values[self.result.number]
        return result

    @property
    def numbers(self) -> frozenset[float]:
        """The numbers in it."""
        given = [a for step in self.steps for a in (*step.arguments, *(value for _, value in step.keywords))]
        return frozenset(float(a) for a in given if isinstance(a, (int, float)) and math.isfinite(a))


def held(value: object) -> object:
    """What decides about an attribute's value, the same for each copy of a module: of a number or text itself, of a
    function what it is called with and closes over too, of a bound method not what it is bound to."""
    if isinstance(value, MethodType):
        return value.__func__
    if isinstance(value, functools.partial):
        return value.func, *map(_itself, value.args), *((key, _itself(one)) for key, one in value.keywords.items())
    if isinstance(value, FunctionType) and is_model_code(value.__module__ or ""):
        more = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *_closed_over(value))
        return (value, *map(_itself, more)) if more else value
    return _itself(value)


def _closed_over(function: FunctionType) -> Iterator[object]:
    return (cell.cell_contents for cell in function.__closure__ or () if not is_empty(cell))


def _itself(value: object) -> object:
    hashable = callable(value) and isinstance(value, Hashable)  # not so a data class that can be called
    return value if isinstance(value, _PLAIN) or hashable else type(value)


def formula_of_module(module: nn.Module) -> Formula:
    """What a module without parameters and children computes of its input, by its class's forward and the numbers,
    strings and functions that it holds.

    Raises:
        NotAFormulaError: that is no formula of one tensor.
    """
    cls = type(module)
    if any(child is not None for child in module._modules.values()):
        raise NotAFormulaError("it holds other modules")
    if parameters := [name for name, parameter in module._parameters.items() if parameter is not None]:
        raise NotAFormulaError(f"it has parameters ({', '.join(parameters)})")
    if cls.__call__ is not nn.Module.__call__:
        raise NotAFormulaError("its class has a __call__ of its own")
    forward = inspect.getattr_static(cls, "forward")
    if not isinstance(forward, FunctionType):
        return _formula(module, lambda reader: reader.call(getattr(forward, "__func__", forward), [INPUT], {}))
    code = forward.__code__
    if code.co_argcount != 2 or code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        raise NotAFormulaError("its forward does not take one input alone")
    return _formula(module, lambda reader: reader.call(MethodType(forward, module), [INPUT], {}))


def formula_of(
    function: Callable[..., Any], arguments: Sequence[object] = (), keywords: Mapping[str, object] | None = None
) -> Formula:
    """What ``function(x, *arguments, **keywords)`` computes of x.

    Raises:
        NotAFormulaError: that is no formula of one tensor.
    """
    return _formula(None, lambda reader: reader.call(function, [INPUT, *arguments], dict(keywords or {})))


def formula_in(node: ast.expr, function: FunctionType, variable: str, owner: tuple[str, nn.Module] | None) -> Formula:
    """What an expression in a function's source computes of one of its names.

    Args:
        node: the expression.
        function: whose globals and closure its other names are of.
        variable: the name.
        owner: (the name of the module whose method it is, the module); None where it is no method.

    Raises:
        NotAFormulaError: that is no formula of one tensor.
    """
    name, module = owner or (None, None)
    names = {name: module, variable: INPUT}
    return _formula(module, lambda reader: _Frame(reader, function, names).evaluated(node))


def _formula(owner: nn.Module | None, read: Callable[[_Reader], Any]) -> Formula:
    reader = _Reader(owner)
    try:
        result = read(reader)
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:  # numbers that do not fit a function
        raise NotAFormulaError(f"its numbers do not fit: {error}") from error
    if not isinstance(result, Value):
        raise NotAFormulaError("it gives no tensor")
    return Formula(tuple(reader.steps), result, tuple(reader.reads.items()))


# ---- The functions that a formula is made of

_OPERATIONS = (
    *("abs", "absolute", "add", "clamp", "clamp_max", "clamp_min", "clip", "clone", "div", "divide", "erf", "erfc"),
    *("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "logaddexp", "maximum", "minimum", "mul", "multiply"),
    *("neg", "negative", "ones_like", "positive", "pow", "reciprocal", "relu", "rsqrt", "sigmoid", "sqrt", "square"),
    *("sub", "subtract", "tanh", "true_divide", "where", "zeros_like", "sin", "cos", "sinh", "cosh", "asinh", "sign"),
    *("arctan", "atan", "celu", "selu", "threshold", "hardshrink"),
)
_FUNCTIONAL = (
    *("celu", "hardshrink", "hardsigmoid", "hardtanh", "logsigmoid", "selu", "softplus", "softshrink", "softsign"),
    *("tanhshrink", "threshold"),
)
_SPECIAL = ("erf", "erfc", "exp2", "expit", "expm1", "log1p", "log_ndtr", "ndtr")
_METHODS = frozenset(name for stem in _OPERATIONS for name in (stem, f"{stem}_") if hasattr(Tensor, name))


def _functions() -> Iterator[Any]:
    yield abs
    yield from (getattr(Tensor, name) for name in _METHODS)
    for scope, names in ((torch, _OPERATIONS), (F, _FUNCTIONAL), (torch.special, _SPECIAL)):
        for name in names:
            yield from (getattr(scope, one) for one in (name, f"{name}_") if hasattr(scope, one))


@of_records
def _elementwise(records: tuple[Activation, ...]) -> frozenset[Any]:
    return frozenset((*_functions(), *(call.function for record in records for call in record.calls)))


_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_IN_PLACE: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.iadd,
    ast.Sub: operator.isub,
    ast.Mult: operator.imul,
    ast.Div: operator.itruediv,
    ast.Pow: operator.ipow,
}
_ARITHMETIC = frozenset((*_BINARY.values(), *_IN_PLACE.values()))
_UNARY: Mapping[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARED: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_PLAIN = (int, float, str, type(None))


def is_elementwise(value: object) -> bool:
    """Whether ``value`` is a function of torch that takes each number of its tensors by itself, and draws none."""
    try:
        return value in _elementwise()
    except TypeError:  # not hashable
        return False


def is_elementwise_method(name: str) -> bool:
    """Whether a tensor's method of this name is such a function."""
    return name in _METHODS


def is_of_numbers(value: object) -> bool:
    """Whether ``value`` is a function of plain numbers: one of math's, numpy's, or ``float``."""
    if isinstance(value, BuiltinFunctionType):
        return value.__module__ == "math" or value in (abs, min, max)
    return value in (float, int) or (type(value).__module__, type(value).__name__) == ("numpy", "ufunc")


# ---- Reading


class _Reader:
    """Collects the steps of one formula, from one function and those that it calls."""

    def __init__(self, owner: nn.Module | None) -> None:
        self.owner = owner
        self.steps: list[Step] = []
        self.depth = 0
        self.reads: dict[tuple[str, ...], object] = {}
        self._ways: dict[int, tuple[str, ...]] = {} if owner is None else {id(owner): ()}

    def note(self, base: object, name: str, value: Any) -> None:
        """Keep in mind that an attribute was read, where its object is the module or was reached from there."""
        start = self._ways.get(id(base))
        if start is None or (isinstance(base, nn.Module) and base._buffers.get(name) is not None):
            return
        way = (*start, name)
        self.reads[way] = held(value)
        if not isinstance(value, _PLAIN) and not callable(value):
            self._ways.setdefault(id(value), way)

    def step(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Value:
        if "out" in keywords or "dtype" in keywords:
            raise NotAFormulaError("one of its operations is given out= or dtype=")
        for given in (*arguments, *keywords.values()):
            if not isinstance(given, (Value, *_PLAIN)):
                raise NotAFormulaError(f"one of its operations is given {given!r}")
        self.steps.append(Step(function, tuple(arguments), tuple(sorted(keywords.items()))))
        return Value(len(self.steps))

    def call(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """The result of a call: of torch's elementwise functions, functions of numbers, and the model's own code."""
        values = [a for a in (*arguments, *keywords.values()) if isinstance(a, Value)]
        if isinstance(function, functools.partial):
            return self.call(function.func, [*function.args, *arguments], {**function.keywords, **keywords})
        if isinstance(function, MethodType) and function.__self__ is self.owner:
            method = function.__func__
            assert isinstance(method, FunctionType)
            return self.read(method, [self.owner, *arguments], keywords)
        both = len(values) == len(arguments) == 2  # else the largest number of one tensor
        if values and (is_elementwise(function) or (both and (function is torch.max or function is torch.min))):
            return self.step(function, arguments, keywords)
        if not values and (function is torch.tensor or function is torch.as_tensor):
            return self.step(function, arguments, keywords)
        if not values and is_of_numbers(function):
            return function(*arguments, **keywords)
        if isinstance(function, FunctionType) and is_model_code(function.__module__ or ""):
            return self.read(function, arguments, keywords)
        raise NotAFormulaError(f"{_name(function)} is no elementwise function of torch")

    def read(self, function: FunctionType, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """The result of a function of the model's code."""
        source = faithful_source_of(function)
        if source is None:
            raise NotAFormulaError(f"the source of {_name(function)} is not available, or is not what runs")
        if not isinstance(source.tree, ast.FunctionDef) or source.tree.decorator_list:
            raise NotAFormulaError(f"{_name(function)} is decorated, or a coroutine")
        bound = inspect.signature(function, follow_wrapped=False).bind(*arguments, **keywords)
        bound.apply_defaults()
        self.depth += 1
        if self.depth > 16:
            raise NotAFormulaError(f"{_name(function)} calls itself")
        result = _Frame(self, function, dict(bound.arguments)).run(source.tree.body)
        self.depth -= 1
        return result


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else type(value).__name__


_RUNS_ON = object()  # no return so far
_MISSING = object()


class _Frame:
    """The names of one function while its source is followed."""

    def __init__(self, reader: _Reader, function: FunctionType, names: dict[Any, Any]) -> None:
        self.reader = reader
        self.function = function
        self.names = names
        code = function.__code__
        self.outer = Outer(function)
        self.locals = {*code.co_varnames, *code.co_cellvars}

    def run(self, body: list[ast.stmt]) -> Any:
        """What the statements return; ``_RUNS_ON`` where they do not."""
        for statement in body:
            if isinstance(statement, ast.Return) and statement.value is not None:
                return self.evaluated(statement.value)
            if isinstance(statement, ast.If):
                result = self.run(statement.body if self.known(statement.test) else statement.orelse)
                if result is not _RUNS_ON:
                    return result
            elif isinstance(statement, ast.Expr):
                if not isinstance(statement.value, ast.Constant):
                    self.evaluated(statement.value)
            elif isinstance(statement, ast.Assign) and all(isinstance(t, ast.Name) for t in statement.targets):
                value = self.evaluated(statement.value)
                self.names.update((target.id, value) for target in statement.targets if isinstance(target, ast.Name))
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                self.names[statement.target.id] = self.evaluated(statement.value)
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                now, by = self.evaluated(_loaded(statement.target)), self.evaluated(statement.value)
                function = _IN_PLACE.get(type(statement.op))
                self.names[statement.target.id] = self.operation(function, (now, by), statement)
            elif not isinstance(statement, ast.Pass):
                raise _no_step(statement)
        return _RUNS_ON

    def known(self, test: ast.expr) -> bool:
        """What a condition is, which must not depend on the tensor."""
        value = self.evaluated(test)
        if isinstance(value, Value):
            raise NotAFormulaError(f"it branches on its input: {_first_line(test)}")
        return bool(value)

    def evaluated(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, _PLAIN):
            return node.value
        if isinstance(node, ast.Name):
            return self.named(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.evaluated(node.value), node.attr)
        if isinstance(node, ast.BinOp):
            both = self.evaluated(node.left), self.evaluated(node.right)
            return self.operation(_BINARY.get(type(node.op)), both, node)
        if isinstance(node, ast.UnaryOp):
            return self.operation(_UNARY.get(type(node.op)), (self.evaluated(node.operand),), node)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            both = self.evaluated(node.left), self.evaluated(node.comparators[0])
            return self.operation(_COMPARED.get(type(node.ops[0])), both, node)
        if isinstance(node, ast.IfExp):
            return self.evaluated(node.body if self.known(node.test) else node.orelse)
        if isinstance(node, ast.BoolOp):
            wanted = isinstance(node.op, ast.Or)
            return wanted if any(self.known(value) is wanted for value in node.values) else not wanted
        if isinstance(node, ast.Call):
            return self.called(node)
        raise _no_step(node)

    def operation(self, function: Callable[..., Any] | None, operands: tuple[Any, ...], node: ast.AST) -> Any:
        counts = (int, float) if function in _ARITHMETIC else _PLAIN
        if function is None or not all(isinstance(operand, (Value, *counts)) for operand in operands):
            raise _no_step(node)
        if any(isinstance(operand, Value) for operand in operands):
            if function in (operator.is_, operator.is_not):
                return (function is operator.is_) == (operands[0] is operands[1])
            if function is operator.not_:
                raise _no_step(node)
            return self.reader.step(function, operands, {})
        if function in (operator.pow, operator.ipow):
            return math.pow(*operands)  # which has an end for numbers of any size
        return function(*operands)

    def called(self, node: ast.Call) -> Any:
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise _no_step(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            return _Above(self.outer.cells.get("__class__"))
        function = self.evaluated(node.func)
        given = [self.evaluated(argument) for argument in node.args]
        named = {str(keyword.arg): self.evaluated(keyword.value) for keyword in node.keywords}
        return self.reader.call(function, given, named)

    def named(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name not in self.locals:
            with contextlib.suppress(KeyError):
                return self.outer[name]
        raise NotAFormulaError(f"what {name} is cannot be told")

    def attribute(self, base: Any, name: str) -> Any:
        """What ``base.name`` is, without running a property."""
        if isinstance(base, Value):
            if name not in _METHODS:
                raise NotAFormulaError(f"Tensor.{name} is no elementwise operation")
            return functools.partial(getattr(Tensor, name), base)
        if isinstance(base, ModuleType):
            found = getattr(base, name, _MISSING)
            if found is _MISSING:
                raise NotAFormulaError(f"{_name(base)} has no {name}")
            return found
        if isinstance(base, _Above):
            return self.inherited(base, name)
        if base is self.reader.owner and base is not None:
            found = _held(base, name)
        else:
            try:
                found = vars(base)[name]
            except (TypeError, KeyError):
                raise NotAFormulaError(f"what .{name} of {_name(base)} is cannot be told") from None
        self.reader.note(base, name, found)
        return found

    def inherited(self, above: _Above, name: str) -> Any:
        """What ``super().name`` is."""
        mro = type(self.reader.owner).__mro__
        later = mro[mro.index(above.cls) + 1 :] if above.cls in mro else ()
        for cls in later:
            if isinstance(found := vars(cls).get(name), FunctionType):
                return MethodType(found, self.reader.owner)
        raise NotAFormulaError(f"what super().{name} is cannot be told")


@dataclass(frozen=True)
class _Above:
    """``super()`` in a method of ``cls``."""

    cls: Any


def _held(module: nn.Module, name: str) -> Any:
    """What an attribute of a module is, for as long as nobody assigns another."""
    if name == "training":
        raise NotAFormulaError("it depends on whether the module is in training mode")
    state = vars(module)
    if name in state:
        return state[name]
    if module._parameters.get(name) is not None or module._modules.get(name) is not None:
        raise NotAFormulaError(f"it reads {name}, a parameter or another module")
    if name in module._buffers:
        buffer = module._buffers[name]
        fixed = name in module._non_persistent_buffers_set  # else loading weights changes it
        if buffer is None or not fixed or buffer.dim() or buffer.is_meta or not buffer.is_floating_point():
            raise NotAFormulaError(f"it reads {name}, a buffer")
        return float(buffer)
    if name in module._parameters or name in module._modules:
        return None
    found = inspect.getattr_static(type(module), name, _MISSING)
    if found is _MISSING:
        raise NotAFormulaError(f"it has no attribute {name}")
    if isinstance(found, staticmethod):
        return found.__func__
    return MethodType(found, module) if isinstance(found, FunctionType) else found


def _loaded(name: ast.Name) -> ast.Name:
    return ast.copy_location(ast.Name(name.id, ast.Load()), name)


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]


def _no_step(node: ast.AST) -> NotAFormulaError:
    return NotAFormulaError(f"this is no step of a formula: {_first_line(node)}")
