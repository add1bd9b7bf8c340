"""A function as text: its source read, and compiled again in the function's own surroundings."""

from __future__ import annotations
import __future__

import ast
import builtins
import copy
import dis
import functools
import inspect
import itertools
import linecache
import re
import tokenize
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

__all__ = [
    "OUT_OF_REACH",
    "Outer",
    "Source",
    "all_names",
    "class_attribute",
    "compile_function",
    "compiled",
    "compiled_copy",
    "faithful_source_of",
    "identifiers",
    "is_empty",
    "is_model_code",
    "layers",
    "lines_of",
    "local_names",
    "passed_on",
    "remembered",
    "show_as_written",
    "source_of",
    "stands_for",
    "undecorated",
    "why_unfaithful",
]

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Source:
    """The text of one function as it stands in its file, and its syntax tree, whose positions are those of the text."""

    text: str
    tree: ast.FunctionDef | ast.AsyncFunctionDef
    offsets: tuple[int, ...]  # of each line, in bytes of UTF-8, as ast counts columns

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.offsets[node.lineno - 1] + node.col_offset,
            self.offsets[node.end_lineno - 1] + node.end_col_offset,
        )


def remembered(answer: Callable[Concatenate[FunctionType, _P], _R]) -> Callable[Concatenate[FunctionType, _P], _R]:
    """Cache what is asked of functions, but of those that close over more than their class: one that a module carries
    may hold the whole model, and a cache would keep that alive."""
    cached: Callable[..., _R] = functools.lru_cache(maxsize=4096)(answer)

    def ask(function: FunctionType, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        lasting = {*function.__code__.co_freevars} <= {"__class__"}
        return cached(function, *args, **kwargs) if lasting else answer(function, *args, **kwargs)

    functools.update_wrapper(ask, answer)
    return ask


def source_of(function: FunctionType) -> Source | None:
    """The source of a function, or None where there is none, or it is not what runs."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    first, last = code.co_firstlineno, _last_line(code)
    ends = iter(range(last, min(last + 3, len(lines)) + 1))  # closing brackets run no code of their own
    for text in itertools.chain(("".join(lines[first - 1 : end]) for end in ends), _block(lines[first - 1 :])):
        if (tree := parse(text)) is not None:
            offsets = [0]
            for line in lines_of(text):
                offsets.append(offsets[-1] + len(line.encode()))
            return Source(text, tree, tuple(offsets))
    return None


def faithful_source_of(function: FunctionType) -> Source | None:
    """The source of a function whose text, compiled, is the code that runs; else None."""
    source = _source_of(function, function.__code__)  # which a reload replaces
    return source if source is not None and why_unfaithful(function, source) is None else None


@remembered
def _source_of(function: FunctionType, _: CodeType) -> Source | None:
    return source_of(function)


@remembered
def why_unfaithful(function: FunctionType, source: Source) -> str | None:
    """An objection where a source, compiled, is not the code that runs: a file that was changed since, names that only
    mean something inside the class's body."""
    try:
        code = compile_function(source.text, function, function.__code__.co_filename)
    except (SyntaxError, ValueError, StopIteration) as error:
        return f"its source cannot be compiled again: {error}"
    return None if does_the_same(code, function.__code__) else "its source is not the code that runs"


def _block(lines: list[str]) -> Iterator[str]:
    """The first block of these lines, as the tokenizer sees it."""
    try:
        yield "".join(inspect.getblock(lines))
    except (SyntaxError, IndentationError, tokenize.TokenError):
        return


def lines_of(text: str) -> list[str]:
    """The lines of a text as Python counts them: at line feeds alone, which they keep."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse(text: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function that ``text``, indented or not, defines; its lines counted from 1."""
    try:
        body = ast.parse("if True:\n" + text if text[:1].isspace() else text).body
        if text[:1].isspace():
            (outer,) = body
            assert isinstance(outer, ast.If)
            body = [ast.increment_lineno(node, -1) for node in outer.body]
    except (SyntaxError, ValueError):
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _last_line(code: CodeType) -> int:
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return max([code.co_firstlineno, *lines, *(_last_line(c) for c in code.co_consts if isinstance(c, CodeType))])


@functools.lru_cache(maxsize=4096)
def all_names(code: CodeType) -> frozenset[str]:
    nested = (all_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*nested)


@functools.lru_cache(maxsize=4096)
def local_names(code: CodeType) -> frozenset[str]:
    """Every name that is local to a function or to one nested in it."""
    nested = (local_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset((*code.co_varnames, *code.co_cellvars)).union(*nested)


def identifiers(code: CodeType) -> frozenset[str]:
    """Every name that means something in a function or in one nested in it."""
    return all_names(code) | local_names(code) | frozenset(code.co_freevars)


def is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


class Outer:
    """What the names of a function mean that it gives no value itself: in its closure, its module, and of Python's own.

    Attributes:
        cells: the closure's names that have a value.
    """

    def __init__(self, function: FunctionType) -> None:
        closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.cells = {name: cell.cell_contents for name, cell in closure if not is_empty(cell)}
        self._scopes = (self.cells, function.__globals__, vars(builtins))

    def __getitem__(self, name: str) -> Any:
        for scope in self._scopes:
            if name in scope:
                return scope[name]
        raise KeyError(name)


# ---- The functions of a class

_NOT_MODEL_CODE = ("torch", "transformers.modeling_utils", "transformers.generation", "transformers.utils")


def is_model_code(module: str) -> bool:
    return module == nn.Sequential.__module__ or not any(
        module == name or module.startswith(name + ".") for name in _NOT_MODEL_CODE
    )


def class_attribute(cls: type, name: str) -> object:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name] if is_model_code(base.__module__) else None
    return None


def undecorated(function: FunctionType, name: str) -> tuple[FunctionType, str | None]:
    """The function below a method's decorators, and why a rewritten one could not take its place there, or None."""
    obstacle = None
    while True:
        if _WRITTEN in function.__code__.co_freevars:  # compiled here, whatever it is shown as
            return function, obstacle
        if (cell := _decorated_cell(function, name)) is not None:
            function = cell.cell_contents
        elif isinstance(wrapped := getattr(function, "__wrapped__", None), FunctionType):
            function, obstacle = wrapped, OUT_OF_REACH
        else:
            return function, obstacle


OUT_OF_REACH = "its decorator keeps the function where it cannot be replaced"


def layers(function: FunctionType, name: str) -> Iterator[FunctionType]:
    """A method's decorators, as the functions that they made of it, outermost first; not the function below them."""
    innermost, _ = undecorated(function, name)
    while function is not innermost:
        yield function
        cell = _decorated_cell(function, name)
        function = getattr(function, "__wrapped__", innermost) if cell is None else cell.cell_contents


def _decorated_cell(function: FunctionType, name: str) -> Any:
    """The cell of a decorator's closure that holds the function it decorates."""
    if _WRITTEN in function.__code__.co_freevars:  # no decorator
        return None
    wrapped = getattr(function, "__wrapped__", None)
    cells = [cell for cell in function.__closure__ or () if not is_empty(cell)]
    functions = [cell for cell in cells if isinstance(cell.cell_contents, FunctionType)]
    functions = [cell for cell in functions if cell.cell_contents is not function]  # one that refers to itself
    if wrapped is not None:
        return next((cell for cell in functions if cell.cell_contents is wrapped), None)
    named = [cell for cell in functions if cell.cell_contents.__name__ == name]
    if named:
        return named[0]
    # A decorator without functools.wraps: what it hands its arguments to is the one method in its closure.
    methods = [cell for cell in functions if cell.cell_contents.__code__.co_varnames[:1] in (("self",), ("args",))]
    return methods[0] if len(functions) == len(methods) == 1 else None


# ---- Compiled again

_FLAGS = functools.reduce(
    lambda a, b: a | b, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names)
)


