"""What the libraries of image models have in common: sizes of images, and names that say how large a model is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["SIZES", "image", "smallest"]

SIZES = (64, 128, 224, 299)
"""Pixels a side; the first that a model takes is used."""

# From small to large.
_WORDS = (
    "test", "zepto", "atto", "femto", "pico", "nano", "xxs", "xxt", "xs", "xt", "tiny", "t", "mini", "micro", "ti", "s",
    "small", "lite", "m", "medium", "b", "base", "l", "large", "xl", "xlarge", "h", "huge", "g", "giant", "1b", "3b",
)  # fmt: skip


def image(model: nn.Module, *shape: int) -> dict[str, Any]:
    """Random pixels as the first argument of a model's forward."""
    return {next(iter(inspect.signature(model.forward).parameters)): torch.randn(1, *shape)}


def smallest(names: Iterable[tuple[Hashable, str]]) -> list[str]:
    """Of each kind the name that says that it is the smallest model, given (kind, name)."""
    kinds: dict[Hashable, list[str]] = {}
    for kind, name in names:
        kinds.setdefault(kind, []).append(name)
    return [min(found, key=_size) for found in kinds.values()]


def _size(name: str) -> tuple[int, int, int, str]:
    """First by the smallest word of size in a name, then by its first number, as in ``resnet18`` and ``vgg11``."""
    ranks = [_WORDS.index(word) for word in re.split("[-_]", name.lower()) if word in _WORDS]
    numbers = re.findall(r"\d+", name)
    return min(ranks, default=len(_WORDS) // 2), int(numbers[0]) if numbers else 0, len(name), name
