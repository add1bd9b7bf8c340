"""Less kept for backward: an activation's result computed again where the next layer's weights need it.

A linear layer keeps its input for the gradient of its weights. Where that is an activation's result, it can be computed
again from what the activation keeps anyhow. ``kept`` gives functions under which autograd keeps an activation's inputs
and nothing else. A hook on the module around it looks through autograd's graph after each forward, and takes from the
layers that come next what can be computed again. It does so tensor by tensor, by the hooks that torch has for saved
tensors. Nothing happens without gradients, and under torch.compile Inductor decides by itself.
"""

from __future__ import annotations

from hf_gelu_patch.recomputing.functions import kept
from hf_gelu_patch.recomputing.graph import Dropped, held
from hf_gelu_patch.recomputing.hooks import put, recomputes, taken

__all__ = ["Dropped", "held", "kept", "put", "recomputes", "taken"]
