"""Activations behind a condition that the module decides: what cannot run is not counted as work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from test_forwards import build, checked, inputs, methods
from test_forwards import write as write

from hf_gelu_patch import NothingPatchedWarning, find_sites, patch

Write = Callable[..., ModuleType]

NEVER = {  # a body whose activation does not run, and which condition is told
    "none": ("if self.none is not None:\n    x = F.silu(x)\nreturn x", "self.none is not None does not hold"),
    "none, the other way": (
        "if self.none is None:\n    return x\nelse:\n    return F.silu(x)",
        "self.none is None holds",
    ),
    "a branch that leaves before": (
        "if self.none is None:\n    return x\nreturn F.silu(x)",
        "self.none is None holds",
    ),
    "a switch": ("if self.off:\n    x = F.silu(x)\nreturn x", "self.off does not hold"),
    "not": ("if not self.on:\n    x = F.silu(x)\nreturn x", "not self.on does not hold"),
    "and": ("if x.dim() == 2 and self.off:\n    x = F.silu(x)\nreturn x", "x.dim() == 2 and self.off does not hold"),
    "or": (
        "if self.off or self.none is not None:\n    x = F.silu(x)\nreturn x",
        "self.off or self.none is not None does not hold",
    ),
    "a name": (
        'if self.config.hidden_act == "silu":\n    x = F.silu(x)\nreturn x',
        "self.config.hidden_act == 'silu' does not hold",
    ),
    "in an expression": ("return F.silu(x) if self.off else x", "self.off does not hold"),
    "a child that is there": ("if self.fc is None:\n    x = F.silu(x)\nreturn x", "self.fc is None does not hold"),
    "deeper": ("if x.dim() == 2:\n    if self.off:\n        x = F.silu(x)\nreturn x", "self.off does not hold"),
    "a formula": ("if self.off:\n    x = x * torch.sigmoid(1.702 * x)\nreturn x", "self.off does not hold"),
}
MAY = {
    "it does": "if self.on:\n    x = F.silu(x)\nreturn x",
    "training": "if self.training:\n    x = F.silu(x)\nreturn x",
    "what a method assigns": "if self.later is not None:\n    x = F.silu(x)\nself.later = 1\nreturn x",
    "what is not known": "if x.dim() == 3 or self.on:\n    x = F.silu(x)\nreturn x",
    "a call": "if self.note('x', None):\n    x = F.silu(x)\nreturn x",
    "an attribute that is not there": "if getattr(self, 'missing', True):\n    x = F.silu(x)\nreturn x",
    "the test itself": "if F.silu(x).sum() > 0 and self.off:\n    x = x + 1\nreturn x",
    "a tensor": "if self.fc.weight is not None:\n    x = F.silu(x)\nreturn x",
    "a branch that goes on": "if self.none is None:\n    x = x + 1\nreturn F.silu(x)",
    "a list": "if self.log:\n    x = x + 1\nreturn F.silu(x)",
}


def module(body: str, write: Write) -> ModuleType:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return write(methods(f"none, off, on, later = None, False, True, None\n\ndef forward(self, x):\n{lines}"))


@pytest.mark.parametrize(("body", "condition"), NEVER.values(), ids=NEVER)
def test_what_cannot_run_is_left_alone(body: str, condition: str, write: Write) -> None:
    site = checked(build(module(body, write))).site
    assert not site.changed
    assert site.reason == f"it does not run here, where {condition}"


@pytest.mark.parametrize("body", MAY.values(), ids=MAY)
def test_what_may_run_is_patched(body: str, write: Write) -> None:
    model = build(module(body, write))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)
        report = patch(model, implementation="aten", activation="relu", include="forward:*")
    [site] = [site for site in report.sites if site.line]
    assert site.changed


def test_it_is_the_module_that_decides_and_not_its_class(write: Write) -> None:
    made = module("if self.off:\n    x = x * torch.sigmoid(1.702 * x)\nreturn x", write)
    off, on = build(made), build(made)
    on.off = True
    assert not [site for site in find_sites(off, implementation="aten").changed if site.line]
    assert [site.target for site in find_sites(on, implementation="aten").changed if site.line] == ["quick_gelu"]


def test_a_switch_that_is_turned_after_the_patch_runs_the_models_own(write: Write) -> None:
    model = build(module("if self.off:\n    x = x * torch.sigmoid(1.702 * x)\nreturn self.act(self.fc(x))", write))
    patch(model, implementation="aten")
    model.off = True
    x = inputs()
    assert torch.equal(model(x), model.act(model.fc(x * torch.sigmoid(1.702 * x))))
