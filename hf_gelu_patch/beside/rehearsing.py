"""A function of another package carried out on paper, from its file, without importing that package.

What it reads is read on the live objects it is given. What it would write is noted and not written: on a module, on a
class, in a registry. What it writes is seen by what it reads later. So its conditions and loops run as they would.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import functools
import importlib.util
import inspect
import operator
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["FailsError", "Foreign", "Function", "RaisedError", "Rehearsal", "UnreadableError", "Write"]


class UnreadableError(Exception):
    """The function cannot be carried out on paper. The message says where."""


class FailsError(UnreadableError):
    """The function would fail on these objects. The message says where, and how."""


class RaisedError(FailsError):
    """The function would raise on purpose. The message says what."""


@dataclass(frozen=True)
class Foreign:
    """Something of the package that is carried out, which is not imported: a class, a function, a result of one.

    Attributes:
        text: how the source calls it (``LigerSwiGLUMLP.forward``).
        given: what it was called with, where it is the result of a call.
        called: whether it is such a result.
        origin: the module of the package that it is imported from; "" for the rehearsed file's own.
    """

    text: str
    given: tuple[object, ...] = ()
    called: bool = False
    origin: str = ""

    @property
    def root(self) -> str:
        """The first name: that of the class whose method it is, or of what was called."""
        return self.text.partition(".")[0]


@dataclass(frozen=True)
class Write:
    """What would be written.

    Attributes:
        owner: the live object: a module, a class, a Python module, a registry.
        key: the name of the attribute, or the key in a mapping.
        value: what would stand there.
    """

    owner: object
    key: object
    value: object


@dataclass(frozen=True, eq=False)
class _State:
    """``module.__dict__``: what is written in it is written on the module."""

    owner: object


class _ReturnedError(Exception):
    def __init__(self, value: object) -> None:
        self.value = value


class _JumpError(Exception):
    """``continue``, or ``break``."""

    def __init__(self, *, over: bool) -> None:
        self.over = over


_CALLED = {
    *(getattr, hasattr, isinstance, issubclass, len, type, bool, int, str, float, tuple, list, set, frozenset, dict),
    *(range, enumerate, zip, reversed, sorted, any, all, min, max, inspect.signature, functools.partial),
}
"""What is called with live arguments: none of it changes what it is given."""
_ASKED = {"modules", "named_modules", "children", "named_children", "get_submodule", "parameters", "named_parameters"}
"""Methods of modules that are called: they change nothing."""
_IMPORTED = {"transformers", "torch", "packaging", *sys.stdlib_module_names} - {"logging"}
"""Packages that a rehearsed file may import: a model is made of them, or they change nothing by being imported."""
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Mult: operator.mul,
}

Scope = MutableMapping[str, Any]


_DEPTH = 2
"""How far imports within the package are followed: to the file, and to those that it imports from in turn."""


@dataclass(eq=False)
class _Notes:
    """What all files of one rehearsal have in common."""

    package: str
    folder: Path
    writes: list[Write] = field(default_factory=list)
    written: dict[tuple[int, object], object] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    own: dict[int, object] = field(default_factory=dict)  # containers that the rehearsed code has made
    files: dict[str, Rehearsal | None] = field(default_factory=dict)
    trying: int = 0  # how many ``try`` blocks are being carried out


class Rehearsal:
    """A file of a package, and what its functions would write.

    Attributes:
        scope: the names at the file's top.
        classes: its classes, by name.
        open: whether names may be there that are not known: of ``import *``.
    """

    def __init__(self, notes: _Notes, depth: int = 0) -> None:
        self.scope: Scope = {"__name__": notes.package}
        self.classes: dict[str, ast.ClassDef] = {}
        self.open = False
        self._notes, self._depth = notes, depth

    @classmethod
    def of(cls, name: str, folder: Path) -> Rehearsal:
        """The top level of a module carried out.

        Args:
            name: the module's (``liger_kernel.transformers.swiglu``).
            folder: its package's.

        Raises:
            UnreadableError, ImportError: it cannot be, or would fail.
            OSError, SyntaxError: there is no such file, or none of Python's.
        """
        made = cls(_Notes(name.partition(".")[0], folder))
        made._run(name)
        return made

    @property
    def writes(self) -> tuple[Write, ...]:
        """What would have been written so far, in order."""
        return tuple(self._notes.writes)

    @property
    def calls(self) -> tuple[str, ...]:
        """The package's own functions that are not followed and would be called with a live object."""
        return tuple(dict.fromkeys(self._notes.calls))

    def _run(self, name: str) -> None:
        self._notes.files[name] = self
        path = self._notes.folder.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self._block(ast.parse(path.read_text(encoding="utf-8")).body, self.scope)

    def _other(self, name: str) -> Rehearsal | None:
        """Another module of the package; None where it is not read."""
        files = self._notes.files
        if name not in files:
            if self._depth == _DEPTH:
                return None
            try:
                Rehearsal(self._notes, self._depth + 1)._run(name)
            except (UnreadableError, OSError, SyntaxError):
                files[name] = None
            except ImportError:
                del files[name]
                raise
        return files[name]

    # ------------------------------------------------------------------------------------------------- statements

    def _block(self, statements: Sequence[ast.stmt], scope: Scope) -> None:
        for statement in statements:
            try:
                self._do(statement, scope)
            except (_ReturnedError, _JumpError, UnreadableError, ImportError):
                raise
            except Exception as error:  # what the live objects raise where they have no such part
                raise FailsError(f"line {statement.lineno}: {type(error).__name__}: {error}") from error

    @functools.singledispatchmethod
    def _do(self, node: ast.stmt, _scope: Scope) -> None:
        raise UnreadableError(f"line {node.lineno}: {type(node).__name__} is not read here")

    @_do.register(ast.Expr)
    def _(self, node: ast.Expr, scope: Scope) -> None:
        self._value(node.value, scope)

    @_do.register(ast.Assert)
    @_do.register(ast.Global)
    @_do.register(ast.Pass)
    def _(self, _node: ast.Pass, _scope: Scope) -> None:
        pass

    @_do.register(ast.Continue)
    def _(self, _node: ast.Continue, _scope: Scope) -> None:
        raise _JumpError(over=False)

    @_do.register(ast.Break)
    def _(self, _node: ast.Break, _scope: Scope) -> None:
        raise _JumpError(over=True)

    @_do.register(ast.Return)
    def _(self, node: ast.Return, scope: Scope) -> None:
        raise _ReturnedError(None if node.value is None else self._value(node.value, scope))

    @_do.register(ast.Raise)
    def _(self, node: ast.Raise, scope: Scope) -> None:
        error = None if node.exc is None else self._value(node.exc, scope)
        text = f"{error.root}: {', '.join(map(str, error.given))}" if isinstance(error, Foreign) else str(error)
        raise RaisedError(text)

    @_do.register(ast.If)
    def _(self, node: ast.If, scope: Scope) -> None:
        self._block(node.body if self._value(node.test, scope) else node.orelse, scope)

    @_do.register(ast.For)
    def _(self, node: ast.For, scope: Scope) -> None:
        for value in self._value(node.iter, scope):
            self._assign(node.target, value, scope)
            try:
                self._block(node.body, scope)
            except _JumpError as jump:
                if jump.over:
                    return
        self._block(node.orelse, scope)

    @_do.register(ast.Try)
    def _(self, node: ast.Try, scope: Scope) -> None:
        self._notes.trying += 1
        try:
            self._block(node.body, scope)
        except ImportError:
            if not node.handlers:
                raise
            self._block(node.handlers[0].body, scope)
        else:
            self._block(node.orelse, scope)
        finally:
            self._notes.trying -= 1
        self._block(node.finalbody, scope)

    @_do.register(ast.Import)
    def _(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            found = self._imported(alias.name)
            root = alias.name.partition(".")[0]
            scope[alias.asname or root] = found if alias.asname else self._imported(root)

    @_do.register(ast.ImportFrom)
    def _(self, node: ast.ImportFrom, scope: Scope) -> None:
        if node.module == "__future__":
            return
        name = node.module or ""
        source = self._imported(name)
        within = name.partition(".")[0] == self._notes.package
        followed = within and (self._depth > 0 or scope is not self.scope)  # of the first file, what its functions take
        other = self._other(name) if followed else None
        for alias in node.names:
            called = alias.asname or alias.name
            if alias.name == "*":
                self.open = True
            elif other is not None:
                scope[called] = _taken(other, name, alias)
            elif isinstance(source, Foreign):
                scope[called] = Foreign(called, origin=name)
            elif hasattr(source, alias.name):
                scope[called] = getattr(source, alias.name)
            else:
                scope[called] = self._imported(f"{name}.{alias.name}")

    @_do.register(ast.FunctionDef)
    def _(self, node: ast.FunctionDef, scope: Scope) -> None:
        scope[node.name] = Foreign(node.name) if node.decorator_list else Function(self, node, scope)

    @_do.register(ast.ClassDef)
    def _(self, node: ast.ClassDef, scope: Scope) -> None:
        scope[node.name] = Foreign(node.name)
        self.classes[node.name] = node

    def constructor(self, name: str) -> Function | None:
        """The constructor of a class of this file, its own or that of a base in the same file; None where there is
        none."""
        node = self.classes.get(name)
        while node is not None:
            for one in node.body:
                if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                    return Function(self, one, self.scope)
            bases = (self.classes.get(base.id) for base in node.bases if isinstance(base, ast.Name))
            node = next((base for base in bases if base is not None), None)
        return None

    @_do.register(ast.Assign)
    def _(self, node: ast.Assign, scope: Scope) -> None:
        value = self._value(node.value, scope)
        for target in node.targets:
            self._assign(target, value, scope)

    @_do.register(ast.AnnAssign)
    def _(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value is not None:
            self._assign(node.target, self._value(node.value, scope), scope)

    def _assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for one, part in zip(target.elts, value, strict=True):
                self._assign(one, part, scope)
        elif isinstance(target, ast.Attribute):
            self._write(self._value(target.value, scope), target.attr, value)
        elif isinstance(target, ast.Subscript):
            owner, key = self._value(target.value, scope), self._value(target.slice, scope)
            if id(owner) in self._notes.own:
                owner[key] = value
            else:
                self._write(owner.owner if isinstance(owner, _State) else owner, key, value)
        else:
            raise UnreadableError(f"line {target.lineno}: an assignment to {type(target).__name__} is not read here")

    def _write(self, owner: object, key: object, value: object) -> None:
        if not isinstance(owner, Foreign):
            self._notes.writes.append(Write(owner, key, value))
            self._notes.written[id(owner), key] = value

    # ------------------------------------------------------------------------------------------------ expressions

    @functools.singledispatchmethod
    def _value(self, node: ast.expr, _scope: Scope) -> Any:
        raise UnreadableError(f"line {node.lineno}: {type(node).__name__} is not read here")

    def _default(self, node: ast.expr, scope: Scope) -> Any:
        """A parameter's default, which nobody may ever ask for."""
        try:
            return self._value(node, scope)
        except UnreadableError:
            return Foreign(ast.unparse(node))

    @_value.register(ast.Constant)
    def _(self, node: ast.Constant, _scope: Scope) -> Any:
        return node.value

    @_value.register(ast.Name)
    def _(self, node: ast.Name, scope: Scope) -> Any:
        if node.id in scope:
            return scope[node.id]
        if hasattr(builtins, node.id):
            return getattr(builtins, node.id)
        raise UnreadableError(f"line {node.lineno}: the name {node.id} is not known")

    @_value.register(ast.Attribute)
    def _(self, node: ast.Attribute, scope: Scope) -> Any:
        return self._read(self._value(node.value, scope), node.attr)

    def _read(self, owner: Any, name: str, *default: object) -> Any:
        if isinstance(owner, Foreign):
            return Foreign(f"{owner.text}.{name}", origin=owner.origin)
        if name == "__dict__":
            return _State(owner)
        place = id(owner), name
        written = self._notes.written
        return written[place] if place in written else getattr(owner, name, *default)

    @_value.register(ast.Subscript)
    def _(self, node: ast.Subscript, scope: Scope) -> Any:
        owner = self._value(node.value, scope)
        return Foreign(owner.text) if isinstance(owner, Foreign) else owner[self._value(node.slice, scope)]

    @_value.register(ast.Compare)
    def _(self, node: ast.Compare, scope: Scope) -> bool:
        left = self._value(node.left, scope)
        for how, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node, scope)
            if not _OPERATORS[type(how)](left, right):
                return False
            left = right
        return True

    @_value.register(ast.BoolOp)
    def _(self, node: ast.BoolOp, scope: Scope) -> Any:
        value: Any = None
        for one in node.values:
            value = self._value(one, scope)
            if bool(value) == isinstance(node.op, ast.Or):
                break
        return value

    @_value.register(ast.UnaryOp)
    def _(self, node: ast.UnaryOp, scope: Scope) -> Any:
        value = self._value(node.operand, scope)
        return not value if isinstance(node.op, ast.Not) else -value

    @_value.register(ast.BinOp)
    def _(self, node: ast.BinOp, scope: Scope) -> Any:
        made = _OPERATORS[type(node.op)](self._value(node.left, scope), self._value(node.right, scope))
        self._notes.own[id(made)] = made
        return made

    @_value.register(ast.IfExp)
    def _(self, node: ast.IfExp, scope: Scope) -> Any:
        return self._value(node.body if self._value(node.test, scope) else node.orelse, scope)

    @_value.register(ast.JoinedStr)
    def _(self, node: ast.JoinedStr, scope: Scope) -> str:
        parts = (one.value if isinstance(one, ast.FormattedValue) else one for one in node.values)
        return "".join(str(self._value(one, scope)) for one in parts)

    @_value.register(ast.Lambda)
    def _(self, _node: ast.Lambda, _scope: Scope) -> Foreign:
        return Foreign("lambda")

    @_value.register(ast.Tuple)
    @_value.register(ast.List)
    @_value.register(ast.Set)
    def _(self, node: ast.Tuple | ast.List | ast.Set, scope: Scope) -> Any:
        kind = {ast.Tuple: tuple, ast.List: list, ast.Set: set}[type(node)]
        made = kind(self._value(one, scope) for one in node.elts)
        self._notes.own[id(made)] = made
        return made

    @_value.register(ast.Dict)
    def _(self, node: ast.Dict, scope: Scope) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            found = self._value(value, scope)
            made.update(found if key is None else {self._value(key, scope): found})
        self._notes.own[id(made)] = made
        return made

    @_value.register(ast.DictComp)
    def _(self, node: ast.DictComp, scope: Scope) -> dict[Any, Any]:
        inner = self._looped(node.generators, scope)
        made = {self._value(node.key, one): self._value(node.value, one) for one in inner}
        self._notes.own[id(made)] = made
        return made

    @_value.register(ast.ListComp)
    @_value.register(ast.SetComp)
    @_value.register(ast.GeneratorExp)
    def _(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, scope: Scope) -> list[Any]:
        return [self._value(node.elt, one) for one in self._looped(node.generators, scope)]

    def _looped(self, generators: Sequence[ast.comprehension], scope: Scope) -> Iterator[Scope]:
        if not generators:
            yield scope
            return
        first, *rest = generators
        for value in self._value(first.iter, scope):
            inner: Scope = ChainMap({}, scope)
            self._assign(first.target, value, inner)
            if all(self._value(one, inner) for one in first.ifs):
                yield from self._looped(rest, inner)

    @_value.register(ast.Call)
    def _(self, node: ast.Call, scope: Scope) -> Any:
        function = self._value(node.func, scope)
        arguments: list[Any] = []
        for one in node.args:
            value = self._value(one.value if isinstance(one, ast.Starred) else one, scope)
            arguments += value if isinstance(one, ast.Starred) else [value]
        keywords: dict[str, Any] = {}
        for named in node.keywords:
            value = self._value(named.value, scope)
            keywords.update(value if named.arg is None else {named.arg: value})
        return self._called(function, arguments, keywords)

    def _called(self, function: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if function is getattr and len(arguments) > 1:
            return self._read(*arguments)
        if function is isinstance:
            classes = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            return isinstance(arguments[0], tuple(one for one in classes if not isinstance(one, Foreign)))
        if function is setattr:
            return self._write(*arguments)
        if isinstance(function, Foreign):
            if any(inspect.ismodule(one) or isinstance(one, nn.Module) for one in arguments):
                self._note_call(function, arguments)
            return Foreign(function.text, tuple(arguments), called=True, origin=function.origin)
        if isinstance(function, (Function, functools.partial)) or _changes_nothing(function):
            return function(*arguments, **keywords)
        return Foreign(getattr(function, "__name__", type(function).__name__), tuple(arguments), called=True)

    def _note_call(self, function: Foreign, arguments: list[Any]) -> None:
        if not function.text.startswith(("logger.", "logging.")) and not function.text.endswith(".__get__"):
            shown = [getattr(one, "__name__", type(one).__name__) for one in arguments]
            self._notes.calls.append(f"{function.text}({', '.join(shown)})")

    def _imported(self, name: str) -> Any:
        root = name.partition(".")[0]
        if root in _IMPORTED or (name in sys.modules and root != self._notes.package):
            return importlib.import_module(name)
        if self._notes.trying and root != "logging" and importlib.util.find_spec(root) is None:
            raise ImportError(f"there is no {root}")
        return Foreign(name)


def _taken(other: Rehearsal, name: str, alias: ast.alias) -> object:
    """What ``from other import alias`` gives, ``other`` being the module ``name`` of the package.

    Raises:
        ImportError: there is nothing of that name.
    """
    called = alias.asname or alias.name
    if alias.name not in other.scope and not other.open:
        raise ImportError(f"cannot import name {alias.name!r} from {name!r}")
    found = other.scope.get(alias.name)
    if isinstance(found, Function):
        return found.under(called)
    return Foreign(called, origin=name) if found is None or isinstance(found, Foreign) else found


def _changes_nothing(function: Any) -> bool:
    """Whether a live callable is one that may be called."""
    holder = getattr(function, "__self__", None)
    with contextlib.suppress(TypeError):  # not hashable
        if function in _CALLED:
            return True
    name = getattr(function, "__name__", "")
    if isinstance(holder, nn.Module):
        return name in _ASKED
    if type(holder) in (dict, set, frozenset, tuple, list, str):
        return name in {"get", "items", "keys", "values", "startswith", "endswith", "lower", "split", "partition"}
    return getattr(function, "__module__", "").startswith("packaging.")


class Function:
    """A function of the rehearsed file: calling it carries it out on paper."""

    def __init__(self, rehearsal: Rehearsal, node: ast.FunctionDef, scope: Scope) -> None:
        self._rehearsal, self._node, self._scope = rehearsal, node, scope
        self.__name__ = node.name
        given = node.args
        kinds = inspect.Parameter
        parameters = [kinds(one.arg, kinds.POSITIONAL_OR_KEYWORD) for one in (*given.posonlyargs, *given.args)]
        defaults = [rehearsal._default(one, scope) for one in given.defaults]
        for place, default in enumerate(defaults, len(parameters) - len(defaults)):
            parameters[place] = parameters[place].replace(default=default)
        if given.vararg is not None:
            parameters.append(kinds(given.vararg.arg, kinds.VAR_POSITIONAL))
        for one, node_of_default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
            default = kinds.empty if node_of_default is None else rehearsal._default(node_of_default, scope)
            parameters.append(kinds(one.arg, kinds.KEYWORD_ONLY, default=default))
        if given.kwarg is not None:
            parameters.append(kinds(given.kwarg.arg, kinds.VAR_KEYWORD))
        self.__signature__ = inspect.Signature(parameters)

    def under(self, name: str) -> Function:
        """The same, by the name that an import gives it."""
        made = copy.copy(self)
        made.__name__ = name
        return made

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        bound = self.__signature__.bind(*arguments, **keywords)
        bound.apply_defaults()
        for value in bound.arguments.values():
            if type(value) is dict:  # of **kwargs
                self._rehearsal._notes.own[id(value)] = value
        try:
            self._rehearsal._block(self._node.body, ChainMap(dict(bound.arguments), self._scope))
        except _ReturnedError as returned:
            return returned.value
        return None
