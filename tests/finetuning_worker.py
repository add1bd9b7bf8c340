"""One run of fine-tuning in a process, or its part of one in several, for ``multiprocessing`` to start."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_IMPORTED = [
    "finetuning_worker",
    "hf_gelu_patch.finetuning.run",
    "hf_gelu_patch.finetuning.curves",
    "transformers.models.bert.modeling_bert",
]


def request(model: Path, data: Path, folder: Path, activation: str | None = None, **training: Any) -> Any:
    """What to train, and how: quickly, with everything in it that a run has to restore."""
    from hf_gelu_patch.evaluation.loading.subjects import subject
    from hf_gelu_patch.evaluation.options.settings import Settings
    from hf_gelu_patch.evaluation.variants import Variant
    from hf_gelu_patch.finetuning.run import Request
    from hf_gelu_patch.finetuning.settings import Training

    usual = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "num_warmup_steps": 2,
        "checkpointing_steps": 3,
    }
    return Request(
        subject(str(model), validation_file=str(data), task="text-classification"),
        Settings(seed=5),
        Training(train_file=data, **{**usual, **training}),
        Variant.of(activation=activation),
        folder,
    )


def work(rank: int, world: int, port: int, arguments: Sequence[Any], training: dict[str, Any]) -> None:
    if world > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    import torch
    from accelerate import Accelerator

    from hf_gelu_patch.finetuning.run import finetune

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    finetune(request(*arguments, **training), accelerator, lambda _, __: None)
    accelerator.end_training()


def start(world: int, *arguments: Any, **training: Any) -> list[BaseProcess]:
    """The processes of a run, started; arguments as for ``request``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: list[BaseProcess] = []
    for rank in range(world):
        process = context.Process(target=work, args=(rank, world, port, arguments, training), daemon=True)
        process.start()
        found.append(process)
    return found
