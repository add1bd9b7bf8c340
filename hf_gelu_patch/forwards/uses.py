"""A module's methods read as syntax trees: where they apply activations, and what stands around those.

Nothing is known here about any model. A method's source is parsed once; the places where it applies an activation are
found; names are followed where they are assigned once and used once. What does not match exactly stays as it is.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.formulas import NotAFormulaError, formula_in, is_elementwise, is_elementwise_method, is_of_numbers
from hf_gelu_patch.forwards.replacements import is_linear
from hf_gelu_patch.recognition import METHODS, is_function, recognise, resolve_call, resolve_function
from hf_gelu_patch.sources import (
    OUT_OF_REACH,
    Source,
    all_names,
    is_empty,
    is_model_code,
    layers,
    local_names,
    remembered,
    source_of,
    stands_for,
    undecorated,
    why_unfaithful,
)

__all__ = ["Expression", "Reading", "Use", "by_itself", "holds_activation", "methods_of", "reaches", "read", "uses"]

Resolve = Callable[[nn.Module], "Resolved | Unresolved | None"]
"""``recognition.resolve``, or a lookup of what it has said."""

_MISSING = object()


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
        return isinstance(self.node, ast.Attribute) and METHODS.get(self.node.attr) is self.value is not None


@dataclass(frozen=True, eq=False)
class Expression:
    """One place in a function where an activation is applied.

    Attributes:
        callee: what applies it.
        core: the node ``act(x)``.
        arguments: the nodes of further positional and keyword arguments.
        argument: the node x.
        product: the node ``act(x) * up``, where there is one, or ``torch.mul(act(x), up)``.
        moved: the statement that assigns ``act(x)`` to the name that ``product`` then reads, or the one that assigns
            ``linear(x)`` to the name that ``core`` then reads; None where they are one expression.
        linear: the node ``linear(x)``, where x is one.
        exposed: what runs after ``core`` and before ``product`` on something that x may share memory with, and of
            which the source alone does not say that it leaves that as it is: calls, and where a coroutine waits.
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
    exposed: tuple[ast.expr, ...] = ()
    line: int = 0
    end_line: int = 0
    fallback: tuple[Expression, ...] = ()
    alone: Expression | None = None

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
    return replace(expression, product=None, factors=None, linear=None, moved=None, alone=None)


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


# ---- Finding the expressions

_MAKES_A_FORMULA = {torch.erf, torch.exp, torch.special.erf, nn.functional.softplus}
_METHODS_THAT_MAKE_ONE = {"sigmoid", "tanh", "erf", "exp", "relu"}