def compiled(
    cls: type[nn.Module],
    name: str,
    text: str,
    helpers: tuple[tuple[str, Any], ...],
    moved: Callable[[nn.Module], bool],
) -> FunctionType:
    """``text`` compiled in the place of a class's method: with its globals, its closure, its defaults, and below its
    decorators. Its source is registered with ``linecache``, so that tracebacks and debuggers show it. Where the class
    is given another method since, that runs.

    Args:
        cls: the class.
        name: the method's.
        text: the new source of the function below the decorators.
        helpers: further names of its closure.
        moved: whether a module no longer has this method. Whoever has taken hold of it then gets the class's own.
    """
    method = class_attribute(cls, name)
    assert isinstance(method, FunctionType)
    inner, _ = undecorated(method, name)
    tree = parse(text)
    assert tree is not None

    def overridden() -> bool:
        return getattr(cls, name, None) is not method

    def now(*given: Any, **named: Any) -> Any:
        return getattr(cls, name)(*given, **named)

    guards = ((_MOVED, moved), (_WRITTEN, inner), (_OVERRIDDEN, overridden), (_NOW, now))
    return _recompiled(method, name, text, _guarded(tree), (*helpers, *guards))


def compiled_copy(function: FunctionType, text: str, helpers: tuple[tuple[str, Any], ...]) -> FunctionType:
    """``text`` compiled as ``compiled`` does, in the place of a function that no class is asked for."""
    tree = parse(text)
    assert tree is not None
    return _recompiled(function, function.__name__, text, tree, helpers)


