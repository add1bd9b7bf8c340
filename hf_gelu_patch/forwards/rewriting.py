"""Methods rewritten to compute an activation together with what stands around it.

A rewriting replaces just the expressions that ``expressions`` has found in the method's text. It is compiled with the
method's own globals and closure, below its decorators.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.forwards.expressions import Expression, Reading, by_itself
from hf_gelu_patch.forwards.following import Call
from hf_gelu_patch.forwards.replacements import (
    OwnMethod,
    Substitute,
    WrittenOut,
    gated,
    gated_last,
    linear_act,
    recorded,
    steps,
)
from hf_gelu_patch.forwards.resolving import attributes_in, own_function
from hf_gelu_patch.forwards.uses import Use
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.sources import (
    Source,
    compiled_copy,
    identifiers,
    lines_of,
    parse,
)

__all__ = ["Followed", "Part", "Rewriting", "as_written", "rewritten"]


@dataclass
class _Edits:
    """Replacements in a source, each at the node it replaces; rendering a node applies those inside it."""

    source: Source
    owner_name: str | None
    at: dict[ast.AST, Callable[[], str]] = field(default_factory=dict)
    deleted: set[ast.stmt] = field(default_factory=set)

    def render(self, node: ast.expr | ast.stmt, itself: bool = True) -> str:
        """The text of a node, edited."""
        if itself and node in self.at:
            return self.at[node]()
        data = self.source.text.encode()
        start, end = self.source.span(node)
        pieces: list[bytes] = []
        for inner in sorted(self._outermost(node), key=self.source.span):
            begin, finish = self.source.span(inner)
            pieces += [data[start:begin], self.render(inner).encode()]
            start = finish
        return b"".join([*pieces, data[start:end]]).decode()

    def _outermost(self, node: ast.AST) -> Iterator[Any]:
        for child in ast.iter_child_nodes(node):
            if child in self.at:
                yield child
            else:
                yield from self._outermost(child)

    def delete(self, statement: ast.stmt) -> None:
        """Leave out the lines of a statement, if nothing else stands on them."""
        lines = lines_of(self.source.text)
        assert statement.end_lineno is not None
        first, last = lines[statement.lineno - 1].encode(), lines[statement.end_lineno - 1].encode()
        rest = last[statement.end_col_offset :].strip()
        if not first[: statement.col_offset].strip() and (not rest or rest.startswith(b"#")):
            self.deleted.add(statement)

    def text(self) -> str:
        """The whole function's text, edited."""
        data = self.source.text.encode()
        tree = self.source.tree
        pieces: list[bytes] = []
        start = 0
        edits = sorted([*self._outermost(tree), *self.deleted], key=self.source.span)
        for node in edits:
            begin, finish = self.source.span(node)
            if begin < start:  # inside a deleted statement
                continue
            if node in self.deleted:  # whole lines
                pieces.append(data[start : self.source.offsets[node.lineno - 1]])
                start = self.source.offsets[node.end_lineno]
            else:
                pieces += [data[start:begin], self.render(node).encode()]
                start = finish
        return b"".join([*pieces, data[start:]]).decode()


@dataclass(frozen=True)
class Rewriting:
    """One method of a class, rewritten.

    Attributes:
        method: its name.
        text, helpers: what it is compiled from: its source, and the names it refers to beside its class's own.
        name, where, before: of the function that the text was made of: qualified name, ``file:line``, source.
        around: what is called in the method's place, with the method and what that is given; None: the method is.
        swaps: whether its text computes another function than the class's own.
    """

    method: str
    text: str
    helpers: tuple[tuple[str, Any], ...]
    name: str
    where: str
    before: str
    around: Callable[..., Any] | None = None
    swaps: bool = False

    @property
    def shown(self) -> tuple[str, str, str, str]:
        """(function, where, its source before, its source after)."""
        around = "" if self.around is None else f"@{self.around}\n"
        return self.name, self.where, textwrap.dedent(self.before), around + textwrap.dedent(self.text)

    @property
    def followed(self) -> tuple[Rewriting, ...]:
        """The functions that it calls, and those that these call, that are rewritten with it."""
        below = [value.rewriting for _, value in self.helpers if isinstance(value, Followed)]
        return tuple(dict.fromkeys(one for inner in below for one in (inner, *inner.followed)))


