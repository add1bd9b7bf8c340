"""A batch copied, and a model copied in float64: what its own rounding is measured against."""

from __future__ import annotations

import copy
import functools
import math
import os
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_gelu_patch.errors import first_line
from hf_gelu_patch.verification.values import attributes

__all__ = ["Exact", "copied", "exact_copy", "free_memory", "in_double", "is_quantized", "is_split", "redraw"]

_Output = TypeVar("_Output")


@dataclass(frozen=True)
class Exact(Generic[_Output]):
    """A float64 copy of a model, its batch and what it makes of that; or why there is none.

    Attributes:
        model: the copy; None where there is none.
        batch: the batch, its floating-point numbers in float64.
        output: what the copy gives for it; None where there is no copy.
        reason: why there is none, in words; "" where there is one.
    """

    model: nn.Module | None
    batch: Any
    output: _Output | None
    reason: str


def exact_copy(model: nn.Module, batch: Any, forward: Callable[[Any, Any], _Output]) -> Exact[_Output]:
    """A float64 copy of a model, run once on a batch, without autocast. It needs twice the memory of the weights in
    float64 for a moment.

    Args:
        model: unpatched.
        batch: a tensor, or any nesting of mappings, sequences and objects with tensors inside.
        forward: runs a model on a batch.

    Returns:
        The copy. There is none where there is no memory for it, where weights are offloaded, spread over devices or
        quantized, or where the model does not run in float64.
    """
    weights = [*model.parameters(), *model.buffers()]
    devices = {weight.device for weight in weights}
    if len(devices) != 1 or any("_hf_hook" in vars(module) for module in model.modules()):
        offloaded = any(device.type == "meta" for device in devices)
        return Exact(None, None, None, "weights are offloaded" if offloaded else "the model is spread over devices")
    if any(map(is_split, weights)):
        return Exact(None, None, None, "weights are split among processes")
    if is_quantized(model):
        return Exact(None, None, None, "weights are quantized, and their layers compute in the precision they are for")
    (device,) = devices
    needed = 2 * 8 * sum(weight.numel() for weight in weights)
    if needed > (free := free_memory(device)):
        reason = f"a float64 copy needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        return Exact(None, None, None, reason)
    reason = ""
    for make in (_doubled, _without_casts):
        try:
            exact, doubled = make(model), in_double(batch)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                return Exact(exact, doubled, forward(exact, doubled), "")
        except Exception as error:  # whatever a model raises that is copied, or runs in float64
            reason = reason or f"the model does not run in float64: {first_line(error)}"
    return Exact(None, None, None, reason)


def is_split(weight: Tensor) -> bool:
    """Whether a tensor is torch's DTensor: each of several processes has a part of it."""
    return hasattr(weight, "device_mesh")


def is_quantized(model: nn.Module) -> bool:
    """Whether transformers has put layers with quantized weights into a model. It says so too of weights that it has
    dequantized while it loaded them, as those of a GGUF file: these are plain numbers."""
    for module in model.modules():
        quantizer = getattr(module, "hf_quantizer", None)
        if quantizer is not None and getattr(module, "is_quantized", False) is True:
            config = getattr(quantizer, "quantization_config", None)
            if getattr(getattr(config, "quant_method", None), "value", None) == "gguf":
                return not all(weight.is_floating_point() for weight in module.parameters())
            return not getattr(config, "dequantize", False)
    return False


def _doubled(model: nn.Module) -> nn.Module:
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if "_original_forward" in vars(module):  # accelerate's mixed precision is around it
            module.forward = vars(module)["_original_forward"]
        if callable(switch := getattr(module, "set_experts_implementation", None)):
            switch("eager")  # grouped products of experts take no float64
    return exact


def _without_casts(model: nn.Module) -> nn.Module:
    """A copy that computes in float64 also where the model's own code asks for another precision."""
    exact = _doubled(model)
    forward = exact.forward

    @functools.wraps(forward)
    def in_float64(*given: Any, **named: Any) -> Any:
        with _InFloat64():
            return forward(*given, **named)

    exact.forward = in_float64
    return exact


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _InFloat64(TorchFunctionMode):
    """Casts to float32 and below give float64, and so does whatever is made in such a dtype."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.float, Tensor.bfloat16, Tensor.half):
            return Tensor.double(*args)
        if func is not Tensor.view:  # which reads the bits anew
            args = tuple(torch.float64 if any(one is dtype for dtype in _FLOATS) else one for one in args)
            kwargs = {key: torch.float64 if any(one is d for d in _FLOATS) else one for key, one in kwargs.items()}
        return func(*args, **kwargs)


def redraw(exact: nn.Module, model: nn.Module, epsilon: float, generator: torch.Generator) -> None:
    """Turn a float64 copy into a copy of the model in its own precision, one weight in 64 moved by ε of itself: enough
    for every rounding behind it to fall otherwise.

    Args:
        exact: the copy, or what an earlier call made of it.
        model: gives the dtypes.
        epsilon: of its arithmetic.
        generator: draws the weights, and which way they move.
    """
    dtypes = {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for name, weight in exact.named_parameters():
        drawn = torch.randint(-64, 64, weight.shape, generator=generator).to(weight.device)
        moves = (drawn == 0).double() - (drawn == -1).double()
        weight.data = (weight.data.double() * (1 + epsilon * moves)).to(dtypes.get(name, weight.dtype))
    for name, buffer in exact.named_buffers():
        buffer.data = buffer.data.to(dtypes.get(name, buffer.dtype))


def free_memory(device: torch.device) -> float:
    """Bytes free on a device, as far as it tells; 0 on meta."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0 if device.type == "meta" else math.inf


# -------------------------------------------------------------------------------------------------------------- batches


def copied(batch: Any) -> Any:
    """A copy that no run can change the original through: of tensors, arrays, generators, sequences, mappings, data
    classes, caches. Modules and functions are shared."""
    return _copied(batch, {}, None)


def in_double(batch: Any) -> Any:
    """The same, the floating-point numbers of its tensors in float64."""
    return _copied(batch, {}, torch.float64)


def _copied(value: Any, memo: dict[int, Any], dtype: torch.dtype | None) -> Any:
    if id(value) not in memo:
        memo[id(value)] = (_copy_of(value, memo, dtype), value)  # the value too: an id is only its own while it lives
    return memo[id(value)][0]


def _copy_of(value: Any, memo: dict[int, Any], dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        to = dtype if dtype is not None and value.is_floating_point() else value.dtype
        if dtype is not None and value.is_complex():
            to = torch.complex128
        made = value.detach().clone().to(to)
        return made.requires_grad_() if value.requires_grad else made
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)):
        return copy.deepcopy(value)
    if type(value) in (list, tuple, set, deque):
        return type(value)(_copied(part, memo, dtype) for part in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(part, memo, dtype) for part in value))
    if isinstance(value, nn.Module) or not (isinstance(value, Mapping) or attributes(value)) or callable(value):
        return value
    try:
        made = copy.copy(value)
    except Exception:  # some objects refuse: they are handed on as they are
        return value
    memo[id(value)] = (made, value)  # for objects that hold themselves
    for key, part in attributes(value).items():
        object.__setattr__(made, key, _copied(part, memo, dtype))  # frozen data classes too
    if isinstance(value, dict) and isinstance(made, dict):
        for key, part in value.items():
            dict.__setitem__(made, key, _copied(part, memo, dtype))
    return made
