"""What a module computes is told by what it runs, whatever it is called; what cannot be told is left alone."""

# ruff: noqa: ARG001 (functions that become methods)

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers.activations as hf
from test_models import same_state, state
from torch import Tensor, nn

from hf_gelu_patch import find_sites, patch, patched, recognition, unpatch
from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.recognition import looks_like_activation, resolve


def named(name: str, forward: Any, /, **attributes: Any) -> nn.Module:
    """A module of a class of that name with that forward, and attributes of its own."""
    module: nn.Module = type(name, (nn.Module,), {"forward": forward, "__module__": __name__})()
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


# Forwards, as activation classes of timm, open_clip, curated-transformers, x-transformers and others have them.


def sigmoid_1702(self, x):
    return x * torch.sigmoid(1.702 * x)


def sigmoid_of_alpha(self, input):
    return input.mul((self.alpha * input).sigmoid())


def erf_in_steps(self, x):
    """Exact."""
    scaled = x / math.sqrt(2.0)
    cdf = 0.5 * (1.0 + torch.erf(scaled))
    return x * cdf


SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def tanh_in_steps(self, x: Tensor) -> Tensor:
    inner: Tensor = x + 0.044715 * torch.pow(x, 3)
    inner *= SQRT_2_OVER_PI
    return 0.5 * x * (1.0 + inner.tanh())


def tanh_of_a_tensor(self, x):
    return 0.5 * x * (1 + torch.tanh(torch.sqrt(torch.tensor(2.0 / torch.pi)) * (x + 0.044715 * x**3)))


def call_of_gelu(self, input):
    return F.gelu(input, approximate=self.approximate)


def tanh_with_a_number_of_numpy(self, x):
    return 0.5 * x * (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * torch.pow(x, 3))))


def squared(self, x):
    return F.relu(x) ** 2


def squared_in_place_on_its_own(self, x):
    return nn.functional.relu(x).pow_(2)


def swish_function(x, inplace: bool = False):
    return x.mul_(x.sigmoid()) if inplace else x.mul(x.sigmoid())


def swish_by_a_helper(self, x):
    return swish_function(x, self.inplace)


def hard_swish_function(x, inplace=False):
    inner = F.relu6(x + 3.0).div_(6.0)
    if inplace:
        return x.mul_(inner)
    return x.mul(inner)


def hard_swish_by_a_helper(self, x):
    return hard_swish_function(x, inplace=self.inplace)


def chosen_by_an_attribute(self, x):
    if self.kind == "tanh":
        return torch.tanh(x)
    if self.kind is None:
        return torch.where(x > 0, x, torch.zeros_like(x) * x)
    return F.softplus(x).tanh().mul(x)


def by_a_method_of_its_own(self, x):
    return self.compute(x, self.beta)


def relu_by_clamp(self, x):
    return x.clamp(min=0)


def elu_call(self, x):
    return F.elu(x, self.alpha, inplace=self.inplace)


def leaky_call(self, x):
    return F.leaky_relu(x, negative_slope=self.slope)


def held_function(self, x):
    return self.function(x)


class WithMethod(nn.Module):
    beta = 1.0
    forward = by_a_method_of_its_own

    def compute(self, x, beta):
        return x / (1 + torch.exp(-beta * x))


class Static(nn.Module):
    forward = staticmethod(F.silu)


class Builtin(nn.Module):
    forward = F.gelu


class Partial(nn.Module):
    forward = functools.partial(F.gelu, approximate="tanh")


class Reexported(nn.GELU):
    pass


class Renamed(hf.QuickGELUActivation):
    pass


class WithSuper(nn.GELU):
    def forward(self, input):
        return super().forward(input)


class Overridden(nn.GELU):
    def forward(self, input):
        return torch.relu(input)


class FixedBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(1.702, dtype=torch.float64), persistent=False)

    forward = sigmoid_of_alpha


class WithoutBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    def forward(self, x):
        return F.relu(x if self.bias is None else x + self.bias)