@dataclass(frozen=True)
class Followed:
    """What is called in the stead of a function that a rewritten method calls: the function, rewritten.

    It takes the function's place only while that is what is called there. What ``super()`` gives, torch.compile takes
    for a function without telling which: there the module is handed in too, where the copy computes another function.

    Attributes:
        function: it, with its decorators.
        rewriting: of it.
    """

    function: FunctionType
    rewriting: Rewriting
    _made: FunctionType = field(init=False, repr=False, compare=False)
    _is_static: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = compiled_copy(self.function, self.rewriting.text, self.rewriting.helpers)
        object.__setattr__(self, "_made", made)
        object.__setattr__(self, "_is_static", inspect.unwrap(self.function).__code__.co_varnames[:1] != ("self",))

    def __reduce__(self) -> tuple[Any, ...]:
        return Followed, (self.function, self.rewriting)

    def __call__(self, called: Any, owner: nn.Module | None = None) -> Any:
        if recorded() and not self.rewriting.swaps:
            return called
        if called is self.function:
            return self._made
        if type(called) is MethodType and called.__func__ is self.function:
            return MethodType(self._made, called.__self__)
        if owner is not None and torch.compiler.is_compiling():
            if self._is_static:
                raise PatchError(f"torch.compile does not tell what super() gives for {self.function.__qualname__}")
            if type(called) is FunctionType:
                return functools.partial(self._made, owner)
        return called


@dataclass(frozen=True)
class Part:
    """One use to be rewritten.

    Attributes:
        use: of a method, without an obstacle.
        by: what computes it: a function's successor, or a module's, a method's or an expression's substitute.
        fused: with what stands around it, or by itself.
        swaps: whether it is another function that the text names, not a module.
    """

    use: Use
    by: _By
    fused: bool
    swaps: bool = False


_By = Fused | Substitute | OwnMethod | WrittenOut
_Chosen = tuple[
    Expression, str | None, "Fused | Substitute | OwnMethod | WrittenOut"
]  # the second: of a chain, the layer's key
_Calls = tuple[tuple[ast.expr, Followed], ...]  # what is called, as it is written, and what in its stead


def rewritten(parts: list[Part]) -> tuple[Rewriting, ...]:
    """The methods of one module, rewritten where it uses activations, and with them the functions that they call.

    Args:
        parts: all of one owner.

    Raises:
        PatchError: what was made of a method is no Python.
    """
    chosen: dict[FunctionType, list[_Chosen]] = {}
    swaps = {part.use.reading.function for part in parts if part.swaps}
    calls: dict[FunctionType, list[Call]] = {}
    methods: dict[str, Reading] = {}
    for part in parts:
        use = part.use
        chosen.setdefault(use.reading.function, []).append(_chosen(part))
        if not use.calls:
            methods[use.method] = use.reading
        for call in use.calls:
            calls.setdefault(call.reading.function, []).append(call)
            if call.method is not None:
                methods[call.method] = call.reading
    readings = {part.use.reading.function: part.use.reading for part in parts}
    readings |= {one[0].reading.function: one[0].reading for one in calls.values()}

    def made(name: str, function: FunctionType) -> Rewriting:
        inside = {call.node: call for call in calls.get(function, ())}
        followed = tuple(
            (node, _followed(call.whole, made(call.whole.__name__, call.function))) for node, call in inside.items()
        )
        one = _rewriting(name, readings[function], tuple(dict.fromkeys(chosen.get(function, ()))), followed)
        return replace(one, swaps=function in swaps or any(inner.rewriting.swaps for _, inner in followed))

    return tuple(made(name, reading.function) for name, reading in methods.items())


_followed = functools.lru_cache(maxsize=1024)(Followed)  # the same object for each module of a class


def _rewriting(method: str, reading: Reading, chosen: tuple[_Chosen, ...], calls: _Calls) -> Rewriting:
    text, helpers = _edited(reading, chosen, calls)
    assert reading.source is not None
    return replace(as_written(method, reading.function, reading.source), text=text, helpers=helpers)


