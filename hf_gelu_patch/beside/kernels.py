"""What transformers' ``use_kernels=True`` would change in a model: its own mapping and the classes that it marks, read
from the files that are installed. The package ``kernels`` need not be there for that."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import nn

from hf_gelu_patch.beside.records import Beside, Change

__all__ = ["NAME", "scan"]

NAME = "kernels"
_MARKS = ("use_kernel_forward_from_hub", "use_kernel_func_from_hub", "use_kernel_func_from_hub_with_fallback")
"""transformers' decorators that say by which name a class or a function is looked up in the mapping."""
_CARRIES = "use_kernelized_func"
"""The one that says which such functions a class calls."""


@dataclass(frozen=True)
class _Entry:
    """One entry of the mapping: a layer of a hub repository, where and when it is taken."""

    repository: str
    layer: str
    device: str
    modes: tuple[str, ...]


def scan(model: nn.Module) -> Beside:
    """What ``use_kernels=True`` would change, on whatever device transformers has a kernel for."""
    import transformers

    title = f"transformers {transformers.__version__}"
    folder = Path(transformers.__file__).parent
    try:
        mapping = _mapping(folder / "integrations" / "hub_kernels.py")
    except (OSError, SyntaxError):
        return Beside(NAME, title, notes=("this transformers has no mapping: pip install -U transformers",))
    changes: list[Change] = []
    for path, module in model.named_modules(remove_duplicate=False):
        cls = type(module)
        if entries := mapping.get(_layer_of(cls) or ""):
            changes.append(Change(path, cls.__name__, f"{_layer_of(cls)} → {_told(entries)}"))
        for function, layer in _functions_of(cls):
            if entries := mapping.get(layer):
                changes.append(Change(path, f"{function} in {cls.__name__}", f"{layer} → {_told(entries)}"))
    return Beside(NAME, title, tuple(changes), notes=_missing())


def _missing() -> tuple[str, ...]:
    """That the package is not there, or not the one that transformers takes; with the remedy."""
    from transformers.utils import import_utils

    try:
        there = version("kernels")
    except PackageNotFoundError:
        there = ""
    available = getattr(import_utils, "is_kernels_available", None)
    if available is not None and available():
        return ()
    least = getattr(import_utils, "KERNELS_MIN_VERSION", "")
    most = getattr(import_utils, "KERNELS_MAX_VERSION", "")
    wanted = ",".join(part for part in (f">={least}" if least else "", f"<{most}" if most else "") if part)
    state = f"of the package kernels {there} is installed" if there else "the package kernels is not installed"
    return (f"{state}, with which use_kernels=True raises: pip install 'kernels{wanted}'",)


# ---- The mapping


@functools.lru_cache(maxsize=4)
def _mapping(path: Path) -> dict[str, tuple[_Entry, ...]]:
    """transformers' mapping from the names of layers to layers of hub repositories, as its file says."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(one, ast.Name) and one.id == "_KERNEL_MAPPING" for one in targets)
        if named and isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Dict):
            return {str(ast.literal_eval(key)): tuple(_entries(devices)) for key, devices in _items(node.value)}
    return {}


def _items(node: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is not None:
                yield key, value


def _entries(devices: ast.expr) -> Iterator[_Entry]:
    for device, found in _items(devices):
        told = _keywords(device)
        where = str(ast.literal_eval(device)) if isinstance(device, ast.Constant) else told.get("type", "")
        shown = f"{where} of {told['properties']}" if "properties" in told else where
        for mode, repository in _items(found) if isinstance(found, ast.Dict) else [(ast.Constant(""), found)]:
            named = _keywords(repository)
            modes = tuple(one for one in ("INFERENCE", "TRAINING") if one in ast.unparse(mode))
            layer = named.get("layer_name") or named.get("func_name") or ""
            yield _Entry(named.get("repo_id", ""), layer, shown, modes)


def _keywords(call: ast.expr) -> dict[str, str]:
    """A call's named arguments as text."""
    found = call.keywords if isinstance(call, ast.Call) else []
    return {
        one.arg: str(one.value.value) if isinstance(one.value, ast.Constant) else ast.unparse(one.value)
        for one in found
        if one.arg is not None
    }


def _told(entries: tuple[_Entry, ...]) -> str:
    """``kernels-community/activation (Silu) on cuda, xpu, in inference``."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in entries:
        groups.setdefault((one.repository, one.layer), {}).setdefault(one.device, []).extend(one.modes)
    parts = []
    for (repository, layer), devices in groups.items():
        by_modes: dict[tuple[str, ...], list[str]] = {}
        for device, modes in devices.items():
            by_modes.setdefault(tuple(sorted(set(modes))), []).append(device)
        where = [
            f"on {', '.join(on)}" + (f", in {modes[0].lower()}" if len(modes) == 1 else "")
            for modes, on in by_modes.items()
        ]
        parts.append(f"{repository} ({layer}) {' and '.join(where)}")
    return "; ".join(parts)


# ---- The classes and functions that transformers marks


def _layer_of(cls: type) -> str | None:
    """The name by which a class is looked up, its own or a base's."""
    for base in cls.__mro__:
        named = vars(base).get("kernel_layer_name") or _Marks.of(base.__module__).layers.get(base.__qualname__)
        if named:
            return str(named)
    return None


def _functions_of(cls: type) -> Iterator[tuple[str, str]]:
    """The functions that a class calls and that are looked up, with the names by which."""
    for base in cls.__mro__:
        for function in _Marks.of(base.__module__).carried.get(base.__qualname__, ()):
            live = getattr(sys.modules.get(base.__module__), function, None)
            there = getattr(inspect.unwrap(live), "__module__", None) if callable(live) else None
            layer = getattr(type(live), "kernel_layer_name", None) or _Marks.of(there or "").layers.get(function)
            if layer:
                yield function, str(layer)


@dataclass(frozen=True)
class _Marks:
    """What a Python module of transformers marks.

    Attributes:
        layers: by the name of a class or function, the name by which it is looked up in the mapping.
        carried: by the name of a class, the marked functions that it calls.
    """

    layers: dict[str, str]
    carried: dict[str, tuple[str, ...]]

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def of(module: str) -> _Marks:
        """Those of a module by its name; none of one that is not transformers'."""
        found = _Marks({}, {})
        file = getattr(sys.modules.get(module), "__file__", None) if module.startswith("transformers.") else None
        if file is None or not (text := Path(file).read_text(encoding="utf-8")).count("@use_kernel"):
            return found
        for node in ast.parse(text).body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            for mark in node.decorator_list:
                called = mark.func.id if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) else None
                if (
                    called in _MARKS
                    and isinstance(mark, ast.Call)
                    and mark.args
                    and isinstance(mark.args[0], ast.Constant)
                ):
                    found.layers[node.name] = str(ast.literal_eval(mark.args[0]))
                elif called == _CARRIES and isinstance(mark, ast.Call):
                    given = [one for arg in mark.args for one in getattr(arg, "elts", [arg])]
                    found.carried[node.name] = tuple(one.id for one in given if isinstance(one, ast.Name))
        return found
