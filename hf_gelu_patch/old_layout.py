"""Pickles that an older layout of this package made: where what they name stands now.

pickle keeps a class or a function by the name of its module and its own, and asks Python to import that. So a patched
model that was saved keeps the names that were in use. This file is the one place that knows them. A new pickle names
what is listed here on the right.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from hf_gelu_patch.errors import PatchError

__all__ = ["MOVED", "moved_from", "register"]

MOVED = {
    "activations._gelu_clipped": "activations.records.gelu_clipped",
    "activations._gelu_tanh": "activations.records.gelu_tanh",
    "activations._laplace": "activations.records.laplace",
    "activations._linear": "activations.records.linear",
    "activations._quick_gelu": "activations.records.quick_gelu",
    "activations._relu_squared": "activations.records.relu_squared",
    "activations._sqrt_softplus": "activations.records.sqrt_softplus",
    "binding.Kept": "forwards.class_binding.Kept",
    "binding.StandIn": "forwards.class_binding.StandIn",
    "binding._rewritten_class": "forwards.class_binding._rewritten_class",
    "binding._stand_in_class": "forwards.class_binding._stand_in_class",
    "formulas.Formula": "formula_reader.Formula",
    "formulas.Step": "formula_reader.Step",
    "formulas.Value": "formula_reader.Value",
    "implementations._after_linear": "implementations.aten.after_linear",
    "implementations._gated": "implementations.aten.gated",
    "implementations._gelu_clipped": "implementations.aten._gelu_clipped",
    "implementations._in_epilogue": "implementations.epilogue.in_epilogue",
    "implementations._quick_gelu": "implementations.aten._quick_gelu",
    "implementations._refuse": "implementations.registry._refuse",
    "implementations._relu_squared": "implementations.aten._relu_squared",
    "ops.gated": "implementations.triton_ops.gated",
    "ops.pointwise": "implementations.triton_ops.pointwise",
    "replacements.Substitute": "forwards.replacements.Substitute",
    "replacements.gated": "forwards.replacements.gated",
    "replacements.linear_act": "forwards.replacements.linear_act",
    "replacements.steps": "forwards.replacements.steps",
    "rewriting.Rewriting": "forwards.rewriting.Rewriting",
    "rewriting._method_of": "forwards.rewriting._method_of",
    "sites.ConfigChange": "configs.ConfigChange",
    "sites.Report": "report.Report",
}
"""What a pickle names, below the package → the module and the name that it has now."""

_GONE = {"replacements.PatchedActivation", "rewriting._read_back"}  # bound methods on each module, in November 2026

_PACKAGE = __package__


def moved_from(module: str) -> Callable[[str], object]:
    """A module's ``__getattr__``: finds what stood there.

    Args:
        module: its full name.
    """
    own = module.removeprefix(f"{_PACKAGE}.")

    def find(name: str) -> object:
        if (old := f"{own}.{name}") in _GONE:
            raise PatchError(
                f"this model was saved, patched, by a version that no longer reads: it names {_PACKAGE}.{old}. Load "
                "it with the version that saved it, unpatch(model) and save it again; or save its state_dict there."
            )
        if old not in MOVED:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, now = MOVED[old].rpartition(".")
        return getattr(importlib.import_module(f"{_PACKAGE}.{home}"), now)

    return find


def register(missing: tuple[str, ...] = ("binding", "formulas", "ops", "replacements", "rewriting")) -> None:
    """Let Python find the modules that are no more: pickle imports them by name."""
    for name in missing:
        module = ModuleType(f"{_PACKAGE}.{name}", "Where pickles of an older layout look: hf_gelu_patch.old_layout.")
        module.__getattr__ = moved_from(module.__name__)  # type: ignore[method-assign]
        sys.modules.setdefault(module.__name__, module)
