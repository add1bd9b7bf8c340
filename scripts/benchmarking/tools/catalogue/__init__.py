"""The tools: what each does to a model, and how it is taken off again.

Each is a function of a model and its subject, registered with ``@tool`` in a module of this package. The package that
has a tool is imported where it is used: what is not installed is told, and not run.
"""

import importlib

from scripts.benchmarking.tools.catalogue.registering import TOOLS

__all__ = ["TOOLS"]

# In this order they are tried.
for _name in ("copies", "saves", "wraps", "hooks", "parametrizes", "traces", "quantizes", "attributes"):
    importlib.import_module(f"{__name__}.{_name}")
