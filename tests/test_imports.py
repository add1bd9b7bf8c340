"""Imports run one way, and importing the package loads nothing it does not need."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import printed_by

PACKAGE = Path(__file__).parent.parent / "hf_gelu_patch"

# Each layer imports only from layers above it in this list.
LAYERS = [
    "errors",
    "verdicts",
    "caching",
    "old_layout",  # where what old pickles name stands now: a table of names, which are imported when one is asked for
    "others",  # what other tools have put on a model
    "beside",  # what they would change
    "activations",
    "sources",
    "formula_reader",
    "recognition",
    "implementations",
    "recomputing",
    "forwards",
    "tiling",
    "verification",
    "sites",
    "selection",
    "plans",
    "report",
    "memory",
    "planning",
    "configs",
    "applying",
    "tuning",
    "patching",
    "profiling",
    "auditing",
    "",  # the package itself: the public names
    "evaluation",
    "finetuning",
    "cli",
    "__main__",
]


# The one import that runs back, inside a method: weights are materialised when a reference model is first asked for.
BACK = [("hf_gelu_patch.evaluation.reference", "hf_gelu_patch.evaluation.reference.materialise")]


def layer_of(module: str) -> str:
    return module.removeprefix("hf_gelu_patch").removeprefix(".").split(".")[0]


def imports(path: Path) -> set[str]:
    """The layers that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            module = node.module or ""
            # `from hf_gelu_patch import activations` names a module, `from hf_gelu_patch import patch` the package
            found.update(f"{module}.{alias.name}" if module == "hf_gelu_patch" and alias.name in LAYERS else module
                         for alias in node.names)  # fmt: skip
    return {layer_of(module) for module in found if module.split(".")[0] == "hf_gelu_patch"}


def test_imports_run_one_way() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) >= 10
    for path in files:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        own = "" if parts == ("__init__",) else parts[0]
        assert own in LAYERS, f"{path} is not in the list of layers"
        for layer in imports(path):
            assert layer == own or LAYERS.index(layer) < LAYERS.index(own), (
                f"{path.name} imports {layer or 'the package'}"
            )


def modules() -> dict[str, Path]:
    """Every file of the package by its module's full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def files_imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, at the top or inside a function, as far as they are files. What
    it imports for annotations alone, ``if TYPE_CHECKING``, is never loaded."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unloaded = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for part in ast.walk(statement)
    }
    for node in set(ast.walk(tree)) - unloaded:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in known else str(node.module) for name in full.values())
    return found & known.keys()


def test_no_two_files_import_each_other_however_far_around() -> None:
    known = modules()
    graph = {name: files_imported(path, known) - {name} for name, path in known.items()}
    for importer, imported in BACK:
        graph[importer].remove(imported)
    assert sum(map(len, graph.values())) > 100
    for order in TopologicalSorter(graph).static_order():  # raises CycleError, which names the files
        assert order in known


def test_importing_the_package_loads_nothing_heavy_and_its_names_neither_triton_nor_transformers() -> None:
    heavy = ["torch", "triton", "transformers", "datasets", "evaluate", "accelerate", "sklearn", "rich"]
    code = f"""
import sys
import hf_gelu_patch
print([name for name in {heavy} if name in sys.modules])
import torch
before = set(sys.modules)  # torch itself may bring triton
from hf_gelu_patch import *
print([name for name in {heavy} if name in set(sys.modules) - before])
"""
    printed = printed_by(code)
    assert printed.split() == ["[]", "[]"]


def test_no_catch_all_modules() -> None:
    names = {path.stem for path in PACKAGE.parent.glob("**/*.py") if ".venv" not in path.parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