def _dotted(node: ast.AST) -> tuple[str | None, list[str]]:
    """The first name of ``a.b.c``, None if it starts with no name, and the attributes behind it."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return (node.id if isinstance(node, ast.Name) else None), names


class _Finder:
    """Walks one function."""

    def __init__(self, function: FunctionType, source: Source, owner_name: str | None) -> None:
        self.tree = source.tree
        self.first_line = function.__code__.co_firstlineno
        arguments = self.tree.args
        self.self_name = owner_name
        closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self.cells = {name: cell.cell_contents for name, cell in closure.items() if not is_empty(cell)}
        self.globals = function.__globals__
        self.nodes = [node for statement in self.tree.body for node in ast.walk(statement)]
        stored = {node.id for node in self.nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        parameters = {
            node.arg for part in (arguments, *self.nodes) for node in ast.walk(part) if isinstance(node, ast.arg)
        }
        imported = {
            alias.asname or alias.name.partition(".")[0]
            for node in self.nodes
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        defined = {node.name for node in self.nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        self.locals = stored | parameters | imported | defined
        declared = {n for node in self.nodes if isinstance(node, (ast.Global, ast.Nonlocal)) for n in node.names}
        caught = {node.name for node in self.nodes if isinstance(node, ast.ExceptHandler) and node.name}
        self.shared = declared  # names that others may assign
        self.many = parameters | imported | defined | declared | caught  # names that something else gives a value
        self.imports = {
            alias.asname or alias.name: getattr(sys.modules.get(node.module or ""), alias.name, _MISSING)
            for node in self.nodes
            if isinstance(node, ast.ImportFrom) and not node.level
            for alias in node.names
        }
        self.imports = {
            name: value for name, value in self.imports.items() if name not in stored | parameters | defined
        }
        self.loop_names = {
            node.id
            for loop in self.nodes
            if isinstance(loop, ast.For)
            for node in ast.walk(loop.target)
            if isinstance(node, ast.Name)
        }
        self.parents = {child: node for node in (self.tree, *self.nodes) for child in ast.iter_child_nodes(node)}

    def found(self) -> Iterator[Expression]:
        for statement in self.tree.body:
            yield from self.within(statement)

    def within(self, node: ast.AST) -> Iterator[Expression]:
        """The expressions at or below a node, a formula's parts being its fallback."""
        if isinstance(node, ast.BinOp) and (variable := self.formula_variable(node)) is not None:
            inner = tuple(expression for child in ast.iter_child_nodes(node) for expression in self.within(child))
            yield self.placed(Callee("formula", node), node, variable, (), inner)
            return
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult) and isinstance(node.target, ast.Name):
            name = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
            product = ast.copy_location(ast.BinOp(name, ast.Mult(), node.value), node)
            if self.formula_variable(product) is not None:
                line = node.lineno + self.first_line - 1
                callee = Callee("in place", product)
                yield Expression(
                    callee, product, name, line=line, end_line=line, fallback=tuple(self.within(node.value))
                )
                return
        if isinstance(node, ast.For) and (call := self.chained(node)) is not None:
            callee = Callee("chain", node.iter, tuple(_dotted(node.iter)[1]))
            line = call.lineno + self.first_line - 1
            yield Expression(callee, node.iter, node.iter, line=line, end_line=line)
            return
        if isinstance(node, ast.Call) and (applied := self.applied(node)) is not None:
            callee, argument, arguments = applied
            yield self.placed(callee, node, argument, arguments, ())
        for child in ast.iter_child_nodes(node):
            yield from self.within(child)

    def placed(
        self,
        callee: Callee,
        core: ast.expr,
        argument: ast.expr,
        arguments: tuple[tuple[str | None, ast.expr], ...],
        fallback: tuple[Expression, ...],
    ) -> Expression:
        linear, defined = self.linear_before(callee, core, argument)
        shift = self.first_line - 1
        expression = Expression(
            callee,
            core,
            argument,
            arguments,
            linear=linear,
            moved=defined,
            line=core.lineno + shift,
            end_line=(core.end_lineno or core.lineno) + shift,
            fallback=fallback,
        )
        product, factors, moved = self.product_of(callee, core)
        if product is None or factors is None:
            return expression
        return replace(
            expression,
            product=product,
            factors=factors,
            linear=None,
            moved=moved,
            exposed=self.exposed(core, argument, product, factors, moved),
            alone=expression,
        )

    def chained(self, loop: ast.For) -> ast.Call | None:
        """``layer(x)`` in a loop that does nothing but ``for layer in self.layers: x = layer(x)``."""
        container = self.is_self_chain(loop.iter) or (
            isinstance(loop.iter, ast.Name) and loop.iter.id == self.self_name is not None
        )
        if not container or loop.orelse or len(loop.body) != 1 or not isinstance(loop.target, ast.Name):
            return None
        (step,) = loop.body
        name = self.assigned_name(step)
        call = step.value if isinstance(step, ast.Assign) else None
        if name is None or not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
            return None
        function, argument = call.func, call.args[0]
        layer = loop.target.id
        if not isinstance(function, ast.Name) or function.id != layer or layer == name or layer in self.shared:
            return None
        if sum(isinstance(node, ast.Name) and node.id == layer for node in self.nodes) > 2:  # its target, its call
            return None
        return call if isinstance(argument, ast.Name) and argument.id == name else None

    # -- what is called

    def applied(self, call: ast.Call) -> tuple[Callee, ast.expr, tuple[tuple[str | None, ast.expr], ...]] | None:
        """(what applies an activation, x, further arguments) if this call applies one, as far as its source tells."""
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            return None
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if method in METHODS and not call.args and not call.keywords:
            assert isinstance(call.func, ast.Attribute)
            if self.static(call.func.value) is _MISSING:
                how = "method" if self.is_self_chain(call.func.value) else "function"
                return Callee(how, call.func, METHODS[method]), call.func.value, ()
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
        if self.is_self_chain(node):
            return Callee("self", node, tuple(_dotted(node)[1]))
        value = self.static(node)
        if is_function(value) or (isinstance(value, FunctionType) and _formula_of(value) is not None):
            return Callee("function", node, value)
        if isinstance(value, nn.Module):
            return Callee("object", node, value)
        if isinstance(node, ast.Subscript) and isinstance(table := self.static(node.value), Mapping):
            return Callee("lookup", node, table)
        if (
            isinstance(node, ast.Call)
            and isinstance(cls := self.static(node.func), type)
            and issubclass(cls, nn.Module)
        ):
            return Callee("class", node, cls)
        if isinstance(node, ast.Name) and node.id in self.locals and (assigned := self.only_value(node.id)) is not None:
            if isinstance(assigned, ast.Name):
                return None
            followed = self.callee(assigned)
            return Callee(followed.how, followed.node, followed.value, movable=False) if followed else None
        return None

    def only_value(self, name: str) -> ast.expr | None:
        """The value of a local name that one plain assignment gives it, and nothing else."""
        if name in self.many:
            return None
        stores = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load)]
        if any(self.in_nested_function(store, self.tree.body[0]) for store in stores):
            return None
        parents = [self.parents.get(store) for store in stores]
        if len(stores) == 1 and isinstance(parents[0], ast.Assign) and parents[0].targets == [stores[0]]:
            return parents[0].value
        return None

    def is_self_chain(self, node: ast.AST) -> bool:
        root, names = _dotted(node)
        return bool(names) and root is not None and root == self.self_name

    def static(self, node: ast.AST) -> Any:
        """What a dotted name means whatever the call: a global, a closure's cell, and attributes of modules of them."""
        if isinstance(node, ast.Name):
            if node.id in self.imports:
                return self.imports[node.id]
            if node.id in self.locals or node.id == self.self_name:
                return _MISSING
            for scope in (self.cells, self.globals, vars(builtins)):
                if node.id in scope:
                    return scope[node.id]
        elif isinstance(node, ast.Attribute):
            base = self.static(node.value)
            if isinstance(base, ModuleType):
                return getattr(base, node.attr, _MISSING)
        return _MISSING

    # -- formulas

    def formula_variable(self, node: ast.BinOp) -> ast.expr | None:
        """The one name that a formula of numbers, torch's and math's functions is a function of; None if it is none."""
        variables: list[ast.Name] = []
        makes = [False]

        def fits(part: ast.expr) -> bool:
            if isinstance(part, ast.Constant):
                return isinstance(part.value, (int, float))
            if isinstance(part, ast.BinOp):
                return fits(part.left) and fits(part.right)
            if isinstance(part, ast.UnaryOp):
                return isinstance(part.op, (ast.USub, ast.UAdd)) and fits(part.operand)
            if isinstance(part, ast.Name) and part.id in self.locals:
                variables.append(part)
                return True
            if self.is_self_chain(part):
                return True
            if isinstance(part, (ast.Name, ast.Attribute)):
                return isinstance(self.static(part), (int, float))
            if isinstance(part, ast.Call):
                given = [*part.args, *(k.value for k in part.keywords)]
                value = self.static(part.func)
                if value is not _MISSING:
                    if not is_elementwise(value):
                        return is_of_numbers(value) and all(map(fits, given))
                    makes[0] |= is_function(value) or value in _MAKES_A_FORMULA
                    return all(map(fits, given))
                if isinstance(part.func, ast.Attribute) and is_elementwise_method(part.func.attr):
                    makes[0] |= part.func.attr in _METHODS_THAT_MAKE_ONE
                    return fits(part.func.value) and all(map(fits, given))
            return False

        if not fits(node) or not makes[0] or len({name.id for name in variables}) != 1:
            return None
        return variables[0]

    # -- what stands around it

    def product_of(
        self, callee: Callee, core: ast.expr
    ) -> tuple[ast.expr | None, tuple[ast.expr, ast.expr] | None, ast.Assign | None]:
        """The product that ``core`` is a factor of, directly or by a name given to it alone; its factors; the statement
        that gives the name."""
        parent = self.parents[core]
        if (factors := self.factors(parent, core)) is not None:
            assert isinstance(parent, ast.expr)
            return parent, factors, None
        if callee.movable and isinstance(parent, ast.Assign) and parent.value is core:
            use = self.only_use(parent)
            if use is not None and (factors := self.factors(product := self.parents[use], use)) is not None:
                assert isinstance(product, ast.expr)
                return product, factors, parent
        return None, None, None

    def factors(self, node: ast.AST, factor: ast.expr) -> tuple[ast.expr, ast.expr] | None:
        """The two factors where ``node`` is the product of ``factor`` and something that is no number."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            both = node.left, node.right
        elif isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
            if self.static(node.func) not in (torch.mul, torch.multiply) or factor not in node.args:
                return None
            both = node.args[0], node.args[1]
        else:
            return None
        other = both[1] if both[0] is factor else both[0]
        return None if isinstance(other, (ast.Constant, ast.Starred)) else both

    def linear_before(
        self, callee: Callee, core: ast.expr, argument: ast.expr
    ) -> tuple[ast.Call | None, ast.Assign | None]:
        """The call of a module that x is the result of, directly or by a name given to it alone."""
        if self.is_module_call(argument):
            assert isinstance(argument, ast.Call)
            return argument, None
        if not (isinstance(argument, ast.Name) and callee.movable):
            return None, None
        statement = self.statement_of(core)
        definition = self.definition(argument.id, statement)
        if definition is None or not self.is_module_call(definition.value) or self.only_use(definition) is not argument:
            return None, None
        assert isinstance(definition.value, ast.Call)
        return definition.value, definition

    def is_module_call(self, node: ast.AST) -> bool:
        """Whether this calls, with one argument, an attribute of the module or what a loop over modules yields."""
        if (
            not isinstance(node, ast.Call)
            or len(node.args) != 1
            or node.keywords
            or isinstance(node.args[0], ast.Starred)
        ):
            return False
        function = node.func
        if isinstance(function, ast.Subscript):
            function = function.value
        return self.is_self_chain(function) or (isinstance(function, ast.Name) and function.id in self.loop_names)

    def exposed(
        self,
        core: ast.expr,
        argument: ast.expr,
        product: ast.expr,
        factors: tuple[ast.expr, ast.expr],
        moved: ast.Assign | None,
    ) -> tuple[ast.expr, ...]:
        """What runs between ``core``, as it is written, and its product, and may write over its argument."""
        names = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)} - {self.self_name}
        between: list[ast.AST] = [factors[1]] if factors[0] is core else []
        if moved is not None:
            use = self.statement_of(product)
            block = self.block_of(moved)
            between = [*block[block.index(moved) + 1 : block.index(use)], use]
        return tuple(
            node
            for part in between
            for node in ast.walk(part)
            if isinstance(node, (ast.Call, ast.Yield, ast.YieldFrom, ast.Await))
            and not any(inner is product for inner in ast.walk(node))
            and (
                self.mutates(node)  # whatever its name: that may be another one for the same tensor
                or any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))
            )
            and not (isinstance(node, ast.Call) and self.leaves_as_it_is(node))
        )

    def leaves_as_it_is(self, call: ast.Call) -> bool:
        """Whether a call is of a torch function or a tensor's method that does not work in place, by its name."""
        if any(keyword.arg in ("inplace", "out") for keyword in call.keywords):
            return False
        value = self.static(call.func)
        if value is not _MISSING:
            return _is_pure(value)
        if isinstance(call.func, ast.Attribute) and not self.is_self_chain(call.func):
            return not call.func.attr.endswith("_")
        return False

    # -- names

    def statement_of(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        parent = self.parents[statement]
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and any(one is statement for one in block):
                return block
        return [statement]

    @staticmethod
    def binds(statement: ast.AST, name: str) -> bool:
        return any(
            isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
            for node in ast.walk(statement)
        )

    @staticmethod
    def assigned_name(statement: ast.stmt) -> str | None:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            return target.id if isinstance(target, ast.Name) else None
        return None

    def definition(self, name: str, statement: ast.stmt) -> ast.Assign | None:
        """The assignment, in the same block, whose value ``name`` has when ``statement`` starts."""
        if name in self.shared:
            return None
        block = self.block_of(statement)
        for earlier in reversed(block[: block.index(statement)]):
            if self.binds(earlier, name):
                return earlier if isinstance(earlier, ast.Assign) and self.assigned_name(earlier) == name else None
        return None

    def only_use(self, definition: ast.Assign) -> ast.Name | None:
        """The one place that reads what an assignment gives its name: in a statement of the same block with nothing but
        plain assignments between, which cannot change it."""
        name = self.assigned_name(definition)
        if name is None or name in self.shared or any(isinstance(above, ast.Try) for above in self.above(definition)):
            return None
        reads = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]
        if any(self.in_nested_function(read, definition) for read in reads):
            return None
        block = self.block_of(definition)
        position = block.index(definition)
        for index in range(position + 1, len(block)):
            statement = block[index]
            inside = set(ast.walk(statement))
            here = [read for read in reads if read in inside]
            if not here:
                if not isinstance(statement, ast.Assign) or self.binds(statement, name) or self.mutates(statement):
                    return None
                continue
            if len(here) != 1 or not isinstance(statement, (ast.Assign, ast.Return, ast.AugAssign, ast.Expr)):
                return None
            rebound = self.assigned_name(statement) == name
            if self.binds(statement.value if rebound and isinstance(statement, ast.Assign) else statement, name):
                return None
            if self.in_comprehension(here[0], statement):
                return None
            return here[0] if rebound or not self.read_later(name, reads, here[0], definition, block[index:]) else None
        return None

    def read_later(
        self, name: str, reads: list[ast.Name], use: ast.Name, definition: ast.Assign, rest: list[ast.stmt]
    ) -> bool:
        """Whether anything else may read this value after its use."""
        for statement in rest[1:]:
            if any(read in set(ast.walk(statement)) for read in reads):
                return True
            if self.assigned_name(statement) == name:
                return False
        loops = [above for above in self.above(definition) if isinstance(above, (ast.For, ast.While))]
        if loops:  # the next round may read it, before it is assigned anew
            inside = set(ast.walk(loops[-1]))
            if any(read in inside and read is not use for read in reads):
                return True
        after = (use.lineno, use.col_offset)
        return any((read.lineno, read.col_offset) > after for read in reads if read is not use)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    def in_nested_function(self, node: ast.AST, definition: ast.AST) -> bool:
        nested = (ast.FunctionDef, ast.Lambda, ast.AsyncFunctionDef)
        mine = [above for above in self.above(definition) if isinstance(above, nested)]
        theirs = [above for above in self.above(node) if isinstance(above, nested)]
        return mine != theirs

    def in_comprehension(self, node: ast.AST, statement: ast.stmt) -> bool:
        for above in self.above(node):
            if above is statement:
                return False
            if isinstance(above, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp, ast.BoolOp)):
                return True
        return True

    @staticmethod
    def mutates(statement: ast.AST) -> bool:
        """Whether it assigns to a part of something, calls what works in place, by its name or arguments, or waits."""
        for node in ast.walk(statement):
            if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await)):
                return True
            if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
                return True
            if isinstance(node, ast.Call):
                method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                if method.endswith("_") and not method.endswith("__"):
                    return True
                if any(keyword.arg in ("inplace", "out") for keyword in node.keywords):
                    return True
        return False


