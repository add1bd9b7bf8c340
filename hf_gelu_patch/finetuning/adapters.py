"""LoRA: small matrices beside a model's own are trained, and added to them in the end (Hu et al. 2021)."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import first_line
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.classification import Classification
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.settings import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["add_adapters", "check_adapters"]


def check_adapters(training: Training) -> None:
    """See that what the options ask for is there.

    Raises:
        FinetuningError: peft is missing, or an option is for adapters and there are to be none.
    """
    if training.lora_r is None:
        given = {
            "lora_alpha": training.lora_alpha,
            "lora_dropout": training.lora_dropout or None,
            "lora_target_modules": training.lora_target_modules,
        }
        if other := [name for name, value in given.items() if value is not None]:
            raise FinetuningError(f"--{other[0]} is for LoRA: say of which rank with --lora_r, or drop it.")
    elif importlib.util.find_spec("peft") is None:
        raise FinetuningError("--lora_r needs peft, which is not installed: pip install 'hf-gelu-patch[lora]'")


def add_adapters(model: PreTrainedModel, task: Task, training: Training) -> Any:
    """Put adapters beside linear layers of a model. They, and a classifier's head, are what is trained from then on.

    Returns:
        The model in peft's wrapper, around ``model`` itself, whose layers were exchanged.

    Raises:
        FinetuningError: peft cannot.
    """
    from peft import LoraConfig, get_peft_model

    rank = training.lora_r or 0
    head = [
        name
        for name, part in model.named_children()
        if isinstance(task, Classification) and name != model.base_model_prefix and any(True for _ in part.parameters())
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=training.lora_alpha or 2 * rank,
        lora_dropout=training.lora_dropout,
        target_modules=list(training.lora_target_modules or ()) or "all-linear",
        modules_to_save=head or None,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by names that these have renamed
            return get_peft_model(model, config)
    except ValueError as error:
        raise FinetuningError(
            f"peft cannot add adapters: {first_line(error)} Name layers with --lora_target_modules."
        ) from error
