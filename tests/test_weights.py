"""A patched layer computes with the weights that it has now, whatever was done to them since it was patched."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import of_implementation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_gelu_patch import patch, unpatch

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(6, 10), lambda: nn.Linear(10, 6), (5, 6)),
    "Conv1D": (lambda: Conv1D(10, 6), lambda: Conv1D(6, 10), (5, 6)),
    "Conv2d": (lambda: nn.Conv2d(6, 10, 3, padding=1), lambda: nn.Conv2d(10, 6, 1), (2, 6, 4, 4)),
}


class Block(nn.Module):
    """Two layers, each with an activation behind it, as a model writes them."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        first, second, shape = LAYERS[layer]
        self.first, self.second, self.act, self.shape = first(), second(), nn.GELU(approximate="tanh"), shape

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        return self.act(self.second(hidden))


Twins = list[nn.Module]
Change = Callable[[Twins], Twins]


def to_each(change: Callable[[nn.Module], object]) -> Change:
    """The same to both, with the same random numbers."""

    def changed(twins: Twins) -> Twins:
        for one in twins:
            torch.manual_seed(1)
            change(one)
        return twins

    return changed


def copied(make: Callable[[nn.Module], nn.Module]) -> Change:
    return lambda twins: [make(one) for one in twins]


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.first.weight.mul_(-0.7).add_(0.05)
        model.second.bias.add_(0.3)


def past_the_version(model: nn.Module) -> None:
    """What is written through ``data`` does not count as a change of the parameter."""
    model.first.weight.data.mul_(-1.1)
    model.first.bias.data[::2] = 0.4


def through_memory(model: nn.Module) -> None:
    model.second.weight.detach().numpy()[...] *= -0.9


def other_memory(model: nn.Module) -> None:
    model.first.weight.data = torch.randn_like(model.first.weight)
    model.first.bias.data = torch.randn_like(model.first.bias)


def laid_out_otherwise(model: nn.Module) -> None:
    weight = model.first.weight.data
    model.first.weight.data = weight.transpose(0, 1).contiguous().transpose(0, 1)
    model.first.bias.data = torch.stack([model.first.bias.data] * 2, dim=1)[:, 0]


def new_parameter(model: nn.Module) -> None:
    model.second.weight = nn.Parameter(torch.randn_like(model.second.weight))


def loaded(model: nn.Module) -> None:
    torch.manual_seed(2)
    state = {name: torch.randn_like(weight) * 0.3 for name, weight in model.state_dict().items()}
    model.load_state_dict(state)


def assigned(model: nn.Module) -> None:
    torch.manual_seed(3)
    state = {name: torch.randn_like(weight) * 0.3 for name, weight in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def moved(model: nn.Module) -> None:
    model.to(torch.float64).to(torch.float32)


def trained(model: nn.Module) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model(torch.randn(model.shape)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def frozen(model: nn.Module) -> None:
    model.requires_grad_(False)


def shared(model: nn.Module) -> None:
    model.second.bias = nn.Parameter(model.first.bias.detach()[: model.second.bias.numel()])


def replaced(model: nn.Module) -> None:
    torch.manual_seed(4)
    model.first = copy.deepcopy(model.first)
    nn.init.normal_(model.first.weight, std=0.4)


def evaluated_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        model(torch.randn(model.shape))


CHANGES: dict[str, Change] = {
    **{
        change.__name__: to_each(change)
        for change in (
            in_place,
            past_the_version,
            through_memory,
            other_memory,
            laid_out_otherwise,
            new_parameter,
            loaded,
            assigned,
            moved,
            trained,
            frozen,
            shared,
            replaced,
            evaluated_in_inference_mode,
        )
    },
    "deepcopy": copied(copy.deepcopy),
    "pickle": copied(lambda model: pickle.loads(pickle.dumps(model))),
}
MODES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}


def assert_alike(twins: Twins, x: Tensor, mode: str) -> None:
    with MODES[mode]():
        own, expected = (one(x) for one in twins)
    torch.testing.assert_close(own, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("implementation", [of_implementation(name) for name in ("aten", "cpp", "epilogue")])
@settings(deadline=None, max_examples=12, derandomize=True, database=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(sorted(MODES))), min_size=4, max_size=10))
def test_never_with_weights_of_before(implementation: str, layer: str, steps: list[tuple[str, str]]) -> None:
    torch.manual_seed(0)
    plain = Block(layer)
    patched = copy.deepcopy(plain)
    report = patch(patched, implementation=implementation)
    assert [site.fused for site in report.sites] == [True, True]
    twins: Twins = [patched, plain]
    x = torch.randn(plain.shape)
    for mode in MODES:
        assert_alike(twins, x, mode)
    for change, mode in steps:
        twins = CHANGES[change](twins)
        assert_alike(twins, x, "no_grad")
        assert_alike(twins, x, mode)
    unpatch(twins[0])
    assert_alike(twins, x, "no_grad")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("implementation", [of_implementation(name) for name in ("cpp", "epilogue")])
def test_each_change_alone(implementation: str, change: str) -> None:
    """Every one of them, in every mode before and after."""
    for layer in LAYERS:
        for before in MODES:
            torch.manual_seed(0)
            plain = Block(layer)
            patched = copy.deepcopy(plain)
            patch(patched, implementation=implementation)
            x = torch.randn(plain.shape)
            assert_alike([patched, plain], x, before)
            twins = CHANGES[change]([patched, plain])
            for after in MODES:
                assert_alike(twins, x, after)
