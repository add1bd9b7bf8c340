"""Tools that trace or export a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


@tool("torch.export", "traces", subjects=("gpt2", "bert", "llama", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    if hasattr(model, "config"):
        model.config.use_cache = False
    program = torch.export.export(model, (), kwargs=subject.inputs(), strict=False)
    exported = program.module()
    return Used(exported, lambda: subject.outputs(exported), carries="function")


def _of_its_owner(trace: Callable[[nn.Module, Tensor], Any], model: nn.Module, subject: Subject) -> Used:
    """The trace of the module that applies the activation."""
    owner = model.get_submodule(subject.owner)
    x = torch.randn(3, 8 if subject.name == "plain" else 32, generator=torch.Generator().manual_seed(1))
    traced = trace(owner, x)

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [traced(x).clone()]

    return Used(None, run, carries="function")


@tool(
    "torch.jit.trace",
    "traces",
    subjects=("gpt2", "bert", "llama", "t5", "plain"),
    note="of the module that applies the activation",
)
def _(model: nn.Module, subject: Subject) -> Used:
    return _of_its_owner(lambda owner, x: torch.jit.trace(owner, (x,)), model, subject)


@tool(
    "torch.fx.symbolic_trace",
    "traces",
    subjects=("gpt2", "bert", "llama", "t5", "plain"),
    note="of the module that applies the activation",
)
def _(model: nn.Module, subject: Subject) -> Used:
    return _of_its_owner(lambda owner, _: torch.fx.symbolic_trace(owner), model, subject)


@tool(
    "torch.onnx.export, run by onnxruntime", "traces", "onnxruntime", ("gpt2", "bert", "llama", "plain"), tolerance=1e-4
)
def _(model: nn.Module, subject: Subject) -> Used:
    import onnxruntime

    if hasattr(model, "config"):
        model.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(model, (), kwargs=subject.inputs(), dynamo=True, verbose=False)
        program.save(f"{folder}/model.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx")

    def run() -> list[Tensor]:
        given = {one.name: subject.inputs()[one.name].numpy() for one in session.get_inputs()}
        return [torch.from_numpy(session.run(None, given)[0])]

    return Used(None, run, carries="function")
