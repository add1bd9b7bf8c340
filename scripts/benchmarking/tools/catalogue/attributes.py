"""Tools that attribute an output to inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


def _baseline(model: nn.Module, subject: Subject) -> tuple[Callable[..., Tensor], Tensor]:
    """(a function of floats alone, such floats)."""
    if subject.name == "plain":
        return model, subject.inputs()["x"]
    embedded = model.get_input_embeddings()(subject.inputs()["input_ids"]).detach()
    return lambda x: model(inputs_embeds=x).logits.flatten(1)[:, :3], embedded


@tool("captum's IntegratedGradients", "attributes", "captum", ("bert", "llama", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    from captum.attr import IntegratedGradients

    def run() -> list[Tensor]:
        function, x = _baseline(model, subject)
        return [IntegratedGradients(function).attribute(x, target=0, n_steps=5).detach()]

    return Used(model, run)


@tool("captum's DeepLift", "attributes", "captum", ("plain",))
def _(model: nn.Module, subject: Subject) -> Used:
    from captum.attr import DeepLift

    return Used(model, lambda: [DeepLift(model).attribute(subject.inputs()["x"], target=0).detach()])


@tool("captum's GuidedBackprop", "attributes", "captum", ("plain",))
def _(model: nn.Module, subject: Subject) -> Used:
    from captum.attr import GuidedBackprop

    def run() -> list[Tensor]:
        return [GuidedBackprop(model).attribute(subject.inputs()["x"].requires_grad_(), target=0).detach()]

    return Used(model, run)


@tool("captum's LayerConductance", "attributes", "captum", ("bert", "llama", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    from captum.attr import LayerConductance

    def run() -> list[Tensor]:
        function, x = _baseline(model, subject)
        layer = model.get_submodule(f"{subject.owner}.{subject.act}".lstrip("."))
        found = LayerConductance(function, layer).attribute(x, target=0, n_steps=5)
        return [found.detach()]

    return Used(model, run)
