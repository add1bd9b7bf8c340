"""What other tools would change in a model, by the packages that are installed. This process applies none of it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from hf_gelu_patch.beside import kernels, liger
from hf_gelu_patch.beside.records import Beside, Change
from hf_gelu_patch.errors import UnknownNameError

__all__ = ["TOOLS", "Beside", "Change", "check_tools", "scan"]

TOOLS = {tool.NAME: tool.scan for tool in (liger, kernels)}
"""The tools that can be asked for: Liger-Kernel, and transformers' ``use_kernels=True``."""


def check_tools(tools: Iterable[str]) -> None:
    """Names of tools, before a model is there.

    Raises:
        UnknownNameError: there is none of a name; the message lists those there are.
    """
    for tool in tools:
        if tool not in TOOLS:
            raise UnknownNameError("tool", tool, TOOLS)


def scan(model: nn.Module, tools: Iterable[str]) -> tuple[Beside, ...]:
    """What each of these tools would change in a model. Nothing is changed, in the model or in the process.

    Raises:
        UnknownNameError: there is no tool of a name.
    """
    asked = tuple(dict.fromkeys(tools))
    check_tools(asked)
    return tuple(TOOLS[tool](model) for tool in asked)