NAMES = ("QuickGELU", "GELU", "Swish", "ActFn", "NewGELUActivation", "Foo", "Block", "Linear")
KNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{f"1.702 as {name}": (functools.partial(named, name, sigmoid_1702), "quick_gelu") for name in NAMES},
    "alpha 1.702": (lambda: named("GELU", sigmoid_of_alpha, alpha=1.702), "quick_gelu"),
    "alpha 1": (lambda: named("QuickGELU", sigmoid_of_alpha, alpha=1), "silu"),
    "alpha in a buffer that is not saved": (FixedBuffer, "quick_gelu"),
    "erf": (lambda: named("ExactGELU", erf_in_steps), "gelu"),
    "tanh": (lambda: named("GELUFast", tanh_in_steps), "gelu_tanh"),
    "tanh, a tensor": (lambda: named("NewGELU", tanh_of_a_tensor), "gelu_tanh"),
    "tanh, a number of numpy": (lambda: named("GELU", tanh_with_a_number_of_numpy), "gelu_tanh"),
    "approximate none": (lambda: named("GELUTanh", call_of_gelu, approximate="none"), "gelu"),
    "approximate tanh": (lambda: named("GELU", call_of_gelu, approximate="tanh"), "gelu_tanh"),
    "relu squared": (lambda: named("ReluSquared", squared), "relu_squared"),
    "relu squared, in place within": (lambda: named("ReLU2", squared_in_place_on_its_own), "relu_squared"),
    "swish": (lambda: named("Swish", swish_by_a_helper, inplace=False), "silu"),
    "hard swish": (lambda: named("HardSwish", hard_swish_by_a_helper, inplace=False), "hardswish"),
    "mish": (lambda: named("Act", chosen_by_an_attribute, kind="mish"), "mish"),
    "tanh by an attribute": (lambda: named("Act", chosen_by_an_attribute, kind="tanh"), "tanh"),
    "relu by an attribute": (lambda: named("Act", chosen_by_an_attribute, kind=None), "relu"),
    "relu by clamp": (lambda: named("Clamp", relu_by_clamp), "relu"),
    "elu": (lambda: named("Elu", elu_call, alpha=0.5, inplace=False), "elu(alpha=0.5)"),
    "leaky": (lambda: named("LeakyGELU", leaky_call, slope=0.3), "leaky_relu(negative_slope=0.3)"),
    "method": (WithMethod, "silu"),
    "function": (lambda: named("GELU", held_function, function=swish_function), "silu"),
    "torch's function": (lambda: named("GELU", held_function, function=torch.tanh), "tanh"),
    "partial": (lambda: named("M", held_function, function=functools.partial(F.gelu, approximate="tanh")), "gelu_tanh"),
    "static": (Static, "silu"),
    "builtin": (Builtin, "gelu"),
    "partial as the forward": (Partial, "gelu_tanh"),
    "subclass": (lambda: Reexported(approximate="tanh"), "gelu_tanh"),
    "subclass of transformers'": (Renamed, "quick_gelu"),
    "subclass by super": (WithSuper, "gelu"),
    "subclass with another forward": (Overridden, "relu"),
    "CELU is ELU at 1": (nn.CELU, "elu"),
    "a parameter that is None": (WithoutBias, "relu"),
}


@pytest.mark.parametrize(("make", "label"), KNOWN.values(), ids=KNOWN)
def test_a_class_is_what_its_forward_computes(make: Callable[[], nn.Module], label: str) -> None:
    module = make()
    found = resolve(module)
    assert isinstance(found, Resolved)
    assert found.activation.label == label
    assert not found.in_place
    x = torch.linspace(-9.0, 9.0, 501, dtype=torch.float64)
    with torch.no_grad():
        expected = found.activation.bind(found.activation.reference)(x)
        torch.testing.assert_close(module(x.clone()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "gated", "sequential"])
