"""Methods of a module that hand what they are given to an activation: their calls are the places that are patched."""

# ruff: noqa: E501 (sources in strings, one a line)

from __future__ import annotations

import types
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from test_forwards import build, checked, inputs, methods
from test_forwards import write as write

from hf_gelu_patch import NothingPatchedWarning, explain, find_sites, patch, unpatch

Write = Callable[..., ModuleType]

GATED = """
def forward(self, x):
    return self.fc(x) * self.gate(self.fc2(x))
"""
WAYS = {  # what the method says, what it computes, whether aten gives the same bits
    "a call": ("return F.gelu(y)", "gelu", "identical"),
    "with a docstring": ('"""Exact."""\nreturn F.gelu(y)', "gelu", "identical"),
    "with an argument": ('return F.gelu(y, approximate="tanh")', "gelu_tanh", "identical"),
    "with an argument of the module's": (
        "return F.gelu(y, approximate=self.config.approximate)",
        "gelu_tanh",
        "identical",
    ),
    "a formula": ("return y * torch.sigmoid(1.702 * y)", "quick_gelu", "rounding"),
    "a formula with the module's numbers": ("return y * torch.sigmoid(self.alpha * y)", "quick_gelu", "rounding"),
    "a method of tensors": ("return y.sigmoid()", "sigmoid", "identical"),
    "two ways": ('if y.device.type == "mps":\n    return F.gelu(y)\nreturn F.gelu(y)', "gelu", "identical"),
    "two ways, by what a function says": (
        "if math.sqrt(4) > 2:\n    return F.silu(y)\nelse:\n    return F.silu(y)",
        "silu",
        "identical",
    ),
    "in float32 on a condition": (
        "if y.dtype == torch.float16:\n    return F.gelu(y.to(dtype=torch.float32)).to(dtype=y.dtype)\nreturn F.gelu(y)",
        "gelu",
        "rounding",
    ),
    "in float32": ("return F.gelu(y.float()).type_as(y)", "gelu", "rounding"),
}


@pytest.mark.parametrize(("body", "activation", "equivalence"), WAYS.values(), ids=WAYS)
def test_a_product_with_a_call_is_gated(body: str, activation: str, equivalence: str, write: Write) -> None:
    method = "def gate(self, y):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    found = checked(build(write(methods(method + GATED))), tolerance=0.0 if equivalence == "identical" else 1e-6)
    [site] = [site for site in found.report.sites if site.line]
    assert (site.kind, site.target, site.equivalence, site.fused) == ("gated", activation, equivalence, True)
    assert found.added() == [f"return gated_last(patched_{activation}(self.gate), self.fc(x), self.fc2(x))"]


ANOTHER = {
    "it does more": "y = y + 1\n    return F.gelu(y)",
    "it may not return": "if y.device.type == 'mps':\n        return F.gelu(y)",
    "the numbers decide": "if y.max() > 1:\n        return F.gelu(y)\n    return F.gelu(y)",
    "two functions": "if y.is_cuda:\n        return F.silu(y)\n    return F.gelu(y)",
    "another dtype comes out": "return F.gelu(y.float())",
    "a narrower dtype": "return F.gelu(y.half()).to(y.dtype)",
    "what it is given is not what it takes": "return F.gelu(y + 1)",
    "a module, which is a place of its own": "return self.act2(y)",
    "a condition that leaves a trace": "if self.note('asked', y) is None:\n        return F.gelu(y)\n    return F.gelu(y)",
    "in place": "return F.silu(y, inplace=True)",
}


@pytest.mark.parametrize("body", ANOTHER.values(), ids=ANOTHER)
def test_a_method_that_does_anything_else_is_none(body: str, write: Write) -> None:
    found = checked(build(write(methods(f"def gate(self, y):\n    {body}\n{GATED}"))))
    assert all(site.kind == "pointwise" for site in found.report.sites)


