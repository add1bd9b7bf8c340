"""Where a tensor goes: straight to a kernel, to a torch op around it, or to the plain aten expression."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hf_gelu_patch.implementations.tensors import ORDINARY, in_memory

__all__ = ["DEVICES", "DTYPES", "INTERPRETED", "by_aten", "direct", "plain", "transformed"]

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
"""The dtypes that the ops take; float64 is computed by aten."""
_KERNEL_DTYPES = DTYPES - {torch.float64}

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run interpreted, on the CPU. Triton decides it by this variable when a kernel is declared."""
DEVICES = frozenset({"cuda", "cpu"} if INTERPRETED else {"cuda"})
"""The device types the kernels run on; torch calls ROCm's ``cuda`` too."""


def plain(x: Tensor) -> bool:
    """Whether the aten expression is what x gets, decided before the dispatcher, which is slower than a small op."""
    if torch.compiler.is_compiling() or type(x) not in ORDINARY or not in_memory(x):
        return True
    return by_aten(x) or transformed()


def direct(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors that a kernel takes, and nothing but autograd has to see what is done."""
    if torch.compiler.is_compiling() or _dispatch_modes() or _key_included(_PRE_DISPATCH):
        return False
    if _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing():  # transformed, without a call
        return False
    for x in tensors:
        if x.dtype not in _KERNEL_DTYPES or type(x) not in ORDINARY:
            return False
        if _dispatch_keys(x).raw_repr() not in _ORDINARY_KEYS and not _has_ordinary_keys(x):
            return False
    return True


_ORDINARY_KEYS: set[int] = set()
"""The dispatch keys of tensors that are nothing but memory of a device with kernels, as far as there were any."""


def _has_ordinary_keys(x: Tensor) -> bool:
    """Whether x has no other dispatch keys than such a tensor, made to be differentiated or not. A negated view, which
    the dispatcher resolves, has more, a zero without memory, a batch of gradients, a nested or sparse tensor. Asked
    where no mode and no transform has a hand in what is made here."""
    if not (x.is_cuda or (INTERPRETED and x.is_cpu)):
        return False
    for inference in (False, True):
        with torch.inference_mode(inference):
            _ORDINARY_KEYS.add(_dispatch_keys(torch.empty(0, device=x.device)).raw_repr())
    return _dispatch_keys(x).raw_repr() in _ORDINARY_KEYS


def transformed() -> bool:
    """Whether torch.func or torch.jit.trace goes through here, or a forward-mode derivative, which an op of
    torch.library would drop in silence."""
    return _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing()


_dispatch_keys = torch._C._dispatch_keys
_dispatch_modes = torch._C._len_torch_dispatch_stack
_key_included, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch
_functorch_stack = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._is_tracing


def by_aten(x: Tensor) -> bool:
    """Whether x's dtype or device has no kernel."""
    return x.dtype == torch.float64 or (x.is_cpu and not INTERPRETED)