def _is_pure(value: object) -> bool:
    """Whether a function is one of math's, or one of torch's that do not work in place."""
    if isinstance(value, BuiltinFunctionType):
        return value.__module__ == "math" or _torch(value)
    return isinstance(value, FunctionType) and value.__module__ in ("torch.nn.functional", "torch.functional")


def _torch(value: Any) -> bool:
    name = getattr(value, "__name__", "")
    return not name.endswith("_") and (
        getattr(torch, name, None) is value
        or getattr(nn.functional, name, None) is value
        or getattr(torch.special, name, None) is value
    )


def _formula_of(function: FunctionType) -> Resolved | Unresolved | None:
    """The activation that a helper of the model's code computes, where it is a formula of its one argument."""
    return _formula_in(function, function.__code__)


@remembered
def _formula_in(function: FunctionType, code: CodeType) -> Resolved | Unresolved | None:
    needed = (
        code.co_argcount
        + code.co_kwonlyargcount
        - len(function.__defaults__ or ())
        - len(function.__kwdefaults__ or ())
    )
    if needed != 1 or not is_model_code(function.__module__ or ""):
        return None
    named = [function.__globals__.get(name) for name in all_names(code)]
    names = all_names(code).union(*(all_names(one.__code__) for one in named if isinstance(one, FunctionType)))
    return resolve_function(function) if names & _NAMES else None


