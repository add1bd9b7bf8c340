"""How a tool is registered: with ``@tool``, on a function of a model and its subject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from scripts.benchmarking.tools.judging import Tool, Used
from scripts.benchmarking.tools.subjects import SUBJECTS, Subject

TOOLS: dict[str, Tool] = {}

EVERY = tuple(SUBJECTS)
TRANSFORMERS = tuple(name for name in SUBJECTS if name != "plain")
FEW = ("llama", "plain")
"""For what takes long: gated, and what a root's own forward holds."""


def tool(
    name: str, does: str, package: str = "torch", subjects: tuple[str | Subject, ...] = EVERY, **more: Any
) -> Callable[[Callable[[nn.Module, Subject], Used]], Callable[[nn.Module, Subject], Used]]:
    """Register a tool: see ``Tool``. A subject is one of ``SUBJECTS``, by name, or the tool's own."""
    taken = tuple(SUBJECTS[one] if isinstance(one, str) else one for one in subjects)

    def registered(use: Callable[[nn.Module, Subject], Used]) -> Callable[[nn.Module, Subject], Used]:
        TOOLS[name] = Tool(name, does, package, use, taken, **more)
        return use

    return registered
