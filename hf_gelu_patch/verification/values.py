"""What of a model's output can be compared: every number in it, however it is wrapped, as a tensor with a name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["GRADIENT", "Found", "attributes", "finite", "numbers", "output_tensors"]

GRADIENT = "gradient of "  # what the name of each gradient begins with

_OPAQUE = (nn.Module, ModuleType, type, torch.dtype, torch.device, torch.Size, torch.Generator)


@dataclass
class Found:
    """The numbers in an output.

    Attributes:
        tensors: by name, ``hidden_states.0``. Complex numbers are pairs of real ones; a nested tensor is one tensor
            for each of its parts. Still part of autograd's graph where they were.
        unseen: what holds none, with the reason: ``text: str``.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


def numbers(output: object) -> Found:
    """The numbers in whatever a model returns: tensors, NumPy arrays and Python's own, in mappings, sequences, data
    classes, distributions, caches and other objects with attributes."""
    found = Found()
    for name, value in _leaves("", output, frozenset()):
        try:
            for one, tensor in _plain(name, value):
                found.tensors[_free(one, found.tensors)] = tensor
        except (TypeError, NotImplementedError, RuntimeError) as error:
            reason = str(error).partition("\n")[0] if isinstance(value, Tensor) else type(value).__name__
            found.unseen += (f"{name}: {reason}",)
    return found


def output_tensors(output: object) -> dict[str, Tensor]:
    """The floating-point tensors in whatever a model returns, caches included, by name: ``hidden_states.0``."""
    found: dict[str, Tensor] = {}
    for name, value in _leaves("", output, frozenset()):
        if isinstance(value, Tensor) and value.is_floating_point():
            found[_free(name, found)] = value
    return found


def _free(name: str, taken: Mapping[str, object]) -> str:
    """A name that none has yet: two ways may spell one, as ``layer[0]`` and the key ``"layer.0"`` do."""
    names = (f"{name} ({number})" if number > 1 else name for number in itertools.count(1))
    return next(one for one in names if one not in taken)


def _leaves(name: str, value: Any, above: frozenset[int]) -> Iterator[tuple[str, Any]]:
    """What there is to compare or to name as unseen; nothing for None and for what an object keeps books with."""
    if value is None or id(value) in above:
        return
    if isinstance(value, (Tensor, bool, int, float, complex)) or _is_array(value) or _is_table(value):
        yield name or "output", value
        return
    parts: Mapping[Any, Any]
    if isinstance(value, Mapping):
        parts = value
    elif isinstance(value, (tuple, list)):
        parts = dict(enumerate(value))
    else:
        parts = attributes(value)
        if type(value).__module__.partition(".")[0] in ("torch", "transformers"):
            parts = {key: part for key, part in parts.items() if not isinstance(part, (bool, int, str, *_OPAQUE))}
        if not parts:
            yield name or "output", value
            return
    for key, part in parts.items():
        yield from _leaves(f"{name}.{key}" if name else str(key), part, above | {id(value)})


def _is_array(value: object) -> bool:
    """Whether NumPy reads it as an array, as it does its own and data frames."""
    return hasattr(type(value), "__array__") and not isinstance(value, type)


def _is_table(value: object) -> bool:
    """A list of Python numbers, or of such lists."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(part, (bool, int, float, complex)) or _is_table(part) for part in value)


def attributes(value: object) -> dict[str, Any]:
    """An object's own attributes, those in slots too; none of a module, a class or a function."""
    if isinstance(value, _OPAQUE) or (callable(value) and not hasattr(value, "__dict__")):
        return {}
    slots = [slot for cls in type(value).__mro__ for slot in _slots(cls) if hasattr(value, slot)]
    return {**{slot: getattr(value, slot) for slot in slots}, **getattr(value, "__dict__", {})}


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _plain(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """As dense tensors of real numbers, integers or booleans. Raises what torch does where there is no such thing."""
    if not isinstance(value, Tensor) and _is_array(value):
        value = torch.from_numpy(np.array(value))
    elif not isinstance(value, Tensor):
        value = _tensor_of(value)
    if value.is_meta:
        raise RuntimeError("it is on the meta device, without values")
    if value.is_nested:
        for number, part in enumerate(value.unbind()):
            yield from _plain(f"{name}.{number}", part)
        return
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_quantized:
        value = value.dequantize()
    yield name, torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def finite(tensor: Tensor) -> Tensor:
    """Which numbers are finite; torch does not say so of numbers of eight bits."""
    return (tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite()


def _tensor_of(value: Any) -> Tensor:
    """Python's numbers, in the precision they have. Raises TypeError for what are none."""
    try:
        array = np.array(value)
    except ValueError:  # rows of several lengths
        array = np.array([number for row in value for number in (row if isinstance(row, (list, tuple)) else [row])])
    return torch.from_numpy(array)
