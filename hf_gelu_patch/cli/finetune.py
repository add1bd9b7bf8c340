"""``hf-gelu-patch finetune``: a model trained after a patch, and measured before, between and after."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.cli.evaluate import Evaluate
from hf_gelu_patch.cli.loading import named_loading
from hf_gelu_patch.cli.patching import check_names, named_variant, prepare_libraries
from hf_gelu_patch.cli.processes import Processes
from hf_gelu_patch.cli.progress import progress
from hf_gelu_patch.evaluation.data.paths import data_file
from hf_gelu_patch.evaluation.loading.checkpoints import checkpoint
from hf_gelu_patch.evaluation.loading.subjects import look_up, subject
from hf_gelu_patch.evaluation.options.declaring import declared, made, option
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.tasks.registry import task_info
from hf_gelu_patch.evaluation.tasks.user_file import own_file
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.settings import LATEST, Training

__all__ = ["COMMAND"]

_SETTINGS = (
    "skip_bad_rows",
    "limit",
    "batch_size",
    "margin",
    "seed",
)
"""The options of an evaluation that training has a use for."""

_LOADING = ("trust_remote_code", "dtype", "attn_implementation", "revision", "subfolder", "gguf_file")
"""Those of loading: what is trained is a model of its own, whole and on one device."""


@dataclass(frozen=True)
class Finetune:
    """What the command takes, beside what other classes declare."""

    model: str | None = option(
        None,
        "the model to train: a checkpoint folder, a reference model, or an id on the hub",
        "models and data",
        metavar="MODEL",
        spelled="model_name_or_path",
    )
    output_dir: Path | None = option(
        None, "for the trained model, checkpoints and results: a new folder", "training", metavar="FOLDER", read=Path
    )


def _run(said: Said) -> int:
    start = time.perf_counter()
    options, processes = made(Finetune, said), made(Processes, said)
    prepare_libraries(allow_download=bool(said.get("allow_download")))
    if options.model is None:
        raise FinetuningError("there is no model to train: name one with --model_name_or_path.")
    if options.output_dir is None:
        raise FinetuningError("there is no folder to write to: name a new one with --output_dir.")
    processes.check()
    training = _training(said)
    loading = named_loading(said)
    subject_ = _subject(said, options.model, loading)
    variant = named_variant(said)
    check_names([variant])
    try:
        from hf_gelu_patch.finetuning.run import STAGES, Request, finetune
    except ModuleNotFoundError as error:
        raise FinetuningError(
            f"fine-tuning needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    accelerator = processes.accelerator()
    settings = made(Settings, said, loading=loading)
    request = Request(
        subject_, settings, training, variant, options.output_dir, ("hf-gelu-patch", *map(str, sys.argv[1:]))
    )
    try:
        with progress(accelerator.is_main_process, 1, STAGES) as tell:
            data = finetune(request, accelerator, tell(subject_.name))
        if accelerator.is_main_process:
            _show(data)
            print(f"\n{time.perf_counter() - start:.0f} s; written to {options.output_dir}")
        accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()
    return 0


def _training(said: Said) -> Training:
    training = made(Training, said)
    if training.train_file is None:
        raise FinetuningError(
            "there are no data to train on: name them with --train_file FILE (what --validation_file takes too)."
        )
    download = bool(said.get("allow_download"))
    return replace(training, train_file=data_file(str(training.train_file), allow_download=download))


def _subject(said: Said, model: str, loading: Loading) -> Subject:
    asked = {name: said[name] for name in declared(Subject) if name in said}
    look_up(asked)
    found = subject(model, loading, **asked)
    if (adapter := checkpoint(found.model, loading, allow_download=found.allow_download).adapter) is not None:
        raise FinetuningError(
            f"{adapter} is a PEFT adapter, and what is trained here is a model. Merge the two with peft: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder). Save the tokenizer "
            "to that folder too, and name it."
        )
    if not own_file(found.task) and not task_info(found.task).answers:
        raise FinetuningError(f"{found.task} has no right answers to learn from: name another --task.")
    return found


def _show(data: Mapping[str, Any]) -> None:
    from rich.console import Console

    from hf_gelu_patch.finetuning.results import print_results

    print_results(dict(data), Console())


_EXAMPLES = """\
examples:
  hf-gelu-patch finetune --model_name_or_path ./my-model --train_file train.csv --validation_file test.csv \\
      --output_dir tuned
      trained as it is, its activations computed faster where that is known to pay
  hf-gelu-patch finetune --model_name_or_path ./my-model --activation silu --train_file train.csv \\
      --validation_file test.csv --num_train_epochs 1 --output_dir silu
      with another function: what the swap costs, and what an epoch gives back
  hf-gelu-patch finetune … --output_dir silu --resume_from_checkpoint latest
      the same command once more, after a run that was killed
  hf-gelu-patch finetune … --lora_r 16 --learning_rate 2e-4
      LoRA adapters in place of the weights (pip install 'hf-gelu-patch[lora]')
  torchrun --standalone --nproc_per_node 2 -m hf_gelu_patch finetune … --num_processes 2
      two processes, on CPU too

Options may be spelled with dashes as well. The exit status is 0; 1 where something that was named cannot be used; 2 for
options that make no sense.
"""

COMMAND = Command(
    "finetune",
    "train a model after a patch, and measure it before, between and after",
    "Train a model, with its functions or with others: its quality as it came, after the swap, and after training. "
    "What is written loads with from_pretrained.",
    _run,
    declared(Evaluate, "config")
    | declared(Finetune)
    | declared(Subject)
    | declared(Settings, *_SETTINGS)
    | declared(Loading, *_LOADING)
    | declared(Variant)
    | declared(Training)
    | declared(Processes),
    _EXAMPLES,
    lambda _: ("--resume_from_checkpoint", LATEST),
)
