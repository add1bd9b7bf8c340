"""Training steps of tiny models in two processes over gloo, patched before or after accelerate prepares them.

``python distributed_worker.py ddp|fsdp2 FOLDER`` forks the second process. Each writes what came out as JSON.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hf_gelu_patch import patch, unpatch
from hf_gelu_patch.recomputing import held

RANKS, ROWS, MICRO_STEPS, STEPS = 2, 2, 2, 2
"""Processes; rows of each in a micro-step; micro-steps in a step; steps."""
LAYERS = {"llama": "LlamaDecoderLayer", "gpt2": "GPT2Block", "bert": "BertLayer", "opt": "OPTDecoderLayer"}
"""The models, and what is sharded of each. Of OPT this applies the activation itself."""
PATCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": True},
    "tiles": {"tiles": 2},
    "both": {"recompute": True, "tiles": 2},
}
EXACT, BF16 = "no", "bf16"


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        model: which.
        when: the patch comes ``before`` or ``after`` accelerate's prepare; ``never``.
        patch: which.
        precision: accelerate's; ``no``: in float64.
        checkpointing: whether gradient checkpointing is on.
        saved: whether the last step is taken twice, from a state that was saved and loaded.
    """

    model: str
    when: str
    patch: str = "plain"
    precision: str = EXACT
    checkpointing: bool = False
    saved: bool = False

    @property
    def name(self) -> str:
        return " ".join(f"{value}" for value in asdict(self).values())


def cases(model: str) -> tuple[Case, ...]:
    if model == "opt":  # nothing of it runs in tiles
        without = (Case(model, when, which) for when in ("before", "after") for which in ("plain", "recompute"))
        with_it = (Case(model, when, "recompute", checkpointing=True) for when in ("before", "after"))
        return Case(model, "never"), Case(model, "never", precision=BF16), *without, *with_it
    return (
        Case(model, "never"),
        Case(model, "never", precision=BF16),
        *(Case(model, when, which) for when in ("before", "after") for which in ("recompute", "tiles")),
        Case(model, "before", "plain", saved=True),
        Case(model, "after", "both", saved=True),
        Case(model, "before", "both", checkpointing=True),
        Case(model, "after", "both", checkpointing=True),
        Case(model, "after", "both", precision=BF16),
    )


def build(name: str) -> transformers.PreTrainedModel:
    """A model whose activations see numbers of every size, and which draws nothing."""
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64,
        "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if name == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=80))
    elif name == "gpt2":
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **none))
    elif name == "opt":
        sizes |= {"word_embed_proj_dim": 32, "ffn_dim": 80, "activation_function": "gelu_new", "pad_token_id": 0}
        model = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, dropout=0.0))
    else:
        none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        config = transformers.BertConfig(**sizes, **none, intermediate_size=80, num_labels=64)
        model = transformers.BertForTokenClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    model.train()
    return model  # type: ignore[no-any-return]


def rows(step: int, micro: int) -> Tensor:
    """All processes' rows of a micro-step."""
    return torch.randint(64, (RANKS * ROWS, 12), generator=torch.Generator().manual_seed(100 * step + micro))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def numbers(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].detach().double().flatten() for name in sorted(weights)])


