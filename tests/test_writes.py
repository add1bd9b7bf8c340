"""What may write over an activation's input before its product is computed: then the two steps stay two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_forwards import checked
from torch import Tensor, nn

REASON = "what stands between it and its product may write over its input"


class Doubled(torch.autograd.Function):
    """2 x, written over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return 2 * grad


class InPlaceLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.mul_(2), self.weight, self.bias)


class LinearByItsMethod(nn.Linear):
    def doubled(self, x: Tensor) -> Tensor:
        return x.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.doubled(x), self.weight, self.bias)


class LinearByAnotherObject(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(Doubled.apply(x), self.weight, self.bias)


class LinearAddedTo(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return F.linear(x, self.weight, self.bias)


class LinearOfParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = InPlaceLinear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class LinearWithoutSource(nn.Linear):
    exec(
        "def forward(self, x): return torch.nn.functional.linear(x.mul_(2), self.weight, self.bias)",
        globals(),
        locals(),
    )


class Falcon(nn.Linear):
    """As FalconLinear has it: its source writes over nothing."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        if self.bias is None:
            return y
        return y + self.bias


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.view_as(x)


class Gated(nn.Module):
    """silu(x) · up(x), the activation first."""

    def __init__(self, up: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.before = up, before

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        return F.silu(x) * self.up(x)


class GatedBehind(Gated):
    """silu(before(x)) · up(x)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        return F.silu(self.before(x)) * self.up(x)


WRITING = {
    "whatever its class is called": lambda: InPlaceLinear(4, 4),
    "in a method": lambda: LinearByItsMethod(4, 4),
    "in another object": lambda: LinearByAnotherObject(4, 4),
    "by += on its argument": lambda: LinearAddedTo(4, 4),
    "in a module inside": LinearOfParts,
    "unreadable": lambda: LinearWithoutSource(4, 4),
    "in torch's container": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)),
}


@pytest.mark.parametrize("up", WRITING.values(), ids=WRITING)
def test_a_module_that_may_write_over_its_input(up: Any) -> None:
    torch.manual_seed(0)
    found = checked(Gated(up()))
    (site,) = [site for site in found.report.sites if site.activation == "silu"]
    assert (site.kind, site.fused) == ("gated", False)
    assert REASON in site.reason


@pytest.mark.parametrize(
    "up", [lambda: nn.Linear(4, 4), lambda: Falcon(4, 4), Normed, lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
)
def test_a_module_that_leaves_its_input_as_it_is(up: Any) -> None:
    torch.manual_seed(0)
    found = checked(Gated(up()))
    assert next(site for site in found.report.sites if site.activation == "silu").fused


@pytest.mark.parametrize(
    "before",
    [Same, nn.Identity, lambda: nn.Dropout(0.0), nn.Sequential, lambda: nn.Sequential(Same(), nn.Flatten()), nn.ReLU],
)
def test_a_gate_that_may_be_the_input_of_the_other_factor(before: Any) -> None:
    torch.manual_seed(0)
    passes_on = before is not nn.ReLU
    model = GatedBehind(InPlaceLinear(4, 4), before())
    found = checked(model)
    site = next(site for site in found.report.sites if site.activation == "silu")
    assert site.fused != passes_on
    assert (REASON in site.reason) == passes_on