def test_what_stands_before_the_call_is_fused_too(write: Write) -> None:
    body = "def gate(self, y):\n    return F.gelu(y)\n\ndef forward(self, x):\n    return self.gate(self.fc(x))\n"
    found = checked(build(write(methods(body))))
    assert found.added() == ["return linear_act(patched_gelu(self.gate), self.fc, x)"]


ELSEWHERE = {
    "handed to others": "def forward(self, x):\n    return self.fc(x) * self.call(self.gate, x)\n\ndef call(self, f, x):\n    return f(x)\n",
    "kept in a list": "def forward(self, x):\n    kept = [self.gate]\n    return self.fc(x) * self.gate(x) + kept[0](x)\n",
    "in a method that cannot be rewritten": "@property\ndef half(self):\n    return self.gate(self.fc.weight)\n\ndef forward(self, x):\n    return self.fc(x) * self.gate(x) + self.half.sum()\n",
}


@pytest.mark.parametrize("body", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_method_that_is_not_only_called_is_patched_itself(body: str, write: Write) -> None:
    found = checked(
        build(write(methods(f"def gate(self, y):\n    return y * torch.sigmoid(1.702 * y)\n\n{body}"))), tolerance=1e-6
    )
    [site] = [site for site in found.report.sites if site.line]
    assert (site.path.partition(":")[0], site.kind) == ("gate", "pointwise")


def test_another_method_on_the_module_runs_itself(write: Write) -> None:
    """Bound there, in a subclass, or put on the class after the patch."""
    source = methods("def gate(self, y):\n    return F.gelu(y)\n" + GATED)
    model = build(write(source))
    x = inputs()
    expected = model.fc(x) * F.relu(model.fc2(x))
    patch(model, implementation="aten")
    model.gate = F.relu
    assert torch.equal(model(x), expected)
    del model.gate
    type(model).__mro__[1].gate = lambda _, y: F.relu(y)  # type: ignore[attr-defined]
    assert torch.equal(model(x), expected)
    unpatch(model)

    module = write(source + "\n\nclass Sub(M):\n    def gate(self, y):\n        return F.silu(y)\n")
    sub = module.Sub()
    expected = sub.fc(x) * F.silu(sub.fc2(x))
    report = patch(sub, implementation="aten")
    assert [site.target for site in report.changed] == ["silu"]
    assert torch.equal(sub(x), expected)


def test_a_module_with_its_own_from_the_start(write: Write) -> None:
    model = build(write(methods("def gate(self, y):\n    return F.gelu(y)\n" + GATED)))
    model.gate = types.MethodType(lambda _, y: torch.tanh(y), model)
    x = inputs()
    expected = model(x)
    with pytest.warns(NothingPatchedWarning, match="another gate is bound on this M"):
        patch(model, implementation="aten")
    assert torch.equal(model(x), expected)


def test_a_swap_and_what_explain_shows(write: Write) -> None:
    model = build(write(methods("def gate(self, y):\n    return F.gelu(y)\n" + GATED)))
    x = inputs()
    expected = model.fc(x) * F.silu(model.fc2(x))
    report = patch(model, implementation="aten", activation="silu", include="forward:*")
    assert [(site.activation, site.target) for site in report.changed] == [("gelu", "silu")]
    assert torch.equal(model(x), expected)
    assert "+    return gated_last(patched_silu(self.gate), self.fc(x), self.fc2(x))" in explain(model)


def test_compiled_traced_and_with_gradients_of_gradients(write: Write) -> None:
    model = build(write(methods("def gate(self, y):\n    return F.gelu(y)\n" + GATED))).double()
    x = inputs().double().requires_grad_()
    expected = model(x)
    patch(model, implementation="aten")
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
    assert torch.autograd.gradgradcheck(model, (x,))


def test_a_method_of_a_name_that_tells_nothing(write: Write) -> None:
    """Nothing in the forward says that there is an activation."""
    body = "def z(self, y):\n    return F.gelu(y)\n\ndef forward(self, x):\n    return self.fc(x) * self.z(x)\n"
    model = build(write(methods(body)))
    assert [(site.kind, site.activation) for site in find_sites(model).sites if site.line] == [("gated", "gelu")]
