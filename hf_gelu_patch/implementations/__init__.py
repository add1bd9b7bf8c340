"""How an activation is computed: what there is, and which of it is taken."""

from __future__ import annotations

from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Fused, Implementation, register_implementation

__all__ = ["IMPLEMENTATIONS", "Fused", "Implementation", "register_implementation"]
