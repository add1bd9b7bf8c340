"""Patch the activations of a loaded Hugging Face model in one line: fast, reversible, measured before and after."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hf_gelu_patch import old_layout

if TYPE_CHECKING:
    from hf_gelu_patch.activations import ACTIVATIONS, Activation, register_activation
    from hf_gelu_patch.auditing import Audit, audit
    from hf_gelu_patch.errors import (
        AlreadyPatchedError,
        GradientRefusedError,
        ImplementationUnavailableError,
        NoSitesError,
        NothingMatchedError,
        NothingPatchedError,
        NothingPatchedWarning,
        NotPatchedError,
        PatchError,
        UnknownNameError,
        VerificationError,
    )
    from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Implementation, register_implementation
    from hf_gelu_patch.patching import explain, patch, patched, unpatch
    from hf_gelu_patch.planning import find_sites
    from hf_gelu_patch.profiling import profile
    from hf_gelu_patch.report import Report
    from hf_gelu_patch.sites import Site

__all__ = [
    "ACTIVATIONS",
    "IMPLEMENTATIONS",
    "Activation",
    "AlreadyPatchedError",
    "Audit",
    "GradientRefusedError",
    "Implementation",
    "ImplementationUnavailableError",
    "NoSitesError",
    "NotPatchedError",
    "NothingMatchedError",
    "NothingPatchedError",
    "NothingPatchedWarning",
    "PatchError",
    "Report",
    "Site",
    "UnknownNameError",
    "VerificationError",
    "audit",
    "explain",
    "find_sites",
    "patch",
    "patched",
    "profile",
    "register_activation",
    "register_implementation",
    "unpatch",
]

__version__ = "0.1.0"

_HOMES = (
    "errors",
    "activations",
    "implementations",
    "sites",
    "report",
    "planning",
    "patching",
    "profiling",
    "auditing",
)


def __getattr__(name: str) -> object:
    """A public name is loaded when it is first used: the command line refuses a wrong path before torch is there."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (importlib.import_module(f"{__name__}.{home}") for home in _HOMES)
    value = globals()[name] = next(getattr(home, name) for home in homes if hasattr(home, name))
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


old_layout.register()
