"""Faults of known kinds, each an implementation that claims to compute what a model has and does not.

A fault says how it computes the activation alone, a gated product, and what stands behind a linear layer, given the
function that would be right. It is planted through the registry, as an implementation of one's own is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_gelu_patch import ACTIVATIONS, Implementation, register_implementation
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

Function = Callable[[Tensor], Tensor]
Change = Callable[[Tensor, Tensor], Tensor]
"""What becomes of x, where y is right."""


@dataclass(frozen=True)
class Forms:
    """What an implementation computes: act(x), act(gate) · up and act(linear(x))."""

    pointwise: Function
    gated: Callable[[Tensor, Tensor], Tensor]
    linear: Callable[[nn.Module, Tensor], Tensor]


Make = Callable[[Function], Forms]
"""A fault's forms, made anew each time it is planted, from the function that would be right."""


@dataclass(frozen=True)
class Fault:
    """Something an implementation can do wrong.

    Attributes:
        name: in words.
        kind: which sort it is of.
        make: how it computes.
        models: those it is planted in.
        dtype: that of the model.
        batch: the one that reaches it, as ``Specimen.batch`` has it.
        training: whether the model is in training mode.
        one_site: whether it is at one site alone, in the middle; otherwise it is at all.
        seasoned: whether the model is patched once, run, and trained for a step, before it is verified.
        unseen: why nothing is to be seen of it, where that is so.
    """

    name: str
    kind: str
    make: Make
    models: tuple[str, ...]
    dtype: torch.dtype = torch.float32
    batch: str = "usual"
    training: bool = False
    one_site: bool = False
    seasoned: bool = False
    unseen: str = ""

    @property
    def held_out(self) -> bool:
        """Whether it is for judging alone, a quarter of all: no bar is set by what becomes of it. Its name decides."""
        return zlib.crc32(self.name.encode()) % 4 == 0

    @contextmanager
    def planted(self, activation: str) -> Iterator[None]:
        """Registered, by its name, as an implementation of that activation, and taken out again."""
        forms = self.make(ACTIVATIONS[activation].eager)
        alone = {"gated": {activation: forms.gated}, "linear": {activation: forms.linear}}
        claims = frozenset({activation})
        register_implementation(Implementation(self.name, {activation: forms.pointwise}, **alone, identical=claims))
        try:
            yield
        finally:
            del IMPLEMENTATIONS[self.name]
