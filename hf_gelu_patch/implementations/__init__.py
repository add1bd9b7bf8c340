"""How an activation is computed.

``IMPLEMENTATIONS`` holds every implementation by name; ``register_implementation`` adds one. These come along:

======================= ============================================================================
``eager``               the model's own ops
``aten``                torch's ops in the fewest passes over memory, in place where nothing is kept
``cpp``                 one compiled kernel on a CPU, rounded once
``epilogue``            the activation in the epilogue of a linear layer's product
``triton``              one Triton kernel, rounded once
``triton_rounded``      the same; a gated product is rounded where two ops would round it
======================= ============================================================================

Importing this package does not import triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_gelu_patch.implementations.aten import ATEN, EAGER
from hf_gelu_patch.implementations.cpp_ops import CPP
from hf_gelu_patch.implementations.epilogue import EPILOGUE
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Fused, Implementation, register_implementation
from hf_gelu_patch.implementations.triton_ops import TRITON, TRITON_ROUNDED
from hf_gelu_patch.old_layout import moved_from

__all__ = ["IMPLEMENTATIONS", "Fused", "Implementation", "register_implementation"]

for _implementation in (EAGER, ATEN, CPP, EPILOGUE, TRITON, TRITON_ROUNDED):
    register_implementation(_implementation)


if not TYPE_CHECKING:  # which would take every name for one of this module's
    __getattr__ = moved_from(__name__)