@pytest.mark.parametrize("name", ["1.702 as QuickGELU", "tanh", "relu squared", "swish", "static"])
def test_and_is_patched_and_undone_like_any_activation(name: str, kind: str) -> None:
    make, label = KNOWN[name]
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(4, 4), make(), nn.Linear(4, 4))
        if kind == "sequential"
        else {"linear": Linear, "gated": Gated}[kind](make())
    )
    x, untouched = 3.0 * torch.randn(5, 4), state(model)
    before = model(x)
    (site,) = patch(model, implementation="aten").sites
    assert (site.target, site.kind, site.fused) == (label, "linear" if kind == "sequential" else kind, True)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    unpatch(model)
    assert same_state(untouched, model)
    with patched(model, implementation="aten", activation="relu6") as report:
        assert [one.target for one in report.changed] == ["relu6"]
        assert not torch.allclose(model(x), before)


class Linear(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, x):
        return self.act(self.fc(x))


class Gated(Linear):
    def forward(self, x):
        return self.act(x) * self.fc(x)


class ByKeyword(Linear):
    def forward(self, x):
        (act,) = (self.act,)  # a call that is not rewritten
        return act(features=self.fc(x))


@pytest.mark.parametrize("options", [{}, {"activation": "relu6"}])
def test_its_input_keeps_its_name(options: dict[str, str]) -> None:
    def forward(self, features):
        return features * torch.sigmoid(1.702 * features)

    model, x = ByKeyword(named("QuickGELU", forward)), torch.randn(5, 4)
    before = model(x)
    with patched(model, implementation="aten", **options) as report:
        assert len(report.changed) == 1
        assert options or torch.allclose(model(x), before)
        assert model(x).shape == before.shape
    assert torch.equal(model(x), before)


def test_the_name_of_a_class_makes_no_difference() -> None:
    sites = [find_sites(Linear(named(name, sigmoid_1702))).sites for name in NAMES]
    plain = {tuple(value for key, value in vars(site).items() if key != "module") for (site,) in sites}
    assert len(plain) == 1


@pytest.mark.parametrize("name", ["1.702 as GELU", "tanh, a tensor", "relu squared", "CELU is ELU at 1"])
@pytest.mark.parametrize("state", ["meta", "inference", "autocast", "double"])
def test_the_state_that_torch_is_in_makes_no_difference(name: str, state: str) -> None:
    make, label = KNOWN[name]
    clear_caches()
    with STATES[state]():
        found = resolve(make())
    clear_caches()
    assert isinstance(found, Resolved)
    assert found.activation.label == label


def clear_caches() -> None:
    for cached in (recognition._recogniser(), recognition._grid, recognition._on_grid):
        cached.cache_clear()


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES: dict[str, Callable[[], Any]] = {
    "meta": functools.partial(torch.device, "meta"),
    "inference": torch.inference_mode,
    "autocast": functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "double": double,
}


@pytest.mark.parametrize("name", ["1.702 as Swish", "hard swish", "method", "partial as the forward"])
def test_a_patched_model_is_pickled_and_traced_as_any(name: str) -> None:
    model, x = Linear(KNOWN[name][0]()), torch.randn(3, 4)
    before = model(x)
    patch(model, implementation="aten")
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x), before)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), before)
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), before)
    unpatch(copied)
    assert torch.equal(copied(x), before)
    formula = resolve(copied.act).formula
    assert formula is None or pickle.loads(pickle.dumps(formula)) == formula


def test_a_module_that_is_the_whole_model_is_patched_where_its_forward_computes() -> None:
    model, x = named("QuickGELU", sigmoid_1702), torch.randn(5)
    before = model(x)
    (site,) = patch(model, implementation="aten").changed
    assert site.written
    torch.testing.assert_close(model(x), before)
    unpatch(model)


# In place

