"""How large a file, a function and a list of parameters of the package and its scripts may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("hf_gelu_patch", "scripts") for path in (ROOT / folder).rglob("*.py"))

LINES_OF_A_FILE = 600
LINES_OF_A_FUNCTION = 80
PARAMETERS = 7

PUBLIC = "the arguments that a user may give, each documented where it stands"
KERNEL = "what a kernel is launched with, and the device functions that are inlined into it"
LATER = "still to be taken apart"

# What is larger, and why it is. One that is no longer needed fails the test.
EXCEPTIONS = {
    "parameters of hf_gelu_patch/implementations/triton_kernels.py::_read": KERNEL,
    "parameters of hf_gelu_patch/implementations/triton_kernels.py::_write": KERNEL,
    "parameters of hf_gelu_patch/implementations/triton_kernels.py::_block": KERNEL,
    "parameters of hf_gelu_patch/implementations/triton_kernels.py::fused_kernel": KERNEL,
    "lines of hf_gelu_patch/patching.py::patch": PUBLIC,
    "parameters of hf_gelu_patch/patching.py::patch": PUBLIC,
    "parameters of hf_gelu_patch/patching.py::patched": PUBLIC,
    "parameters of hf_gelu_patch/planning.py::find_sites": PUBLIC,
}


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """(what, how much, how much it may be) of a file and of each function in it."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    yield f"lines of {name}", len(text.splitlines()), LINES_OF_A_FILE
    for function, node in functions(ast.parse(text), name):
        assert node.end_lineno is not None
        yield f"lines of {function}", node.end_lineno - node.lineno + 1, LINES_OF_A_FUNCTION
        yield f"parameters of {function}", parameters(node), PARAMETERS


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Each function below a node, nested ones too, with its name: ``hf_gelu_patch/patching.py::patch``."""
    for child in ast.iter_child_nodes(node):
        inner = (
            f"{name}::{child.name}"
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            else name
        )
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield inner, child
        yield from functions(child, inner)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller can give: ``self`` and ``cls`` are none."""
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + bool(arguments.vararg) + bool(arguments.kwarg)


def test_nothing_is_larger_than_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {what: (size, most) for path in FILES for what, size, most in sizes(path)}
    assert len(FILES) > 50
    large = {what: f"{size}, more than {most}" for what, (size, most) in measured.items() if size > most}
    with capsys.disabled():
        for what, why in EXCEPTIONS.items():
            print(f"\nlarger, as test_house allows: {what}: {large.get(what)}: {why}", end="")
    assert {what: size for what, size in large.items() if what not in EXCEPTIONS} == {}
    assert [what for what in EXCEPTIONS if what not in large] == [], "exceptions that are no longer needed"


def test_what_is_counted() -> None:
    code = "class A:\n    def f(self, a, /, b, *c, d=1, **e):\n        def g(): pass\n        return g\n"
    found = dict(functions(ast.parse(code), "file"))
    assert {name: parameters(node) for name, node in found.items()} == {"file::A::f": 5, "file::A::f::g": 0}
