"""How to train: the options of fine-tuning that are not an evaluation's too."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from hf_gelu_patch.evaluation.options.declaring import GROUPS, above_zero, finite, option, positive

__all__ = ["LATEST", "Training"]

_DATA, _, _TRAINING, _ = GROUPS

LATEST = "latest"
"""Stands for the newest checkpoint of a run."""


def _not_negative(text: str) -> float:
    number = finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: it takes a number that is not negative")
    return number


def _whole(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _how_often(text: str) -> int | str:
    return text if text == "epoch" else positive(text)


@dataclass(frozen=True)
class Training:
    """How to train. Each option says of itself what it is; they are called as in Hugging Face's example scripts."""

    train_file: Path | str | None = option(
        None,
        "what to train on, as --validation_file; of several splits the one called train",
        _DATA,
        metavar="DATA",
    )
    new_head: bool = option(
        False, "give a classifier a new head, for the labels of the training data; an encoder becomes one", _DATA
    )
    per_device_train_batch_size: int = option(
        8, "examples that a process takes at once (default: 8)", _TRAINING, metavar="N", read=positive
    )
    gradient_accumulation_steps: int = option(
        1, "such batches of each process in one step (default: 1)", _TRAINING, metavar="N", read=positive
    )
    learning_rate: float = option(
        5e-5, "AdamW's, at its largest (default: 5e-5)", _TRAINING, metavar="X", read=above_zero
    )
    weight_decay: float = option(
        0.0, "AdamW's, of matrices; biases and norms have none (default: 0)", _TRAINING, metavar="X", read=_not_negative
    )
    max_grad_norm: float = option(
        1.0, "gradients of a larger norm are made so long (default: 1)", _TRAINING, metavar="X", read=above_zero
    )
    lr_scheduler_type: str = option(
        "linear",
        "what becomes of the learning rate (default: linear)",
        _TRAINING,
        choices=("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"),
    )
    num_warmup_steps: int = option(
        0, "steps in which the learning rate rises from 0 (default: 0)", _TRAINING, metavar="N", read=_whole
    )
    num_train_epochs: int = option(
        3, "how often each example comes up (default: 3)", _TRAINING, metavar="N", read=positive
    )
    max_train_steps: int | None = option(None, "train for so many steps instead", _TRAINING, metavar="N", read=positive)
    group_by_length: bool = option(False, "put texts of like length into one batch: less padding", _TRAINING)
    gradient_checkpointing: bool = option(
        False, "keep less for the backward pass, and compute it again there", _TRAINING
    )
    mixed_precision: str | None = option(
        None,
        "compute in this where it is safe (default: as accelerate launch says, else no)",
        _TRAINING,
        choices=("no", "bf16", "fp16"),
    )
    checkpointing_steps: int | str = option(
        "epoch", "write a checkpoint every N steps, or each epoch (default: epoch)", _TRAINING, metavar="N",
        read=_how_often,
    )  # fmt: skip
    save_total_limit: int = option(
        2, "checkpoints that are kept, the newest ones (default: 2)", _TRAINING, metavar="N", read=positive
    )
    resume_from_checkpoint: str | None = option(
        None,
        f"go on from a checkpoint: its folder, or {LATEST} for the newest of --output_dir (from the beginning where "
        "there is none yet)",
        _TRAINING,
        metavar="CHECKPOINT",
    )
    lora_r: int | None = option(
        None, "train LoRA adapters of this rank, not the weights (needs peft)", _TRAINING, metavar="N", read=positive
    )
    lora_alpha: int | None = option(
        None, "adapters count α / rank (default: twice the rank)", _TRAINING, metavar="N", read=positive
    )
    lora_dropout: float = option(
        0.0, "of what adapters are given (default: 0)", _TRAINING, metavar="X", read=_not_negative
    )
    lora_target_modules: tuple[str, ...] | None = option(
        None, "the layers that get one; may be repeated (default: all linear ones)", _TRAINING, metavar="NAME",
        repeated=True,
    )  # fmt: skip