# ---- On one live module


@dataclass(frozen=True, eq=False)
class Use:
    """One activation expression in a method of a live module.

    Attributes:
        owner: the module whose method, or a helper that its methods call, holds the expression.
        method: the method's name; of a helper, its own.
        reading: the method's.
        expression: where in it.
        current: the activation it computes now.
        edge: (the module that holds it, the attribute) for an activation module; None for a function.
        beyond: why the function that holds it cannot be replaced on the module, or None.
    """

    owner: nn.Module
    method: str
    reading: Reading
    expression: Expression
    current: Resolved | Unresolved
    edge: tuple[nn.Module, str] | None
    beyond: str | None

    @property
    def file(self) -> str:
        return self.reading.function.__code__.co_filename

    @property
    def obstacle(self) -> str | None:
        """Why the method that holds it cannot be rewritten, or None."""
        name = type(self.owner).__name__
        if self.beyond is None and _is_bound_otherwise(self.owner, self.method):
            return f"another {self.method} is bound on this {name}"
        return self.beyond or self.reading.obstacle or self.reading.unfaithful

    @property
    def overruled(self) -> bool:
        """Whether the module carries another function that runs instead of the method, and does not apply this."""
        bound = _carried(self.owner, self.method) if self.beyond is None else None
        if bound is None or reaches(bound, inspect.getattr_static(type(self.owner), self.method, None)):
            return False
        code = getattr(inspect.unwrap(getattr(bound, "__func__", bound)), "__code__", None)
        return code is not None and (self.edge is None or self.edge[1] not in all_names(code))

    @property
    def exposed(self) -> bool:
        """Whether something computed between the activation and its product may write over the activation's input."""
        argument = self.expression.argument
        if isinstance(argument, ast.Call):
            made_by = self._module(argument.func)
            if made_by is not None and not isinstance(made_by, _PASSING_ON):
                return False  # a tensor of its own
        return not all(
            isinstance(node, ast.Call) and _leaves_its_input(self._module(node.func))
            for node in self.expression.exposed
        )

    def _module(self, node: ast.expr) -> nn.Module | None:
        """The live module that ``self.a.b`` is."""
        root, names = _dotted(node)
        module = _reach(self.owner, names) if names and root == self.reading.owner_name else None
        return module if isinstance(module, nn.Module) else None

    @property
    def kind(self) -> str:
        """What can be fused here: ``gated``, ``linear``, or ``pointwise``."""
        kind = self.expression.kind
        chained = self.expression.callee.how == "chain"
        if kind == "linear" and ((module := self.linear) is not None or chained) and not is_linear(module):
            return "pointwise"
        return kind

    @property
    def linear(self) -> nn.Module | None:
        """The module whose result the activation takes, where its name says which that is."""
        if self.expression.callee.how == "chain":
            assert self.edge is not None
            container, key = self.edge
            names = list(container._modules)
            return container._modules[names[names.index(key) - 1]] if names[0] != key else None
        call = self.expression.linear
        return None if call is None else self._module(call.func)

    @property
    def text(self) -> str:
        """What applies it, as the source says."""
        return ast.unparse(self.expression.callee.node)


