"""Tools that wrap, shard, compile or train a model."""

# ruff: noqa: ARG001, ARG002 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.catalogue.registering import FEW, tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject


def _process_group() -> Any:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.init_device_mesh("cpu", (1,))


@tool("DistributedDataParallel", "shards", note="gloo, one process")
def _(model: nn.Module, subject: Subject) -> Used:
    _process_group()
    wrapped = nn.parallel.DistributedDataParallel(model)
    return Used(wrapped, off=lambda: wrapped.module)


@tool("FSDP, FullyShardedDataParallel", "shards", note="gloo, one process")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.distributed.fsdp import FullyShardedDataParallel

    _process_group()
    return Used(FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True))


@tool("FSDP2, fully_shard", "shards", note="gloo, one process")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.distributed.fsdp import fully_shard

    mesh = _process_group()
    if subject.owner:
        fully_shard(model.get_submodule(subject.owner), mesh=mesh)
    for layer in model.get_submodule(subject.layers) if subject.layers else ():
        fully_shard(layer, mesh=mesh)
    return Used(fully_shard(model, mesh=mesh))


@tool("tensor parallel, parallelize_module", "shards", subjects=("llama", "plain"), note="gloo, one process")
def _(model: nn.Module, subject: Subject) -> Used:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = _process_group()
    if subject.name == "llama":
        plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
        parallelize_module(model.get_submodule(subject.owner), mesh, plan)
    else:
        parallelize_module(model, mesh, {"mix": ColwiseParallel(), "out": RowwiseParallel()})
    return Used(model)


_COMPILED = {"subjects": FEW, "note": "backend eager"}


@tool("torch.compile(model)", "compiles", **_COMPILED)
def _(model: nn.Module, subject: Subject) -> Used:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    return Used(compiled, off=lambda: compiled._orig_mod)


@tool("model.forward = torch.compile(model.forward)", "compiles", **_COMPILED)
def _(model: nn.Module, subject: Subject) -> Used:
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="eager")

    def off() -> nn.Module:
        del model.forward
        return model

    return Used(model, off=off)


@tool("layer.compile(), layer by layer", "compiles", **_COMPILED)
def _(model: nn.Module, subject: Subject) -> Used:
    torch._dynamo.reset()
    layers = [*model.get_submodule(subject.layers)] if subject.layers else [model]
    for layer in layers:
        layer.compile(backend="eager")

    def off() -> nn.Module:
        for layer in layers:
            layer._compiled_call_impl = None
        return model

    return Used(model, off=off)


@tool("accelerate's compile_regions", "compiles", "accelerate", ("gpt2", "llama"), note="backend eager")
def _(model: nn.Module, subject: Subject) -> Used:
    from accelerate.utils import compile_regions

    torch._dynamo.reset()
    return Used(compile_regions(model, backend="eager"))


@tool("Accelerator(mixed_precision='bf16').prepare", "wraps", "accelerate", tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model).eval()
    return Used(prepared, off=lambda: accelerator.unwrap_model(prepared, keep_fp32_wrapper=False))


@tool("Trainer, one step in bf16", "wraps", "transformers", ("gpt2", "bert", "llama"), tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    ids = [list(range(3, 11))] * 4
    labels = [0] * 4 if subject.name == "bert" else ids
    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            folder,
            max_steps=1,
            learning_rate=0.0,  # the weights stay as they are
            bf16=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, asked, train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels})).train()
    model.zero_grad()
    return Used(model.eval())


@tool("LightningModule, Trainer.fit, one step", "wraps", "lightning", ("gpt2", "llama", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    import lightning

    class Wrapped(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Tensor) -> Any:
            return self.model(**inputs)

        def training_step(self, batch: Any, index: int) -> Tensor:
            output = self.model(**subject.inputs())
            return (output if isinstance(output, Tensor) else output[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    wrapped = Wrapped()
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(wrapped, torch.utils.data.DataLoader([0]))
    model.zero_grad()
    return Used(wrapped.eval(), off=lambda: wrapped.model)


@tool("lightning.Fabric(precision='bf16-mixed').setup", "wraps", "lightning", FEW, tolerance=0.05)
def _(model: nn.Module, subject: Subject) -> Used:
    import lightning

    wrapped = lightning.Fabric(accelerator="cpu", precision="bf16-mixed").setup(model).eval()
    return Used(wrapped, off=lambda: wrapped.module)


@tool("PEFT LoRA, get_peft_model and unload", "wraps", "peft", ("gpt2", "bert", "llama", "t5", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    wrapped = _with_lora(model, subject)
    return Used(wrapped, off=wrapped.unload)


@tool("PEFT LoRA, merge_and_unload", "wraps", "peft", ("gpt2", "bert", "llama", "t5", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    wrapped = _with_lora(model, subject)
    return Used(wrapped, off=wrapped.merge_and_unload)


_LORA_TARGETS = {
    "gpt2": ["c_fc"],
    "bert": ["query", "intermediate.dense"],
    "llama": ["gate_proj", "up_proj"],
    "t5": ["wi_0", "wi_1"],
    "plain": ["mix", "body.0"],
}


def _with_lora(model: nn.Module, subject: Subject) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapters = LoraConfig(target_modules=_LORA_TARGETS[subject.name], r=2, init_lora_weights=False)
    return get_peft_model(model, adapters).eval()


@tool("opacus's GradSampleModule", "wraps", "opacus", ("bert", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, strict=False)
    return Used(wrapped, off=wrapped.to_standard_module)


@tool("nnsight's NNsight", "hooks", "nnsight", ("gpt2", "llama"))
def _(model: nn.Module, subject: Subject) -> Used:
    from nnsight import NNsight

    traced = NNsight(model)

    def run() -> list[Tensor]:
        with torch.no_grad(), traced.trace(**subject.inputs()):
            output = traced.output.logits.save()
        return [output.detach().clone()]

    return Used(traced, run)


@tool("gradient checkpointing", "wraps", "transformers", ("gpt2", "bert", "llama", "t5"), note="gradients compared")
def _(model: nn.Module, subject: Subject) -> Used:
    model.config.use_cache = False
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def off() -> nn.Module:
        model.gradient_checkpointing_disable()
        return model

    return Used(model, lambda: gradients(model, subject), off)


def gradients(model: nn.Module, subject: Subject) -> list[Tensor]:
    """Those of all weights, in training mode."""
    model.train()
    try:
        output = model(**subject.inputs())
        (output if isinstance(output, Tensor) else output[0]).square().mean().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    finally:
        model.eval()
        model.zero_grad()


@tool("a training step, SGD", "wraps")
def _(model: nn.Module, subject: Subject) -> Used:
    return Used(model, lambda: gradients(model, subject))


@tool("torch.func.functional_call", "wraps")
def _(model: nn.Module, subject: Subject) -> Used:
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def run() -> list[Tensor]:
        return subject.outputs(lambda **inputs: torch.func.functional_call(model, weights, kwargs=inputs))

    return Used(model, run)


@tool("torch.func.vmap, stack_module_state", "wraps", subjects=("plain",))
def _(model: nn.Module, subject: Subject) -> Used:
    def run() -> list[Tensor]:
        weights, buffers = torch.func.stack_module_state([model, model])
        base = copy.deepcopy(model).to("meta")

        def one(weights: Any, buffers: Any, x: Tensor) -> Tensor:
            return torch.func.functional_call(base, (weights, buffers), (x,))

        with torch.no_grad():
            return [torch.vmap(one, in_dims=(0, 0, None))(weights, buffers, subject.inputs()["x"])]

    return Used(model, run)
