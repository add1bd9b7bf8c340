"""What there is in a method, as it is followed: tokens, weights, modules, and what is the same for all tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

__all__ = [
    "STEADY",
    "TENSORS",
    "Above",
    "Method",
    "Module",
    "NotTokenWiseError",
    "Object",
    "Sizes",
    "Steady",
    "TensorMethod",
    "Tokens",
    "Weight",
    "described",
    "tried",
]


class NotTokenWiseError(Exception):
    """A method is not known to treat each token by itself; the message says why, ``placed`` once it says where."""

    placed = False


@dataclass(frozen=True)
class Tokens:
    """A tensor (…, length, width) whose rows each come from one token alone; the width where it is known.

    ``given``: it is the method's input as it was."""

    width: int | None
    given: bool = False


@dataclass(frozen=True)
class Weight:
    """A tensor that is the same for all tokens."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The shape of tokens, of which nothing but the last may be looked at."""


class Steady:
    """A value that is not known, and the same in each tile: a dtype, a device, the training mode."""


STEADY = Steady()


@dataclass(frozen=True, eq=False)
class Module:
    module: nn.Module
    path: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Method:
    owner: Module
    function: FunctionType


@dataclass(frozen=True)
class TensorMethod:
    tensor: Tokens | Weight
    name: str


@dataclass(frozen=True, eq=False)
class Object:
    """An object that a module holds under a dotted name."""

    value: object
    path: tuple[str, ...]
    name: str


@dataclass(frozen=True, eq=False)
class Above:
    """``super()`` in a method of ``cls``."""

    owner: Module
    cls: type


TENSORS = (Tokens, Weight)


def tried(function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What a function of plain values gives."""
    try:
        return function(*given, **named)
    except Exception as error:  # of the model's own numbers: whatever it raises
        raise NotTokenWiseError(f"{described(function)} cannot be followed: {error}") from error


def described(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name.rpartition("Class.")[2] if isinstance(name, str) else f"a {type(value).__name__}"