def uses(owner: nn.Module, methods: tuple[Method, ...], activation_of: Resolve) -> Iterator[Use]:
    """Every activation expression in the methods of a module, and in the helper functions that those call.

    Args:
        owner: the module.
        methods: ``methods_of`` its class.
        activation_of: ``resolve``, or a lookup of what it has said.
    """
    for name, function, inner, obstacle in (*methods, *_bound_on(owner)):
        reading = read(inner, is_method=function is not None)
        method = name if function is not None else inner.__qualname__
        if function is None:
            obstacle = f"it stands in {inner.__qualname__}, a function that the forward calls"
        if reading.source is None or reading.unfaithful:
            for named in _named_in(inner):
                core = ast.Name("?")
                unread = Expression(Callee("function", core), core, core, line=inner.__code__.co_firstlineno)
                yield Use(owner, method, reading, unread, named, None, obstacle)
            continue
        mine = function is not None or "." not in inner.__qualname__  # its "self" is this module
        pending = list(reading.expressions)
        products: set[ast.expr] = set()  # that have a gate already
        while pending:
            expression = pending.pop(0)
            if expression.callee.how == "chain":
                for edge, current in _chain(expression, owner, activation_of):
                    yield Use(owner, method, reading, expression, current, edge, obstacle)
                continue
            found = _find(expression, owner if mine else _NOBODY, reading, activation_of)
            if found is None:
                pending[:0] = expression.fallback
                continue
            if expression.product in products and expression.alone is not None:
                expression = expression.alone
            elif expression.product is not None:
                products.add(expression.product)
            yield Use(owner, method, reading, expression, *found, obstacle)


