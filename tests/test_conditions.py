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
    "a property": "if self.nothing is None:\n    x = F.silu(x)\nreturn x",
    "a list": "if self.log:\n    x = x + 1\nreturn F.silu(x)",
}


def module(body: str, write: Write) -> ModuleType:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    others = "none, off, on, later = None, False, True, None\nnothing = property(lambda self: None)\n\n"
    return write(methods(f"{others}def forward(self, x):\n{lines}"))


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


# A product on a condition

UP = "h = self.act(self.fc(x))\nif self.on is not None:\n    h = h * self.fc2(x)\nreturn self.fc2(h)"
OTHERWISE = ["else:", "h = patched_silu(self.act)(h)"]
PRODUCTS = {  # a body with a product on a condition: what is added to it
    "torchtune's": (UP, ["h = self.fc(x)", "h = gated(patched_silu(self.act), h, self.fc2(x))", *OTHERWISE]),
    "a child that is there": (
        UP.replace("self.on is", "self.fc2 is"),
        ["h = self.fc(x)", "h = gated(patched_silu(self.act), h, self.fc2(x))", *OTHERWISE],
    ),
    "a switch": (
        UP.replace("self.on is not None", "self.on and not self.off"),
        ["h = self.fc(x)", "h = gated(patched_silu(self.act), h, self.fc2(x))", *OTHERWISE],
    ),
    "on one line, and read before it too": (
        "h = self.fc(x)\ny = h + 1\nh = F.silu(h)\nif self.on: h = self.fc2(x) * h  # the gate\nreturn h + y",
        ["if self.on: h = gated_last(patched_silu, self.fc2(x), h)", "else:", "h = patched_silu(h)  # the gate"],
    ),
    "inside something": (
        UP.replace("h * self.fc2(x)", "self.fc2(h * self.fc2(x))"),
        ["h = self.fc(x)", "h = self.fc2(gated(patched_silu(self.act), h, self.fc2(x)))", *OTHERWISE],
    ),
    "in a loop": (
        "for _ in range(2):\n    h = F.silu(x)\n    if self.on:\n        h = h * self.fc(x)\n    x = h\nreturn x",
        ["h = x", "h = gated(patched_silu, h, self.fc(x))", "else:", "h = patched_silu(h)"],
    ),
}
APART = {  # a body whose product is not the whole of what a condition does with the activation
    "the module rules it out": UP.replace("self.on", "self.none"),
    "the input decides": UP.replace("self.on is not None", "x.dim() == 2"),
    "a call decides": UP.replace("self.on is not None", "self.on or self.note('asked', x)"),
    "a property": UP.replace("self.on is not", "self.nothing is"),
    "a method may change it": UP.replace("self.on is", "self.later is") + "\nself.later = 1",
    "another name": UP.replace("    h = h *", "    y = h *"),
    "two steps": UP.replace("    h = h *", "    self.note('up', x)\n    h = h *"),
    "twice": UP.replace("h * self.fc2(x)", "h * self.fc2(h)"),
    "another branch": UP.replace("\nreturn", "\nelse:\n    h = h + 1\nreturn"),
    "a condition that reads it": UP.replace("self.on is not None", "h is not None"),
    "something else before": UP.replace("\nif", "\nself.note('h', h)\nif"),
    "a function that may read it": UP.replace("\nif", "\nread = lambda: h\nif"),
    "where an error is caught": "\n".join(
        [
            *("try:", *(f"    {line}" for line in UP.replace("fc2(x)", "fc2(x[:, :1])").splitlines())),
            *("except RuntimeError:", "    return h"),
        ]
    ),
}


