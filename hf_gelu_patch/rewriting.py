"""Methods rewritten to compute an activation together with what stands around it, and bound on one module.

A rewriting replaces just the expressions that forwards.py has found in the method's text, compiles it with the method's
own globals and closure, below its decorators, and binds it on the instance, never on the class.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.forwards import Expression, Reading, Use
from hf_gelu_patch.implementations import Fused
from hf_gelu_patch.replacements import gated, linear_act, steps
from hf_gelu_patch.sources import (
    Source,
    compiled,
    identifiers,
    lines_of,
    parse,
)

__all__ = ["PatchedMethods", "explained", "rewritten"]


@dataclass
class _Edits:
    """Replacements in a source, each at the node it replaces; rendering a node applies those inside it."""

    source: Source
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
        function: the new method.
        text, helpers: what it is compiled from: its source, and the names it refers to beside its class's own.
        name, where, before: of the function that the text was made of: qualified name, ``file:line``, source.
    """

    function: FunctionType
    text: str
    helpers: tuple[tuple[str, Any], ...]
    name: str
    where: str
    before: str


def rewritten(uses: list[tuple[Use, Fused]]) -> dict[str, Rewriting]:
    """The methods of one module, rewritten to fuse some of its uses, by name.

    Args:
        uses: of one owner, none with an obstacle, each with what computes it.

    Raises:
        PatchError: what was made of a method is no Python.
    """
    methods: dict[str, list[tuple[Use, Fused]]] = {}
    for use, fused in uses:
        methods.setdefault(use.method, []).append((use, fused))
    result = {}
    cls: Any = type(uses[0][0].owner)
    for name, parts in methods.items():
        chosen = tuple(dict.fromkeys((use.expression, None if use.edge else fused) for use, fused in parts))
        reading = parts[0][0].reading
        text, helpers = _edited(reading, chosen)
        assert reading.source is not None
        code = reading.function.__code__
        result[name] = Rewriting(
            compiled(cls, name, text, helpers),
            text,
            helpers,
            reading.function.__qualname__,
            f"{code.co_filename}:{code.co_firstlineno}",
            reading.source.text,
        )
    return result


@functools.lru_cache(maxsize=1024)
def _edited(
    reading: Reading, chosen: tuple[tuple[Expression, Fused | None], ...]
) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """The edited source of a function, and the names it refers to beside its own. ``chosen``: the expressions to fuse,
    each with what computes it, None for an activation module, which says so itself."""
    assert reading.source is not None
    taken = identifiers(reading.function.__code__) | reading.function.__globals__.keys() | vars(builtins).keys()
    helpers: dict[str, Any] = {}
    edits = _Edits(reading.source)

    def helper(name: str, value: Any) -> str:
        free = name
        while free in taken or helpers.get(free, value) is not value:
            free += "_"
        helpers[free] = value
        return free

    for expression, fused in chosen:
        _edit(edits, expression, fused, helper)
    text = edits.text()
    if parse(text) is None:
        name = reading.function.__qualname__
        raise PatchError(
            f"{name} could not be rewritten: exclude={name.partition('.')[0]!r} leaves it alone. "
            f"This is a fault of hf_gelu_patch; what it made of it is\n{text}"
        )
    return text, tuple(helpers.items())


def _edit(edits: _Edits, expression: Expression, fused: Fused | None, helper: Callable[[str, Any], str]) -> None:
    if expression.callee.how == "chain":
        name = helper("steps", steps)
        edits.at[expression.core] = lambda: f"{name}({edits.render(expression.core, itself=False)})"
        return
    core, product, linear, moved = expression.core, expression.product, expression.linear, expression.moved
    if fused is not None and expression.callee.is_method:
        assert isinstance(expression.callee.node, ast.Attribute)
        fused = _of_tensors(fused, expression.callee.node.attr)
    act = edits.render(expression.callee.node) if fused is None else helper(f"patched_{fused.activation}", fused)
    if product is not None and (factors := expression.factors) is not None:
        left, right = factors
        name = helper("gated", gated)
        factor: ast.expr = core
        gate: Callable[[], str] = lambda: _operand(edits, expression.argument)  # noqa: E731
        if moved is not None:
            assert isinstance(moved.targets[0], ast.Name)
            gate = moved.targets[0].id.__str__
            factor = next(side for side in factors if isinstance(side, ast.Name) and side.id == gate())
            edits.at[core] = lambda: _operand(edits, expression.argument)
            if isinstance(expression.argument, ast.Name) and expression.argument.id == gate():
                edits.delete(moved)
        if left is factor:
            edits.at[product] = lambda: f"{name}({act}, {gate()}, {_operand(edits, right)})"
        else:  # evaluated in the order it is written
            edits.at[product] = lambda: f"{name}({act}, up={_operand(edits, left)}, gate={gate()})"
    elif linear is not None:
        name = helper("linear_act", linear_act)
        fusion = lambda: f"{name}({act}, {edits.render(linear.func)}, {_operand(edits, linear.args[0])})"  # noqa: E731
        if moved is None:
            edits.at[core] = fusion
        else:
            assert isinstance(expression.argument, ast.Name)
            edits.at[linear] = fusion
            edits.at[core] = expression.argument.id.__str__
            statement = _assignment_of(edits.source.tree, core)
            if statement is not None and _names(statement.targets) == [expression.argument.id]:
                edits.delete(statement)
    else:
        edits.at[core] = lambda: f"{act}({_operand(edits, expression.argument)})"


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