def _bound_on(owner: nn.Module) -> Iterator[Method]:
    """Functions and methods that a module carries as attributes of its own."""
    for name, value in vars(owner).items():
        function = value.__func__ if type(value) is MethodType else value
        if type(function) is not FunctionType or not is_model_code(function.__module__ or ""):
            continue
        if function is value:
            if _mentions_an_activation(function) and _formula_of(function) is None:
                yield name, None, function, None
            continue
        method, holder = function.__name__, value.__self__  # kept under another name, or that of a module it wraps
        if not isinstance(holder, nn.Module) or not stands_for(function, getattr(type(holder), method, None), method):
            yield name, function, function, "it is bound on this module alone"


# Modules whose output may be their input.
_PASSING_ON = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Flatten,
    nn.Unflatten,
)


def _leaves_its_input(module: nn.Module | None) -> bool:
    """Whether a module is one of torch's own, that does not work in place, or a linear layer's wrapper."""
    if module is None or getattr(module, "inplace", False):
        return False
    return type(module).__module__.startswith("torch.nn.modules.") or "Linear" in type(module).__name__


def _is_bound_otherwise(owner: nn.Module, method: str) -> bool:
    """Whether a module carries another method of its own under a name. accelerate's hook does not count, which keeps
    the class's below it."""
    bound = _carried(owner, method)
    own = isinstance(bound, MethodType) and stands_for(bound.__func__, getattr(type(owner), method, None), method)
    return bound is not None and not own


def _carried(owner: nn.Module, method: str) -> Any:
    """What a module carries under a method's name, beneath accelerate's hook; None where it has the class's."""
    state = vars(owner)
    return state.get("_old_forward" if method == "forward" and "_hf_hook" in state else method)


def reaches(value: object, function: object) -> bool:
    """Whether a callable holds a function, however deep: as a bound method, wrapped, partially applied, in a closure or
    in an object's attributes."""
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < 1000:
        held = pending.pop()
        if held is function:
            return True
        if id(held) in seen or isinstance(held, (nn.Module, ModuleType, type)):
            continue
        seen.add(id(held))
        if isinstance(held, MethodType):
            pending += [held.__func__, held.__self__]
        elif isinstance(held, functools.partial):
            pending += [held.func, *held.args, *held.keywords.values()]
        elif isinstance(held, FunctionType):
            pending += [cell.cell_contents for cell in held.__closure__ or () if not is_empty(cell)]
        if callable(held):
            pending += getattr(held, "__dict__", {}).values()
    return False


_NOBODY = nn.Module()


def _container(expression: Expression, owner: nn.Module) -> nn.Module | None:
    container = _reach(owner, expression.callee.value)
    return container if isinstance(container, (nn.Sequential, nn.ModuleList)) else None


def _chain(
    expression: Expression,
    owner: nn.Module,
    activation_of: Resolve,
) -> Iterator[tuple[tuple[nn.Module, str], Resolved | Unresolved]]:
    """(edge, activation) for each activation in the chain that a loop runs through."""
    container = _container(expression, owner)
    for key, module in container._modules.items() if container is not None else ():
        if module is not None and (current := activation_of(module)) is not None:
            assert container is not None
            yield (container, key), current


def _find(
    expression: Expression,
    owner: nn.Module,
    reading: Reading,
    activation_of: Resolve,
) -> tuple[Resolved | Unresolved, tuple[nn.Module, str] | None] | None:
    """(the activation, the edge that holds its module) for this module, or None if this is no activation on it."""
    callee = expression.callee
    if callee.how == "self":
        return _find_attribute(expression, owner, reading, activation_of)
    if callee.how == "method":
        assert isinstance(callee.node, ast.Attribute)
        value = _reach(owner, _dotted(callee.node.value)[1])
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
    if module is _MISSING:
        return Unresolved("which activation it looks up is known when it is called"), None
    return None if module is None else _of_module(module, activation_of)


