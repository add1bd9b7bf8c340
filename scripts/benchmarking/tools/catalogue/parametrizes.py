"""Tools that compute a weight from others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


def _linear_of(model: nn.Module, subject: Subject) -> nn.Module:
    """The linear layer whose output is activated."""
    owner = model.get_submodule(subject.owner)
    names = {"gpt2": "c_fc", "bert": "dense", "llama": "gate_proj", "t5": "wi_0", "xlm": "lin1", "plain": "mix"}
    return owner.get_submodule(names[subject.name])


def _parametrized(
    parametrize: Callable[[nn.Module], object], model: nn.Module, module: nn.Module, name: str = "weight"
) -> Used:
    from torch.nn.utils.parametrize import remove_parametrizations

    torch.manual_seed(1)
    parametrize(module)

    def off() -> nn.Module:
        remove_parametrizations(module, name)
        return model

    return Used(model, off=off)


@tool("parametrizations.weight_norm", "parametrizes")
def _(model: nn.Module, subject: Subject) -> Used:
    return _parametrized(nn.utils.parametrizations.weight_norm, model, _linear_of(model, subject))


@tool("nn.utils.weight_norm, the older one", "parametrizes")
def _(model: nn.Module, subject: Subject) -> Used:
    linear = _linear_of(model, subject)
    nn.utils.weight_norm(linear)
    return Used(model, off=lambda: nn.utils.remove_weight_norm(linear) and model)


@tool("parametrizations.spectral_norm", "parametrizes")
def _(model: nn.Module, subject: Subject) -> Used:
    return _parametrized(nn.utils.parametrizations.spectral_norm, model, _linear_of(model, subject))


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.sin()


@tool("parametrize.register_parametrization, on the owner", "parametrizes", subjects=("gpt2", "bert", "llama", "t5"))
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.nn.utils.parametrize import register_parametrization

    owner = model.get_submodule(subject.owner)
    owner.scale = nn.Parameter(torch.ones(()))
    return _parametrized(lambda module: register_parametrization(module, "scale", _Symmetric()), model, owner, "scale")


@tool("prune.random_unstructured", "parametrizes")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.nn.utils import prune

    linear = _linear_of(model, subject)
    torch.manual_seed(1)
    prune.random_unstructured(linear, "weight", 0.5)

    def off() -> nn.Module:
        prune.remove(linear, "weight")
        return model

    return Used(model, off=off)