IN_PLACE = {
    "swish": lambda: named("Swish", swish_by_a_helper, inplace=True),
    "hard swish": lambda: named("HardSwish", hard_swish_by_a_helper, inplace=True),
    "elu": lambda: named("Elu", elu_call, alpha=1.0, inplace=True),
    "torch's": lambda: nn.SiLU(inplace=True),
    "a subclass of torch's": lambda: type("MyReLU", (nn.ReLU,), {})(inplace=True),
    "a method": lambda: named("Sigmoid", in_place_method),
    "by an operator": lambda: named("Act", in_place_operator),
}


def in_place_method(self, x):
    return x.sigmoid_()


def in_place_operator(self, x):
    gate = torch.sigmoid(x)
    x *= gate
    return x


@pytest.mark.parametrize("make", IN_PLACE.values(), ids=IN_PLACE)
def test_what_works_in_place_is_left_alone(make: Callable[[], nn.Module]) -> None:
    found = resolve(make())
    assert isinstance(found, Resolved)
    assert found.in_place
    (site,) = find_sites(Linear(make())).sites
    assert not site.changed
    assert "in place" in site.reason
    assert site.activation != "unknown"


# Nearly, and not


def times(self, x):
    return x * torch.sigmoid(self.factor * x)


def twice(self, x):
    return 2 * F.gelu(x)


def a_little_more(self, x):
    return x * torch.sigmoid(1.702 * x) + 1e-7


def cut_far_out(self, x):
    return x.clamp(max=1e30) * torch.sigmoid(x.clamp(max=1e30))


def other_in_between(self, x):
    return torch.where((x - 3.3001).abs() < 1e-5, 0.0 * x, F.silu(x))


def hides_nan(self, x):
    return torch.where(x > 0, x, torch.zeros_like(x))


def overflows(self, x):
    return x * torch.exp(x) / (1 + torch.exp(x))


def float_of(self, x):
    return torch.sigmoid(torch.tensor(1.702, dtype=torch.float64) * x) * x


def casts(self, x):
    return F.silu(x.float()).to(x.dtype)


def stops_the_gradient(self, x):
    return x * torch.sigmoid(1.702 * x).detach()


def straight_through(self, x):
    with torch.no_grad():
        gate = torch.sigmoid(x)
    return x * gate


def over_a_row(self, x):
    return x * torch.softmax(x, dim=-1)


def of_its_maximum(self, x):
    return x * torch.sigmoid(x - x.max())


def noisy(self, x):
    return F.gelu(x) + 0.0 * torch.randn_like(x)


def dropped(self, x):
    return F.dropout(x * torch.sigmoid(x), 0.5)


def by_mode(self, x):
    return F.gelu(x) if self.training else x * torch.sigmoid(1.702 * x)


def branches(self, x):
    if x.sum() > 0:
        return F.gelu(x)
    return F.silu(x)


def asks_for_the_device(self, x):
    return F.gelu(x) if x.is_cuda else F.gelu(x, approximate="tanh")


def counts(self, x):
    self.calls += 1
    return F.gelu(x)


def prints(self, x):
    print("called")
    return F.gelu(x)


def two_inputs(self, x, scale=1.0):
    return F.gelu(x) * scale


def any_inputs(self, *inputs):
    return F.gelu(*inputs)


def halves(self, x):
    a, b = x.chunk(2, dim=-1)
    return F.gelu(a) * b


def loops(self, x):
    for _ in range(1):
        x = F.gelu(x)
    return x


def tries(self, x):
    try:
        return F.gelu(x)
    except RuntimeError:
        return F.relu(x)


def endless(self, x):
    return endless(self, x)


def forgets_its_input(self, x):
    return torch.sigmoid(torch.tensor(2.0))


def returns_its_input(self, x):
    return x


class SavedBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(1.702))

    forward = sigmoid_of_alpha


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(1.702))

    forward = sigmoid_of_alpha


class Property(nn.Module):
    @property
    def alpha(self) -> float:
        raise AssertionError("a property was run")

    forward = sigmoid_of_alpha


class OwnCall(nn.GELU):
    def __call__(self, input):
        return 2 * super().__call__(input)


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self, x):
        return 2 * function(self, x)

    return wrapper