@functools.cache
def alone(name: str) -> tuple[Tensor, Tensor]:
    """The weights before and after the same steps, by one process on every process's rows, in float64."""
    model = build(name).double()
    before, optimizer = numbers(model.state_dict()), optimizer_of(model)
    for step in range(STEPS):
        for micro in range(MICRO_STEPS):
            (loss_of(model, rows(step, micro)) / MICRO_STEPS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, numbers(model.state_dict())


def accelerator_of(kind: str, case: Case) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    made = Accelerator(cpu=True, mixed_precision=case.precision, gradient_accumulation_steps=MICRO_STEPS)
    assert made.num_processes == RANKS
    if kind == "fsdp2":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT",
            transformer_cls_names_to_wrap=[LAYERS[case.model]],
        )  # fmt: skip
        if case.precision != EXACT:
            plugin.set_mixed_precision(case.precision)
        # What accelerate sets where there is a GPU. Torch shards on a CPU, too.
        for state in (PartialState._shared_state, AcceleratorState._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return made


class Steps:
    """The training of a prepared model.

    Attributes:
        kept: bytes that the first forward kept for backward, weights left out.
        reduced: by parameter, how often its gradient was handed to DDP's communication.
        fired: how often the hooks of each parameter fired.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.kept = 0
        self.reduced: Counter[int] = Counter()
        self.fired: Counter[int] = Counter()
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(lambda one: self.fired.update([id(one)]))
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.register_comm_hook(None, lambda _, bucket: self.reduced_once(bucket))

    def reduced_once(self, bucket: Any) -> Any:
        self.reduced.update(id(one) for one in bucket.parameters())
        return allreduce_hook(None, bucket)

    def take(self, step: int) -> None:
        for micro in range(MICRO_STEPS):
            with self.accelerator.accumulate(self.model):
                loss = loss_of(self.model, rows(step, micro)[self.accelerator.process_index :: RANKS].contiguous())
                self.kept = self.kept or self.count(loss)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def count(self, loss: Tensor) -> int:
        plain = [weight for weight in self.model.parameters() if type(weight) is nn.Parameter]
        weights = {weight.untyped_storage()._cdata for weight in plain}
        found = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in held(loss)}
        return sum(size for place, size in found.items() if place not in weights)


def trained(kind: str, case: Case, folder: Path) -> dict[str, Any]:
    """What there is to see after some steps; ``error``: of the weights, relative to how far they have moved."""
    accelerator = accelerator_of(kind, case)
    model: Any = build(case.model)
    if case.precision == EXACT:
        model.double()
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own_class = type(model)
    prepared, optimizer, report = model, optimizer_of(model), None
    if case.when == "before":
        report = patch(model, implementation="aten", **PATCHES[case.patch])
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if case.when == "after":
        report = patch(prepared, implementation="aten", **PATCHES[case.patch])
    steps = Steps(accelerator, prepared, optimizer)
    for step in range(STEPS - 1):
        steps.take(step)
    if case.saved:
        accelerator.save_state(str(folder / case.name))
        steps.take(STEPS - 1)
        accelerator.load_state(str(folder / case.name))
    steps.take(STEPS - 1)
    found: dict[str, Any] = {
        "kept": steps.kept,
        "fired": sorted(set(steps.fired.values())),
        "reduced": sorted(set(steps.reduced.values())),
        "in tiles": 0 if report is None else len(report.in_tiles),
    }
    weights = accelerator.get_state_dict(prepared)
    plain = accelerator.unwrap_model(prepared)
    patched_loss = loss_of(plain, rows(9, 0)).item()
    if report is not None:
        unpatch(prepared)
    found["unpatched"] = loss_of(plain, rows(9, 0)).item() / patched_loss - 1
    if weights:  # of FSDP2 the first process has them
        before, after = alone(case.model)
        found["error"] = ((numbers(weights) - after).norm() / (after - before).norm()).item()
    if case.saved:
        place = folder / case.name / "saved"
        plain.save_pretrained(
            place, state_dict=weights, is_main_process=accelerator.is_main_process, save_function=accelerator.save
        )
        accelerator.wait_for_everyone()
        again = own_class.from_pretrained(place, dtype="auto").state_dict()
        found["loaded"] = all(torch.equal(again[name], weight) for name, weight in weights.items())
    return found


def work(kind: str, folder: Path, rank: int, port: int) -> None:
    """One process's trainings."""
    os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{RANKS}", LOCAL_WORLD_SIZE=f"{RANKS}")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for case in (case for model in LAYERS for case in cases(model)):
        try:
            found[case.name] = trained(kind, case, folder)
        except Exception:
            found[case.name] = {"raised": traceback.format_exc()}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = os.fork()
    work(sys.argv[1], Path(sys.argv[2]), 0 if other else 1, port)
    if not other:
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
