"""Tools that copy a model."""

# ruff: noqa: ARG001 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


def _shallow(model: nn.Module) -> nn.Module:
    """copy.copy of each module of a model, with weights of their own."""
    made = {module: copy.copy(module) for module in model.modules()}
    for module, twin in made.items():
        twin._modules = {name: None if child is None else made[child] for name, child in module._modules.items()}
        twin._parameters = {
            name: None if weight is None else nn.Parameter(weight.detach().clone())
            for name, weight in module._parameters.items()
        }
    return made[model]


@tool("copy.copy, module by module", "copies", "Python")
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(_shallow(model))


@tool("copy.deepcopy", "copies", "Python")
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(copy.deepcopy(model))


@tool("swa_utils.AveragedModel", "copies")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.optim.swa_utils import AveragedModel

    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    return Used(averaged)


def replicas_of(model: nn.Module) -> nn.Module:
    """torch.nn.parallel.replicate's own steps, onto the same device; the weights are copies."""
    made = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in made.items():
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else made[child])
        for name, weight in module._parameters.items():
            # In a real replica they are plain tensors in __dict__; parameters can be changed as those of others are.
            replica._parameters[name] = None if weight is None else nn.Parameter(weight.detach().clone())
        for name, buffer in module._buffers.items():
            replica._buffers[name] = buffer
    return made[model]


@tool("nn.DataParallel's replicas", "copies", note="`replicate`'s own steps, on one device")
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(replicas_of(model))


@tool("Module.to(bfloat16)", "copies", note="in place, as torch does it", tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    def run() -> list[Tensor]:
        inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in subject.inputs().items()}
        with torch.no_grad():
            output = model(**inputs)
        return [(output if isinstance(output, Tensor) else output[0]).detach().clone()]

    model.bfloat16()
    return Used(model, run)


@tool("Module.to_empty, load_state_dict", "copies")
def _(model: nn.Module, subject: Subject) -> Used:
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    others = {name: buffer.clone() for name, buffer in model.named_buffers()}  # those that are not saved, too
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(weights)
    for name, buffer in model.named_buffers():
        buffer.copy_(others[name])
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return Used(model)


@tool("Module.share_memory", "copies")
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(model.share_memory())
