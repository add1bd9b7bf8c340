"""Activations that work in place, swapped: what takes their place writes over its input as they did."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from test_forwards import HEADER, assert_same, build, methods, outcome
from test_forwards import write as write
from torch import nn

from hf_gelu_patch import find_sites, patch, unpatch

Write = Callable[..., ModuleType]

IN_PLACE = {  # a forward, and the same with hardswish
    "function": ("return F.silu(x, inplace=True) * self.fc(x) + x", "return F.hardswish(x, True) * self.fc(x) + x"),
    "method": ("return x.relu_() * self.fc(x) + x", "return F.hardswish(x, True) * self.fc(x) + x"),
    "torch": ("return torch.relu_(x) * self.fc(x) + x", "return F.hardswish(x, True) * self.fc(x) + x"),
    "global": ("return GLOBAL(x) * self.fc(x) + x", "return F.hardswish(x, True) * self.fc(x) + x"),
    "attribute": ("return self.inplace(x) * self.fc(x) + x", "return F.hardswish(x, True) * self.fc(x) + x"),
    "attribute, twice": (
        "return self.inplace(self.fc(x)) + self.inplace(x) + x",
        "return F.hardswish(self.fc(x)) + F.hardswish(x, True) + x",
    ),
    "result not taken": ("self.inplace(x)\nreturn self.fc(x)", "F.hardswish(x, True)\nreturn self.fc(x)"),
    "a product": ("x *= torch.sigmoid(x)\nreturn self.fc(x) + x", "F.hardswish(x, True)\nreturn self.fc(x) + x"),
    "a product that others see": (
        "y = x\ny *= torch.sigmoid(y)\nreturn self.fc(x) + x",
        "F.hardswish(x, True)\nreturn self.fc(x) + x",
    ),
}


def made(body: str, write: Write) -> nn.Module:
    lines = "".join(f"    {line}\n" for line in ("x = x * 1", *body.splitlines()))
    model = build(write(methods(f"def forward(self, x):\n{lines}"), HEADER + "GLOBAL = nn.SiLU(inplace=True)\n"))
    model.act = model.act2 = nn.Identity()
    model.inplace = nn.ReLU(inplace=True)
    return model


@pytest.mark.parametrize(("body", "wanted"), IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("options", [{"implementation": "aten"}, {"implementation": "eager"}, {"recompute": True}])
def test_a_swap_writes_over_the_input(body: str, wanted: str, options: dict[str, Any], write: Write) -> None:
    model, other = made(body, write), made(wanted, write)
    before = outcome(model, gradient=True)
    report = patch(model, activation="hardswish", include="*", **options)
    assert {site.target for site in report.changed} == {"hardswish"}
    assert not any(site.fused for site in report.changed)
    for gradient in (False, True):
        assert_same(outcome(other, gradient=gradient), outcome(model, gradient=gradient), 1e-6)
    unpatch(model)
    assert_same(before, outcome(model, gradient=True))


def test_a_convolutional_network_is_swapped() -> None:
    """transformers' ResNet has its activations out of place, torch's habit is in place."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.SiLU(inplace=True)).eval()
    x = torch.randn(2, 3, 8, 8)
    report = patch(model, activation="gelu")
    assert [(site.target, site.fused) for site in report.changed] == [("gelu", False)] * 2
    expected = F.gelu(model[2](F.gelu(model[0](x))))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_the_same_function_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    for options in ({}, {"activation": "relu"}, {"implementation": "aten"}):
        assert "in place" in find_sites(model, **options).sites[0].reason


def test_chameleons_product_in_place() -> None:
    """Its image tokenizer says ``hidden_states *= torch.sigmoid(hidden_states)``."""
    vq = transformers.ChameleonVQVAEConfig(
        embed_dim=8,
        num_embeddings=16,
        latent_channels=8,
        resolution=16,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
    )
    model = transformers.ChameleonVQVAE(vq).eval()
    sites = [site for site in find_sites(model, activation="gelu").changed if site.activation.startswith("silu")]
    assert sites
