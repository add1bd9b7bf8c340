"""Tools that quantize a model, and one that replaces its functions."""

# ruff: noqa: ARG001 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


@tool("torch.ao's quantize_dynamic", "quantizes", subjects=("bert", "llama", "plain"), tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}))


@tool("torchao's quantize_", "quantizes", "torchao", ("bert", "llama", "t5", "plain"), tolerance=0.02)
def _(model: nn.Module, subject: Subject) -> Used:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return Used(model)


@tool(
    "optimum-quanto's quantize, freeze", "quantizes", "optimum-quanto", ("bert", "llama", "t5", "plain"), tolerance=0.02
)
def _(model: nn.Module, subject: Subject) -> Used:
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)
    return Used(model)


@tool("bitsandbytes's Linear8bitLt", "quantizes", "bitsandbytes", ("bert", "llama", "t5", "plain"), tolerance=0.02)
def _(model: nn.Module, subject: Subject) -> Used:
    import bitsandbytes

    def quantized(linear: nn.Linear) -> nn.Module:
        made = bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
        )
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    return Used(_with_linears(model, quantized))


@tool("hqq's HQQLinear", "quantizes", "hqq", ("bert", "llama", "plain"), tolerance=0.02)
def _(model: nn.Module, subject: Subject) -> Used:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def quantized(linear: nn.Linear) -> nn.Module:
        config = BaseQuantizeConfig(nbits=8, group_size=None)
        return HQQLinear(copy.deepcopy(linear), config, compute_dtype=torch.float32, device="cpu")

    return Used(_with_linears(model, quantized))


def _with_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A model with each linear layer replaced, as quantizers do it."""
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is nn.Linear:
                setattr(parent, name, make(child))
    return model


@tool("nncf's compress_weights", "quantizes", "nncf", ("bert", "plain"), tolerance=0.02)
def _(model: nn.Module, subject: Subject) -> Used:
    import nncf

    return Used(nncf.compress_weights(model, dataset=nncf.Dataset([subject.inputs()])))


# ---- replaces


@tool(
    "Liger-Kernel, on one model",
    "replaces",
    "liger-kernel",
    ("llama",),
    note="its kernel replaced by the two torch ops it computes",
)
def _(model: nn.Module, subject: Subject) -> Used:
    import liger_kernel.transformers.swiglu as swiglu
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers.models.llama import modeling_llama

    class OnCPU:
        apply = staticmethod(lambda gate, up, *_: torch.nn.functional.silu(gate) * up)

    swiglu.LigerSiLUMulFunction = OnCPU
    own = modeling_llama.LlamaMLP
    apply_liger_kernel_to_llama(
        rope=False, rms_norm=False, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )
    modeling_llama.LlamaMLP = own  # which it replaces for every model built later, too
    return Used(model)
