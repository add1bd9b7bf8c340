"""Liger-Kernel's Llama MLP, plain and in tiles, on a CPU: its own modules and autograd functions, whose kernels' bodies
torch computes.

Its two kernels are launched once a row. Here a launch computes the same of all rows, block by block, into the tensors
that Liger-Kernel has allocated. So what is allocated is what Liger-Kernel allocates. How long it takes is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import ImplementationUnavailableError

_ROWS = 16
"""Of a block: what computing it takes for a moment is small beside all else."""

NAMES = PLAIN, TILED = ("liger", "liger_tiled")


def _missing() -> str | None:
    """Why there is none, or None where it can be imported."""
    try:
        import liger_kernel.ops.swiglu
        import liger_kernel.transformers.swiglu
        import liger_kernel.transformers.tiled_mlp  # noqa: F401
    except Exception as error:  # of another triton, say
        return f"Liger-Kernel cannot be imported (pip install liger-kernel): {error}"
    return None


def layer_of(kind: str, own: nn.Module) -> nn.Module:
    """Its module with the weights of a Llama's MLP.

    Raises:
        ImplementationUnavailableError: it cannot be imported.
    """
    if (why := _missing()) is not None:
        raise ImplementationUnavailableError(why)
    from liger_kernel.transformers.swiglu import LigerSwiGLUMLP
    from liger_kernel.transformers.tiled_mlp import LigerTiledSwiGLUMLP

    known: Any = own
    made: Any = (LigerTiledSwiGLUMLP if kind == TILED else LigerSwiGLUMLP)(known.config)
    made.gate_proj, made.up_proj, made.down_proj = known.gate_proj, known.up_proj, known.down_proj
    found: nn.Module = made
    return found


@contextmanager
def computed_by_torch() -> Iterator[None]:
    """Its kernels' bodies by torch, for the length of a ``with`` block."""
    import liger_kernel.ops.swiglu as ops

    kept = ops._swiglu_forward_kernel, ops._swiglu_backward_kernel
    ops._swiglu_forward_kernel, ops._swiglu_backward_kernel = _Launched(_forward), _Launched(_backward)
    try:
        yield
    finally:
        ops._swiglu_forward_kernel, ops._swiglu_backward_kernel = kept


class _Launched:
    """What is launched as a Triton kernel is: ``kernel[grid](…)``."""

    def __init__(self, body: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        self._body = body

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(one: Tensor, two: Tensor, three: Tensor, *_: Any, **__: Any) -> None:
            with torch.no_grad():
                for part in zip(*(t.split(_ROWS) for t in (one, two, three)), strict=True):
                    self._body(*part)

        return launch


def _forward(a: Tensor, b: Tensor, c: Tensor) -> None:
    torch.mul(torch.nn.functional.silu(a), b, out=c)


def _backward(grad: Tensor, a: Tensor, b: Tensor) -> None:
    """Both gradients, each written over what it is the gradient of."""
    sigmoid = a.sigmoid()
    silu = a * sigmoid
    db = grad * silu
    a.copy_(grad * (silu * (1 - sigmoid) + sigmoid) * b)
    b.copy_(db)
