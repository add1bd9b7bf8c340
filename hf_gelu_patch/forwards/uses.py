"""Where the methods of one live module use activations."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType

from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.formula_reader import held
from hf_gelu_patch.forwards.callees import Callee
from hf_gelu_patch.forwards.carried import bound_on, bound_otherwise, carried, is_bound_otherwise, reaches
from hf_gelu_patch.forwards.conditions import always, never
from hf_gelu_patch.forwards.expressions import Expression, Reading, by_itself, read
from hf_gelu_patch.forwards.following import Call, calls_of
from hf_gelu_patch.forwards.methods import BY_SUPER, Method
from hf_gelu_patch.forwards.names import MISSING, Names, dotted, reach
from hf_gelu_patch.forwards.own_methods import applied_by, own_method, read_by
from hf_gelu_patch.forwards.replacements import is_linear
from hf_gelu_patch.forwards.resolving import (
    Edge,
    Resolve,
    attributes_in,
    own_function,
    resolve_chain,
    resolve_expression,
)
from hf_gelu_patch.forwards.writes import leaves_its_input, may_pass_on
from hf_gelu_patch.recognition import is_function, methods, resolve_call
from hf_gelu_patch.sources import all_names

__all__ = ["Use", "uses"]


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
        by_method: the method of the module's own that the expression calls to apply it; None where it calls another
            thing.
        calls: those that are followed from the module's methods to the function that holds it; none where a method
            that the module runs itself does.
    """

    owner: nn.Module
    method: str
    reading: Reading
    expression: Expression
    current: Resolved | Unresolved
    edge: Edge | None
    beyond: str | None
    by_method: Callable[..., object] | None = None
    calls: tuple[Call, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The module's methods that are rewritten for it."""
        return tuple(dict.fromkeys(call.method for call in self.calls if call.method)) or (self.method,)

    @property
    def file(self) -> str:
        return self.reading.function.__code__.co_filename

    @property
    def obstacle(self) -> str | None:
        """Why the method that holds it cannot be rewritten, or None."""
        others = (method for method in self.methods if self.beyond is None and is_bound_otherwise(self.owner, method))
        if (other := next(others, None)) is not None:
            return bound_otherwise(self.owner, other)
        return self.beyond or self.reading.obstacle or self.reading.unfaithful

    @property
    def never(self) -> str | None:
        """The condition for it to run that the module does not meet, in words; None where it may run."""
        return never(self.expression.conditions, self.owner, self.reading.owner_name)

    @property
    def overruled(self) -> bool:
        """Whether the module carries another function that runs instead of the method, and does not apply this."""
        bound = carried(self.owner, self.method) if self.beyond is None and not self.calls else None
        if bound is None or reaches(bound, inspect.getattr_static(type(self.owner), self.method, None)):
            return False
        code = getattr(inspect.unwrap(getattr(bound, "__func__", bound)), "__code__", None)
        return code is not None and (self.edge is None or self.edge[1] not in all_names(code))

    @property
    def exposed(self) -> bool:
        """Whether something computed between the activation and its product may write over the activation's input."""
        argument, alone = self.expression.argument, self.expression.alone
        call = argument if isinstance(argument, ast.Call) or alone is None else alone.linear
        if isinstance(call, ast.Call):
            made_by = self._module(call.func)
            if made_by is not None and not may_pass_on(made_by):
                return False  # a tensor of its own
        return not all(
            isinstance(node, ast.Call) and leaves_its_input(self._module(node.func)) for node in self.expression.exposed
        )

    def _module(self, node: ast.expr) -> nn.Module | None:
        """The live module that ``self.a.b`` is."""
        root, names = dotted(node)
        module = reach(self.owner, names) if names and root == self.reading.owner_name else None
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

    def state(self) -> tuple[object, ...]:
        """What decides which activation the expression applies and may be set anew, as ``held``: the function of the
        model's own code that it calls, and attributes of the module."""
        function = () if own_function(self.expression) is None else (held(self.expression.callee.value),)
        nodes = attributes_in(self.expression, self.reading.owner_name)
        return (*function, *(self._now(dotted(node)[1]) for node in nodes))

    def state_of_method(self) -> tuple[tuple[tuple[str, ...], object], ...]:
        """The ways to such attributes that ``by_method`` reads, and what they are."""
        method = self.by_method
        return tuple((way, self._now(way)) for way in read_by(method)) if isinstance(method, FunctionType) else ()

    def _now(self, way: Iterable[str]) -> object:
        return held(reach(self.owner, way))

    @property
    def text(self) -> str:
        """What applies it, as the source says."""
        return ast.unparse(self.expression.callee.node)


def uses(owner: nn.Module, methods: tuple[Method, ...], activation_of: Resolve) -> Iterator[Use]:
    """Every activation expression in the methods of a module, and in the helper functions that those call.

    A method that hands what it is given to an activation, and is called where that can be rewritten, is no place of its
    own: its calls are.

    Args:
        owner: the module.
        methods: ``methods_of`` its class.
        activation_of: ``resolve``, or a lookup of what it has said.
    """
    found = list(_uses(owner, methods, activation_of))
    calls: dict[Callable[..., object], list[Use]] = {}
    for use in found:
        if use.by_method is not None:
            calls.setdefault(use.by_method, []).append(use)
    known = {method for method, of_it in calls.items() if _are_all_calls(method, of_it, methods)}
    for use in found:
        if use.by_method in known or (use.by_method is None and use.reading.function not in known):
            yield use


def _are_all_calls(method: Callable[..., object], calls: list[Use], methods: tuple[Method, ...]) -> bool:
    """Whether these uses, which can be rewritten, are all that the methods of a class do with one of them."""
    name = method.__name__
    mentions = sum(_mentions(inner, name, is_method=as_it_is is not None) for _, as_it_is, inner, _ in methods)
    return mentions == len(calls) and not any(use.obstacle for use in calls)


def _mentions(function: FunctionType, name: str, *, is_method: bool) -> int:
    """How often a function says ``.name`` of what is no library; more often than can be where its source does not
    tell."""
    reading = read(function, is_method=is_method)
    if reading.source is None or reading.unfaithful:
        return int(name in all_names(function.__code__)) << 16
    names = Names(function, reading.source, reading.owner_name)
    return sum(
        isinstance(node, ast.Attribute) and node.attr == name and names.static(node) is MISSING
        for node in ast.walk(reading.source.tree)
    )


def _uses(owner: nn.Module, methods: tuple[Method, ...], activation_of: Resolve) -> Iterator[Use]:
    for number, (name, function, inner, obstacle) in enumerate((*methods, *bound_on(owner))):
        reading = read(inner, is_method=function is not None)
        method = name if function is not None else inner.__qualname__
        by_call = number < len(methods) and obstacle == (None if function is None else BY_SUPER)
        followed = calls_of(type(owner), inner) if by_call and reading.expressions else ()
        if followed:
            obstacle = None
        elif function is None:
            obstacle = f"it stands in {inner.__qualname__}, and not only plain calls lead there"
        if reading.source is None or reading.unfaithful:
            for named in _named_in(inner):
                core = ast.Name("?")
                unread = Expression(Callee("function", core), core, core, line=inner.__code__.co_firstlineno)
                yield Use(owner, method, reading, unread, named, None, obstacle, calls=followed)
            continue
        mine = function is not None or "." not in inner.__qualname__  # its "self" is this module
        pending = list(reading.expressions)
        products: set[ast.expr] = set()  # that have a gate already
        while pending:
            expression = pending.pop(0)
            if expression.callee.how == "chain":
                for edge, current in resolve_chain(expression, owner, activation_of):
                    yield Use(owner, method, reading, expression, current, edge, obstacle, calls=followed)
                continue
            found = resolve_expression(expression, owner if mine else _NOBODY, reading, activation_of)
            by_method = own_method(expression, owner) if mine and found is None else None
            if by_method is not None and (applied := applied_by(by_method, owner, activation_of)) is not None:
                found = applied, None
            if found is None:
                pending[:0] = expression.fallback
                continue
            while (around := expression.only_if) and not always(around.test, owner, reading.owner_name):
                expression = expression.alone or by_itself(expression)
            if expression.product in products and expression.alone is not None:
                expression = expression.alone
            elif expression.product is not None:
                products.add(expression.product)
            yield Use(owner, method, reading, expression, *found, obstacle, by_method, followed)


def _named_in(function: FunctionType) -> Iterator[Resolved]:
    """The activations that a function without source names among its globals."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name, methods().get(name))
        if value is None:
            value = getattr(nn.functional, name, None)
        if value is not None and is_function(value):
            current = resolve_call(value, (), {})
            if isinstance(current, Resolved):
                yield current


_NOBODY = nn.Module()
