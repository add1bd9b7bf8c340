"""What may write over a tensor: told by a statement's source, and of a live module by its type or its forward's source.

What is not known to leave a tensor as it is counts as writing over it.
"""

from __future__ import annotations

import ast
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.forwards.names import MISSING, Names, dotted, reach
from hf_gelu_patch.sources import faithful_source_of, remembered

__all__ = ["is_written", "leaves_its_input", "may_pass_on", "may_write_over", "writes"]


# ---- In source


def writes(statement: ast.AST) -> bool:
    """Whether it assigns to a part of something, calls what works in place, by its name or arguments, or waits."""
    for node in ast.walk(statement):
        if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await)):
            return True
        if is_written(node):
            return True
        if isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if method.endswith("_") and not method.endswith("__"):
                return True
            if any(keyword.arg in ("inplace", "out") for keyword in node.keywords):
                return True
    return False


def is_written(node: ast.AST) -> bool:
    """Whether something is assigned to a part of what a name leads to: ``x[0] = …``, ``self.x = …``, ``del x[0]``."""
    return isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load)


def may_write_over(node: ast.AST, held: set[str], names: Names) -> bool:
    """Whether what runs here may write over a tensor that these names lead to, as far as the source tells."""
    if not isinstance(node, (ast.Call, ast.Yield, ast.YieldFrom, ast.Await)):
        return False
    mentioned = any(isinstance(part, ast.Name) and part.id in held for part in ast.walk(node))
    if not mentioned and not writes(node):  # what works in place may know the tensor by another name
        return False
    return not (isinstance(node, ast.Call) and _is_harmless(node, names))


def _is_harmless(call: ast.Call, names: Names) -> bool:
    """Whether a call is of a torch function or a tensor's method that does not work in place, by its name."""
    if any(keyword.arg in ("inplace", "out") for keyword in call.keywords):
        return False
    value = names.static(call.func)
    if value is not MISSING:
        return _is_pure(value)
    if not isinstance(call.func, ast.Attribute) or names.is_of_owner(call.func):
        return False
    root, _ = dotted(call.func)
    known = MISSING if root is None else names.static(ast.Name(root, ast.Load()))
    return known is MISSING and not call.func.attr.endswith("_")  # a method of what a global holds may do anything


def _is_pure(value: object) -> bool:
    """Whether a function is one of math's, or one of torch's that do not work in place."""
    if isinstance(value, BuiltinFunctionType):
        return value.__module__ == "math" or _is_torchs(value)
    return isinstance(value, FunctionType) and value.__module__ in ("torch.nn.functional", "torch.functional")


def _is_torchs(value: Any) -> bool:
    name = getattr(value, "__name__", "")
    return not name.endswith("_") and any(
        getattr(namespace, name, None) is value for namespace in (torch, nn.functional, torch.special)
    )


# ---- On a live module


def leaves_its_input(module: nn.Module | None) -> bool:
    """Whether calling a module leaves what it is given as it is: it is one of torch's own that does not work in place,
    or the source of its forward does nothing that could; and so are the modules inside it."""
    if module is None or getattr(module, "inplace", False):
        return False
    if not _is_torchs_own(module) and not _reads_as_harmless(module):
        return False
    return all(leaves_its_input(child) for child in module.children())


def may_pass_on(module: nn.Module) -> bool:
    """Whether what a module gives may be the very tensor that it is given, or a view of it."""
    if isinstance(module, _PASSING_ON) or getattr(module, "inplace", False):
        return True
    if type(module) is nn.Sequential:
        return all(map(may_pass_on, module))
    forward = None if _is_torchs_own(module) else _forward_of(module)
    return forward is not None and _returns_a_parameter(forward, forward.__code__)  # the code, which a reload replaces


_PASSING_ON = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Flatten,
    nn.Unflatten,
)


def _is_torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _forward_of(module: nn.Module) -> FunctionType | None:
    """The function that its class has as ``forward``."""
    function = getattr(type(module), "forward", None)
    return function if isinstance(function, FunctionType) else None


def _reads_as_harmless(module: nn.Module) -> bool:
    """Whether the source of a module's forward writes over nothing and calls nothing that might, but its children."""
    function = _forward_of(module)
    source = None if function is None or "forward" in vars(module) else faithful_source_of(function)
    if function is None or source is None or not source.tree.args.args:
        return False
    names = Names(function, source, source.tree.args.args[0].arg)
    return not any(_does_harm(node, module, names) for part in source.tree.body for node in ast.walk(part))


def _does_harm(node: ast.AST, owner: nn.Module, names: Names) -> bool:
    if isinstance(node, ast.Call):
        child = reach(owner, dotted(node.func)[1]) if names.is_of_owner(node.func) else None
        return not isinstance(child, nn.Module) and not _is_harmless(node, names)
    return isinstance(node, ast.AugAssign) or (isinstance(node, ast.expr) and writes(node))


@remembered
def _returns_a_parameter(function: FunctionType, _: CodeType) -> bool:
    """Whether a function's source has ``return x`` with x one of its parameters, perhaps on a condition."""
    source = faithful_source_of(function)
    if source is None:
        return False
    parameters = {argument.arg for argument in source.tree.args.args[1:]}
    returned = [node.value for part in source.tree.body for node in ast.walk(part) if isinstance(node, ast.Return)]
    ends = [
        end for value in returned for end in ((value.body, value.orelse) if isinstance(value, ast.IfExp) else [value])
    ]
    return any(isinstance(end, ast.Name) and end.id in parameters for end in ends)
