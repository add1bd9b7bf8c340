"""An activation and an implementation are each added in one place, and have all else for free."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2FN

from hf_gelu_patch import (
    ACTIVATIONS,
    IMPLEMENTATIONS,
    Activation,
    Implementation,
    PatchError,
    UnknownNameError,
    find_sites,
    patch,
    patched,
    register_activation,
    register_implementation,
    unpatch,
)
from hf_gelu_patch.activations import Call, Module, Resolved, get_activation
from hf_gelu_patch.cli import main
from hf_gelu_patch.implementations.triton_ops import gated, pointwise
from hf_gelu_patch.recognition import resolve


def squareplus(x: Tensor) -> Tensor:  # Barron 2021
    return 0.5 * (x + torch.sqrt(x * x + 4.0))


class Squareplus(nn.Module):  # as a model, or a library, has it
    def forward(self, x: Tensor) -> Tensor:
        return squareplus(x)


def squareplus_(y: Tensor) -> Tensor:
    return y.add_((y * y).add_(4.0).sqrt_()).mul_(0.5)


def exact_squareplus(x: Tensor) -> Tensor:
    return torch.where(x < 0, 2.0 / (torch.sqrt(x * x + 4.0) - x), squareplus(x))


@triton.jit
def squareplus_kernel(x, P: tl.constexpr, DTYPE: tl.constexpr):  # noqa: ARG001, N803
    root = tl.sqrt(x * x + 4.0)
    y = tl.where(x < 0.0, 2.0 / (root - x), 0.5 * (x + root))
    return y, y / root


def add_an_activation() -> None:
    record = Activation(
        "squareplus",
        "(x + √(x² + 4))/2",
        squareplus,
        exact_squareplus,
        derivative=lambda x: exact_squareplus(x) / torch.sqrt(x * x + 4.0),
        config_name="squareplus",
        modules=(Module(f"{__name__}.Squareplus", aten_ops=5),),
        calls=(Call(squareplus),),
        written_with=("sqrt",),
        in_place=squareplus_,
        kernel=f"{__name__}:squareplus_kernel",
    )
    register_activation(record)


def in_float64(x: Tensor, *, activation: str) -> Tensor:
    return ACTIVATIONS[activation].reference(x.double()).to(x.dtype)


def add_an_implementation() -> None:
    function = {"squareplus": in_float64_squareplus}
    register_implementation(Implementation("in_float64", function, identical=()))


def in_float64_squareplus(x: Tensor) -> Tensor:
    return in_float64(x, activation="squareplus")


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both, until the test is over; and the activation in transformers' own table, where configs look."""
    known = dict(ACTIVATIONS), dict(IMPLEMENTATIONS)
    monkeypatch.setitem(ACT2FN, "squareplus", Squareplus)
    add_an_activation()
    add_an_implementation()
    try:
        yield
    finally:
        for registry, before in zip((ACTIVATIONS, IMPLEMENTATIONS), known, strict=True):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(before)  # type: ignore[attr-defined]


@pytest.mark.parametrize("add", [add_an_activation, add_an_implementation])
def test_each_is_added_in_one_place_and_in_few_lines(add: Callable[[], None]) -> None:
    assert len(inspect.getsource(add).splitlines()) <= 15
    assert len(inspect.getsource(squareplus_kernel.fn).splitlines()) <= 15


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(PatchError, match="'squareplus' is taken by squareplus: register squareplus with another name"):
        add_an_activation()
    functions = torch.relu, torch.relu, torch.relu
    with pytest.raises(PatchError, match="'gelu_new' is taken by gelu_tanh: register mine with another"):
        register_activation(Activation("mine", "max(x, 0)", *functions, aliases=("gelu_new",)))
    assert "mine" not in ACTIVATIONS
    with pytest.raises(PatchError, match="'in_float64' is taken: give it another"):
        add_an_implementation()


def test_it_is_listed_and_found_by_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert get_activation("squareplus") is ACTIVATIONS["squareplus"]
    with pytest.raises(UnknownNameError, match="Did you mean 'squareplus'"):
        get_activation("squarepluss")
    assert main(["implementations"]) == 0
    listed = {line.partition(":")[0]: line for line in capsys.readouterr().out.splitlines() if not line[0].isspace()}
    for name in ("eager", "aten", "triton", "triton_rounded", "in_float64"):
        assert "squareplus" in listed[name]
    assert "squareplus" not in listed["epilogue"]


class Gate(nn.Module):
    """Applies it four times: in a module, by its function, written out, and in a class of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.act = Squareplus()
        self.own = OwnClass()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x) * self.up(x)
        x = squareplus(x)
        x = 0.5 * (x + torch.sqrt(x * x + 4.0))
        return self.own(self.down(x))


class OwnClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + (x.square() + 4).sqrt()) / 2


class Alone(nn.Module):
    """Nothing in its forward bears the name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return 0.5 * (x + torch.sqrt(x * x + 4.0))


LINE = inspect.getsourcelines(Gate.forward)[1]


