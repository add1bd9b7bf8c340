"""The table of activations against float64, against transformers' own modules, and the resolution of live modules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import activations as hf
from transformers.models.bloom.modeling_bloom import BloomGelu

from hf_gelu_patch import ACTIVATIONS, UnknownNameError
from hf_gelu_patch.activations import Resolved, get_activation, max_difference
from hf_gelu_patch.recognition import resolve

GRID = torch.linspace(-12.0, 12.0, 4801, dtype=torch.float64)
LEARNED = {"prelu", "xielu"}


class AtenOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func not in (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
        return func(*args, **(kwargs or {}))


TORCH_MODULES = [
    (nn.GELU(), "gelu"),
    (nn.GELU(approximate="tanh"), "gelu_tanh"),
    (nn.SiLU(), "silu"),
    (nn.ReLU(), "relu"),
    (nn.ReLU6(), "relu6"),
    (nn.LeakyReLU(0.2), "leaky_relu"),
    (nn.ELU(0.7), "elu"),
    (nn.Mish(), "mish"),
    (nn.Hardswish(), "hardswish"),
    (nn.Tanh(), "tanh"),
    (nn.Sigmoid(), "sigmoid"),
    (BloomGelu(), "gelu_tanh"),
]
HF_MODULES = [(hf.ACT2FN[spelling], get_activation(spelling).name) for spelling in hf.ACT2FN if spelling != "xielu"]
ALL_MODULES = [
    pytest.param(module, name, id=f"{type(module).__module__.split('.')[0]}-{type(module).__name__}-{i}")
    for i, (module, name) in enumerate(TORCH_MODULES + HF_MODULES)
]


def test_every_spelling_of_transformers_is_known() -> None:
    unknown = [spelling for spelling in hf.ACT2FN if not _is_known(spelling)]
    assert unknown == []
    assert len(hf.ACT2FN) >= 22


def _is_known(spelling: str) -> bool:
    try:
        get_activation(spelling)
    except UnknownNameError:
        return False
    return True


@pytest.mark.parametrize(("module", "name"), ALL_MODULES)
def test_a_module_resolves_to_the_function_it_computes(module: nn.Module, name: str) -> None:
    found = resolve(module)
    assert isinstance(found, Resolved)
    assert found.activation.name == name
    record = found.activation
    with torch.no_grad():
        y = module(GRID) if name != "prelu" else module.double()(GRID)
    torch.testing.assert_close(y, record.bind(record.reference)(GRID), rtol=1e-9, atol=2e-7)  # constants of 7 digits


@pytest.mark.parametrize(("module", "name"), ALL_MODULES)
def test_the_number_of_aten_ops_is_what_runs(module: nn.Module, name: str) -> None:  # noqa: ARG001
    found = resolve(module)
    assert isinstance(found, Resolved)
    module, x = module.float(), torch.randn(8)
    with torch.no_grad(), AtenOps() as ops:
        module(x)
    assert found.aten_ops == ops.count


def test_the_constants_are_those_of_the_live_module() -> None:
    assert resolve(nn.LeakyReLU(0.2)).activation.label == "leaky_relu(negative_slope=0.2)"
    assert resolve(nn.LeakyReLU(0.01)).activation.label == "leaky_relu"
    assert resolve(hf.ClippedGELUActivation(-1, 1)).activation.label == "gelu_clipped(min=-1, max=1)"


def test_xielu_is_known_and_learned() -> None:
    found = resolve(hf.ACT2FN["xielu"])
    assert isinstance(found, Resolved)
    assert found.activation.learned
    module, record = hf.XIELUActivation(dtype=torch.float64), ACTIVATIONS["xielu"]
    with torch.no_grad():
        y = module(GRID)
    alphas = {"alpha_p": F.softplus(module.alpha_p).item(), "alpha_n": 0.5 + F.softplus(module.alpha_n).item()}
    torch.testing.assert_close(y, record.reference(GRID, **alphas, beta=0.5, eps=-1e-6), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_is_that_of_the_reference(name: str) -> None:
    record = ACTIVATIONS[name]
    x = (GRID + 1e-4).requires_grad_()  # off the kinks
    (expected,) = torch.autograd.grad(record.bind(record.reference)(x).sum() + 0 * x.sum(), x)
    torch.testing.assert_close(record.bind(record.derivative)(x.detach()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_eager_is_the_same_function_as_the_reference(name: str) -> None:
    record = ACTIVATIONS[name]
    torch.testing.assert_close(
        record.bind(record.eager)(GRID), record.bind(record.reference)(GRID), rtol=1e-9, atol=1e-12
    )


def test_the_references_keep_their_relative_accuracy_in_the_negative_tail() -> None:
    x = torch.tensor([-9.0, -20.0], dtype=torch.float64)
    erfc = torch.tensor([0.5 * math.erfc(9 / math.sqrt(2)), 0.5 * math.erfc(20 / math.sqrt(2))], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["gelu"].reference(x), x * erfc, rtol=1e-12, atol=0.0)
    assert ACTIVATIONS["gelu_tanh"].reference(x)[0] < 0.0  # ½(1 + tanh(u)) gives 0 here


def test_the_distances_between_functions() -> None:
    gelu, silu = ACTIVATIONS["gelu"], ACTIVATIONS["silu"]
    assert max_difference(gelu, ACTIVATIONS["gelu_tanh"]) == pytest.approx(4.732e-4, rel=1e-3)
    assert max_difference(gelu, ACTIVATIONS["quick_gelu"]) == pytest.approx(0.020335, rel=1e-4)
    assert max_difference(gelu, silu) == pytest.approx(0.19300, rel=1e-4)
    assert max_difference(gelu, gelu) == 0.0
    assert max_difference(gelu, ACTIVATIONS["tanh"]) == math.inf
    assert max_difference(gelu, ACTIVATIONS["gelu_clipped"]) == math.inf


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'silu'.*gelu_new.*quick_gelu"):
        get_activation("siluu")
