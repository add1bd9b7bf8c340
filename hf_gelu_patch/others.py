"""What other tools have already put on a model: told by the package that the code on a module comes from."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

__all__ = ["Tool", "bound", "found_in", "tool_of"]


@dataclass(frozen=True)
class Tool:
    """Another tool that replaces parts of models.

    Attributes:
        name: what it is called.
        package: the package by which a process knows it.
        remedy: how to come by a model without it.
    """

    name: str
    package: str
    remedy: str


_LIGER = Tool(
    "Liger-Kernel",
    "liger_kernel",
    "load the model anew in a process that does not apply Liger-Kernel (in the Trainer: use_liger_kernel=False)",
)
_KERNELS = Tool("kernels", "kernels", "load the model anew without use_kernels=True or kernelize()")


def tool_of(function: object) -> Tool | None:
    """The tool that a function, a method or a class comes from; None for one of none that is known. What ``kernels``
    has loaded from the hub, it knows itself."""
    function = inspect.unwrap(getattr(function, "__func__", function))  # type: ignore[arg-type]
    return _packages().get((getattr(function, "__module__", None) or "").partition(".")[0])


def _packages() -> dict[str, Tool]:
    """The packages in this process whose code is a tool's."""
    loaded = getattr(sys.modules.get(_KERNELS.package), "get_loaded_kernels", tuple)
    found = {one.metadata.id: _KERNELS for one in loaded()}
    return {**found, _LIGER.package: _LIGER} if _LIGER.package in sys.modules else found


def bound(method: str, function: object) -> str:
    """That a module carries another function under a method's name, in words that end before where, with whose it is.
    ``found_in`` has the remedy."""
    tool = tool_of(function)
    return f"another {method} is bound" if tool is None else f"{tool.name} has bound {_called(function)}"


def found_in(model: nn.Module) -> tuple[str, ...]:
    """What of a model other tools compute, a line a tool, with how to come by a model without it."""
    if not _packages():
        return ()
    found = Counter(one for module in model.modules() for one in _on(module))
    lines = []
    for tool in dict.fromkeys(tool for tool, _ in found):
        parts = ", ".join(f"{count} × {what}" for (whose, what), count in found.items() if whose is tool)
        lines.append(f"{tool.name} computes {parts}. To patch what it computes, {tool.remedy}")
    return tuple(lines)


def _on(module: nn.Module) -> Iterable[tuple[Tool, str]]:
    cls = type(module)
    made_of = next(((tool, one.__name__) for one in cls.__mro__ if (tool := tool_of(one)) is not None), None)
    if made_of is not None:
        return [made_of]
    carried = vars(module).get("forward")
    for function in (carried, inspect.getattr_static(cls, "forward", None)):
        if function is not None and (tool := tool_of(function)) is not None:
            return [(tool, f"{cls.__name__} by {_called(function)}")]
    return []


def _called(function: object) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return getattr(function, "__qualname__", type(function).__qualname__)