def test_it_is_recognised_as_a_module_a_call_and_a_formula() -> None:
    known = resolve(Squareplus())
    assert isinstance(known, Resolved)
    assert (known.activation, known.spelling, known.aten_ops) == (ACTIVATIONS["squareplus"], "squareplus", 5)
    sites = find_sites(Gate(), implementation="triton").sites
    assert [(site.path, site.activation, site.kind) for site in sites] == [
        ("act", "squareplus", "gated"),
        ("own", "squareplus written out", "linear"),
        (f"forward:{LINE + 2}", "squareplus", "pointwise"),
        (f"forward:{LINE + 3}", "squareplus written out", "pointwise"),
    ]
    assert {site.target for site in sites} == {"squareplus"}
    assert [site.target for site in find_sites(Alone(), implementation="triton").sites] == ["squareplus"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_and_aten_compute_its_bits(dtype: torch.dtype) -> None:
    x, up = (torch.randn(64, 8) * 4).to(dtype), torch.randn(64, 8).to(dtype)
    layer = nn.Linear(8, 8).to(dtype)
    for name in ("eager", "aten"):
        fused = IMPLEMENTATIONS[name].build(ACTIVATIONS["squareplus"])
        assert fused is not None
        assert torch.equal(fused(x), squareplus(x))
    assert torch.equal(fused.gated(x, up), squareplus(x) * up)
    with torch.no_grad():
        assert torch.equal(fused.linear(layer, x), squareplus(layer(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_kernel_computes_it_and_its_gradients(dtype: torch.dtype) -> None:
    record, eps = ACTIVATIONS["squareplus"], torch.finfo(dtype).eps
    x, up, grad = ((torch.randn(33, 65) * 5).to(dtype) for _ in range(3))
    x.requires_grad_()
    up.requires_grad_()
    y, product = pointwise(x, "squareplus"), gated(x, up, "squareplus")
    value, slope = record.reference(x.double()), record.derivative(x.double())
    torch.testing.assert_close(y.double(), value, rtol=2 * eps, atol=0.0)
    torch.testing.assert_close(product.double(), value * up.double(), rtol=3 * eps, atol=0.0)
    (alone,) = torch.autograd.grad(y, x, grad)
    both = torch.autograd.grad(product, (x, up), grad)
    dy = grad.double()
    torch.testing.assert_close(alone.double(), dy * slope, rtol=3 * eps, atol=1e-7)
    torch.testing.assert_close(both[0].double(), dy * slope * up.double(), rtol=4 * eps, atol=1e-7)
    torch.testing.assert_close(both[1].double(), dy * value, rtol=3 * eps, atol=1e-7)


def llama(activation: str) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, hidden_act=activation, pad_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("implementation", ["auto", "aten", "triton", "in_float64"])
def test_a_model_is_patched_and_the_patch_undone(implementation: str) -> None:
    model, ids = llama("squareplus"), torch.arange(6)[None]
    before, modules = model(ids).logits, dict(model.named_modules())
    report = patch(model, implementation=implementation)
    assert len(report.changed) == 2
    assert {site.fused for site in report.changed} == {implementation != "in_float64"}
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)
    model(ids).logits.sum().backward()
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(ids).logits, model(ids).logits)
    unpatch(model)
    assert {name: id(module) for name, module in model.named_modules()} == {k: id(v) for k, v in modules.items()}
    assert torch.equal(model(ids).logits, before)


def test_a_model_is_swapped_to_it_and_its_config_follows() -> None:
    model, expected = llama("silu"), llama("squareplus")
    ids = torch.arange(6)[None]
    with patched(model, activation="squareplus"):
        assert model.config.hidden_act == "squareplus"
        torch.testing.assert_close(model(ids).logits, expected(ids).logits)
    assert model.config.hidden_act == "silu"
    assert isinstance(ACT2FN["squareplus"], Squareplus)


def test_an_implementation_need_not_be_registered() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x.numel())
        return squareplus(x)

    model, known = llama("squareplus"), dict(IMPLEMENTATIONS)
    report = patch(model, implementation=Implementation("counted", {"squareplus": counted}))
    assert {site.implementation for site in report.changed} == {"counted"}
    assert known == IMPLEMENTATIONS
    model(torch.arange(6)[None])
    assert len(calls) == 2
    unpatch(model)
    with pytest.raises(PatchError, match="'aten' is taken"):
        patch(model, implementation=Implementation("aten", {"squareplus": counted}))
    with pytest.raises(UnknownNameError, match="squareroot"):
        patch(model, implementation=Implementation("counted", {"squareroot": counted}))


def test_what_is_taken_away_is_known_no_longer() -> None:
    assert isinstance(resolve(OwnClass()), Resolved)
    del ACTIVATIONS["squareplus"]
    assert resolve(OwnClass()) is None
    assert resolve(Squareplus()) is None
    assert "squareplus" not in IMPLEMENTATIONS["aten"].functions
    assert "squareplus" not in IMPLEMENTATIONS["triton"].gated


@pytest.mark.parametrize("config_name", [None, "nowhere"])
def test_a_swap_to_what_transformers_has_no_module_for_is_refused(config_name: str | None) -> None:
    record = Activation("mine", "max(x, 0)", torch.relu, torch.relu, torch.relu, config_name=config_name)
    register_activation(record)
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(PatchError, match=r"no module of transformers computes mine.*ACT2FN"):
        patch(model, activation="mine")
    assert {name: type(module) for name, module in model.named_modules()} == before