def _recompiled(
    whole: FunctionType, name: str, text: str, tree: _Function, helpers: tuple[tuple[str, Any], ...]
) -> FunctionType:
    inner, _ = undecorated(whole, name)
    file = f"<hf_gelu_patch {inner.__module__}.{inner.__qualname__} {zlib.crc32(text.encode()):08x}>"
    code = _compile(tree, inner, file, tuple(name for name, _ in helpers))
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    cells.update((key, _cell(value)) for key, value in helpers)
    linecache.cache[file] = (len(text), None, lines_of(text), file)
    return _redecorated(whole, name, _like(inner, code, tuple(cells[free] for free in code.co_freevars)))


def stands_for(function: object, method: object, name: str) -> bool:
    """Whether a function is a class's method, or one compiled in its place, which passes on to it where it is unbound.

    Args:
        function: what somebody kept.
        method: the class's.
        name: the method's.
    """
    if function is method or not isinstance(function, FunctionType) or not isinstance(method, FunctionType):
        return function is method
    kept, own = undecorated(function, name)[0], undecorated(method, name)[0]
    return len([*layers(function, name)]) == len([*layers(method, name)]) and _written(kept) is own


def show_as_written(method: FunctionType, name: str) -> None:
    """Have ``inspect``, and torch.jit.script with it, find the source of the function that one was compiled in the
    place of."""
    made, _ = undecorated(method, name)
    made.__dict__["__wrapped__"] = _written(made)


def _written(function: FunctionType) -> Any:
    """The function in whose place one was compiled; None for any other."""
    names = function.__code__.co_freevars
    return (function.__closure__ or ())[names.index(_WRITTEN)].cell_contents if _WRITTEN in names else None


# Names that no model's code has.
_MOVED, _WRITTEN = "__hf_gelu_patch_moved__", "__hf_gelu_patch_written__"
_OVERRIDDEN, _NOW = "__hf_gelu_patch_overridden__", "__hf_gelu_patch_now__"


def _guarded(tree: _Function) -> _Function:
    """A method that begins with ``if moved(self): return written(self, ...)``, with all that it was given, and
    ``if overridden(): return now(self, ...)``."""
    owner = (*tree.args.posonlyargs, *tree.args.args)[0].arg
    guards = [
        ast.If(ast.Call(_load(asked), given, []), [ast.Return(_handed_to(tree, function))], [])
        for asked, given, function in ((_MOVED, [_load(owner)], _WRITTEN), (_OVERRIDDEN, [], _NOW))
    ]
    start = 1 if ast.get_docstring(tree, clean=False) is not None else 0
    guarded = copy.copy(tree)
    guarded.body = [*tree.body[:start], *(ast.copy_location(one, tree) for one in guards), *tree.body[start:]]
    return guarded


def _handed_to(tree: _Function, function: str) -> ast.expr:
    """What a function of another's kind, a coroutine or a generator too, returns for all that that one was given."""
    result: ast.expr = _given_to(tree, function)
    if isinstance(tree, ast.AsyncFunctionDef):
        return ast.Await(result)
    return ast.YieldFrom(result) if _yields(tree) else result