NOT_KNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another factor": (lambda: named("QuickGELU", times, factor=1.6), "values"),
    "nearly the factor": (lambda: named("QuickGELU", times, factor=1.7021), "values"),
    "twice": (lambda: named("GELU", twice), "values"),
    "a little more": (lambda: named("QuickGELU", a_little_more), "values"),
    "cut far out": (lambda: named("SiLU", cut_far_out), "values"),
    "another value in between": (lambda: named("SiLU", other_in_between), "values"),
    "NaN becomes 0": (lambda: named("ReLU", hides_nan), "values"),
    "overflows": (lambda: named("SiLU", overflows), "values"),
    "gives another dtype": (lambda: named("GELU", float_of), "dtype"),
    "casts": (lambda: named("FP32SiLU", casts), "Tensor.float"),
    "stops the gradient": (lambda: named("QuickGELU", stops_the_gradient), "detach"),
    "without gradient": (lambda: named("SiLU", straight_through), "no_grad"),
    "over a row": (lambda: named("GELU", over_a_row), "softmax"),
    "of its maximum": (lambda: named("GELU", of_its_maximum), "Tensor.max"),
    "noisy": (lambda: named("GELU", noisy), "randn_like"),
    "dropped": (lambda: named("GELU", dropped), "dropout"),
    "by mode": (lambda: named("GELU", by_mode), "training mode"),
    "branches": (lambda: named("GELU", branches), "Tensor.sum"),
    "asks for the device": (lambda: named("GELU", asks_for_the_device), "is_cuda"),
    "counts": (lambda: named("GELU", counts, calls=0), "self.calls += 1"),
    "prints": (lambda: named("GELU", prints), "print"),
    "two inputs": (lambda: named("GELU", two_inputs), "one input"),
    "any inputs": (lambda: named("GELU", any_inputs), "one input"),
    "halves": (lambda: named("GEGLU", halves), "chunk"),
    "loops": (lambda: named("GELU", loops), "for _ in"),
    "tries": (lambda: named("GELU", tries), "try:"),
    "endless": (lambda: named("GELU", endless), "source of endless"),
    "a number": (lambda: named("Sigmoid", forgets_its_input), "values"),
    "its input": (lambda: named("NoActivation", returns_its_input), "values"),
    "decorated": (lambda: named("GELU", decorated(sigmoid_1702)), "not available|closure|decorated|elementwise"),
    "lambda": (lambda: named("GELU", lambda self, x: F.silu(x)), "source"),  # noqa: ARG005
    "a buffer that is saved": (SavedBuffer, "buffer"),
    "a parameter": (Learned, "parameters"),
    "a property": (Property, "alpha"),
    "a __call__ of its own": (OwnCall, "__call__"),
    "a forward of its own": (lambda: named("GELU", sigmoid_1702, forward=F.silu), "another forward"),
    "other numbers": (lambda: named("QuickGELU", sigmoid_of_alpha, alpha=torch.tensor(1.702)), "step"),
    "a number too large": (lambda: named("QuickGELU", sigmoid_of_alpha, alpha=10**400), "values"),
    "a word": (lambda: named("QuickGELU", sigmoid_of_alpha, alpha="1.702"), ""),
    "nothing": (lambda: named("QuickGELU", sigmoid_of_alpha), "no attribute alpha"),
    "a parametrized subclass of torch's": (lambda: type("MyPReLU", (nn.PReLU,), {})(), "parameters"),
}


def everything(module: nn.Module) -> tuple[Any, ...]:
    held = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return held, {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state(), random.getstate()


@pytest.mark.parametrize(("make", "why"), NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_what_is_no_known_formula_is_not_taken_for_one_and_not_run(
    make: Callable[[], nn.Module], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make()
    model = Linear(module)
    held, weights, drawn, python = everything(module)
    assert resolve(module) is None
    find_sites(model)
    now = everything(module)
    assert now[0] == held
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), now[1].values(), strict=True))
    assert torch.equal(drawn, now[2])
    assert python == now[3]
    assert capsys.readouterr().out == ""
    if type(module).__name__ not in ("SavedBuffer", "Learned", "Property", "OwnCall"):
        unknown = looks_like_activation(module)
        assert isinstance(unknown, Unresolved)
        assert type(module).__name__ in unknown.reason
        assert any(word in unknown.reason for word in why.split("|")), unknown.reason


