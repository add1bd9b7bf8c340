"""Patch the activations of a loaded Hugging Face model in one line: fast, reversible, measured before and after."""

from hf_gelu_patch.activations import ACTIVATIONS, Activation
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
)
from hf_gelu_patch.implementations import IMPLEMENTATIONS, Implementation, register_implementation
from hf_gelu_patch.patching import patch, patched, unpatch
from hf_gelu_patch.sites import Report, Site, find_sites

__all__ = [
    "ACTIVATIONS",
    "IMPLEMENTATIONS",
    "Activation",
    "AlreadyPatchedError",
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
    "find_sites",
    "patch",
    "patched",
    "register_implementation",
    "unpatch",
]

__version__ = "0.1.0"
