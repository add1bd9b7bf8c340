"""What an implementation is given: whether it is an ordinary tensor, and whether autograd keeps it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = [
    "ORDINARY",
    "in_memory",
    "needs_gradient",
    "nothing_but_memory",
    "ordinary",
    "stays",
    "transformed",
    "watched",
]

ORDINARY = frozenset({Tensor, nn.Parameter})
"""The types of ordinary tensors."""


def ordinary(x: object) -> bool:
    """Whether x is a tensor of floating-point numbers in strided memory: no subclass of Tensor, nothing that stands
    for a tensor while torch.fx traces, and neither nested, sparse, quantized nor in MKL-DNN's layout."""
    return type(x) in ORDINARY and in_memory(x) and x.is_floating_point()  # type: ignore[arg-type, attr-defined]


def in_memory(x: Tensor) -> bool:
    """Whether x has sizes and strides. A nested tensor of the older kind says that its layout is strided, too."""
    return x.layout is torch.strided and not x.is_nested


def needs_gradient(x: Tensor) -> bool:
    """Whether autograd follows what is computed from x."""
    return torch.is_grad_enabled() and x.requires_grad


def stays(*tensors: Tensor) -> bool:
    """Whether nothing may be written over what was computed from these: autograd keeps it, or a transform (vmap, grad)
    or a trace goes through here, which record each op."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing()


def watched() -> bool:
    """Whether something beside autograd has to see what is done: a dispatch mode, a transform, a trace, a compiler."""
    if torch.compiler.is_compiling() or _dispatch_modes() or _key_included(_PRE_DISPATCH):
        return True
    return _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing()  # without a call


def transformed() -> bool:
    """Whether torch.func or torch.jit.trace goes through here, or a forward-mode derivative, which an op of
    torch.library would drop in silence."""
    return _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing()


def nothing_but_memory(x: Tensor) -> bool:
    """Whether x is an ordinary tensor by its dispatch keys, made to be differentiated or not. A negated view, which the
    dispatcher resolves, has more of them, a zero without memory, a batch of gradients, a nested or sparse tensor. Asked
    where nothing is ``watched``."""
    return type(x) in ORDINARY and (_dispatch_keys(x).raw_repr() in _ORDINARY_KEYS or _has_ordinary_keys(x))


_ORDINARY_KEYS: set[int] = set()
"""The dispatch keys of ordinary tensors on the devices there were any of."""


def _has_ordinary_keys(x: Tensor) -> bool:
    for inference in (False, True):
        with torch.inference_mode(inference):
            _ORDINARY_KEYS.add(_dispatch_keys(torch.empty(0, device=x.device)).raw_repr())
    return _dispatch_keys(x).raw_repr() in _ORDINARY_KEYS


_dispatch_keys = torch._C._dispatch_keys
_dispatch_modes = torch._C._len_torch_dispatch_stack
_key_included, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch
_functorch_stack = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._is_tracing