def _find_attribute(
    expression: Expression, owner: nn.Module, reading: Reading, activation_of: Resolve
) -> tuple[Resolved | Unresolved, tuple[nn.Module, str] | None] | None:
    *way, key = expression.callee.value
    holder = _reach(owner, way)
    value = _attribute(holder, key)
    if isinstance(value, nn.Module):
        if isinstance(holder, nn.Module) and key in holder._modules:
            current = activation_of(value)
            return None if current is None else (current, (holder, key))
        return _of_module(value, activation_of)  # no child of anything: in a plain object, or hidden
    if isinstance(value, functools.partial) and not value.args and is_function(value.func):
        return resolve_call(value.func, (), value.keywords), None
    if value is not None and is_function(value):
        return _called(value, expression, owner, reading), None
    if isinstance(value, FunctionType) and (resolved := _formula_of(value)) is not None:
        return resolved, None
    return None


def holds_activation(value: object) -> bool:
    """Whether an attribute of a module, none of its children, may be an activation: a function, a hidden module."""
    if value is None or not callable(value):
        return False
    if isinstance(value, functools.partial):
        return is_function(value.func)
    return isinstance(value, nn.Module) or _applies_an_activation(value)


def _of_module(module: nn.Module, activation_of: Resolve) -> tuple[Resolved | Unresolved, None] | None:
    """What an activation module that is no part of the model computes."""
    current = activation_of(module)
    return None if current is None else (current, None)


def _called(
    callee: Callable[..., Any], expression: Expression, owner: nn.Module, reading: Reading
) -> Resolved | Unresolved:
    values = [(name, _constant(node, owner, reading)) for name, node in expression.arguments]
    if any(value is _MISSING for _, value in values):
        return Unresolved("it is called with arguments that are not known before the call")
    positional = tuple(value for name, value in values if name is None)
    return resolve_call(callee, positional, {name: value for name, value in values if name is not None})


def _constant(node: ast.expr, owner: nn.Module, reading: Reading) -> Any:
    """A number or string that the source or the module's own attributes give, or _MISSING."""
    root, names = _dotted(node)
    if root is not None:
        value = _reach(owner if names and root == reading.owner_name else _outer_name(root, reading.function), names)
        return value if isinstance(value, (int, float, str)) else _MISSING
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return _MISSING


def _outer_name(name: str, function: FunctionType) -> Any:
    """The value of a name that is no local one of a function or of what is nested in it: a closure's cell, a global."""
    code = function.__code__
    if name in code.co_freevars:
        cell = (function.__closure__ or ())[code.co_freevars.index(name)]
        return _MISSING if is_empty(cell) else cell.cell_contents
    if name in local_names(code):
        return _MISSING
    return function.__globals__.get(name, _MISSING)


def _reach(value: Any, names: Iterable[str]) -> Any:
    """What a way of attributes leads to, or _MISSING."""
    return functools.reduce(_attribute, names, value)


def _attribute(value: Any, name: str) -> Any:
    """An attribute as it stands, or _MISSING: no property of a module is run for it."""
    if isinstance(value, nn.Module):
        for scope in (vars(value), value._modules, value._parameters, value._buffers):
            if name in scope:
                return scope[name]
        found = inspect.getattr_static(type(value), name, _MISSING)
        return found.__func__ if isinstance(found, staticmethod) else found
    try:
        return getattr(value, name, _MISSING)
    except Exception:  # a property of the model's code: whatever it raises, it gives no value here
        return _MISSING


def _built(callee: Callee, owner: nn.Module, reading: Reading) -> Any:
    """The module that ``ACT2FN[...]`` or ``nn.GELU()`` in the source would give; _MISSING where that depends on the
    call, None where it is none."""
    if callee.how == "lookup":
        assert isinstance(callee.node, ast.Subscript)
        key = _constant(callee.node.slice, owner, reading)
        if key is _MISSING:
            return _MISSING if {"gelu", "silu"} <= callee.value.keys() else None
        try:
            value = callee.value[key]
        except Exception:  # a table of the model's own code, and a key that may not be there
            return None
        return value if isinstance(value, nn.Module) else None
    assert isinstance(callee.node, ast.Call)
    given = [_constant(node, owner, reading) for node in callee.node.args]
    named = {str(k.arg): _constant(k.value, owner, reading) for k in callee.node.keywords}
    if not callee.value.__module__.startswith("torch.nn.modules.activation") or _MISSING in (*given, *named.values()):
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