def as_written(method: str, function: FunctionType, source: Source) -> Rewriting:
    """A method of which nothing is rewritten."""
    code = function.__code__
    where = f"{code.co_filename}:{code.co_firstlineno}"
    return Rewriting(method, source.text, (), function.__qualname__, where, source.text)


def _chosen(part: Part) -> _Chosen:
    expression = part.use.expression
    if expression.callee.how == "chain":
        assert part.use.edge is not None
        return expression, part.use.edge[1], part.by
    return (expression if part.fused else by_itself(expression)), None, part.by


@functools.lru_cache(maxsize=1024)
def _edited(reading: Reading, chosen: tuple[_Chosen, ...], calls: _Calls) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """The edited source of a function, and the names it refers to beside its own."""
    assert reading.source is not None
    taken = identifiers(reading.function.__code__) | reading.function.__globals__.keys() | vars(builtins).keys()
    helpers: dict[str, Any] = {}
    edits = _Edits(reading.source, reading.owner_name)

    def helper(name: str, value: Any) -> str:
        free = name
        while free in taken or helpers.get(free, value) is not value:
            free += "_"
        helpers[free] = value
        return free

    chains: dict[Expression, list[tuple[str, Substitute]]] = {}
    for expression, key, by in chosen:
        if key is None:
            _edit(edits, expression, by, helper)
        else:
            assert isinstance(by, Substitute)
            chains.setdefault(expression, []).append((key, by))
    for expression, layers in chains.items():
        _edit_chain(edits, expression, tuple(layers), helper)
    for node, followed in calls:
        _edit_call(edits, node, helper(f"patched_{followed.function.__name__}", followed), followed)
    text = edits.text()
    if parse(text) is None:
        name = reading.function.__qualname__
        raise PatchError(
            f"{name} could not be rewritten: exclude={name.partition('.')[0]!r} leaves it alone. "
            f"This is a fault of hf_gelu_patch; what it made of it is\n{text}"
        )
    return text, tuple(helpers.items())


_Helper = Callable[[str, Any], str]


def _edit_call(edits: _Edits, called: ast.expr, name: str, followed: Followed) -> None:
    by_super = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Call)
    owner = f", {edits.owner_name}" if by_super and followed.rewriting.swaps else ""
    edits.at[called] = lambda: f"{name}({edits.render(called, itself=False)}{owner})"


def _edit_chain(
    edits: _Edits, expression: Expression, layers: tuple[tuple[str, Substitute], ...], helper: _Helper
) -> None:
    name, patched = helper("steps", steps), helper("patched_layers", layers)
    edits.at[expression.core] = lambda: f"{name}({edits.render(expression.core, itself=False)}, {patched})"


def _edit(edits: _Edits, expression: Expression, by: _By, helper: _Helper) -> None:
    core, product, linear, moved = expression.core, expression.product, expression.linear, expression.moved
    act = _applied(edits, expression, by, helper)
    if expression.in_place is not None:
        edits.at[expression.in_place] = lambda: f"{act}({_operand(edits, expression.argument)})"
    elif product is not None and (factors := expression.factors) is not None:
        left, right = factors
        factor: ast.expr = core
        gate: Callable[[], str] = lambda: _operand(edits, expression.argument)  # noqa: E731
        if moved is not None:
            assert isinstance(moved.targets[0], ast.Name)
            gate = moved.targets[0].id.__str__
            factor = next(side for side in factors if isinstance(side, ast.Name) and side.id == gate())
            edits.at[core] = lambda: _operand(edits, expression.argument)
            if isinstance(expression.argument, ast.Name) and expression.argument.id == gate():
                edits.delete(moved)
            if expression.only_if is not None:
                _edit_otherwise(edits, expression.only_if, f"{gate()} = {act}({gate()})")
        if left is factor:
            name = helper("gated", gated)
            edits.at[product] = lambda: f"{name}({act}, {gate()}, {_operand(edits, right)})"
        else:  # evaluated in the order it is written
            name = helper("gated_last", gated_last)
            edits.at[product] = lambda: f"{name}({act}, {_operand(edits, left)}, {gate()})"
    elif linear is not None:
        name = helper("linear_act", linear_act)
        fusion = lambda: f"{name}({act}, {edits.render(linear.func)}, {_operand(edits, linear.args[0])})"  # noqa: E731
        if moved is None:
            edits.at[core] = fusion
        elif expression.only_if is not None:
            assert isinstance(expression.argument, ast.Name)
            taken, func = expression.argument.id, edits.render(linear.func)
            edits.at[linear] = lambda: _operand(edits, linear.args[0])
            if isinstance(linear.args[0], ast.Name) and linear.args[0].id == taken:
                edits.delete(moved)
            edits.at[core] = lambda: f"{name}({act}, {func}, {taken})"
            _edit_otherwise(edits, expression.only_if, f"{taken} = {func}({taken})")
        else:
            assert isinstance(expression.argument, ast.Name)
            edits.at[linear] = fusion
            edits.at[core] = expression.argument.id.__str__
            statement = _assignment_of(edits.source.tree, core)
            if statement is not None and _names(statement.targets) == [expression.argument.id]:
                edits.delete(statement)
    else:
        edits.at[core] = lambda: f"{act}({_operand(edits, expression.argument)})"