@pytest.mark.parametrize("name", ["by mode", "noisy", "casts", "counts", "two inputs", "loops"])
def test_what_is_inside_of_it_is_a_site_whatever_it_is_called(name: str) -> None:
    make, _ = NOT_KNOWN[name]
    model, x = Linear(make()).eval(), torch.randn(5, 4)
    torch.manual_seed(0)
    before = model(x)
    with patched(model, activation="mish", include="*") as report:
        assert report.changed
        assert all(site.written for site in report.changed)
        assert not torch.allclose(model(x), before)
    with patched(model, implementation="triton", include="*") as report:
        assert report.changed
        torch.manual_seed(0)
        torch.testing.assert_close(model(x), before)


def test_a_file_that_was_changed_since_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import torch\nfrom torch import nn\nclass GELU(nn.Module):\n    def forward(self, x):\n        return {}\n"
    path = tmp_path / "changed_since.py"
    path.write_text(text.format("x * torch.sigmoid(1.6 * x)"))
    spec = importlib.util.spec_from_file_location("changed_since", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "changed_since", module)
    spec.loader.exec_module(module)
    path.write_text(text.format("x * torch.sigmoid(1.702 * x)"))
    assert resolve(module.GELU()) is None
    assert "not what runs" in looks_like_activation(module.GELU()).reason


# torch's and transformers' own


def test_gelu_pytorch_tanh_is_read_from_the_partial_it_holds() -> None:  # trap 1: never by the class's or config's name
    module = hf.GELUTanh()
    assert resolve(module).activation.name == "gelu_tanh"
    module.act = functools.partial(F.gelu, approximate="none")
    assert resolve(module).activation.name == "gelu"
    module.act = functools.partial(F.silu, inplace=False)
    assert resolve(module).activation.name == "silu"
    module.act = functools.partial(F.softmax, dim=-1)
    found = resolve(module)
    assert isinstance(found, Unresolved)
    assert "softmax" in found.reason


def test_gelu_activation_is_read_from_the_function_it_holds() -> None:
    assert resolve(hf.GELUActivation()).spelling == "gelu"
    assert resolve(hf.GELUActivation(use_gelu_python=True)).spelling == "gelu_python"
    module = hf.GELUActivation()
    module.act = torch.relu
    assert resolve(module).spelling == "relu"
    module.act = torch.nn.functional.normalize
    assert isinstance(resolve(module), Unresolved)


def test_a_class_whose_forward_was_replaced_is_judged_by_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.NewGELUActivation, "forward", squared)
    assert resolve(hf.NewGELUActivation()).activation.name == "relu_squared"

    def broken(self: nn.Module, x: Tensor) -> Tensor:
        raise AssertionError("it was run")

    monkeypatch.setattr(hf.NewGELUActivation, "forward", broken)
    found = resolve(hf.NewGELUActivation())
    assert isinstance(found, Unresolved)
    assert "raise AssertionError" in found.reason


def test_what_is_not_known_has_a_reason() -> None:
    class SnakeActivation(nn.Module):
        pass

    for module in (SnakeActivation(), nn.Softplus(), nn.RReLU(), nn.Hardsigmoid()):
        assert resolve(module) is None
        assert "not known" in looks_like_activation(module).reason
    bound = nn.GELU()
    bound.forward = F.silu
    assert "another forward is bound" in resolve(bound).reason
    for module in (nn.Linear(2, 2), nn.Softmax(-1), nn.Sequential(nn.GELU()), nn.Dropout(), nn.Identity()):
        assert resolve(module) is None
        assert looks_like_activation(module) is None
