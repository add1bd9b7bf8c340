"""Models whose pickles do not depend on transformers: one for each way in which a patch reaches a site."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gated(nn.Module):
    """act(gate(x)) · up(x), as a module's call and as a function's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.act(self.gate(x)) * self.up(x))
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class Linear(nn.Module):
    """act(linear(x)), of functions with parameters too, and of one that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.act = nn.ReLU()
        self.leaky = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.act(self.up(x)))
        x = self.down(self.leaky(self.up(x)))
        x = self.up(x)
        x = self.down(x * torch.sigmoid(1.702 * x))
        x = self.up(x)
        return self.down(x.sigmoid())


class Chain(nn.Module):
    """Modules called in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4), nn.GELU(approximate="tanh")])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def own() -> nn.Module:
    """The three, one behind the other, in the plainest of containers."""
    torch.manual_seed(0)
    return nn.Sequential(Gated(), nn.GELU(), Linear(), nn.Tanh(), Chain())


def inputs() -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