def _named_in(function: FunctionType) -> Iterator[Resolved]:
    """The activations that a function without source names among its globals."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name, METHODS.get(name))
        if value is None:
            value = getattr(nn.functional, name, None)
        if value is not None and is_function(value):
            current = resolve_call(value, (), {})
            if isinstance(current, Resolved):
                yield current


# ---- Which functions are read

_NAMES = {
    *("gelu", "silu", "relu", "relu6", "leaky_relu", "elu", "mish", "hardswish", "sigmoid", "tanh", "erf", "exp"),
    *("relu_", "sigmoid_", "tanh_", "silu_", "elu_", "leaky_relu_", "expit"),
    *("GELU", "SiLU", "ReLU", "ReLU6", "LeakyReLU", "ELU", "Mish", "Hardswish", "Sigmoid", "Tanh"),
    *("ACT2FN", "ACT2CLS", "get_activation"),
}


def _mentions_an_activation(function: FunctionType, attributes: frozenset[str] = frozenset()) -> bool:
    names = all_names(function.__code__)
    if names & _NAMES or names & attributes or function is nn.Sequential.forward:
        return True
    cells = [cell.cell_contents for cell in function.__closure__ or () if not is_empty(cell)]
    values = [value for name in names if (value := function.__globals__.get(name)) is not None]
    for value in (*values, *cells):
        if _applies_an_activation(value):
            return True
        if isinstance(value, ModuleType) and is_model_code(value.__name__):
            inside = vars(value)
            if any(name in inside and _applies_an_activation(inside[name]) for name in names):
                return True
    return False


def _applies_an_activation(value: object) -> bool:
    if isinstance(value, FunctionType):
        return is_function(value) or _formula_of(value) is not None
    return isinstance(value, nn.Module) or (callable(value) and is_function(value))


Method = tuple[str, "FunctionType | None", FunctionType, "str | None"]


def methods_of(cls: type[nn.Module], attributes: frozenset[str]) -> tuple[Method, ...]:
    """The methods of a class that mention an activation, and such of the helper functions that its methods call.

    Args:
        cls: the class.
        attributes: the names under which modules of the whole model hold activations.

    Returns:
        (name, the method as the class has it (None for a helper), the function below its decorators, why it cannot be
        rewritten) of each.
    """
    now = tuple(
        (value, value.__code__) if isinstance(value, FunctionType) else id(value)
        for base in cls.__mro__
        if is_model_code(base.__module__)
        for value in vars(base).values()
    )
    key: Any = cls
    return _methods_of(key, attributes, now)


@functools.lru_cache(maxsize=4096)
def _methods_of(cls: type[nn.Module], attributes: frozenset[str], _: tuple[object, ...]) -> tuple[Method, ...]:
    own = {name for base in cls.__mro__ if is_model_code(base.__module__) for name in vars(base)}
    attributes |= {name for name in own if is_function(getattr(cls, name, None))}
    found: dict[FunctionType, Method] = {}
    seen: set[FunctionType] = set()
    pending: list[tuple[str, object, FunctionType | None, str | None]] = [*_of_class(cls)]
    while pending:
        name, value, method, obstacle = pending.pop(0)
        if not isinstance(value, FunctionType) or not is_model_code(value.__module__ or ""):
            continue
        if value in seen:
            if value in found and method is not None and found[value][0] != name:
                found[value] = (*found[value][:3], f"the class has it under two names, {found[value][0]} and {name}")
            continue
        seen.add(value)
        if method is None and _formula_of(value) is not None:
            continue  # its call is an expression itself
        if _mentions_an_activation(value, attributes):
            found[value] = (name, method, value, obstacle)
        for mentioned in all_names(value.__code__):
            helper = value.__globals__.get(mentioned)
            if isinstance(helper, FunctionType):
                pending.append((mentioned, inspect.unwrap(helper), None, None))
            elif isinstance(helper, type) and not issubclass(helper, nn.Module) and is_model_code(helper.__module__):
                pending += [(mentioned, part, None, None) for part in vars(helper).values()]  # of an object it makes
    return tuple(found.values())


def _of_class(cls: type[nn.Module]) -> Iterator[tuple[str, object, FunctionType | None, str | None]]:
    """Each function of a class, its bases' included: (name, function, the method to be replaced by a rewritten one or
    None, why that cannot be)."""
    overridden: dict[str, list[FunctionType]] = {}
    for base in cls.__mro__:
        if not is_model_code(base.__module__):
            continue
        for name, value in vars(base).items():
            if name in _NOT_FORWARD:
                continue
            above = overridden.setdefault(name, [])
            functions = list(_of_attribute(name, value))
            for function, method, obstacle in functions:
                if not above or base is cls or method is None:
                    yield name, function, method, obstacle
                elif any({"super", base.__name__} & all_names(one.__code__) for one in above):
                    yield name, function, method, "super() reaches it, past anything that is bound on the module"
            above.extend(function for function, _, _ in functions)


def _of_attribute(name: str, value: object) -> Iterator[tuple[FunctionType, FunctionType | None, str | None]]:
    if isinstance(value, property):
        value = value.fget
        if isinstance(value, FunctionType):
            yield value, value, "it is a property"
    elif isinstance(value, (staticmethod, classmethod)):
        if isinstance(value.__func__, FunctionType):
            yield value.__func__, None, None
    elif isinstance(value, FunctionType):
        for layer in layers(value, name):
            yield layer, layer, "it stands in a decorator"
        inner, obstacle = undecorated(value, name)
        if name.startswith("__") and name.endswith("__"):
            obstacle = "it is looked up on the class, not on the module"
        yield inner, value, obstacle
    elif not isinstance(value, type) and hasattr(value, "__dict__"):  # a decorator that is an object
        for held in (*vars(value).values(), getattr(value, "__wrapped__", None), getattr(value, "func", None)):
            if isinstance(held, FunctionType) and (held.__name__ == name or held.__code__.co_varnames[:1] == ("self",)):
                yield held, held, OUT_OF_REACH


_NOT_FORWARD = {"__init__", "_init_weights", "reset_parameters", "init_weights"}
