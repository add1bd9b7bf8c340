"""The tools: what each does to a model, and how it is taken off again.

Each is a function of a model and its subject, registered with ``@tool``. A package is imported where it is used: what
is not installed is told, and not run.
"""

# ruff: noqa: ARG001, ARG002 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy
import functools
import io
import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarking.tools.judging import Tool, Used
from scripts.benchmarking.tools.subjects import SUBJECTS, Subject, SwappedPlain

TOOLS: dict[str, Tool] = {}

EVERY = tuple(SUBJECTS)
TRANSFORMERS = tuple(name for name in SUBJECTS if name != "plain")
FEW = ("llama", "plain")
"""For what takes long: gated, and what a root's own forward holds."""


def tool(
    name: str, does: str, package: str = "torch", subjects: tuple[str | Subject, ...] = EVERY, **more: Any
) -> Callable[[Callable[[nn.Module, Subject], Used]], Callable[[nn.Module, Subject], Used]]:
    """Register a tool: see ``Tool``. A subject is one of ``SUBJECTS``, by name, or the tool's own."""
    taken = tuple(SUBJECTS[one] if isinstance(one, str) else one for one in subjects)

    def registered(use: Callable[[nn.Module, Subject], Used]) -> Callable[[nn.Module, Subject], Used]:
        TOOLS[name] = Tool(name, does, package, use, taken, **more)
        return use

    return registered


# ---- copies


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


# ---- saves


def _through(dumps: Callable[[Any], Any], loads: Callable[[Any], Any], model: nn.Module) -> Used:
    return Used(loads(dumps(model)))


@tool("pickle", "saves", "Python")
def _(model: nn.Module, subject: Subject) -> Used:
    return _through(pickle.dumps, pickle.loads, model)


@tool("torch.save, torch.load of a whole model", "saves")
def _(model: nn.Module, subject: Subject) -> Used:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return Used(torch.load(file, weights_only=False))


@tool("cloudpickle", "saves", "cloudpickle")
def _(model: nn.Module, subject: Subject) -> Used:
    import cloudpickle

    return _through(cloudpickle.dumps, cloudpickle.loads, model)


@tool("dill", "saves", "dill")
def _(model: nn.Module, subject: Subject) -> Used:
    import dill

    return _through(dill.dumps, dill.loads, model)


@tool("joblib.dump, joblib.load", "saves", "joblib")
def _(model: nn.Module, subject: Subject) -> Used:
    import joblib

    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(model, Path(folder) / "model")
        return Used(joblib.load(Path(folder) / "model"))


@tool("state_dict, load_state_dict", "saves")
def _(model: nn.Module, subject: Subject) -> Used:
    made = subject.build(isinstance(model, SwappedPlain) or _swapped(model, subject))
    made.load_state_dict(model.state_dict())
    return Used(made, carries="config" if subject.name != "plain" else "weights")


def _swapped(model: nn.Module, subject: Subject) -> bool:
    """Whether the model's configuration names the other function."""
    config = getattr(model, "config", None)
    return config is not None and config.to_dict() != subject.build().config.to_dict()


@tool("save_pretrained, from_pretrained", "saves", "transformers", TRANSFORMERS)
def _(model: nn.Module, subject: Subject) -> Used:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return Used(type(model).from_pretrained(folder).eval(), carries="config")


@tool("safetensors.torch.save_model, load_model", "saves", "safetensors")
def _(model: nn.Module, subject: Subject) -> Used:
    from safetensors.torch import load_model, save_model

    made = subject.build(isinstance(model, SwappedPlain) or _swapped(model, subject))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, f"{folder}/model.safetensors")
        load_model(made, f"{folder}/model.safetensors")
    return Used(made, carries="config" if subject.name != "plain" else "weights")


def _there_and_back(model: nn.Module) -> nn.Module:
    return model


@tool("multiprocessing, spawned", "saves", "torch", ("llama",))
def _(model: nn.Module, subject: Subject) -> Used:
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return Used(copy.deepcopy(pool.apply(copy.copy, (model,))))  # a copy: the memory is the other process's


@tool("ray.put, ray.get", "saves", "ray", ("gpt2", "llama", "bert"))
def _(model: nn.Module, subject: Subject) -> Used:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return Used(copy.deepcopy(ray.get(ray.put(model))))  # a copy: what ray holds cannot be written to


@tool("dask.distributed's serialize", "saves", "distributed", ("gpt2", "llama", "bert", "t5"))
def _(model: nn.Module, subject: Subject) -> Used:
    from distributed.protocol import deserialize, serialize

    return Used(copy.deepcopy(deserialize(*serialize(model, serializers=["pickle"]))))


@tool("skorch's NeuralNet, cloned", "copies", "skorch", ("plain",))
def _(model: nn.Module, subject: Subject) -> Used:
    from sklearn.base import clone
    from skorch import NeuralNet

    net = clone(NeuralNet(model, criterion=nn.MSELoss)).initialize()
    return Used(net.module_.eval())


def _dense(swapped: bool) -> nn.Module:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    return SentenceTransformer(
        modules=[Dense(8, 16, activation_function=nn.SiLU() if swapped else nn.ReLU())], device="cpu"
    )


DENSE = Subject(
    "SentenceTransformer with a Dense",
    "behind a linear layer, saved by its class's name",
    _dense,
    lambda: {"input": {"sentence_embedding": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))}},
    "0",
    "activation_function",
)


@tool("SentenceTransformer.save", "saves", "sentence-transformers", (DENSE,))
def _(model: nn.Module, subject: Subject) -> Used:
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, create_model_card=False)
        return Used(SentenceTransformer(folder, device="cpu").eval(), carries="function")  # the activation's class


# ---- wraps


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


# ---- hooks


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
    dispatch_model(model, _placed(model, subject.owner), main_device="cpu", offload_dir=folder, force_hooks=True)
    return Used(model, off=lambda: remove_hook_from_module(model, recurse=True))


def _placed(model: nn.Module, disk: str) -> dict[str, str]:
    """A device map: one module on disk, everything else on the CPU."""
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


# ---- parametrizes


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


# ---- traces


@tool("torch.export", "traces", subjects=("gpt2", "bert", "llama", "plain"))
def _(model: nn.Module, subject: Subject) -> Used:
    if hasattr(model, "config"):
        model.config.use_cache = False
    program = torch.export.export(model, (), kwargs=subject.inputs(), strict=False)
    exported = program.module()
    return Used(exported, lambda: subject.outputs(exported), carries="function")


@tool(
    "torch.jit.trace",
    "traces",
    subjects=("gpt2", "bert", "llama", "t5", "plain"),
    note="of the module that applies the activation",
)
def _(model: nn.Module, subject: Subject) -> Used:
    owner = model.get_submodule(subject.owner)
    x = torch.randn(3, 8 if subject.name == "plain" else 32, generator=torch.Generator().manual_seed(1))
    traced = torch.jit.trace(owner, (x,))

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [traced(x).clone()]

    return Used(None, run, carries="function")


@tool(
    "torch.fx.symbolic_trace",
    "traces",
    subjects=("gpt2", "bert", "llama", "t5", "plain"),
    note="of the module that applies the activation",
)
def _(model: nn.Module, subject: Subject) -> Used:
    owner = model.get_submodule(subject.owner)
    x = torch.randn(3, 8 if subject.name == "plain" else 32, generator=torch.Generator().manual_seed(1))
    traced = torch.fx.symbolic_trace(owner)

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [traced(x).clone()]

    return Used(None, run, carries="function")


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


# ---- quantizes


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


# ---- attributes


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
