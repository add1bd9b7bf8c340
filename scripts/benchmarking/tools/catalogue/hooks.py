"""Tools that hook into a model, and those that count what it does."""

# ruff: noqa: ARG001 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy
import functools
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


@tool("forward and backward hooks", "hooks")
def _(model: nn.Module, subject: Subject) -> Used:
    kept: list[Tensor] = []
    handles = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.extend(x.detach() for x in (*args, output) if isinstance(x, Tensor))

    for path in (subject.owner, f"{subject.owner}.{subject.act}".lstrip(".")):
        try:
            handles.append(model.get_submodule(path).register_forward_hook(keep))
        except AttributeError:  # xlm's swapped activation is a function
            continue

    def run() -> list[Tensor]:
        kept.clear()
        output = subject.outputs(model)
        return [*output, *kept] if subject.name != "xlm" else output

    def off() -> nn.Module:
        for handle in handles:
            handle.remove()
        return model

    return Used(model, run, off)


@tool("accelerate's cpu_offload", "hooks", "accelerate")
def _(model: nn.Module, subject: Subject) -> Used:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    cpu_offload(model, execution_device=torch.device("cpu"), state_dict=weights)
    return Used(model, off=lambda: remove_hook_from_module(model, recurse=True))


@tool("accelerate's dispatch_model, to disk", "hooks", "accelerate", ("gpt2", "bert", "llama"))
def _(model: nn.Module, subject: Subject) -> Used:
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_module

    folder = tempfile.mkdtemp()
    dispatch_model(model, device_map(model, subject.owner), main_device="cpu", offload_dir=folder, force_hooks=True)
    return Used(model, off=lambda: remove_hook_from_module(model, recurse=True))


def device_map(model: nn.Module, disk: str) -> dict[str, str]:
    """One module on disk, everything else on the CPU."""
    placed: dict[str, str] = {}

    def cover(prefix: str, module: nn.Module) -> None:
        if prefix == disk:
            placed[prefix] = "disk"
        elif prefix and not disk.startswith(prefix + "."):
            placed[prefix] = "cpu"
        else:
            for name, child in module.named_children():
                cover(f"{prefix}.{name}" if prefix else name, child)

    cover("", model)
    return placed


@tool("accelerate's add_hook_to_module", "hooks", "accelerate")
def _(model: nn.Module, subject: Subject) -> Used:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    owner = model.get_submodule(subject.owner)
    add_hook_to_module(owner, ModelHook())

    def off() -> nn.Module:
        remove_hook_from_module(owner)
        return model

    return Used(model, off=off)


@tool("diffusers's group offloading", "hooks", "diffusers", ("gpt2", "bert", "llama"))
def _(model: nn.Module, subject: Subject) -> Used:
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    return Used(model, off=functools.partial(_without_diffusers_hooks, model))


@tool("diffusers's layerwise casting", "hooks", "diffusers", ("bert", "llama", "plain"), tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(model, torch.bfloat16, torch.float32)
    return Used(model)  # its hook refuses to be taken off


def _without_diffusers_hooks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if (registry := getattr(module, "_diffusers_hook", None)) is not None:
            for name in [*registry.hooks]:
                registry.remove_hook(name)
    return model


@tool(
    "torchinfo.summary", "hooks", "torchinfo", ("gpt2", "bert", "llama", "plain"), note="multiply-adds and parameters"
)
def _(model: nn.Module, subject: Subject) -> Used:
    import torchinfo

    def run() -> list[Tensor]:
        found = torchinfo.summary(model, input_data=subject.inputs(), verbose=0)
        return [torch.tensor([found.total_mult_adds, found.total_params], dtype=torch.float64)]

    return Used(model, run)


@tool("torch's FlopCounterMode", "hooks")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.utils.flop_counter import FlopCounterMode

    def run() -> list[Tensor]:
        with FlopCounterMode(display=False) as counted:
            subject.outputs(model)
        return [torch.tensor([float(counted.get_total_flops())])]

    return Used(model, run)


@tool("thop.profile", "hooks", "thop", ("bert", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    import thop

    def run() -> list[Tensor]:
        found = thop.profile(copy.deepcopy(model), inputs=tuple(subject.inputs().values()), verbose=False)
        return [torch.tensor(found, dtype=torch.float64)]

    return Used(model, run)


@tool("fvcore's FlopCountAnalysis", "traces", "fvcore", ("bert", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    from fvcore.nn import FlopCountAnalysis

    def run() -> list[Tensor]:
        found = FlopCountAnalysis(model, tuple(subject.inputs().values()))
        return [torch.tensor([float(found.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())])]

    return Used(model, run)
