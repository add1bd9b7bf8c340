"""Which value a name has where it is read: names that are assigned once and read once, followed through a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from hf_gelu_patch.forwards.conditions import Condition
from hf_gelu_patch.forwards.names import Names
from hf_gelu_patch.forwards.writes import writes
from hf_gelu_patch.sources import Source

__all__ = ["Flow", "assigned_name"]

_LEAVING = (ast.Return, ast.Raise)
_FUNCTIONS = (ast.FunctionDef, ast.Lambda, ast.AsyncFunctionDef)
_SOMETIMES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp, ast.BoolOp)  # or several times


class Flow:
    """The statements of one function and what flows between them."""

    def __init__(self, source: Source, names: Names) -> None:
        self.names = names
        self.tree = source.tree
        self.nodes = [node for statement in self.tree.body for node in ast.walk(statement)]
        self.parents = {child: node for node in (self.tree, *self.nodes) for child in ast.iter_child_nodes(node)}

    # -- the value of a name

    def only_value(self, name: str) -> ast.expr | None:
        """The value of a local name that one plain assignment gives it, and nothing else."""
        if name in self.names.many:
            return None
        stores = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load)]
        if any(self._in_nested_function(store, self.tree.body[0]) for store in stores):
            return None
        parents = [self.parents.get(store) for store in stores]
        if len(stores) == 1 and isinstance(parents[0], ast.Assign) and parents[0].targets == [stores[0]]:
            return parents[0].value
        return None

    def definition(self, name: str, statement: ast.stmt) -> ast.Assign | None:
        """The assignment, in the same block, whose value ``name`` has when ``statement`` starts."""
        if name in self.names.shared:
            return None
        block = self.block_of(statement)
        for earlier in reversed(block[: block.index(statement)]):
            if _binds(earlier, name):
                return earlier if isinstance(earlier, ast.Assign) and assigned_name(earlier) == name else None
        return None

    def only_use(self, definition: ast.Assign, *, own: bool = False) -> ast.Name | None:
        """The one place that reads what an assignment gives its name: in a statement of the same block with nothing
        between that can change it.

        Args:
            definition: the assignment.
            own: whether nothing else can know what it gives, so that statements between which write to other things,
                or to none in one of their branches, cannot change it. Without that, only plain assignments may be
                there.
        """
        name = assigned_name(definition)
        if name is None or not self._is_followed(name, definition):
            return None
        reads = self._reads(name)
        block = self.block_of(definition)
        rest = block[block.index(definition) + 1 :]
        for index, statement in enumerate(rest):
            inside = set(ast.walk(statement))
            here = [read for read in reads if read in inside]
            if here:
                only = self._only_read(name, here, statement)
                if only is None:
                    return None
                last = assigned_name(statement) == name
                return only if last or not self._read_later(name, reads, only, definition, rest[index + 1 :]) else None
            if _binds(statement, name) or not (_is_straight(statement) if own else _is_plain(statement)):
                return None
        return None

    def used_on_a_condition(self, definition: ast.Assign) -> tuple[ast.Name, ast.If] | None:
        """(the read, the statement) where the next thing that happens to what an assignment gives its name is that
        ``if`` gives the name another value made of it: ``if self.up is not None: h = h * self.up(x)``. The condition
        is one of attributes; whatever it comes to, nothing but this reads the value before."""
        name = assigned_name(definition)
        if name is None or not self._is_followed(name, definition):
            return None
        block = self.block_of(definition)
        for statement in block[block.index(definition) + 1 :]:
            here = [read for read in self._reads(name) if read in set(ast.walk(statement))]
            if not here and not _binds(statement, name) and _is_plain(statement):
                continue
            if not isinstance(statement, ast.If) or statement.orelse or not _of_attributes(statement.test):
                return None
            (inner, *more) = statement.body
            if more or len(here) != 1 or assigned_name(inner) != name:
                return None
            read = self._only_read(name, here, inner)
            return None if read is None else (read, statement)
        return None

    def given_on_a_condition(self, use: ast.Name) -> tuple[ast.Assign, ast.If] | None:
        """(the assignment, the statement) where a name is read by nothing but ``if self.act is not None: h = act(h)``,
        right behind the assignment that gives it the value read there."""
        inner = self.statement_of(use)
        around = self.parents[inner]
        if not isinstance(around, ast.If) or assigned_name(inner) != use.id:
            return None
        block = self.block_of(around)
        before = block[block.index(around) - 1] if block[0] is not around else None
        if not isinstance(before, ast.Assign) or self.used_on_a_condition(before) != (use, around):
            return None
        return before, around

    def _is_followed(self, name: str, definition: ast.Assign) -> bool:
        """Whether nothing but the statements of one function, in their order, reads the name."""
        if name in self.names.shared or any(isinstance(above, ast.Try) for above in self._above(definition)):
            return False
        return not any(self._in_nested_function(read, definition) for read in self._reads(name))

    def _reads(self, name: str) -> list[ast.Name]:
        return [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]

    def _only_read(self, name: str, reads: list[ast.Name], statement: ast.stmt) -> ast.Name | None:
        """The one read of a name in a statement that reads it once, whatever happens, before it gives it a value."""
        if len(reads) != 1 or not isinstance(statement, (ast.Assign, ast.Return, ast.AugAssign, ast.Expr)):
            return None
        rebound = assigned_name(statement) == name
        if _binds(statement.value if rebound and isinstance(statement, ast.Assign) else statement, name):
            return None
        return None if self._sometimes(reads[0], statement) else reads[0]

    def _read_later(
        self, name: str, reads: list[ast.Name], use: ast.Name, definition: ast.Assign, rest: list[ast.stmt]
    ) -> bool:
        """Whether anything else may read this value after its use: ``rest`` is what follows in the same block."""
        for statement in rest:
            if any(read in set(ast.walk(statement)) for read in reads):
                return True
            if assigned_name(statement) == name:
                return False
        loops = [above for above in self._above(definition) if isinstance(above, (ast.For, ast.While))]
        if loops:  # the next round may read it, before it is assigned anew
            inside = set(ast.walk(loops[-1]))
            if any(read in inside and read is not use for read in reads):
                return True
        after = (use.lineno, use.col_offset)
        return any((read.lineno, read.col_offset) > after for read in reads if read is not use)

    # -- what stands where

    def conditions(self, node: ast.AST) -> tuple[Condition, ...]:
        """The tests around a node, and what each has to come to for it to be evaluated: of the statements and
        expressions that it is in one branch of, and of those before it whose other branch leaves."""
        found: list[Condition] = []
        for above in (node, *self._above(node)):
            parent = self.parents.get(above)
            if isinstance(parent, (ast.If, ast.IfExp)) and above is not parent.test:
                body = parent.body if isinstance(parent.body, list) else [parent.body]
                found.append((parent.test, any(above is one for one in body)))
            if isinstance(above, ast.stmt) and above is not self.tree:
                block = self.block_of(above)
                found += [
                    (earlier.test, False)
                    for earlier in block[: block.index(above)]
                    if isinstance(earlier, ast.If) and not earlier.orelse and isinstance(earlier.body[-1], _LEAVING)
                ]
            if isinstance(above, _FUNCTIONS):
                break
        return tuple(found)

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The statement that a node is part of."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements that a statement stands among."""
        parent = self.parents[statement]
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and any(one is statement for one in block):
                return block
        return [statement]

    def until(self, start: ast.stmt, end: ast.AST) -> list[ast.stmt]:
        """The statements behind ``start`` up to the one that ``end`` is part of, which is in the same block."""
        block = self.block_of(start)
        last = self.statement_of(end)
        return [*block[block.index(start) + 1 : block.index(last)], last]

    def _above(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            yield node

    def _in_nested_function(self, node: ast.AST, definition: ast.AST) -> bool:
        mine = [above for above in self._above(definition) if isinstance(above, _FUNCTIONS)]
        theirs = [above for above in self._above(node) if isinstance(above, _FUNCTIONS)]
        return mine != theirs

    def _sometimes(self, node: ast.AST, statement: ast.stmt) -> bool:
        """Whether a node may be evaluated never or several times in a statement."""
        for above in self._above(node):
            if above is statement:
                return False
            if isinstance(above, _SOMETIMES):
                return True
        return True


def _binds(statement: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
        for node in ast.walk(statement)
    )


def _is_plain(statement: ast.stmt) -> bool:
    """Whether it assigns to names and does nothing else that can be seen from its source."""
    return isinstance(statement, ast.Assign) and not writes(statement)


def _is_straight(statement: ast.stmt) -> bool:
    """Whether it assigns, calls or raises, perhaps on a condition, and neither leaves otherwise nor repeats itself."""
    if isinstance(statement, ast.If):
        return all(map(_is_straight, (*statement.body, *statement.orelse)))
    waits = any(isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await)) for node in ast.walk(statement))
    return isinstance(statement, (ast.Assign, ast.Expr, ast.Pass, ast.Raise)) and not waits


def _of_attributes(test: ast.expr) -> bool:
    """Whether evaluating a condition does nothing but look at attributes and compare them."""
    return all(isinstance(node, _COMPARING) for node in ast.walk(test))


_COMPARING = (
    *(ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Attribute, ast.Name, ast.Constant, ast.Load),
    *(ast.cmpop, ast.boolop, ast.unaryop),
)


def assigned_name(statement: ast.stmt) -> str | None:
    """The name in ``name = …``; None of any other statement."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None
