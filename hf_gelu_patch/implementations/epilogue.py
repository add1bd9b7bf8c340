"""``epilogue``: the activation in the epilogue of the product before it, applied as the product is stored.

On a CPU by oneDNN, for every activation whose record names a post-op of it; on NVIDIA's GPUs by cuBLASLt, for the tanh
form of GELU and ReLU. The ops of torch that do it have no backward, and are private to torch: where one is not there,
``obstacle`` says so. What they do not take, ``aten`` computes: anything under autograd or autocast, a transposed
convolution, padding other than zeros; on a CPU ReLU, since oneDNN's gives 0 for NaN, and a weight that does not lie as
a linear layer's (GPT-2's ``Conv1D`` keeps it transposed; oneDNN would lay it out anew at each call, and a copy would go
stale when the weight is written to).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Derived
from hf_gelu_patch.implementations.aten import ATEN, after_linear
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.implementations.tensors import needs_gradient, nothing_but_memory, watched

__all__ = ["EPILOGUE"]

_IN_CUBLASLT = frozenset({"gelu_tanh", "relu"})
_CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


def in_epilogue(linear: nn.Module, x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """act(linear(x)) as one product, where nothing needs a gradient; anything else as ``aten`` does it.

    Args:
        linear: an ``nn.Linear``, a convolution or transformers' ``Conv1D``, called as it stands.
        x: its input.
        activation: one that ``EPILOGUE`` computes on x's device.
        parameters: the activation's constants.
    """
    way = _WAYS.get(x.device.type)
    if way is not None and _free(linear, x) and (y := way(linear, x, ACTIVATIONS[activation], parameters)) is not None:
        return y
    return after_linear(linear, x, activation=activation, **parameters)


def _free(linear: nn.Module, x: Tensor) -> bool:
    """Whether nothing has to see the two ops apart or needs a gradient, and all are ordinary tensors of one kind."""
    if watched() or torch.is_autocast_enabled(x.device.type):
        return False
    for one in (x, linear.weight, linear.bias):
        if one is not None and (
            not isinstance(one, Tensor)
            or one.dtype != x.dtype
            or one.device != x.device
            or needs_gradient(one)
            or not nothing_but_memory(one)
        ):
            return False
    return True


def _by_onednn(linear: nn.Module, x: Tensor, record: Activation, parameters: dict[str, float]) -> Tensor | None:
    """act(linear(x)) by oneDNN; None where it does not take the layer."""
    post_op, weight, bias = record.post_op, cast("Tensor", linear.weight), cast("Tensor | None", linear.bias)
    if post_op is None or not torch.backends.mkldnn.enabled or _unable(x.device, x.dtype):
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous()):
        return None  # torch hands oneDNN its memory as if it were
    scalars = [parameters[name] for name in post_op.constants]
    told = (post_op.attr, scalars, post_op.algorithm)
    y: Tensor
    if type(linear) is nn.Linear:
        if not weight.is_contiguous() or not x.dim() or not x.shape[-1] == weight.shape[1] > 0:
            return None
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *told)
        return y
    if x.dim() != _CONVOLUTIONS.get(type(linear)):  # type: ignore[arg-type]
        return None
    how = linear.padding, linear.stride, linear.dilation, linear.groups
    if linear.padding_mode != "zeros" or isinstance(linear.padding, str):
        return None
    y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, *told)
    return y


def _by_cublaslt(linear: nn.Module, x: Tensor, record: Activation, parameters: dict[str, float]) -> Tensor | None:  # noqa: ARG001
    """act(x·W + b) by cuBLASLt; None where it does not take the layer."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(bias, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    matrix = weight.t() if isinstance(linear, nn.Linear) else weight  # transformers' Conv1D keeps it transposed
    y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), matrix, use_gelu=record.name == "gelu_tanh")
    return y.view(*x.shape[:-1], matrix.shape[1])


_WAYS = {"cpu": _by_onednn, "cuda": _by_cublaslt}


@functools.cache
def _unable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why oneDNN has no such products here, or None."""
    if device.type != "cpu":
        return None
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of torch has no oneDNN products with an epilogue"
    if dtype == torch.float32:
        return None
    half = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype not in half or not getattr(torch.ops.mkldnn, half[dtype])():
        return f"oneDNN has no {str(dtype).removeprefix('torch.')} products on this processor"
    return None


def _declines(layer: nn.Module, device: torch.device) -> str | None:
    if device.type != "cpu" or type(layer) is nn.Linear or type(layer) in _CONVOLUTIONS:
        return None
    return f"oneDNN has no epilogue for a {type(layer).__name__}, aten computes it"


def _computed(function: Callable[..., Tensor] | None, record: Activation) -> Callable[..., Tensor] | None:
    """``function``, or where there is none aten's; None for an activation that has no epilogue anywhere."""
    if record.post_op is None and record.name not in _IN_CUBLASLT:
        return None
    return ATEN.functions.get(record.name) if function is None else functools.partial(function, activation=record.name)


EPILOGUE = Implementation(
    "epilogue",
    Derived(functools.partial(_computed, None)),
    linear=Derived(functools.partial(_computed, in_epilogue)),
    devices=frozenset({"cpu", "cuda"}),
    only={"cuda": _IN_CUBLASLT},
    unable=_unable,
    declines=_declines,
)