# ---- Binding

_RECORD = "_hf_gelu_patch"
_SLOTS = ("forward", "_old_forward")  # accelerate keeps the forward it hooked in the second


class PatchedMethods:
    """The methods of one module that were rewritten, bound on it beneath accelerate's hook, and what they replaced.

    Kept in the module's ``__dict__``, ahead of the methods themselves: a bound method is pickled by its name, and
    finds, when it is read back, the one that this record has bound by then.

    Attributes:
        module: whose methods these are.
        methods: by name.
        config_changes: as ``PatchedActivation`` has them.
    """

    def __init__(self, module: nn.Module, methods: dict[str, Rewriting], config_changes: list[Any]) -> None:
        self.module = module
        self.methods = methods
        self.config_changes = config_changes
        self.replaced: dict[str, Any] = {}

    @staticmethod
    def of(module: nn.Module) -> PatchedMethods | None:
        """The record on a module, or None if none of its methods was rewritten."""
        record: PatchedMethods | None = module.__dict__.get(_RECORD)
        return record

    def bind(self) -> None:
        """Put the methods in place."""
        state = self.module.__dict__
        state[_RECORD] = self
        for name, rewriting in self.methods.items():
            slot = "_old_forward" if name == "forward" and "_old_forward" in state else name
            if slot in state:
                self.replaced[name] = state[slot]
            state[slot] = MethodType(rewriting.function, self.module)

    def unbind(self) -> None:
        """Take the methods off again, wherever accelerate has put them by now, and leave what it had done."""
        state = self.module.__dict__
        for name, rewriting in self.methods.items():
            for slot in _SLOTS if name == "forward" else (name,):
                if getattr(state.get(slot), "__func__", None) is not rewriting.function:
                    continue
                if name in self.replaced:
                    state[slot] = self.replaced[name]
                elif slot == "_old_forward":  # hooked after the patch
                    state[slot] = MethodType(getattr(type(self.module), name), self.module)
                else:
                    del state[slot]
        state.pop(_RECORD, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchedMethods:
        made = copy.copy(self)
        memo[id(self)] = made
        made.module = copy.deepcopy(self.module, memo)
        made.replaced = copy.deepcopy(self.replaced, memo)
        made.config_changes = copy.deepcopy(self.config_changes, memo)
        return made

    def __copy__(self) -> PatchedMethods:
        made = object.__new__(PatchedMethods)
        made.__dict__.update(self.__dict__)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        methods = {name: (one.text, one.helpers, one.name, one.where, one.before) for name, one in self.methods.items()}
        return _read_back, (self.module, methods, self.config_changes)


def _read_back(
    module: nn.Module, methods: dict[str, tuple[str, tuple[tuple[str, Any], ...], str, str, str]], config: list[Any]
) -> PatchedMethods:
    cls: Any = type(module)
    record = PatchedMethods(
        module,
        {
            name: Rewriting(compiled(cls, name, text, helpers), text, helpers, *rest)
            for name, (text, helpers, *rest) in methods.items()
        },
        config,
    )
    record.bind()
    return record


def explained(record: PatchedMethods) -> Iterator[tuple[str, str, str, str]]:
    """(function, where, its source before, its source after) of each method of a record."""
    for one in record.methods.values():
        yield one.name, one.where, textwrap.dedent(one.before), textwrap.dedent(one.text)
