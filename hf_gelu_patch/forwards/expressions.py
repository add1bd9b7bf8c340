"""A function read as a syntax tree: the expressions that apply an activation, and what stands around each.

Nothing is known here about any model. What does not match exactly stays as it is.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CodeType, FunctionType

import torch

from hf_gelu_patch.forwards.callees import Callee, Callees
from hf_gelu_patch.forwards.conditions import Condition
from hf_gelu_patch.forwards.flow import Flow
from hf_gelu_patch.forwards.names import Names, dotted
from hf_gelu_patch.forwards.writes import is_written, may_write_over
from hf_gelu_patch.sources import Source, remembered, source_of, why_unfaithful

__all__ = ["Expression", "Reading", "by_itself", "read"]


@dataclass(frozen=True, eq=False)
class Expression:
    """One place in a function where an activation is applied.

    Attributes:
        callee: what applies it.
        core: the node ``act(x)``; where it is written ``x *= torch.sigmoid(x)``, what stands for that product.
        in_place: the statement ``x *= torch.sigmoid(x)``, where it is one.
        arguments: the nodes of further positional and keyword arguments.
        argument: the node x.
        product: the node ``act(x) * up``, where there is one, or ``torch.mul(act(x), up)``.
        moved: the statement that assigns ``act(x)`` to the name that ``product`` then reads, or the one that assigns
            ``linear(x)`` to the name that ``core`` then reads; None where they are one expression.
        linear: the node ``linear(x)``, where x is one.
        only_if: the statement that ``product`` stands in, of which the module decides whether it is evaluated:
            ``if self.up is not None: h = h * self.up(x)``, h being ``act(x)``; or, where there is no product, the one
            that ``core`` stands in, right behind ``linear``.
        exposed: what runs after ``core`` and before ``product`` on something that x may share memory with, and of
            which the source alone does not say that it leaves that as it is: calls, what is assigned to, and where a
            coroutine waits.
        conditions: the tests around it, and what each has to come to for it to be evaluated.
        line, end_line: of ``core``, in the function's file.
        fallback: the expressions inside it, for where a formula is no activation.
        alone: the same without the product, for where that has another factor that is an activation.
    """

    callee: Callee
    core: ast.expr
    argument: ast.expr
    arguments: tuple[tuple[str | None, ast.expr], ...] = ()
    product: ast.expr | None = None
    factors: tuple[ast.expr, ast.expr] | None = None  # of the product
    linear: ast.Call | None = None
    moved: ast.Assign | None = None
    only_if: ast.If | None = None
    exposed: tuple[ast.expr, ...] = ()
    conditions: tuple[Condition, ...] = ()
    line: int = 0
    end_line: int = 0
    fallback: tuple[Expression, ...] = ()
    alone: Expression | None = None
    in_place: ast.AugAssign | None = None

    @property
    def kind(self) -> str:
        if self.product is not None:
            return "gated"
        if self.callee.how == "chain":
            return "linear"
        return "linear" if self.linear is not None else "pointwise"


@functools.lru_cache(maxsize=4096)
def by_itself(expression: Expression) -> Expression:
    """The same activation without what stands around it."""
    return replace(expression, product=None, factors=None, linear=None, moved=None, alone=None, only_if=None)


@dataclass(frozen=True, eq=False)
class Reading:
    """A function's expressions, and why it cannot be rewritten, or None. Without source there are none.

    ``owner_name`` is the parameter that is the module, ``self`` mostly; None where there is none.
    """

    function: FunctionType
    source: Source | None
    expressions: tuple[Expression, ...]
    owner_name: str | None
    obstacle: str | None = None

    @property
    def unfaithful(self) -> str | None:
        """Why its source is not what runs, or None."""
        return None if self.source is None else why_unfaithful(self.function, self.source)


def read(function: FunctionType, *, is_method: bool) -> Reading:
    """The activation expressions of one function, from its source.

    Args:
        function: it.
        is_method: whether its first parameter is the module, whatever it is called; of a helper, that is so if it is
            called ``self``.
    """
    return _read(function, function.__code__, is_method)  # the code, which a reload replaces


@remembered
def _read(function: FunctionType, code: CodeType, is_method: bool) -> Reading:
    first = code.co_varnames[0] if code.co_argcount else None
    owner_name = first if is_method or first == "self" else None
    source = source_of(function)
    if source is None:
        return Reading(function, None, (), owner_name, "its source is not available")
    return Reading(function, source, tuple(_Finder(function, source, owner_name).found()), owner_name)


class _Finder:
    """Finds the expressions of one function."""

    def __init__(self, function: FunctionType, source: Source, owner_name: str | None) -> None:
        self.tree = source.tree
        self.names = Names(function, source, owner_name)
        self.flow = Flow(source, self.names)
        self.callees = Callees(self.names, self.flow)
        self.shift = function.__code__.co_firstlineno - 1  # from the lines of the text to those of the file

    def found(self) -> Iterator[Expression]:
        for statement in self.tree.body:
            yield from self._within(statement)

    def _within(self, node: ast.AST) -> Iterator[Expression]:
        """The expressions at or below a node, a formula's parts being its fallback."""
        if isinstance(node, ast.BinOp) and (variable := self.callees.formula_variable(node)) is not None:
            inner = tuple(expression for child in ast.iter_child_nodes(node) for expression in self._within(child))
            yield self._placed(Expression(Callee("formula", node), node, variable, fallback=inner))
            return
        if isinstance(node, ast.AugAssign) and (written := self.callees.in_place(node)) is not None:
            callee, name = written
            inner = tuple(self._within(node.value))
            line = node.lineno + self.shift
            yield Expression(
                callee,
                callee.node,
                name,
                conditions=self.flow.conditions(node),
                line=line,
                end_line=line,
                fallback=inner,
                in_place=node,
            )
            return
        if isinstance(node, ast.For) and (call := self.callees.chained(node)) is not None:
            callee = Callee("chain", node.iter, tuple(dotted(node.iter)[1]))
            line = call.lineno + self.shift
            conditions = self.flow.conditions(node)
            yield Expression(callee, node.iter, node.iter, conditions=conditions, line=line, end_line=line)
            return
        if isinstance(node, ast.Call) and (applied := self.callees.applied(node)) is not None:
            callee, argument, arguments = applied
            yield self._placed(Expression(callee, node, argument, arguments))
        for child in ast.iter_child_nodes(node):
            yield from self._within(child)

    def _placed(self, bare: Expression) -> Expression:
        """An expression with its lines and what stands around it."""
        core = bare.core
        linear, defined, only_if = self._linear_before(bare)
        expression = replace(
            bare,
            linear=linear,
            moved=defined,
            only_if=only_if,
            conditions=self.flow.conditions(core),
            line=core.lineno + self.shift,
            end_line=(core.end_lineno or core.lineno) + self.shift,
        )
        found = self._product_of(bare, own=linear is not None)
        if found is None:
            return expression
        product, factors, moved, only_if = found
        return replace(
            expression,
            product=product,
            factors=factors,
            linear=None,
            moved=moved,
            only_if=only_if,
            exposed=self._exposed(bare, product, factors, moved, only_if),
            alone=expression,
        )

    def _product_of(
        self, bare: Expression, *, own: bool
    ) -> tuple[ast.expr, tuple[ast.expr, ast.expr], ast.Assign | None, ast.If | None] | None:
        """The product that ``core`` is a factor of, directly or by a name given to it alone; its factors; the statement
        that gives the name; the one around the product where the module decides whether that is evaluated.

        Args:
            bare: the expression.
            own: whether its argument is the result of a module, which nothing else reads.
        """
        parent = self.flow.parents[bare.core]
        if (factors := self._factors(parent, bare.core)) is not None:
            assert isinstance(parent, ast.expr)
            return parent, factors, None, None
        if not (bare.callee.movable and isinstance(parent, ast.Assign) and parent.value is bare.core):
            return None
        use, only_if = self.flow.only_use(parent, own=own), None
        if use is None and (conditional := self.flow.used_on_a_condition(parent)) is not None:
            use, only_if = conditional
        if use is not None and (factors := self._factors(product := self.flow.parents[use], use)) is not None:
            assert isinstance(product, ast.expr)
            return product, factors, parent, only_if
        return None

    def _factors(self, node: ast.AST, factor: ast.expr) -> tuple[ast.expr, ast.expr] | None:
        """The two factors where ``node`` is the product of ``factor`` and something that is no number."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            both = node.left, node.right
        elif isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
            if self.names.static(node.func) not in (torch.mul, torch.multiply) or factor not in node.args:
                return None
            both = node.args[0], node.args[1]
        else:
            return None
        other = both[1] if both[0] is factor else both[0]
        return None if isinstance(other, (ast.Constant, ast.Starred)) else both

    def _linear_before(self, bare: Expression) -> tuple[ast.Call | None, ast.Assign | None, ast.If | None]:
        """The call of a module that x is the result of, directly or by a name given to it alone; the statement that
        gives the name; the one around the expression where the module decides whether it is evaluated."""
        argument = bare.argument
        if self._is_module_call(argument):
            assert isinstance(argument, ast.Call)
            return argument, None, None
        if not (isinstance(argument, ast.Name) and bare.callee.movable):
            return None, None, None
        definition, only_if = self.flow.definition(argument.id, self.flow.statement_of(bare.core)), None
        if definition is None and (conditional := self.flow.given_on_a_condition(argument)) is not None:
            definition, only_if = conditional
        if definition is None or not self._is_module_call(definition.value):
            return None, None, None
        assert isinstance(definition.value, ast.Call)
        if only_if is None and self.flow.only_use(definition) is not argument:
            return None, None, None
        return definition.value, definition, only_if

    def _is_module_call(self, node: ast.AST) -> bool:
        """Whether this calls, with one argument, an attribute of the module or what a loop over modules yields."""
        if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
            return False
        if isinstance(node.args[0], ast.Starred):
            return False
        called = node.func.value if isinstance(node.func, ast.Subscript) else node.func
        return self.names.is_of_owner(called) or (isinstance(called, ast.Name) and called.id in self.names.of_loops)

    def _exposed(
        self,
        bare: Expression,
        product: ast.expr,
        factors: tuple[ast.expr, ast.expr],
        moved: ast.Assign | None,
        only_if: ast.If | None,
    ) -> tuple[ast.expr, ...]:
        """What runs between ``core``, as it is written, and its product, and may write over its argument."""
        held = {node.id for node in ast.walk(bare.argument) if isinstance(node, ast.Name)} - {self.names.owner}
        between: list[ast.AST] = [factors[1]] if factors[0] is bare.core else []
        if moved is not None:
            between = [*self.flow.until(moved, product if only_if is None else only_if)]
        return tuple(
            node
            for part in between
            for node in ast.walk(part)
            if isinstance(node, ast.expr)
            and (is_written(node) or may_write_over(node, held, self.names))
            and not any(inner is product for inner in ast.walk(node))
        )