@pytest.mark.parametrize(("body", "added"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_on_a_condition_that_holds_is_gated(body: str, added: list[str], write: Write) -> None:
    found = checked(build(module(body, write)))
    assert (found.site.kind, found.site.fused) == ("gated", True)
    assert found.added() == added


@pytest.mark.parametrize("body", APART.values(), ids=APART)
def test_a_product_that_may_not_be_is_none(body: str, write: Write) -> None:
    found = checked(build(module(body, write)))
    assert found.site.kind != "gated"


def test_a_product_is_left_out_where_its_condition_no_longer_holds(write: Write) -> None:
    model = build(module(UP, write))
    with torch.no_grad():
        patch(model, implementation="aten")
        for on in (True, None):
            model.on = on
            h = model.act(model.fc(inputs()))
            assert torch.equal(model(inputs()), model.fc2(h * model.fc2(inputs()) if on else h))


# An activation on a condition, behind a linear layer

ACT = "h = self.fc(x)\nif self.on is not None:\n    h = self.act(h)\nreturn self.fc2(h)"
FUSED = ["h = linear_act(patched_silu(self.act), self.fc, h)", "else:", "h = self.fc(h)"]
LINEAR = {  # a body with an activation on a condition: what is added to it
    "diffusers'": (ACT, ["h = x", *FUSED]),
    "of one name": (
        ACT.replace("(h)", "(x)").replace("h =", "x ="),
        ["x = linear_act(patched_silu(self.act), self.fc, x)", "else:", "x = self.fc(x)"],
    ),
    "a function": (ACT.replace("self.act", "F.silu"), ["h = x", FUSED[0].replace("(self.act)", ""), *FUSED[1:]]),
    "inside something": (
        ACT.replace("self.act(h)", "self.fc2(self.act(h) + 1)"),
        ["h = x", "h = self.fc2(linear_act(patched_silu(self.act), self.fc, h) + 1)", *FUSED[1:]],
    ),
}  # fmt: skip
NOT_BEHIND = {
    "the module rules it out": ACT.replace("self.on", "self.none"),
    "the input decides": ACT.replace("self.on is not None", "x.dim() == 2"),
    "something between": ACT.replace("\nif", "\ny = x + 1\nif"),
    "it is read before": ACT.replace("\nif", "\nself.note('h', h)\nif"),
    "it is read twice": ACT.replace("self.act(h)", "self.act(h) + h"),
    "another name": ACT.replace("    h =", "    y ="),
    "more in the branch": ACT.replace("\nreturn", "\n    self.note('h', h)\nreturn"),
    "another branch": ACT.replace("\nreturn", "\nelse:\n    h = h + 1\nreturn"),
    "no layer": ACT.replace("self.fc(x)", "x + 1"),
}


@pytest.mark.parametrize(("body", "added"), LINEAR.values(), ids=LINEAR)
def test_an_activation_on_a_condition_that_holds_is_fused_with_the_layer_before(
    body: str, added: list[str], write: Write
) -> None:
    found = checked(build(module(body, write)))
    assert (found.site.kind, found.site.fused) == ("linear", True)
    assert found.added() == added


@pytest.mark.parametrize("body", NOT_BEHIND.values(), ids=NOT_BEHIND)
def test_an_activation_that_may_not_be_is_by_itself(body: str, write: Write) -> None:
    found = checked(build(module(body, write)))
    assert (found.site.kind, found.site.fused) == ("pointwise", False)


def test_a_layer_is_run_alone_where_the_condition_no_longer_holds(write: Write) -> None:
    model = build(module(ACT, write))
    with torch.no_grad():
        patch(model, implementation="aten")
        for on in (True, None):
            model.on = on
            h = model.fc(inputs())
            assert torch.equal(model(inputs()), model.fc2(model.act(h) if on else h))


# What stands between an activation and its product

BETWEEN = {  # where the activation is that of a layer's result, which nobody else has
    "a branch": "if x.dim() == 2:\n    y = x + 1",
    "a branch with two ends": "if x.dim() == 1:\n    y = x\nelse:\n    self.kept = x\n    y = x + 1",
    "a cache": "if x is not None:\n    self.cache[0] = x[0].detach()",
    "a call": "self.note('x', x)",
    "in place": "y = x.clone().add_(1)",
    "a check": "if x.dim() == 7:\n    raise ValueError",
}
NOT_BETWEEN = {
    "it may be read": "if x.dim() == 2:\n    self.note('h', h)",
    "it may be another": "if x.dim() == 2:\n    h = x",
    "a loop": "for _ in range(2):\n    x = x + 1",
    "it may leave": "if x.dim() == 1:\n    return h",
    "it is changed": "h += 1",
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("first", ["h = self.act(self.fc(x))", "h = self.fc(x)\nh = self.act(h)"])
def test_what_cannot_change_a_layers_result_may_stand_between(first: str, between: str, write: Write) -> None:
    model = build(module(f"self.cache = [None]\n{first}\n{between}\nreturn self.fc2(h * x)", write))
    found = checked(model)
    assert (found.site.kind, found.site.fused) == ("gated", True)
    assert "return self.fc2(gated(patched_silu(self.act), h, x))" in found.added()


@pytest.mark.parametrize("between", NOT_BETWEEN.values(), ids=NOT_BETWEEN)
def test_what_reads_or_changes_it_may_not(between: str, write: Write) -> None:
    found = checked(build(module(f"h = self.act(self.fc(x))\n{between}\nreturn self.fc2(h * x)", write)))
    assert found.site.kind == "linear"


@pytest.mark.parametrize("layer", [torch.nn.Identity(), torch.nn.Dropout()])
def test_a_result_that_may_be_the_input_itself_is_no_layers_own(layer: torch.nn.Module, write: Write) -> None:
    body = "x = x.clone()\nh = self.act(self.fc(x))\nif x.dim() == 2:\n    x[0] = 7.0\nreturn h * self.fc2(x)"
    model = build(module(body, write)).eval()
    model.fc = layer.eval()
    with torch.no_grad():
        expected = model(inputs())
        report = patch(model, implementation="aten", activation="silu")
        assert torch.equal(model(inputs()), expected)
    [site] = [site for site in report.sites if site.line]
    assert not site.fused