def _load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _given_to(tree: _Function, function: str, *first: str) -> ast.Call:
    """A call of another function with all that one was given, and some names before that."""
    arguments = tree.args
    given = [*map(_load, first), *(_load(one.arg) for one in (*arguments.posonlyargs, *arguments.args))]
    if arguments.vararg:
        given.append(ast.Starred(_load(arguments.vararg.arg), ast.Load()))
    keywords = [ast.keyword(argument.arg, _load(argument.arg)) for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        keywords.append(ast.keyword(None, _load(arguments.kwarg.arg)))
    return ast.Call(_load(function), given, keywords)


def passed_on(text: str, function: str, *first: str) -> str:
    """The source of a function that takes what the one in ``text`` takes, and gives it to another.

    Args:
        text: the source of a plain function, no coroutine or generator.
        function: the other's name in it.
        first: further names, which come before what is passed on.
    """
    tree = parse(text)
    assert isinstance(tree, ast.FunctionDef)
    made = copy.copy(tree)
    made.decorator_list = []
    made.body = [ast.Return(_given_to(tree, function, *first))]
    return ast.unparse(ast.fix_missing_locations(made)) + "\n"


def _yields(tree: ast.AST) -> bool:
    """Whether a function is a generator: it yields outside of the functions that it defines."""
    return any(
        isinstance(node, (ast.Yield, ast.YieldFrom)) or (not isinstance(node, _SCOPES) and _yields(node))
        for node in ast.iter_child_nodes(tree)
    )


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def compile_function(text: str, like: FunctionType, file: str) -> CodeType:
    """The code object of the function that ``text`` defines, its closure's names being those of ``like``."""
    tree = parse(text)
    assert tree is not None
    return _compile(tree, like, file, ())


def _compile(tree: _Function, like: FunctionType, file: str, helpers: tuple[str, ...]) -> CodeType:
    tree = copy.deepcopy(tree)
    tree.decorator_list = []
    names = [*like.__code__.co_freevars, *helpers]
    factory = ast.FunctionDef(
        name="make",
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(n) for n in names], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=[tree],
        decorator_list=[],
        lineno=1,
        col_offset=0,
    )
    if hasattr(factory, "type_params"):
        factory.type_params = []
    module = ast.fix_missing_locations(ast.Module([factory], type_ignores=[]))
    outer = compile(module, file, "exec", flags=like.__code__.co_flags & _FLAGS, dont_inherit=True)
    made = next(constant for constant in outer.co_consts if isinstance(constant, CodeType))
    return next(c for c in made.co_consts if isinstance(c, CodeType) and c.co_name == tree.name)


def _cell(value: Any) -> Any:
    return (lambda: value).__closure__[0]  # type: ignore[index]


def _like(function: FunctionType, code: CodeType, closure: tuple[Any, ...]) -> FunctionType:
    """A function with another's globals, name, defaults and attributes."""
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = function.__qualname__
    made.__module__ = function.__module__
    made.__doc__ = function.__doc__
    made.__annotations__ = function.__annotations__
    made.__dict__.update(function.__dict__)
    return made


def _redecorated(method: FunctionType, name: str, inner: FunctionType) -> FunctionType:
    """The method's decorators around another function: each one's own code, over a closure that holds the new one. One
    that looks whether it is itself the class's method, as transformers' gradient checkpointing does, finds that it is.
    """
    cell = _decorated_cell(method, name)
    if cell is None:
        return inner
    below = _redecorated(cell.cell_contents, name, inner)
    itself = CellType()
    closure = tuple(
        _cell(below) if one is cell else itself if not is_empty(one) and one.cell_contents is method else one
        for one in method.__closure__ or ()
    )
    made = itself.cell_contents = _like(method, method.__code__, closure)
    if "__wrapped__" in made.__dict__:
        made.__dict__["__wrapped__"] = below
    return made


# ---- Whether a source is what runs


def does_the_same(a: CodeType, b: CodeType) -> bool:
    """Whether two code objects do the same. Not to the byte: how a method of a global is called depends on whether the
    module imports that name, which the function's own source does not say."""
    return list(_steps(a)) == list(_steps(b))


_CALLING = {"PUSH_NULL", "PRECALL", "CACHE", "NOP", "EXTENDED_ARG"}
_TAKES = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE


def _steps(code: CodeType) -> Iterator[tuple[str, object]]:
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _TAKES
    yield "arguments", (*arguments, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    steps = [step for step in dis.get_instructions(code) if step.opname not in _CALLING]
    for step, behind in zip(steps, [*steps[1:], None], strict=True):
        name = "LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname
        if isinstance(step.argval, CodeType):
            yield from _steps(step.argval)
        elif step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            yield name, None
        elif behind is not None and behind.opname == "MAKE_FUNCTION" and isinstance(step.argval, str):
            yield name, None  # in Python 3.10, the qualified name of the function, which says where it is made
        else:
            yield name, (type(step.argval), step.argval)
