"""What a loaded model is made of: where its parts are, how its weights are held, how coarse its arithmetic is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_gelu_patch.verification.copies import is_quantized, is_split

__all__ = [
    "TURN",
    "Arithmetic",
    "arithmetic",
    "device_of",
    "devices_of",
    "is_quantized",
    "is_split",
    "moves_weights",
    "state_of",
    "weights_of",
]

TURN = "_hf_gelu_patch_turn"
"""The attribute of a model that is patched in turn which says whose turn it is."""


class Arithmetic(NamedTuple):
    """How coarse a model computes.

    Attributes:
        epsilon: the relative distance of two numbers that follow each other.
        name: whose that is, in words.
    """

    epsilon: float
    name: str


def arithmetic(model: nn.Module) -> Arithmetic:
    """That of a model's dtype; or of bfloat16 where weights are quantized: their layers may round what they are given
    to 8 bits, or compute in half precision, whatever the dtype of the others is."""
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    own, half = torch.finfo(dtype).eps, torch.finfo(torch.bfloat16).eps
    if is_quantized(model) and own < half:
        return Arithmetic(half, "bfloat16, for a quantized model")
    return Arithmetic(own, str(dtype).removeprefix("torch."))


def moves_weights(model: nn.Module) -> bool:
    """Whether hooks of accelerate's fetch weights when they are needed, or bring inputs to where these are."""
    return any("_hf_hook" in vars(module) for module in model.modules())


def devices_of(model: nn.Module) -> tuple[torch.device, ...]:
    """Those that a model computes on, in the order of its layers."""
    spread: dict[str, str | int | torch.device] = getattr(model, "hf_device_map", None) or {}
    if not spread:
        return (next((weight.device for weight in model.parameters()), torch.device("cpu")),)
    places = [place for place in dict.fromkeys(spread.values()) if place not in ("cpu", "disk")]
    return tuple(torch.device(place) for place in places) or (torch.device("cpu"),)


def device_of(model: nn.Module) -> torch.device:
    """Where a model is given its inputs, and where it gives its outputs: the first of its devices."""
    return devices_of(model)[0]


def state_of(model: nn.Module) -> object:
    """What stands for a model where its answers are kept: the model; or, where one serves for several variants in turn,
    the one that it is at the moment. It can be hashed, and referred to weakly."""
    found: object = vars(model).get(TURN, model)
    return found


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All of a model's state by name, one tensor after the other: those on the disk are read when it is their turn. Of
    one that is split among processes this process's part.

    Layers with quantized weights are not asked for their state, but for their parameters and buffers: after the
    ``state_dict()`` of a 4-bit layer that has run on a CPU, bitsandbytes 0.50 computes something else.
    """
    if is_quantized(model):
        state: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
    else:
        state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        if tensor.device.type != "meta":
            yield from _parts(name, tensor)
            continue
        hook = vars(model.get_submodule(path)).get("_hf_hook")
        maps = [getattr(one, "weights_map", None) for one in (hook, *getattr(hook, "hooks", ()))]
        yield name, next((stored[key] for stored in maps if stored is not None), tensor)


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor; or the plain ones that one of a class of its own is made of, as torchao's, and torch's DTensor."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    whole: Any = tensor
    for key in whole.__tensor_flatten__()[0]:
        part = getattr(whole, key)
        if isinstance(part, Tensor):  # a DTensor names its mesh too
            yield from _parts(f"{name}.{key}", part)