def _edit_otherwise(edits: _Edits, statement: ast.If, otherwise: str) -> None:
    """Give an ``if`` that has none an ``else``."""
    (last,) = statement.body
    line = lines_of(edits.source.text)[statement.lineno - 1].encode()
    indent = line[: statement.col_offset].decode()
    edits.at[last] = lambda: f"{edits.render(last, itself=False)}\n{indent}else:\n{indent}    {otherwise}"


def _applied(edits: _Edits, expression: Expression, by: _By, helper: _Helper) -> str:
    """What applies the activation: ``patched_silu``, ``patched_silu(self.act)`` for a module or a method, or
    ``patched_leaky_relu(lambda x: F.leaky_relu(x, self.slope), self.slope)``."""
    if isinstance(by, WrittenOut):
        function = own_function(expression)
        now = [*([] if function is None else [function]), *attributes_in(expression, edits.owner_name)]
        given = ", ".join([_as_function(expression), *map(ast.unparse, now)])
        return f"{helper(f'patched_{by.fused.activation}', by)}({given})"
    if not isinstance(by, Fused):
        return f"{helper(f'patched_{by.fused.activation}', by)}({edits.render(expression.callee.node)})"
    if expression.callee.is_method:
        assert isinstance(expression.callee.node, ast.Attribute)
        by = _of_tensors(by, expression.callee.node.attr)
    return helper(f"patched_{by.activation}", by)


def _as_function(expression: Expression) -> str:
    """The source of a function that applies the activation as the expression does."""
    argument = expression.argument
    if expression.callee.how == "formula":
        assert isinstance(argument, ast.Name)
        return f"lambda {argument.id}: {ast.unparse(expression.core)}"
    names = {node.id for node in ast.walk(expression.core) if isinstance(node, ast.Name)}
    name = "x"
    while name in names:
        name += "_"
    copies: dict[int, Any] = {id(argument): ast.Name(name, ast.Load())}
    return f"lambda {name}: {ast.unparse(copy.deepcopy(expression.core, copies))}"


@functools.lru_cache(maxsize=256)
def _of_tensors(fused: Fused, method: str) -> Fused:
    """``fused`` for what is written as a method, which may be that of an object that is no tensor."""
    return replace(fused, eager=functools.partial(_method_of, method, fused.eager))


def _method_of(name: str, function: Callable[[Tensor], Tensor], x: Any) -> Any:
    return function(x) if isinstance(x, Tensor) else getattr(x, name)()


def _assignment_of(tree: ast.AST, value: ast.expr) -> ast.Assign | None:
    return next((node for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.value is value), None)


def _names(targets: list[ast.expr]) -> list[str]:
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _operand(edits: _Edits, node: ast.expr) -> str:
    """The text of a node as it can stand alone or as an argument: its span leaves out the brackets around it."""
    text = edits.render(node)
    return f"({text})" if "\n" in text or isinstance(node, _NEED_BRACKETS) else text


_NEED_BRACKETS = (
    *(ast.NamedExpr, ast.Lambda, ast.GeneratorExp, ast.IfExp, ast.Tuple),
    *(ast.Yield, ast.YieldFrom, ast.Await),
)
