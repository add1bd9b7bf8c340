"""What is measured: models of four layers, one of them on long texts, and a gated layer on very long ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scripts.benchmarking.architectures import ARCHITECTURES, inputs_of

MLP, LONG = "llama's MLP", "llama, long"
"""One gated layer on very many tokens, and a model on many."""
LLAMA = ("llama", LONG, MLP)
"""Those with what Liger-Kernel computes."""
UNTIMED = (LONG,)
"""Of which there are bytes alone."""


@dataclass(frozen=True)
class Subject:
    """A module in training mode, without dropout, and what it is given.

    Attributes:
        module: made anew, with random weights, fp32.
        batch: for it.
        shape: of what it is given.
    """

    module: nn.Module
    batch: Any
    shape: tuple[int, ...]


def _model(name: str, shape: tuple[int, int], *, tiny: bool) -> Subject:
    """A model without a head. It keeps keys and values where its config says so, as a published one does."""
    model: Any = ARCHITECTURES[name].build_backbone(torch.float32, tiny=tiny)
    model.config.use_cache = True
    model = model.encoder if name == "t5" else model
    batch = inputs_of(model, shape, shape[0], "cpu", torch.float32)
    return Subject(_without_dropout(model), batch, tuple(next(iter(batch.values())).shape))


def _without_dropout(model: nn.Module) -> nn.Module:
    """In training mode; some modules have a dropout by number alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model.train()


def _layer(tokens: int, *, tiny: bool) -> Subject:
    model: Any = ARCHITECTURES["llama"].build_backbone(torch.float32, tiny=tiny)
    layer = model.layers[0].mlp.train()
    shape = (1, tokens, model.config.hidden_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return Subject(layer, (x,), shape)


SUBJECTS: Mapping[str, Callable[[bool], Subject]] = {
    **{
        name: lambda tiny, name=name: _model(name, (2, 16) if tiny else (4, 256), tiny=tiny)
        for name in ("gpt2", "bert", "t5", "llama")
    },
    "clip": lambda tiny: _model("clip", (2, 16) if tiny else (8, 128), tiny=tiny),
    "vit": lambda tiny: _model("vit", (2, 16) if tiny else (4, 256), tiny=tiny),
    LONG: lambda tiny: _model("llama", (2, 64) if tiny else (8, 2048), tiny=tiny),
    MLP: lambda tiny: _layer(64 if tiny else 32768, tiny=tiny),
}
"""By name; True makes it tiny. ViT gets as many images as the others get texts; CLIP reads no more than 128 tokens."""
